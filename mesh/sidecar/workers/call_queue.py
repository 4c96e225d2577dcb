"""Call queue of a worker pool: bounded, fair between the methods of a service, first in first out within a method.

A pure data structure: it holds no task, no worker and no clock. It counts the running and the waiting calls of each
method and takes two decisions:

- **The next call**: of the methods that have waiting calls, the one with the fewest running calls (max-min fairness);
  of several, the one that ran least recently. So a slow method that floods the service gets its share of the workers'
  time. Taking turns call by call would give it nearly all of it.
- **The refused call**: a full queue refuses the newcomer, unless its method has fewer waiting calls than another. Then
  the newest call of the method with the most waiting calls is refused instead (longest queue drop; McKenney,
  *Stochastic Fairness Queueing*, 1990). So a flood fills the queue for itself only.

No running call is preempted for another, so a method whose calls hang would in time hold every permit. Therefore a
method gets a further permit only while its running calls are fewer than ``MAX_RUNNING_PER_FREE_PERMIT`` times the free
permits (dynamic thresholds; Choudhury and Hahne, 1998). It leaves about one permit in nine to the others. Below nine
permits nothing is held back.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

from mesh.layers.concurrency import queue_full

__all__ = ["MAX_RUNNING_PER_FREE_PERMIT", "CallQueue"]

MAX_RUNNING_PER_FREE_PERMIT = 8
"""Running calls that one method may have for each permit that stays free."""

ItemT = TypeVar("ItemT")


class _MethodQueue(Generic[ItemT]):
    """Running and waiting calls of one method."""

    __slots__ = ("last_run", "running", "waiting")

    def __init__(self) -> None:
        self.running = 0
        self.last_run = 0
        self.waiting: OrderedDict[ItemT, None] = OrderedDict()


class CallQueue(Generic[ItemT]):
    """The queue before the workers of one service. Items are hashable and each waits only once.

    A call passes ``enter`` → ``leave``, or ``push`` → ``pop`` → ``leave``. A call that gives up while it waits is taken
    out with ``remove`` and needs no ``leave``.

    Args:
        limit: Calls that may wait.
        permits: Calls that may run, in the largest number of workers.

    Attributes:
        running: Calls that run now.
        waiting: Calls that wait now.
    """

    __slots__ = ("_methods", "_runs", "limit", "permits", "running", "waiting")

    def __init__(self, limit: int, permits: int) -> None:
        self.limit = limit
        self.permits = permits
        self.running = 0
        self.waiting = 0
        self._runs = 0
        self._methods: dict[str, _MethodQueue[ItemT]] = {}

    def enter(self, method: str) -> bool:
        """Let a call run at once, when a worker has a free permit; False when the call has to wait."""
        found = self._of(method)
        if found.waiting or not self._may_run(found):
            return False
        self._run(found)
        return True

    def push(self, method: str, item: ItemT) -> ItemT | None:
        """Let a call wait.

        Returns:
            The item that this one displaced, to be refused with ``queue_full``; None if none was displaced.

        Raises:
            ResourceExhausted: The queue is full, and no method has more waiting calls than this one.
        """
        found = self._of(method)
        displaced: ItemT | None = None
        if self.waiting >= self.limit:
            longest = max(self._methods.values(), key=lambda one: len(one.waiting))
            if len(longest.waiting) <= len(found.waiting) + 1:  # the two methods would displace each other in turn
                raise queue_full(self.running, self.limit)
            displaced, _ = longest.waiting.popitem(last=True)
            self.waiting -= 1
        found.waiting[item] = None
        self.waiting += 1
        return displaced

    def pop(self, may_run: Callable[[str], bool] | None = None) -> ItemT | None:
        """Return the call that runs next, when a worker has a free permit; None when no call may run.

        Args:
            may_run: Whether a worker takes a call of this method now; None: one takes any call.
        """
        best: _MethodQueue[ItemT] | None = None
        if self.waiting:
            for method, one in self._methods.items():
                if not one.waiting or not self._may_run(one) or (best is not None and not _goes_first(one, best)):
                    continue
                if may_run is None or may_run(method):
                    best = one
        if best is None:
            return None
        item, _ = best.waiting.popitem(last=False)
        self.waiting -= 1
        self._run(best)
        return item

    def remove(self, method: str, item: ItemT) -> bool:
        """Take a call out of the queue, because it was cancelled; False when it does not wait."""
        found = self._methods.get(method)
        if found is None or item not in found.waiting:
            return False
        del found.waiting[item]
        self.waiting -= 1
        return True

    def leave(self, method: str) -> None:
        """Release the permit of a call that ran: it has ended, or its worker takes no more calls."""
        self._methods[method].running -= 1
        self.running -= 1

    def _of(self, method: str) -> _MethodQueue[ItemT]:
        found = self._methods.get(method)
        if found is None:
            found = self._methods[method] = _MethodQueue()
        return found

    def _may_run(self, method: _MethodQueue[ItemT]) -> bool:
        return method.running < MAX_RUNNING_PER_FREE_PERMIT * (self.permits - self.running)

    def _run(self, method: _MethodQueue[ItemT]) -> None:
        self._runs += 1
        method.last_run = self._runs
        method.running += 1
        self.running += 1


def _goes_first(one: _MethodQueue[ItemT], other: _MethodQueue[ItemT]) -> bool:
    return (one.running, one.last_run) < (other.running, other.last_run)
