"""The gate: at most so many calls at once, a bounded queue before it, and a refusal at once beyond that."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from mesh.errors import ResourceExhausted

if TYPE_CHECKING:
    from mesh.call import Call, Handler

__all__ = ["Gate", "queue_full"]

RETRY_AFTER = 1.0
"""Seconds that a refused caller is told to wait."""


class Gate:
    """A layer that bounds the calls in flight; calls wait in arrival order.

    Args:
        limit: Calls in flight, 0 or more. 0 holds every call in the queue until ``resize``.
        queue: Calls that may wait for a place.

    Attributes:
        in_flight: Calls inside now.
    """

    __slots__ = ("_waiting", "in_flight", "limit", "queue")

    def __init__(self, limit: int, queue: int) -> None:
        self.limit = limit
        self.queue = queue
        self.in_flight = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def waiting(self) -> int:
        """Calls in the queue now."""
        return len(self._waiting)

    async def __call__(self, call: Call, next: Handler) -> None:
        """Let the call through when there is room.

        Raises:
            ResourceExhausted: The queue is full.
        """
        if self.in_flight < self.limit and not self._waiting:
            self.in_flight += 1
        else:
            await self._wait()
        try:
            await next(call)
        finally:
            self.in_flight -= 1
            self._admit()

    def resize(self, limit: int) -> None:
        """Change the limit; what is inside stays inside, what waits enters if there is room now."""
        self.limit = limit
        self._admit()

    async def _wait(self) -> None:
        if len(self._waiting) >= self.queue:
            raise queue_full(self.in_flight, self.queue)
        place = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():  # admitted and cancelled in one turn: hand the place on
                self.in_flight -= 1
                self._admit()
            elif place in self._waiting:
                self._waiting.remove(place)
            raise

    def _admit(self) -> None:
        while self._waiting and self.in_flight < self.limit:
            place = self._waiting.popleft()
            if not place.done():
                self.in_flight += 1
                place.set_result(None)


def queue_full(in_progress: int, waiting: int) -> ResourceExhausted:
    """Return the status of a call that a full queue refuses.

    Args:
        in_progress: Calls in progress now.
        waiting: Calls that may wait, all of which do.
    """
    return ResourceExhausted(
        f"{in_progress} calls are in flight and {waiting} wait; try again later", retry_after=RETRY_AFTER
    )
