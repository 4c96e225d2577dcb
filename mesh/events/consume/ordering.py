"""One partition of one consumer, as one replica sees it: which event may be called now. Pure; the model of a test.

The broker hands a partition to one replica at a time (it is *pinned*) and says so with an id on every message. What it
does not do is to wait: to a new owner it sends new events at once, while those that the owner before had are sent again
only after their acknowledgement is overdue. An event must not overtake an older one of its key, so a new owner is
*settling* until it holds all that the broker counts as pending; then it is *active*:

- of each key the oldest event is called, and the next one when that is acknowledged; keys do not wait for each other;
- an event that is to be tried again *rests*, and its key with it;
- what is sent again while it is held is the same event; what is sent again after it was done is acknowledged again.

What the stream drops meanwhile, because it is too old, stays held and is pending no more: the broker's floor says so.
Where there is no order (schedules, of which a newer tick drops an older one at any time) an owner is active at once.

A sequence alone does not say which event it is: a broker that lost its disk counts from 1 again. The time at which the
stream took the event is compared too, and a consumer that was made anew is told of (``anew``). What the old stream had
is over then, and nothing is answered for it.

When the partition is lost to another replica, all that has not begun is given back at once; what runs goes on, and the
new owner waits for it.
"""

from __future__ import annotations

from bisect import insort
from collections import OrderedDict
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, TypeAlias

__all__ = ["Action", "Again", "Begin", "GiveBack", "Held", "Lane", "State"]

REMEMBERED = 4096
"""Sequences that are remembered as done, for a broker that lost acknowledgements in a crash."""


class State(Enum):
    """What the partition is to this replica."""

    FOREIGN = "foreign"
    """Another's, or nobody's: nothing is begun."""
    SETTLING = "settling"
    """Ours; what its last owner had has not all come yet."""
    ACTIVE = "active"
    """Ours."""


@dataclass(slots=True, eq=False)
class Held:
    """An event that was delivered here and is not done.

    Attributes:
        sequence: Its place in the stream, which is the order.
        time: When the stream took it, seconds since the epoch.
        key: What it must stay in order with; events without a key are each on their own.
        token: What the shell needs to answer for its latest delivery; None: nobody waits for an answer any more.
        deliveries: How often the broker has sent it.
        tries: Calls of the function so far.
        losses: Calls that were lost with a worker which another call may have ended; they are no tries.
        begun: Calls that were begun in processes that ended before the call did.
        known: What the deliveries to other processes came to is in these numbers.
        failure: What the last try ended with, if the log has its traceback; else "".
        running: The function runs.
        rests: It waits for its next try.
    """

    sequence: int
    key: str
    time: float = 0.0
    token: Any = None
    deliveries: int = 1
    tries: int = 0
    losses: int = 0
    begun: int = 0
    known: bool = True
    failure: str = ""
    running: bool = False
    rests: bool = False

    def __lt__(self, other: Held) -> bool:
        return self.sequence < other.sequence


@dataclass(frozen=True, slots=True)
class Begin:
    """Call the function."""

    held: Held


@dataclass(frozen=True, slots=True)
class GiveBack:
    """Tell the broker to deliver it again, at once, to whoever owns the partition then."""

    held: Held


@dataclass(frozen=True, slots=True)
class Again:
    """Acknowledge once more what was done before: the first acknowledgement was lost."""

    token: Any


Action: TypeAlias = Begin | GiveBack | Again


@dataclass(slots=True)
class Lane:
    """The partition.

    Attributes:
        ordered: Its events have an order.
        state: What it is to this replica.
        pin: The id under which the broker has pinned it here, or "".
        held: What is held, by sequence.
        changes: Counts what changes ``held``; a question to the broker that was asked at another count is void.
    """

    ordered: bool = True
    state: State = State.FOREIGN
    pin: str = ""
    held: dict[int, Held] = field(default_factory=dict)
    changes: int = 0
    _keys: dict[str, list[Held]] = field(default_factory=dict)
    _done: OrderedDict[int, float] = field(default_factory=OrderedDict)

    def arrived(self, new: Held, pin: str) -> list[Action]:
        """Take a delivery.

        Args:
            new: The event.
            pin: The id that the delivery carries; another than the last one begins a new ownership.
        """
        if pin != self.pin:
            self.pin = pin
            self.state = State.SETTLING
        if not self.ordered:
            self.state = State.ACTIVE
        known = self.held.get(new.sequence)
        if new.time != (known.time if known is not None else self._done.get(new.sequence, new.time)):
            self._forget()
            known = None
        if new.sequence in self._done:
            return [Again(new.token)]
        self.changes += 1
        if known is not None:
            known.token, known.deliveries = new.token, new.deliveries
            return []
        self.held[new.sequence] = new
        queue = self._keys.setdefault(new.key, [])
        insort(queue, new)
        return self._next(queue) if self.state is State.ACTIVE else []

    def settled(self, pin: str, pending: int, floor: int, changes: int) -> list[Action]:
        """Take the broker's word: under which id the partition is pinned, and how much of it is pending.

        Args:
            pin: The id; "" when the broker knows of none, as one that was started anew. What is held would keep the
                partition from being pinned again, since it does not come again; so it is given back.
            pending: Events that were delivered to anyone and are not acknowledged.
            floor: The sequence up to which nothing is pending.
            changes: What ``self.changes`` was when the broker was asked.
        """
        if self.state is not State.SETTLING or (self.ordered and changes != self.changes):
            return []
        if not pin:
            return self.lost()
        kept = sum(sequence > floor for sequence in self.held)
        if pin != self.pin or (self.ordered and pending != kept):
            return []
        self.state = State.ACTIVE
        return [action for queue in self._keys.values() for action in self._next(queue)]

    def suspend(self) -> None:
        """The broker is away: begin nothing until it is there and the partition is still ours."""
        if self.state is State.ACTIVE:
            self.state = State.SETTLING

    def done(self, held: Held) -> list[Action]:
        """It was acknowledged, or is a dead letter: its key goes on."""
        if self.held.get(held.sequence) is held:
            self._done[held.sequence] = held.time
            if len(self._done) > REMEMBERED:
                self._done.popitem(last=False)
        self._drop(held)
        return self._go_on(held.key)

    def resting(self, held: Held) -> list[Action]:
        """It is to be tried again later; a partition that is no longer ours has no later."""
        held.running = False
        if self.held.get(held.sequence) is not held:
            self._drop(held)
            return self._go_on(held.key)
        if self.state is State.FOREIGN:
            self._drop(held)
            return [GiveBack(held)]
        held.rests = True
        return []

    def rested(self, held: Held) -> list[Action]:
        """Its time has come."""
        held.rests = False
        if self.held.get(held.sequence) is not held or self.state is not State.ACTIVE:
            return []
        return self._next(self._keys[held.key])

    def lost(self) -> list[Action]:
        """The partition is another's now, or shall be: give back all that does not run."""
        self.state = State.FOREIGN
        self.pin = ""
        idle = [held for held in self.held.values() if not held.running]
        for held in idle:
            self._drop(held)
        return [GiveBack(held) for held in sorted(idle)]

    def anew(self) -> None:
        """The consumer is another one, as after a broker has lost its disk: nothing that it sent before counts.

        What runs ends, and its key waits for that; nobody waits for the answer.
        """
        self.state = State.FOREIGN
        self.pin = ""
        self._forget()

    def given_back(self, held: Held) -> None:
        """What ran was cancelled and given back."""
        self._drop(held)

    def _forget(self) -> None:
        self._done.clear()
        for held in list(self.held.values()):
            held.token = None
            if held.running:
                del self.held[held.sequence]
            else:
                self._drop(held)
        self.changes += 1

    def _go_on(self, key: str) -> list[Action]:
        queue = self._keys.get(key)
        return self._next(queue) if queue and self.state is State.ACTIVE else []

    def _drop(self, held: Held) -> None:
        self.changes += 1
        held.running = held.rests = False
        if self.held.get(held.sequence) is held:
            del self.held[held.sequence]
        queue = self._keys[held.key]
        queue.remove(held)
        if not queue:
            del self._keys[held.key]

    def _next(self, queue: list[Held]) -> list[Action]:
        """Begin the oldest of a key, unless one of the key runs or the oldest rests."""
        first = queue[0]
        if first.rests or any(held.running for held in queue):
            return []
        first.running = True
        return [Begin(first)]
