"""Partition of one consumer as one replica sees it: decides which event may be delivered now. Pure; tests model it.

The broker hands a partition to one replica at a time (it *pins* it) and puts the id of the pin on every message. The
broker does not wait: it sends new events to a new owner at once, while events of the previous owner are redelivered
only after their ack wait. An event must not overtake an older one of its key. So a new owner is *settling* until it
holds every event that the broker counts as pending; then it is *active*:

- The oldest event of each key is delivered, and the next one after its acknowledgement. Keys do not wait for each
other.
- An event that waits for a retry holds its key.
- A redelivery of an event that is held is the same event. A redelivery of a processed event is acknowledged again.

An event that the stream drops meanwhile, because of its age, stays held and is no longer pending: the broker's ack
floor shows that. Ticks of schedules have no order, and a newer tick can drop an older one at any time, so their owner
is active at once.

A sequence alone does not identify an event: a broker that lost its disk counts from 1 again. So the time at which the
stream stored the event is compared too, and ``reset`` is called when the consumer was made anew. Events of the old
stream are over then, and nothing is acknowledged for them.

When the partition is lost to another replica, every event whose function does not run is returned at once. Running
functions continue, and the new owner waits for them.
"""

from __future__ import annotations

from bisect import insort
from collections import OrderedDict
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, TypeAlias

__all__ = ["AcknowledgeAgain", "Action", "HeldEvent", "Partition", "PartitionState", "ReturnToBroker", "Start"]

REMEMBERED = 4096
"""Sequences that are remembered as processed, for a broker that lost acknowledgements in a crash."""


class PartitionState(Enum):
    """Ownership of the partition."""

    FOREIGN = "foreign"
    """Another replica's, or nobody's: nothing is started."""
    SETTLING = "settling"
    """This replica's; some events of the previous owner have not been redelivered yet."""
    ACTIVE = "active"
    """This replica's."""


@dataclass(slots=True, eq=False)
class HeldEvent:
    """Event that was delivered to this replica and is not processed.

    Attributes:
        sequence: Its sequence in the stream, which is its place in the order.
        key: Its key. An event without a key has a key of its own.
        time: Time at which the stream stored it, seconds since the epoch.
        token: Value that acknowledges its latest delivery; None: no acknowledgement is expected any more.
        deliveries: Number of its deliveries.
        attempts: Attempts so far.
        losses: Calls that were lost with a worker which another call may have ended. They are no attempts.
        unfinished: Calls that were started in processes that ended before the call did.
        recalled: These numbers include the deliveries to other processes.
        logged_failure: Failure of the last attempt, if the log has its traceback; else "".
        running: The function runs.
        waiting: It waits for a retry.
    """

    sequence: int
    key: str
    time: float = 0.0
    token: Any = None
    deliveries: int = 1
    attempts: int = 0
    losses: int = 0
    unfinished: int = 0
    recalled: bool = True
    logged_failure: str = ""
    running: bool = False
    waiting: bool = False

    def __lt__(self, other: HeldEvent) -> bool:
        return self.sequence < other.sequence


@dataclass(frozen=True, slots=True)
class Start:
    """Call the function for an event."""

    held: HeldEvent


@dataclass(frozen=True, slots=True)
class ReturnToBroker:
    """Ask the broker to redeliver an event at once, to the owner of the partition at that time."""

    held: HeldEvent


@dataclass(frozen=True, slots=True)
class AcknowledgeAgain:
    """Acknowledge a processed event again: the first acknowledgement was lost."""

    token: Any


Action: TypeAlias = Start | ReturnToBroker | AcknowledgeAgain


@dataclass(slots=True)
class Partition:
    """One partition.

    Attributes:
        ordered: Its events have an order.
        state: Its ownership.
        pin: Id under which the broker has pinned it to this replica, or "".
        held: Held events, by sequence.
        changes: Number of changes of ``held``. A response of the broker to a request that was sent at another count is
            void.
    """

    ordered: bool = True
    state: PartitionState = PartitionState.FOREIGN
    pin: str = ""
    held: dict[int, HeldEvent] = field(default_factory=dict)
    changes: int = 0
    _keys: dict[str, list[HeldEvent]] = field(default_factory=dict)
    _processed: OrderedDict[int, float] = field(default_factory=OrderedDict)

    def receive(self, new: HeldEvent, pin: str) -> list[Action]:
        """Take a delivery.

        Args:
            new: The event.
            pin: Id of the pin on the delivery. An id other than the last one begins a new ownership.
        """
        if pin != self.pin:
            self.pin = pin
            self.state = PartitionState.SETTLING
        if not self.ordered:
            self.state = PartitionState.ACTIVE
        known = self.held.get(new.sequence)
        if new.time != (known.time if known is not None else self._processed.get(new.sequence, new.time)):
            self._forget()
            known = None
        if new.sequence in self._processed:
            return [AcknowledgeAgain(new.token)]
        self.changes += 1
        if known is not None:
            known.token, known.deliveries = new.token, new.deliveries
            return []
        self.held[new.sequence] = new
        queue = self._keys.setdefault(new.key, [])
        insort(queue, new)
        return self._next(queue) if self.state is PartitionState.ACTIVE else []

    def settle(self, pin: str, pending: int, floor: int, changes: int) -> list[Action]:
        """Take the broker's state of the partition: the id of its pin and the number of pending events.

        Args:
            pin: The id; "" when the broker knows of no pin, as after a restart. Events that are held are not
                redelivered, so they would keep the partition from being pinned again; they are returned.
            pending: Events that were delivered to any client and are not acknowledged.
            floor: The sequence up to which nothing is pending.
            changes: The value of ``self.changes`` when the request was sent.
        """
        if self.state is not PartitionState.SETTLING or (self.ordered and changes != self.changes):
            return []
        if not pin:
            return self.lose()
        kept = sum(sequence > floor for sequence in self.held)
        if pin != self.pin or (self.ordered and pending != kept):
            return []
        self.state = PartitionState.ACTIVE
        return [action for queue in self._keys.values() for action in self._next(queue)]

    def suspend(self) -> None:
        """Start nothing until the broker is back and the partition still belongs to this replica."""
        if self.state is PartitionState.ACTIVE:
            self.state = PartitionState.SETTLING

    def complete(self, held: HeldEvent) -> list[Action]:
        """Drop an event that was acknowledged or is a dead letter; start the next one of its key."""
        if self.held.get(held.sequence) is held:
            self._processed[held.sequence] = held.time
            if len(self._processed) > REMEMBERED:
                self._processed.popitem(last=False)
        self._drop(held)
        return self._start_next(held.key)

    def wait_for_retry(self, held: HeldEvent) -> list[Action]:
        """Let an event wait for a retry; return it to the broker if the partition was lost."""
        held.running = False
        if self.held.get(held.sequence) is not held:
            self._drop(held)
            return self._start_next(held.key)
        if self.state is PartitionState.FOREIGN:
            self._drop(held)
            return [ReturnToBroker(held)]
        held.waiting = True
        return []

    def retry_due(self, held: HeldEvent) -> list[Action]:
        """Start the retry of an event whose delay is over."""
        held.waiting = False
        if self.held.get(held.sequence) is not held or self.state is not PartitionState.ACTIVE:
            return []
        return self._next(self._keys[held.key])

    def lose(self) -> list[Action]:
        """Give up the partition: return every event whose function does not run."""
        self.state = PartitionState.FOREIGN
        self.pin = ""
        idle = [held for held in self.held.values() if not held.running]
        for held in idle:
            self._drop(held)
        return [ReturnToBroker(held) for held in sorted(idle)]

    def reset(self) -> None:
        """Forget all deliveries: the consumer was made anew, as after a broker has lost its disk.

        A running function ends, and its key waits for that. No acknowledgement is expected.
        """
        self.state = PartitionState.FOREIGN
        self.pin = ""
        self._forget()

    def returned(self, held: HeldEvent) -> None:
        """Drop an event whose running function was cancelled; it was returned to the broker."""
        self._drop(held)

    def _forget(self) -> None:
        self._processed.clear()
        for held in list(self.held.values()):
            held.token = None
            if held.running:
                del self.held[held.sequence]
            else:
                self._drop(held)
        self.changes += 1

    def _start_next(self, key: str) -> list[Action]:
        queue = self._keys.get(key)
        return self._next(queue) if queue and self.state is PartitionState.ACTIVE else []

    def _drop(self, held: HeldEvent) -> None:
        self.changes += 1
        held.running = held.waiting = False
        if self.held.get(held.sequence) is held:
            del self.held[held.sequence]
        queue = self._keys[held.key]
        queue.remove(held)
        if not queue:
            del self._keys[held.key]

    def _next(self, queue: list[HeldEvent]) -> list[Action]:
        """Start the oldest event of a key, unless one of the key runs or the oldest waits for a retry."""
        first = queue[0]
        if first.waiting or any(held.running for held in queue):
            return []
        first.running = True
        return [Start(first)]
