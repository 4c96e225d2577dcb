"""Concurrency limit: bounds the calls in progress, shares the permits fairly, queues a few more, refuses the rest.

The decisions are those of pure structures: ``fair_queue`` (who runs, who waits, who is refused) and ``queue_delay``
(whether a method is overloaded, and then how many of its calls run and how long one waits). This module adds tasks,
deadlines and statuses.

A call holds its permit while the rest of the chain runs and releases it exactly once, whatever ends the call. A waiting
call is in one of three states: it waits, it was admitted (it holds a permit, also before its task runs again), or it
was refused (it holds none). The first change of state counts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping
from math import inf
from time import monotonic  # the clock of the event loops
from typing import TYPE_CHECKING, NamedTuple, Protocol

from mesh.errors import Code, DeadlineExceeded, ResourceExhausted, StatusError, is_own
from mesh.layers.fair_queue import FairQueue, QueueFull, Share, Shares, Waiter
from mesh.layers.queue_delay import QueueDelay
from mesh.layers.timer_wheel import Expirable, timer_wheel

if TYPE_CHECKING:
    from mesh.call import Call, Handler

__all__ = ["ConcurrencyLimit", "MethodUsage", "ShareKeys", "queue_full"]

RETRY_AFTER_SECONDS = 1.0
"""Delay in the ``Retry-After`` of a call that is refused without an estimate."""

_NOT_MEASURED = frozenset({Code.INVALID_ARGUMENT, Code.RESOURCE_EXHAUSTED, Code.UNAVAILABLE, Code.CANCELLED})
"""Statuses of calls that may have done little of the work, and say nothing about its length."""

VICTIM_FACTOR = 2
"""A method waits behind another one whose calls are this many times as many in the queues of the process."""

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
        limit: Calls in progress at most: the limit under overload, or the limit of all methods.
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

    With ``adaptive`` each method has a limit of its own and a bound on the wait while it is overloaded
    (``QueueDelay``), and a call that cannot be served before its deadline is refused at once. Streams and methods
    without a time limit are not measured, so they get no limit of their own. Deliveries wait as long as their deadline
    allows, because a refusal would cost them an attempt.

    A call that waits is refused when its deadline passes. Its task is not cancelled for that, so the layer may stand
    inside of ``deadline`` or outside.

    Args:
        limit: Calls in progress at most.
        queue: Calls that may wait for a permit.
        share_keys: Function from a call to the keys of its shares.
        bulkheads: Dimensions whose shares get half of the permits at most (``FairQueue``).
        adaptive: Whether calls of overloaded methods are refused.
    """

    __slots__ = ("_loads", "_queue", "_share_keys", "adaptive")

    def __init__(
        self,
        limit: int,
        queue: int,
        share_keys: ShareKeys = _no_keys,
        bulkheads: Collection[int] = (),
        *,
        adaptive: bool = False,
    ) -> None:
        self._queue: FairQueue[_WaitingCall] = FairQueue(limit, queue, bulkheads)
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
            load = self._loads[path] = _MethodLoad(queue, call.method, self._loads)
        shares = (load.share, *queue.shares(self._share_keys(call)))
        waited = 0.0 if queue.enter(shares) else await self._wait(call, load, shares)
        began, measured = monotonic(), load.measured
        try:
            await next(call)
        except StatusError as error:
            measured = measured and not (is_own(error) and error.code in _NOT_MEASURED)
            raise
        except asyncio.CancelledError:  # by the caller, or by the deadline
            measured = measured and call.deadline is not None and call.deadline <= monotonic()
            raise
        finally:
            running = load.share.running
            queue.leave(shares)
            if self.adaptive:
                load.ended(call, began, waited, running, measured=measured)
            if queue.waiting:
                self._admit()

    async def _wait(self, call: Call, load: _MethodLoad, shares: Shares) -> float:
        """Wait for a permit. The call holds one when this returns. Return the seconds of the wait."""
        queue, delay = self._queue, load.delay
        loop = asyncio.get_running_loop() if call.task is None else call.task.get_loop()  # no system call, in 3.11
        arrived = loop.time()
        if call.deadline is not None and call.deadline <= arrived:
            raise _late()
        bounded = self.adaptive and call.delivery is None
        hopeless = False
        if bounded and call.deadline is not None:
            ahead = 0 if delay.overloaded(arrived) else len(load.share.waiting)
            hopeless = delay.estimate(ahead + 1) > call.deadline - arrived
        waiter = _WaitingCall(shares, load, call, loop, bounded=bounded)
        try:
            displaced = queue.push(waiter, load.share if hopeless else None)
        except QueueFull:
            raise load.refusal(arrived) from None
        if displaced is not None:
            displaced.refuse(displaced.load.refusal(arrived))
        waiter.set_timer(arrived)
        try:
            error = await waiter.outcome
        except BaseException:  # cancelled, perhaps in the turn of the loop that admitted or refused it
            if not queue.remove(waiter) and waiter.admitted:
                queue.leave(shares)
                self._admit()
            waiter.note_wait()
            raise
        finally:
            waiter.clear_timer()
        if error is not None:
            raise error
        return loop.time() - arrived

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

    __slots__ = ("_loads", "_queue", "delay", "measured", "refused", "share")

    def __init__(self, queue: FairQueue[_WaitingCall], method: _Method, loads: Mapping[str, _MethodLoad]) -> None:
        self._queue = queue
        self._loads = loads
        self.share = Share()
        self.delay = QueueDelay()
        self.measured = not (method.client_streaming or method.server_streaming or method.no_time_limit)
        self.refused = 0

    def ended(self, call: Call, began: float, waited: float, running: int, *, measured: bool) -> None:
        """Note the end of a call.

        Args:
            call: The call.
            began: The time at which it got its permit.
            waited: The seconds that it waited for the permit.
            running: Calls of the method in progress, itself included.
            measured: Whether its length is that of the work.
        """
        now, delay, share = monotonic(), self.delay, self.share
        delay.ended(now, waiting=bool(share.waiting))
        if call.delivery is None:
            if measured:
                delay.measured(now - began, call.queued or 0.0, running, now)
            if waited or call.queued is not None:
                budget = inf if call.deadline is None else call.deadline - began + waited
                self.waited(waited + (call.queued or 0.0), budget, now)
        limit = delay.limit(now)
        if limit != share.cap:
            self._queue.cap(share, limit)

    def waited(self, seconds: float, budget: float, now: float) -> None:
        """Note the wait of a call (``QueueDelay.waited``).

        A method whose calls wait behind those of another one is not overloaded: the other one is, and once it is
        limited, the queues are short.
        """
        delay = self.delay
        if delay.waited(seconds, budget, now):
            own = VICTIM_FACTOR * delay.queued(now)
            if any(load.delay.queued(now) > own for load in self._loads.values() if load is not self):
                delay.dismiss()

    def waits(self, waiter: _WaitingCall) -> bool:
        """Whether a call is in the queue."""
        return waiter in self.share.waiting

    def forget(self, waiter: _WaitingCall) -> None:
        """Take a call out of the queue."""
        self._queue.remove(waiter)

    def refusal(self, now: float) -> ResourceExhausted:
        """Return the status of a call that is refused, and count it."""
        self.refused += 1
        if self.delay.overloaded(now):
            self.delay.refused(now)
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

    __slots__ = ("_arrived", "_bounded", "_call", "_loop", "_slot", "admitted", "load", "outcome")

    def __init__(
        self, shares: Shares, load: _MethodLoad, call: Call, loop: asyncio.AbstractEventLoop, *, bounded: bool
    ) -> None:
        super().__init__(shares)
        self.load = load
        self.admitted = False
        self.outcome: asyncio.Future[StatusError | None] = loop.create_future()
        self._loop = loop
        self._arrived = loop.time()
        self._call = call
        self._bounded = bounded
        self._slot: set[Expirable] | None = None

    def admit(self) -> None:
        """Note that the call, which has left the queue, got a permit."""
        self.admitted = True
        if not self.outcome.done():
            self.outcome.set_result(None)

    def refuse(self, error: StatusError) -> None:
        """Refuse the call, which has left the queue."""
        if not self.outcome.done():
            self.outcome.set_result(error)

    def set_timer(self, now: float) -> None:
        """Set the timer for the deadline, or before for the longest wait that is not looked at."""
        until = inf if self._call.deadline is None else self._call.deadline
        if self._bounded:
            delay = self.load.delay
            until = min(until, now + (delay.target if delay.overloaded(now) else delay.interval(now)))
        if until != inf:
            self._slot = timer_wheel(self._call.task).add(until, self)

    def clear_timer(self) -> None:
        """Clear the timer."""
        if self._slot is not None:
            self._slot.discard(self)
            self._slot = None

    def expire(self) -> None:
        """Refuse the call if it still waits, and its deadline has passed or the method is overloaded."""
        self._slot = None
        if not self.load.waits(self):
            return
        now = self.note_wait()
        if self._call.deadline is not None and self._call.deadline <= now:
            self.load.forget(self)
            self.refuse(_late())
        elif self._bounded and self.load.delay.overloaded(now):
            self.load.forget(self)
            self.refuse(self.load.refusal(now))
        else:
            self.set_timer(now)

    def note_wait(self) -> float:
        """Note how long the call has waited. Return the current time."""
        now, deadline = self._loop.time(), self._call.deadline
        if self._bounded:
            budget = inf if deadline is None else deadline - self._arrived
            self.load.waited(now - self._arrived, budget, now)
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
