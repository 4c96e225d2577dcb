"""A timer wheel: thousands of timeouts that nearly all are called off, for the price of a set each.

A loop's own timer costs a call two to three microseconds (under uvloop a handle of libuv, started, stopped and closed).
Here all timeouts that end within the same few milliseconds share one. What is timed is told a little late, never early.

Source: G. Varghese, T. Lauck, "Hashed and hierarchical timing wheels", SOSP 1987 (scheme 5, with a heap of the slots
that are in use instead of a ring).
"""

from __future__ import annotations

import asyncio
from heapq import heappop, heappush
from typing import Any, Protocol

from mesh.boundary import restore, revoke

__all__ = ["Limit", "Timed", "Wheel", "wheel"]

SLOT = 0.005
"""Seconds that a slot spans: how late a timeout may be."""
_PER_SECOND = 1 / SLOT


class Timed(Protocol):
    """What has a time limit."""

    def expire(self) -> None:
        """Take note that it has passed."""


class Wheel:
    """The timeouts of one event loop."""

    __slots__ = ("_armed", "_loop", "_slots", "_timer", "_times")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._slots: dict[int, set[Timed]] = {}
        self._times: list[int] = []
        self._armed = 0
        self._timer: asyncio.TimerHandle | None = None

    def add(self, when: float, timed: Timed) -> set[Timed]:
        """Let ``timed.expire()`` be called at ``when``, or up to ``SLOT`` seconds later.

        Args:
            when: In the loop's time, seconds.
            timed: Hashable by identity.

        Returns:
            The slot. ``discard`` it from there and nothing is called.
        """
        time = int(when * _PER_SECOND) + 1
        slot = self._slots.get(time)
        if slot is None:
            slot = self._slots[time] = set()
            heappush(self._times, time)
            if self._timer is None or time < self._armed:
                self._arm(time)
        slot.add(timed)
        return slot

    def _arm(self, time: int) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._armed = time
        self._timer = self._loop.call_at(time * SLOT, self._turn)

    def _turn(self) -> None:
        self._timer = None
        now = self._loop.time()
        times, slots = self._times, self._slots
        due: list[Timed] = []
        while times and (times[0] * SLOT <= now or not slots[times[0]]):
            due += slots.pop(heappop(times))
        if times:
            self._arm(times[0])
        for timed in due:
            timed.expire()


class Limit:
    """A time limit of a task: when it passes, the task is cancelled.

    Attributes:
        passed: Whether it has.
    """

    __slots__ = ("_task", "passed")

    def __init__(self, task: asyncio.Task[Any]) -> None:
        self._task = task
        self.passed = False

    def expire(self) -> None:
        """Cancel the task."""
        self.passed = True
        revoke(self._task)

    @property
    def alone(self) -> bool:
        """Whether it, and nobody else, has cancelled the task."""
        return self.passed and self._task.cancelling() <= 1

    def lift(self) -> None:
        """Take the cancellation back, which must not hit what follows."""
        if self.passed:
            restore(self._task)


_wheels: dict[asyncio.AbstractEventLoop, Wheel] = {}


def wheel(task: asyncio.Task[Any] | None = None) -> Wheel:
    """Return the wheel of the running loop, which a task of it tells without a system call (up to Python 3.11)."""
    loop = asyncio.get_running_loop() if task is None else task.get_loop()
    found = _wheels.get(loop)
    if found is None:
        for closed in [other for other in _wheels if other.is_closed()]:
            del _wheels[closed]
        found = _wheels[loop] = Wheel(loop)
    return found
