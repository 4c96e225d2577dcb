"""Fair queue: permits and waiting calls of a concurrency limit, shared fairly between clients, users and targets.

A pure data structure: it holds no task and no clock. Each call belongs to one share in each dimension (its connection,
its client's address, its user, its target, its method). The queue takes three decisions:

- **Admission.** A call runs at once while permits are free and none of its shares has reached its bound. A share may
  hold ``MAX_RUNNING_PER_FREE_PERMIT`` times as many permits as are free (dynamic thresholds; Choudhury and Hahne,
  *Dynamic Queue Length Thresholds for Shared-Memory Packet Switches*, 1998). One share alone gets eight permits of
  nine, so calls that hang never take the last ones. Dimensions may have smaller bounds: a share of a bulkhead holds as
  many permits as are free, so one alone gets half. Then a client that takes its share as well leaves permits for
  others. Far from the limit the bounds are above every share. The first eight calls of a share are not held back.
- **The next call.** Of the waiting calls that may run, the one whose largest share runs the fewest calls (max-min
  fairness); if these are equal, the second largest decides, and so on; of equal ones, the group that ran least
  recently. A slow method that floods the service gets its share of the time. Turns call by call would give it
  nearly all.
- **The refused call.** A full queue refuses the newcomer, unless a share that is not its own has more waiting calls
  than all of its own. Then the newest call of that share is refused instead (longest queue drop; McKenney, *Stochastic
  Fairness Queueing*, 1990). So a flood fills the queue for itself only.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Hashable, Iterator
from itertools import islice
from math import inf
from typing import Generic, TypeVar

__all__ = ["MAX_RUNNING_PER_FREE_PERMIT", "FairQueue", "QueueFull", "Share", "Waiter"]

MAX_RUNNING_PER_FREE_PERMIT = 8
"""Running calls that one share may have for each permit that stays free."""
COMPARED_GROUPS = 16
"""Groups of waiting calls that are compared for the next call. More would cost more than the order is worth."""
COMPARED_VICTIMS = 4
"""Shares whose newest call is compared for the refused call, longest first."""
IDLE_SHARES = 256
"""Shares without calls that are kept, so that a call of a known client creates none."""
KNOWN_SHARES = 1024
"""Results of ``FairQueue.shares`` that are kept."""


class QueueFull(Exception):
    """The queue is full, and this call displaces none."""


class Share:
    """Calls of one connection, one client, one user, one target or one method.

    Attributes:
        running: Its calls with a permit.
        waiting: Its waiting calls, oldest first.
        cap: Permits that it may hold at most, besides its fair share.
        per_free_permit: Running calls that it may have for each permit that stays free.
    """

    __slots__ = ("cap", "per_free_permit", "running", "waiting")

    def __init__(self, per_free_permit: int = MAX_RUNNING_PER_FREE_PERMIT) -> None:
        self.per_free_permit = per_free_permit
        self.running = 0
        self.waiting: OrderedDict[Waiter, None] = OrderedDict()
        self.cap: float = inf


Shares = tuple[Share, ...]


class Waiter:
    """A call in the queue.

    Attributes:
        shares: Its shares.
    """

    __slots__ = ("shares",)

    def __init__(self, shares: Shares) -> None:
        self.shares = shares


WaiterT = TypeVar("WaiterT", bound=Waiter)


class FairQueue(Generic[WaiterT]):
    """Permits and waiting calls. A call passes ``enter`` → ``leave``, or ``push`` → ``pop`` → ``leave``.

    A call that gives up while it waits is taken out with ``remove`` and needs no ``leave``.

    Args:
        limit: Calls that may run.
        size: Calls that may wait.
        bulkheads: Dimensions, by their index in the keys, whose shares hold as many permits as are free.

    Attributes:
        running: Calls that run now.
        waiting: Calls that wait now.
        known: Results of ``shares``, by its arguments. It is cleared when a share of them has been forgotten.
    """

    __slots__ = (
        "_bulkheads", "_capped", "_dimensions", "_groups", "_lengths", "_needed", "_swept_at", "known", "limit",
        "running", "size", "waiting",
    )  # fmt: skip

    def __init__(self, limit: int, size: int, bulkheads: Collection[int] = ()) -> None:
        self._bulkheads = bulkheads
        self.limit = limit
        self.size = size
        self.running = 0
        self.waiting = 0
        self._dimensions: list[dict[Hashable, Share]] = []
        self._groups: OrderedDict[Shares, OrderedDict[WaiterT, None]] = OrderedDict()  # least recently run first
        self._lengths = _Lengths()
        self._needed: float = 0  # free permits that a waiting call needs at least; 0: not known
        self._swept_at = IDLE_SHARES
        self._capped = 0
        self.known: dict[tuple[tuple[Hashable | None, ...], Share | None], Shares] = {}

    def shares(self, keys: tuple[Hashable | None, ...], first: Share | None = None) -> Shares:
        """Return the shares of a call. They are valid until the next ``await``, and while the call runs or waits.

        Args:
            keys: One key for each dimension, always in the same order; None: the call has no share in this one.
            first: A share that the user of the queue keeps; None: there is no such one.
        """
        dimensions = self._dimensions
        found = [] if first is None else [first]
        for index, key in enumerate(keys):
            if key is None:
                continue
            try:
                share = dimensions[index].get(key)
            except IndexError:
                dimensions += [{} for _ in range(len(dimensions), index + 1)]
                share = None
            if share is None:
                share = self._add(index, key)
            found.append(share)
        if len(self.known) >= KNOWN_SHARES:
            self.known.clear()
        result = self.known[keys, first] = tuple(found)
        return result

    def enter(self, shares: Shares) -> bool:
        """Give a call a permit at once; False when it has to wait."""
        # Where fewer than half of the permits are held, no share can be at its bound: at most as many as are free.
        if (self._capped or 2 * self.running >= self.limit or self.waiting) and (
            self._free_permits_needed(shares) > self.limit - self.running or (self.waiting and shares in self._groups)
        ):
            return False
        self.running += 1
        for share in shares:
            share.running += 1
        return True

    def leave(self, shares: Shares) -> None:
        """Release the permit of a call that ran."""
        self.running -= 1
        for share in shares:
            share.running -= 1
            if share.waiting:
                self._needed = 0

    def push(self, waiter: WaiterT, full: Share | None = None) -> WaiterT | None:
        """Let a call wait.

        Args:
            waiter: The call.
            full: A share of the call whose waiting calls are enough. The call displaces one of them or is refused.

        Returns:
            The call that this one displaced, to be refused; None if none was displaced.

        Raises:
            QueueFull: No share has more waiting calls than those of this call.
        """
        displaced = None
        if full is not None or self.waiting >= self.size:
            displaced = self._longest(waiter.shares, full)
            if displaced is None:
                raise QueueFull
            self.remove(displaced)
        self._groups.setdefault(waiter.shares, OrderedDict())[waiter] = None
        for share in waiter.shares:
            share.waiting[waiter] = None
            self._lengths.moved(share, len(share.waiting) - 1)
        self.waiting += 1
        self._needed = min(self._needed, self._free_permits_needed(waiter.shares))
        return displaced

    def pop(
        self,
        may_run: Callable[[WaiterT], bool] | None = None,
        newest: Callable[[WaiterT], bool] | None = None,
    ) -> WaiterT | None:
        """Give a waiting call a permit and return it; None when no call may run.

        Args:
            may_run: A further condition for a call, which holds for all calls with the same shares or for none.
            newest: Whether the newest call goes first among those with the shares of a call; None: the oldest does.
        """
        free = self.limit - self.running
        if not self.waiting or free < max(1, self._needed):
            return None
        best, least, compared, needed = None, None, 0, inf
        for shares, group in self._groups.items():
            permits = self._free_permits_needed(shares)
            if permits > free:
                needed = min(needed, permits)
                continue
            if may_run is not None and not may_run(next(iter(group))):
                needed = 0
                continue
            running = sorted((share.running for share in shares), reverse=True)
            if least is None or running < least:
                best, least = shares, running
            compared += 1
            if compared == COMPARED_GROUPS:
                break
        if best is None:
            self._needed = needed
            return None
        self._needed = 0
        group = self._groups[best]
        waiter, _ = group.popitem(last=newest is not None and newest(next(iter(group))))
        self._groups.move_to_end(best)
        self._forget(waiter)
        self.running += 1
        for share in best:
            share.running += 1
        return waiter

    def remove(self, waiter: WaiterT) -> bool:
        """Take a call out of the queue, because it was cancelled; False when it does not wait."""
        group = self._groups.get(waiter.shares)
        if group is None or waiter not in group:
            return False
        del group[waiter]
        self._forget(waiter)
        return True

    def cap(self, share: Share, permits: float) -> None:
        """Set the number of permits that a share may hold at most, besides its fair share."""
        self._capped += (permits < inf) - (share.cap < inf)
        share.cap = permits
        self._needed = 0

    def _free_permits_needed(self, shares: Shares) -> float:
        """Return the number of permits that have to be free before a call of these shares may run."""
        most = 1
        for share in shares:
            running = share.running
            if running >= share.cap:
                return inf
            if running >= MAX_RUNNING_PER_FREE_PERMIT:
                needed = (running - MAX_RUNNING_PER_FREE_PERMIT) // share.per_free_permit + 2
                if needed > most:  # noqa: PLR1730 - a call of max() takes as long as all of this
                    most = needed
        return most

    def _forget(self, waiter: WaiterT) -> None:
        """Remove a waiter, which has left its group, from everything else."""
        if not self._groups[waiter.shares]:
            del self._groups[waiter.shares]
        for share in waiter.shares:
            del share.waiting[waiter]
            self._lengths.moved(share, len(share.waiting) + 1)
        self.waiting -= 1

    def _longest(self, shares: Shares, within: Share | None) -> WaiterT | None:
        """Return the waiting call that a new call of these shares displaces; None when its own shares are longest.

        Only shares that the two calls do not have in common are compared.

        Args:
            shares: The shares of the new call.
            within: A share that the displaced call has to have; None: any call may be displaced.
        """
        found, most = None, [0]
        for share in islice((one for one in self._lengths.longest() if one not in shares), COMPARED_VICTIMS):
            newest: WaiterT = next(reversed(share.waiting))  # type: ignore[assignment]
            if within is not None and within not in newest.shares:
                continue
            lengths = sorted((len(one.waiting) for one in newest.shares if one not in shares), reverse=True)
            own = max((len(one.waiting) for one in shares if one not in newest.shares), default=0)
            # Two shares whose lengths differ by one would displace each other in turn.
            if lengths[0] > own + 1 and lengths > most:
                found, most = newest, lengths
        return found

    def _add(self, index: int, key: Hashable) -> Share:
        dimension = self._dimensions[index]
        if len(dimension) >= self._swept_at:
            self.known.clear()
            for idle in [key for key, share in dimension.items() if not (share.running or share.waiting)]:
                del dimension[idle]
            self._swept_at = 2 * len(dimension) + IDLE_SHARES
        share = dimension[key] = Share(1 if index in self._bulkheads else MAX_RUNNING_PER_FREE_PERMIT)
        return share


class _Lengths:
    """Shares by the number of their waiting calls, which changes by one at a time."""

    __slots__ = ("_highest", "_levels")

    def __init__(self) -> None:
        self._levels: list[dict[Share, None]] = [{}]  # by length; level 0 stays empty
        self._highest = 0

    def moved(self, share: Share, before: int) -> None:
        """Note that the number of a share's waiting calls has changed by one, from ``before``."""
        length = len(share.waiting)
        if before:
            del self._levels[before][share]
        if length:
            if length == len(self._levels):
                self._levels.append({})
            self._levels[length][share] = None
        if length > self._highest or (before == self._highest and not self._levels[before]):
            self._highest = length

    def longest(self) -> Iterator[Share]:
        """Yield the shares with waiting calls, longest first."""
        for level in reversed(self._levels[: self._highest + 1]):
            yield from level
