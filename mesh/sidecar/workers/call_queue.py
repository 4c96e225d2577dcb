"""Who goes next to a worker: a bounded queue, fair between the methods of a service, first in first out within one.

A pure data structure: it holds no task, no worker and no clock. It counts the calls of each method that run and that
wait, and decides two things:

- **Who goes next**: of the methods that wait, the one with the fewest calls running (max-min fairness); of several, the
  one that went least recently. So a slow method that floods the service gets its share of the workers' time and not
  all of it, which taking turns call by call would give it.
- **Who is refused**: a full queue refuses the newcomer, unless its method has fewer waiting than another: then the
  newest call of the method with the most waiting gives up its place (longest queue drop; McKenney, *Stochastic Fairness
  Queueing*, 1990). So a flood fills the queue for itself only.

Nobody is thrown out of a worker for another, so a method whose calls hang would in time hold every place. Therefore a
method gets a further place only while it runs fewer than ``SHARE`` times as many calls as there are free places
(dynamic thresholds; Choudhury and Hahne, 1998): it leaves about one place in nine to the others. Below nine places
nothing is held back.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

from mesh.errors import ResourceExhausted

__all__ = ["SHARE", "Queue", "full"]

SHARE = 8
"""Calls that one method may run for each place that stays free."""
RETRY_AFTER = 1.0
"""Seconds that a refused caller is told to wait."""

ItemT = TypeVar("ItemT")


class _Method(Generic[ItemT]):
    """One method's part."""

    __slots__ = ("running", "turn", "waiting")

    def __init__(self) -> None:
        self.running = 0
        self.turn = 0
        self.waiting: OrderedDict[ItemT, None] = OrderedDict()


class Queue(Generic[ItemT]):
    """The queue in front of the workers of one service. Items are hashable and each waits only once.

    A call passes in one of two ways: ``enter`` → ``leave``, or ``push`` → ``pop`` → ``leave``; one that gives up in the
    queue is taken out with ``remove`` and needs no ``leave``.

    Args:
        limit: Calls that may wait.
        places: Calls that may run, in all workers that there may ever be.

    Attributes:
        running: Calls that run now.
        waiting: Calls that wait now.
    """

    __slots__ = ("_methods", "_turn", "limit", "places", "running", "waiting")

    def __init__(self, limit: int, places: int) -> None:
        self.limit = limit
        self.places = places
        self.running = 0
        self.waiting = 0
        self._turn = 0
        self._methods: dict[str, _Method[ItemT]] = {}

    def enter(self, method: str) -> bool:
        """Let a call run without waiting, when a worker has room: True, or False when it must wait its turn."""
        found = self._of(method)
        if found.waiting or not self._may(found):
            return False
        self._run(found)
        return True

    def push(self, method: str, item: ItemT) -> ItemT | None:
        """Let a call wait.

        Returns:
            The item that lost its place to this one, to be refused with ``full()``; None when there was room.

        Raises:
            ResourceExhausted: The queue is full, and no method has more waiting than this one.
        """
        found = self._of(method)
        lost: ItemT | None = None
        if self.waiting >= self.limit:
            longest = max(self._methods.values(), key=lambda one: len(one.waiting))
            if len(longest.waiting) <= len(found.waiting) + 1:  # the place would only change hands back and forth
                raise full(self.running, self.limit)
            lost, _ = longest.waiting.popitem(last=True)
            self.waiting -= 1
        found.waiting[item] = None
        self.waiting += 1
        return lost

    def pop(self, may: Callable[[str], bool] | None = None) -> ItemT | None:
        """Return the call that runs next, when a worker has room; None when no call may.

        Args:
            may: Whether there is room for a method; None: there is for each.
        """
        best: _Method[ItemT] | None = None
        if self.waiting:
            for method, one in self._methods.items():
                if one.waiting and self._may(one) and (best is None or _before(one, best)) and (not may or may(method)):
                    best = one
        if best is None:
            return None
        item, _ = best.waiting.popitem(last=False)
        self.waiting -= 1
        self._run(best)
        return item

    def remove(self, method: str, item: ItemT) -> bool:
        """Take a call out of the queue: its caller went away, or its time is over; False when it does not wait."""
        found = self._methods.get(method)
        if found is None or item not in found.waiting:
            return False
        del found.waiting[item]
        self.waiting -= 1
        return True

    def leave(self, method: str) -> None:
        """Say that a call that ran has ended, or that its worker takes no more calls: it holds no place any more."""
        self._methods[method].running -= 1
        self.running -= 1

    def _of(self, method: str) -> _Method[ItemT]:
        found = self._methods.get(method)
        if found is None:
            found = self._methods[method] = _Method()
        return found

    def _may(self, method: _Method[ItemT]) -> bool:
        return method.running < SHARE * (self.places - self.running)

    def _run(self, method: _Method[ItemT]) -> None:
        self._turn += 1
        method.turn = self._turn
        method.running += 1
        self.running += 1


def _before(one: _Method[ItemT], other: _Method[ItemT]) -> bool:
    return (one.running, one.turn) < (other.running, other.turn)


def full(running: int, limit: int) -> ResourceExhausted:
    """Return what a call is refused with when there is no place in the queue."""
    return ResourceExhausted(
        f"{running} calls are in flight and {limit} wait; try again later", retry_after=RETRY_AFTER
    )
