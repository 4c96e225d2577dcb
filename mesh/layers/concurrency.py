"""Concurrency limit: bounds the calls in progress, shares the permits fairly, queues a few more, refuses the rest.

The decisions are those of pure structures: ``fair_queue`` (who runs, who waits, who is refused), ``adaptive_limit``
(how many calls of a method are healthy) and ``queue_delay`` (how long a call may wait). This module adds tasks,
deadlines and statuses.

A call holds its permit while the rest of the chain runs and releases it exactly once, whatever ends the call. A waiting
call is in one of three states: it waits, it was admitted (it holds a permit, also before its task runs again), or it
was refused (it holds none). The first change of state counts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable, Iterator
from math import inf
from time import monotonic  # the clock of the event loops
from typing import TYPE_CHECKING, NamedTuple, Protocol

from mesh.errors import Code, DeadlineExceeded, ResourceExhausted, StatusError
from mesh.layers.adaptive_limit import AdaptiveLimit
from mesh.layers.fair_queue import FairQueue, QueueFull, Share, Shares, Waiter
from mesh.layers.queue_delay import QueueDelay
from mesh.layers.timer_wheel import timer_wheel

if TYPE_CHECKING:
    from mesh.call import Call, Handler

__all__ = ["ConcurrencyLimit", "MethodUsage", "ShareKeys", "queue_full"]

RETRY_AFTER_SECONDS = 1.0
"""Delay in the ``Retry-After`` of a call that is refused without an estimate."""

_NOT_MEASURED = frozenset({Code.INVALID_ARGUMENT, Code.RESOURCE_EXHAUSTED, Code.UNAVAILABLE, Code.CANCELLED})
"""Statuses of calls that may have done little of the work."""

ShareKeys = Callable[["Call"], tuple[Hashable | None, ...]]
"""Keys of a call's shares, one for each dimension, always in the same order; None: no share in this dimension."""


def _no_keys(_: Call) -> tuple[Hashable | None, ...]:
    return ()


class MethodUsage(NamedTuple):
    """Use of the permits by one method.

    Attributes:
        method: Its path.
        running: Calls in progress.
        waiting: Calls in the queue.
        limit: Calls in progress at most: the adaptive limit, or the limit of all methods.
        refused: Calls that were refused since the start.
    """

    method: str
    running: int
    waiting: int
    limit: float
    refused: int


class ConcurrencyLimit:
    """Layer that bounds the calls in progress.

    The calls of each method are one share. ``share_keys`` names the others, such as the connection, the client's
    address, the user, the target service or the calling service. Shares bind only near the limit (``FairQueue``).

    With ``adaptive`` each method has a limit of its own by its measured latency, and a bound on the time in the queue.
    Calls whose length says nothing about congestion are not measured: streams, methods without a time limit (they may
    wait on purpose), deliveries. Deliveries wait as long as their deadline allows, because a refusal would cost them an
    attempt.

    A call that waits is refused when its deadline passes. Its task is not cancelled for that, so the layer may stand
    inside of ``deadline`` or outside.

    Args:
        limit: Calls in progress at most.
        queue: Calls that may wait for a permit.
        share_keys: Function from a call to the keys of its shares.
        adaptive: Whether methods are limited by their latency, and waits by time.
    """

    __slots__ = ("_loads", "_queue", "_share_keys", "adaptive")

    def __init__(self, limit: int, queue: int, share_keys: ShareKeys = _no_keys, *, adaptive: bool = False) -> None:
        self._queue: FairQueue[_WaitingCall] = FairQueue(limit, queue)
        self._share_keys = share_keys
        self._loads: dict[str, _MethodLoad] = {}
        self.adaptive = adaptive

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

    def usage(self) -> Iterator[MethodUsage]:
        """Yield the use of the permits by each method that was called."""
        for path, load in self._loads.items():
            share, limit = load.share, min(self.limit, load.share.cap)
            yield MethodUsage(path, share.running, len(share.waiting), limit, load.refused)

    async def __call__(self, call: Call, next: Handler) -> None:
        """Run the rest of the chain while the call holds a permit.

        Raises:
            ResourceExhausted: The queue is full, or the call would wait too long in it.
            DeadlineExceeded: The deadline passed while the call waited.
        """
        queue = self._queue
        path = call.method.path
        load = self._loads.get(path)
        if load is None:
            load = self._loads[path] = _MethodLoad(queue, call.method)
        shares = (load.share, *queue.shares(self._share_keys(call)))
        if not queue.enter(shares):
            await self._wait(call, load, shares)
        began, running = monotonic(), load.share.running
        measured = load.measured
        try:
            await next(call)
        except StatusError as error:
            measured = measured and error.code not in _NOT_MEASURED
            raise
        except asyncio.CancelledError:  # by the caller, or by the deadline
            measured = measured and call.deadline is not None and call.deadline <= monotonic()
            raise
        finally:
            queue.leave(shares)
            if self.adaptive and call.delivery is None:
                load.record(began, running, measured=measured)
            if queue.waiting:
                self._admit()

    async def _wait(self, call: Call, load: _MethodLoad, shares: Shares) -> None:
        """Wait for a permit. The call holds one when this returns."""
        queue = self._queue
        loop = asyncio.get_running_loop() if call.task is None else call.task.get_loop()  # no system call, in 3.11
        until, now = inf if call.deadline is None else call.deadline, loop.time()
        if until <= now:
            raise _late()
        too_long, bound = False, 0.0
        if self.adaptive and call.delivery is None:
            bound = load.delay.bound(now)
            too_long = load.delay.estimate(len(load.share.waiting) + 1) > min(bound, until - now)
            until = min(until, now + bound)
        waiter = _WaitingCall(shares, load, call.deadline, loop)
        try:
            displaced = queue.push(waiter, load.share if too_long else None)
        except QueueFull:
            load.delay.waited(bound, now)
            raise load.refusal(now) from None
        if displaced is not None:
            displaced.refuse(displaced.load.refusal(now))
        slot = None if until == inf else timer_wheel(call.task).add(until, waiter)
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
        while (waiter := self._queue.pop(newest=_newest_first)) is not None:
            waiter.admit()


class _Method(Protocol):
    """The part of ``mesh.contract.model.Method`` that the limit reads."""

    @property
    def client_streaming(self) -> bool:
        """Whether the request is a stream."""

    @property
    def server_streaming(self) -> bool:
        """Whether the response is a stream."""

    @property
    def no_time_limit(self) -> bool:
        """Whether calls may take as long as they need."""


class _MethodLoad:
    """Calls of one method, as the limit sees them.

    Attributes:
        share: The share of the method.
        delay: Its queue delay.
        measured: Whether the length of its calls says something about congestion.
        refused: Its calls that were refused since the start.
    """

    __slots__ = ("_limit", "_queue", "delay", "measured", "refused", "share")

    def __init__(self, queue: FairQueue[_WaitingCall], method: _Method) -> None:
        self._queue = queue
        self._limit = AdaptiveLimit()
        self.share = Share()
        self.delay = QueueDelay()
        self.measured = not (method.client_streaming or method.server_streaming or method.no_time_limit)
        self.refused = 0

    def record(self, began: float, running: int, *, measured: bool) -> None:
        """Record the end of a call that got its permit at ``began``, when ``running`` calls were in progress."""
        now, waiting = monotonic(), bool(self.share.waiting)
        self.delay.ended(now, waiting=waiting)
        if measured and self._limit.record(began, now, running, throttled=waiting):
            self.delay.base = self._limit.base
            self._queue.cap(self.share, self._limit.limit)

    def forget(self, waiter: _WaitingCall) -> bool:
        """Take a call out of the queue; False if it does not wait."""
        return self._queue.remove(waiter)

    def refusal(self, now: float) -> ResourceExhausted:
        """Return the status of a call that is refused, and count it."""
        self.refused += 1
        running, waiting = self.share.running, len(self.share.waiting)
        return ResourceExhausted(
            f"{running} calls of this method are in progress and {waiting} wait; try again later",
            retry_after=self.delay.retry_delay(running + waiting, now),
        )


class _WaitingCall(Waiter):
    """A call in the queue, with a future for its task.

    Attributes:
        load: Its method.
        outcome: None when the call is admitted, or the status that refuses it.
        admitted: Whether the call got a permit. It holds it even if its task is cancelled before it runs again.
    """

    __slots__ = ("_arrived", "_deadline", "_loop", "admitted", "load", "outcome")

    def __init__(
        self, shares: Shares, load: _MethodLoad, deadline: float | None, loop: asyncio.AbstractEventLoop
    ) -> None:
        super().__init__(shares)
        self.load = load
        self.admitted = False
        self.outcome: asyncio.Future[StatusError | None] = loop.create_future()
        self._loop = loop
        self._arrived = loop.time()
        self._deadline = deadline

    def admit(self) -> None:
        """Note that the call, which has left the queue, got a permit."""
        self.admitted = True
        self._note_wait()
        if not self.outcome.done():
            self.outcome.set_result(None)

    def refuse(self, error: StatusError) -> None:
        """Refuse the call, which has left the queue."""
        if not self.outcome.done():
            self.outcome.set_result(error)

    def expire(self) -> None:
        """Refuse the call if it still waits: its deadline has passed, or it has waited too long."""
        if self.load.forget(self):
            now = self._note_wait()
            late = self._deadline is not None and self._deadline <= now
            self.refuse(_late() if late else self.load.refusal(now))

    def _note_wait(self) -> float:
        now = self._loop.time()
        self.load.delay.waited(now - self._arrived, now)
        return now


def _newest_first(waiter: _WaitingCall) -> bool:
    return waiter.load.delay.overloaded(monotonic())


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
