"""Concurrency limit: bounds the calls in progress, shares the permits fairly, queues a few more, refuses the rest.

The decisions are those of ``mesh.layers.fair_queue``. This module adds tasks, deadlines and statuses. A call holds its
permit while the rest of the chain runs and releases it exactly once, whatever ends the call. A waiting call is in one
of three states: it waits, it was admitted (it holds a permit, also before its task runs again), or it was refused (it
holds none). The first change of state counts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING

from mesh.errors import DeadlineExceeded, ResourceExhausted, StatusError
from mesh.layers.fair_queue import FairQueue, QueueFull, Shares, Waiter
from mesh.layers.timer_wheel import timer_wheel

if TYPE_CHECKING:
    from mesh.call import Call, Handler

__all__ = ["ConcurrencyLimit", "ShareKeys", "queue_full"]

RETRY_AFTER_SECONDS = 1.0
"""Delay in the ``Retry-After`` of a refused call."""

ShareKeys = Callable[["Call"], tuple[Hashable | None, ...]]
"""Keys of a call's shares, one for each dimension, always in the same order; None: no share in this dimension."""


def _no_keys(_: Call) -> tuple[Hashable | None, ...]:
    return ()


class ConcurrencyLimit:
    """Layer that bounds the calls in progress.

    The calls of each method are one share. ``share_keys`` names the others, such as the connection, the client's
    address, the user, the target service or the calling service. Shares bind only near the limit (``FairQueue``).

    A call that waits is refused when its deadline passes. Its task is not cancelled for that, so the layer may stand
    inside of ``deadline`` or outside.

    Args:
        limit: Calls in progress at most.
        queue: Calls that may wait for a permit.
        share_keys: Function from a call to the keys of its shares.
    """

    __slots__ = ("_queue", "_share_keys")

    def __init__(self, limit: int, queue: int, share_keys: ShareKeys = _no_keys) -> None:
        self._queue: FairQueue[_WaitingCall] = FairQueue(limit, queue)
        self._share_keys = share_keys

    @property
    def limit(self) -> int:
        """Calls in progress at most."""
        return self._queue.limit

    @limit.setter
    def limit(self, limit: int) -> None:
        self._queue.limit = limit
        self._admit()

    @property
    def in_flight(self) -> int:
        """Calls in progress now."""
        return self._queue.running

    @property
    def waiting(self) -> int:
        """Calls in the queue now."""
        return self._queue.waiting

    async def __call__(self, call: Call, next: Handler) -> None:
        """Run the rest of the chain while the call holds a permit.

        Raises:
            ResourceExhausted: The queue is full.
            DeadlineExceeded: The deadline passed while the call waited.
        """
        queue = self._queue
        method = call.method
        shares = queue.shares((None if method is None else method.path, *self._share_keys(call)))
        if not queue.enter(shares):
            await self._wait(call, shares)
        try:
            await next(call)
        finally:
            queue.leave(shares)
            if queue.waiting:
                self._admit()

    async def _wait(self, call: Call, shares: Shares) -> None:
        """Wait for a permit. The call holds one when this returns."""
        queue = self._queue
        loop = asyncio.get_running_loop()
        if call.deadline is not None and call.deadline <= loop.time():
            raise _late()
        waiter = _WaitingCall(shares, queue, loop)
        try:
            displaced = queue.push(waiter)
        except QueueFull:
            raise queue_full(queue.running, queue.size) from None
        if displaced is not None:
            displaced.refuse(queue_full(queue.running, queue.size))
        slot = None if call.deadline is None else timer_wheel(call.task).add(call.deadline, waiter)
        try:
            error = await waiter.outcome
        except BaseException:  # cancelled, perhaps in the turn of the loop that admitted or refused it
            if not queue.remove(waiter) and waiter.admitted:
                queue.leave(shares)
                self._admit()
            raise
        finally:
            if slot is not None:
                slot.discard(waiter)
        if error is not None:
            raise error

    def _admit(self) -> None:
        """Give the free permits to waiting calls."""
        while (waiter := self._queue.pop()) is not None:
            waiter.admit()


class _WaitingCall(Waiter):
    """A call in the queue, with a future for its task.

    Attributes:
        outcome: None when the call is admitted, or the status that refuses it.
        admitted: Whether the call got a permit. It holds it even if its task is cancelled before it runs again.
    """

    __slots__ = ("_queue", "admitted", "outcome")

    def __init__(self, shares: Shares, queue: FairQueue[_WaitingCall], loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(shares)
        self._queue = queue
        self.admitted = False
        self.outcome: asyncio.Future[StatusError | None] = loop.create_future()

    def admit(self) -> None:
        """Note that the call, which has left the queue, got a permit."""
        self.admitted = True
        if not self.outcome.done():
            self.outcome.set_result(None)

    def refuse(self, error: StatusError) -> None:
        """Refuse the call, which has left the queue."""
        if not self.outcome.done():
            self.outcome.set_result(error)

    def expire(self) -> None:
        """Refuse the call if it still waits: its deadline has passed."""
        if self._queue.remove(self):
            self.refuse(_late())


def _late() -> DeadlineExceeded:
    return DeadlineExceeded("the deadline passed while the call waited for a permit")


def queue_full(in_progress: int, waiting: int) -> ResourceExhausted:
    """Return the status of a call that a full queue refuses.

    Args:
        in_progress: Calls in progress now.
        waiting: Calls that may wait, all of which do.
    """
    return ResourceExhausted(
        f"{in_progress} calls are in progress and {waiting} wait; try again later", retry_after=RETRY_AFTER_SECONDS
    )
