"""Concurrency limit: bounds the calls in progress, queues a few more, and refuses the rest at once."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from mesh.errors import ResourceExhausted

if TYPE_CHECKING:
    from mesh.call import Call, Handler

__all__ = ["ConcurrencyLimit", "queue_full"]

RETRY_AFTER_SECONDS = 1.0
"""Delay in the ``Retry-After`` of a refused call."""


class ConcurrencyLimit:
    """Layer that bounds the calls in progress. Queued calls get their permit in order of arrival.

    Args:
        limit: Calls in progress at most.
        queue: Calls that may wait for a permit.

    Attributes:
        in_flight: Calls in progress now.
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
        """Run the rest of the chain while the call holds a permit.

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

    async def _wait(self) -> None:
        if len(self._waiting) >= self.queue:
            raise queue_full(self.in_flight, self.queue)
        permit = asyncio.get_running_loop().create_future()
        self._waiting.append(permit)
        try:
            await permit
        except asyncio.CancelledError:
            if permit.done() and not permit.cancelled():  # granted and cancelled in one turn of the loop: pass it on
                self.in_flight -= 1
                self._admit()
            elif permit in self._waiting:
                self._waiting.remove(permit)
            raise

    def _admit(self) -> None:
        while self._waiting and self.in_flight < self.limit:
            permit = self._waiting.popleft()
            if not permit.done():
                self.in_flight += 1
                permit.set_result(None)


def queue_full(in_progress: int, waiting: int) -> ResourceExhausted:
    """Return the status of a call that a full queue refuses.

    Args:
        in_progress: Calls in progress now.
        waiting: Calls that may wait, all of which do.
    """
    return ResourceExhausted(
        f"{in_progress} calls are in progress and {waiting} wait; try again later", retry_after=RETRY_AFTER_SECONDS
    )
