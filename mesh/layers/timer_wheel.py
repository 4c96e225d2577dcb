"""Timer wheel: cheap timers for thousands of timeouts that are nearly all cancelled.

A timer of the event loop costs a call two to three microseconds (under uvloop it is a handle of libuv that is started,
stopped and closed). Here all timers that expire within the same slot of 5 ms share one of them, and to add a timer is
to add it to a set. A timer expires up to one slot late, never early.

Source: G. Varghese, T. Lauck, "Hashed and hierarchical timing wheels", SOSP 1987 (scheme 5, with a heap of the used
slots instead of a ring).
"""

from __future__ import annotations

import asyncio
from heapq import heappop, heappush
from typing import Any, Protocol

from mesh.boundary import cancel_task, uncancel_task

__all__ = ["Expirable", "TaskTimeout", "TimerWheel", "timer_wheel"]

SLOT_SECONDS = 0.005
"""Length of a slot, and the delay by which a timer may be late."""
_SLOTS_PER_SECOND = 1 / SLOT_SECONDS


class Expirable(Protocol):
    """Object with a timer."""

    def expire(self) -> None:
        """Handle the end of the time."""


class TimerWheel:
    """Timers of one event loop."""

    __slots__ = ("_armed", "_loop", "_slots", "_timer", "_times")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._slots: dict[int, set[Expirable]] = {}
        self._times: list[int] = []
        self._armed = 0
        self._timer: asyncio.TimerHandle | None = None

    def add(self, when: float, target: Expirable) -> set[Expirable]:
        """Schedule ``target.expire()`` at ``when``, or up to ``SLOT_SECONDS`` later.

        Args:
            when: Loop time, seconds.
            target: An object that is hashable by identity.

        Returns:
            The slot. To cancel the timer, ``discard`` the target from it.
        """
        time = int(when * _SLOTS_PER_SECOND) + 1
        slot = self._slots.get(time)
        if slot is None:
            slot = self._slots[time] = set()
            heappush(self._times, time)
            if self._timer is None or time < self._armed:
                self._arm(time)
        slot.add(target)
        return slot

    def _arm(self, time: int) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._armed = time
        self._timer = self._loop.call_at(time * SLOT_SECONDS, self._turn)

    def _turn(self) -> None:
        self._timer = None
        now = self._loop.time()
        times, slots = self._times, self._slots
        due: list[Expirable] = []
        while times and (times[0] * SLOT_SECONDS <= now or not slots[times[0]]):
            due += slots.pop(heappop(times))
        if times:
            self._arm(times[0])
        for target in due:
            target.expire()


class TaskTimeout:
    """Timeout of a task: cancels the task when it expires.

    Attributes:
        expired: Whether the timeout has expired.
    """

    __slots__ = ("_task", "expired")

    def __init__(self, task: asyncio.Task[Any]) -> None:
        self._task = task
        self.expired = False

    def expire(self) -> None:
        """Cancel the task."""
        self.expired = True
        cancel_task(self._task)

    @property
    def sole_cause(self) -> bool:
        """Whether the timeout cancelled the task and nothing else did."""
        return self.expired and self._task.cancelling() <= 1

    def uncancel(self) -> None:
        """Take the cancellation back, so that it does not hit the code that follows."""
        if self.expired:
            uncancel_task(self._task)


_wheels: dict[asyncio.AbstractEventLoop, TimerWheel] = {}


def timer_wheel(task: asyncio.Task[Any] | None = None) -> TimerWheel:
    """Return the timer wheel of the running event loop.

    Args:
        task: A task of the loop. With it, Python 3.11 needs no system call to find the loop.
    """
    loop = asyncio.get_running_loop() if task is None else task.get_loop()
    found = _wheels.get(loop)
    if found is None:
        for closed in [other for other in _wheels if other.is_closed()]:
            del _wheels[closed]
        found = _wheels[loop] = TimerWheel(loop)
    return found
