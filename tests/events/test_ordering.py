"""Order of a key against a model: replicas that start, stop and are killed, a broker that loses state and repeats."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from mesh.events.consume.ordering import (
    AcknowledgeAgain,
    Action,
    HeldEvent,
    Partition,
    PartitionState,
    ReturnToBroker,
    Start,
)

KEYS = ("a", "b", "c")
REPLICAS = (0, 1, 2)
pick = st.randoms(use_true_random=False)


class Model(RuleBasedStateMachine):
    """A partition of JetStream with three replicas.

    ``pending`` is what the broker counts: delivered to someone and not acknowledged. What a dead replica had becomes
    due again; what a live one holds does not, because it keeps saying so, unless the broker's clock jumps.
    """

    ordered = True

    @initialize()
    def begin(self) -> None:
        self.keys: dict[int, str] = {}
        self.next = 1
        self.due: list[int] = []
        self.pending: dict[int, int | None] = {}
        self.acknowledged: set[int] = set()
        self.effects: list[int] = []
        self.expired: set[int] = set()
        self.asked: dict[int, tuple[str, int, int, int]] = {}
        self.stream = 0.0
        self.obsolete: dict[int, list[HeldEvent]] = {name: [] for name in REPLICAS}
        self.partitions = {name: Partition(self.ordered) for name in REPLICAS}
        self.pinned: int | None = None
        self.pin = 0

    # -- the world --

    @rule(key=st.sampled_from(KEYS), count=st.integers(1, 4))
    def publish(self, key: str, count: int) -> None:
        for _ in range(count):
            self.keys[len(self.keys) + 1] = key

    @rule(name=st.sampled_from(REPLICAS))
    def pin_to(self, name: int) -> None:
        """The pin of the replica before lapses or is given up; it is told, and then the next one is pinned."""
        if self.pinned is not None and self.pinned != name:
            self.act(self.pinned, self.partitions[self.pinned].lose())
        self.pin += 1
        self.pinned = name

    @rule(random=pick, count=st.integers(1, 5))
    def deliver(self, random: Any, count: int) -> None:
        for _ in range(count):
            again = [sequence for sequence in self.due if sequence in self.pending]
            if self.pinned is None or not (again or self.next <= len(self.keys)):
                return
            if again:
                sequence = random.choice(again)  # what is sent again comes in any order
                self.due.remove(sequence)
            else:
                sequence, self.next = self.next, self.next + 1
            self.pending[sequence] = self.pinned
            held = HeldEvent(sequence, self.keys[sequence], self.stream, token=sequence)
            self.act(self.pinned, self.partitions[self.pinned].receive(held, str(self.pin)))

    @rule()
    def ask(self) -> None:
        """The broker reports the number of pending events; later changes make the response obsolete."""
        if self.pinned is not None:
            floor = min(self.pending, default=self.next) - 1
            self.asked[self.pinned] = str(self.pin), len(self.pending), floor, self.partitions[self.pinned].changes

    @rule()
    def settle(self) -> None:
        for name, answer in self.asked.items():
            self.act(name, self.partitions[name].settle(*answer))
        self.asked.clear()

    @rule(name=st.sampled_from(REPLICAS), random=pick, count=st.integers(1, 3))
    def succeed(self, name: int, random: Any, count: int) -> None:
        for _ in range(count):
            held = self.running(name, random)
            if held is None:
                return
            self.effects.append(held.sequence)
            self.acknowledge(held.sequence)
            self.act(name, self.partitions[name].complete(held))

    @rule(name=st.sampled_from(REPLICAS), random=pick)
    def fail(self, name: int, random: Any) -> None:
        held = self.running(name, random)
        if held is not None:
            self.act(name, self.partitions[name].wait_for_retry(held))

    @rule(name=st.sampled_from(REPLICAS), random=pick)
    def rest_is_over(self, name: int, random: Any) -> None:
        resting = [held for held in self.partitions[name].held.values() if held.waiting]
        if resting:
            self.act(name, self.partitions[name].retry_due(random.choice(resting)))

    @rule(name=st.sampled_from(REPLICAS))
    def kill(self, name: int) -> None:
        self.partitions[name] = Partition(self.ordered)
        self.obsolete[name].clear()
        self.asked.pop(name, None)
        self.due += [sequence for sequence, owner in self.pending.items() if owner == name and sequence not in self.due]
        if self.pinned == name:
            self.pinned = None

    @rule()
    def broker_starts_anew(self) -> None:
        """Nobody is pinned any more; whoever was asks, and hears it."""
        self.pinned = None
        for name, partition in self.partitions.items():
            partition.suspend()
            self.act(name, partition.settle("", len(self.pending), 0, partition.changes))

    @rule(name=st.sampled_from(REPLICAS))
    def connection_breaks(self, name: int) -> None:
        self.partitions[name].suspend()

    @precondition(lambda self: self.acknowledged)
    @rule(random=pick)
    def broker_forgets_an_acknowledgement(self, random: Any) -> None:
        sequence = random.choice(sorted(self.acknowledged))
        self.acknowledged.remove(sequence)
        self.pending[sequence] = None
        self.due.append(sequence)

    @rule()
    def clock_of_the_broker_jumps(self) -> None:
        """All that is pending is overdue at once, also what somebody is at work on."""
        self.due += [sequence for sequence in self.pending if sequence not in self.due]

    @precondition(lambda self: self.keys)
    @rule(count=st.integers(1, 3))
    def stream_drops_what_is_too_old(self, count: int) -> None:
        oldest = len(self.expired) + 1
        for sequence in range(oldest, min(oldest + count, len(self.keys) + 1)):
            self.expired.add(sequence)
            self.pending.pop(sequence, None)
        self.due = [sequence for sequence in self.due if sequence not in self.expired]
        self.acknowledged -= self.expired
        self.next = max(self.next, len(self.expired) + 1)

    # -- what partitions ask for --

    def act(self, name: int, actions: list[Any]) -> None:
        for action in actions:
            match action:
                case Start(held):
                    key = self.keys[held.sequence]
                    older = [one for one in range(1, held.sequence) if self.keys[one] == key]
                    assert set(older) <= {*self.effects, *self.expired}, f"{held.sequence} overtakes one of {older}"
                case ReturnToBroker(held):
                    if self.pending.get(held.sequence) == name and held.sequence not in self.due:
                        self.due.append(held.sequence)
                case AcknowledgeAgain(sequence):
                    self.acknowledge(sequence)

    def acknowledge(self, sequence: int) -> None:
        self.pending.pop(sequence, None)
        if sequence not in self.expired:
            self.acknowledged.add(sequence)

    def running(self, name: int, random: Any) -> HeldEvent | None:
        found = [held for held in self.partitions[name].held.values() if held.running]
        return random.choice(found) if found else None

    # -- what must hold --

    @invariant()
    def one_of_a_key_runs(self) -> None:
        for name, partition in self.partitions.items():
            running: dict[str, list[int]] = defaultdict(list)
            for held in partition.held.values():
                if held.running:
                    running[held.key].append(held.sequence)
            for held in self.obsolete[name]:
                running[held.key].append(held.sequence)
            assert all(len(found) == 1 for found in running.values()), (name, running)

    @invariant()
    def first_effects_are_in_order(self) -> None:
        firsts: dict[str, list[int]] = defaultdict(list)
        for sequence in dict.fromkeys(self.effects):
            if sequence not in self.expired:
                firsts[self.keys[sequence]].append(sequence)
        assert all(found == sorted(found) for found in firsts.values())

    def teardown(self) -> None:
        """Nothing is lost: with one replica left alone, everything comes to its effect."""
        if not hasattr(self, "keys"):
            return
        for name in REPLICAS:
            self.kill(name)
        self.due += [one for one in self.pending if one not in self.due]
        self.pin_to(0)
        partition = self.partitions[0]
        for _ in range(20 * (len(self.keys) + 1)):
            while [one for one in self.due if one in self.pending] or self.next <= len(self.keys):
                self.deliver(_First(), 1)
            self.ask()
            self.settle()
            for held in [held for held in partition.held.values() if held.running]:
                self.effects.append(held.sequence)
                self.acknowledge(held.sequence)
                self.act(0, partition.complete(held))
        assert set(self.effects) | self.expired == set(self.keys)
        assert not self.pending
        assert not partition.held


class _First:
    """Chooses what is first."""

    def choice(self, found: list[int]) -> int:
        return found[0]


TestOrdering = Model.TestCase
TestOrdering.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)


class Lossy(Model):
    """Model with a broker that loses its disk."""

    @rule(name=st.sampled_from(REPLICAS), count=st.integers(1, 4))
    def work(self, name: int, count: int) -> None:
        """Have a replica run something that can be lost, which single rules seldom reach."""
        self.publish(KEYS[0], count)
        self.pin_to(name)
        self.deliver(_First(), 9)
        self.ask()
        self.settle()

    @precondition(lambda self: self.effects or self.pending)
    @rule(random=pick)
    def broker_loses_its_disk(self, random: Any) -> None:
        """Another stream counts from 1. Who holds something hears of it, the others perhaps not."""
        for name, partition in self.partitions.items():
            running = [held for held in partition.held.values() if held.running]
            if partition.held or random.random() < 0.5:
                partition.reset()
            else:
                partition.suspend()
            assert not partition.held
            assert all(held.token is None for held in running), "an answer for the old stream would reach the new one"
            self.obsolete[name] += running
        self.stream += 1
        self.keys, self.next, self.pinned = {}, 1, None
        for gone in (self.due, self.pending, self.acknowledged, self.effects, self.expired, self.asked):
            gone.clear()  # type: ignore[attr-defined]

    @rule(name=st.sampled_from(REPLICAS), well=st.booleans())
    def what_ran_for_the_old_stream_ends(self, name: int, well: bool) -> None:  # noqa: FBT001 - a rule's draw
        if self.obsolete[name]:
            held, partition = self.obsolete[name].pop(), self.partitions[name]
            self.act(name, partition.complete(held) if well else partition.wait_for_retry(held))


TestLosses = Lossy.TestCase
TestLosses.settings = TestOrdering.settings


class Hasty(Model):
    """A replica that begins at once, whatever the last owner had."""

    ordered = False


def test_the_model_sees_an_event_that_overtakes() -> None:
    quick = settings(
        max_examples=2000, deadline=None, database=None, report_multiple_bugs=False, phases=[Phase.generate]
    )
    with pytest.raises(AssertionError, match="overtakes one of"):
        run_state_machine_as_test(Hasty, settings=quick)  # type: ignore[no-untyped-call]


def partition_with(*sequences: int) -> Partition:
    partition = Partition()
    for sequence in sequences:
        partition.receive(HeldEvent(sequence, "k", token=sequence), "pin")
    partition.settle("pin", len(sequences), 0, partition.changes)
    return partition


def test_a_new_owner_waits_for_what_the_last_one_had() -> None:
    partition = Partition()
    assert partition.receive(HeldEvent(7, "k"), "pin") == []
    assert partition.settle("pin", 2, 0, partition.changes) == []
    old = HeldEvent(5, "k")
    assert partition.receive(old, "pin") == []
    assert partition.settle("other", 2, 0, partition.changes) == []
    assert partition.settle("pin", 2, 0, partition.changes - 1) == []
    assert partition.settle("pin", 2, 0, partition.changes) == [Start(old)]
    assert partition.state is PartitionState.ACTIVE


def test_a_broker_that_was_started_anew_has_forgotten_the_owner() -> None:
    partition = partition_with(1, 2)
    running, waiting = partition.held[1], partition.held[2]
    partition.suspend()
    assert partition.settle("", 2, 0, partition.changes - 1) == []
    assert partition.settle("", 2, 0, partition.changes) == [ReturnToBroker(waiting)]
    assert (partition.state, partition.pin) == (PartitionState.FOREIGN, "")
    assert partition.wait_for_retry(running) == [ReturnToBroker(running)]


def test_what_was_done_is_acknowledged_again() -> None:
    partition = partition_with(1)
    partition.complete(partition.held[1])
    assert partition.receive(HeldEvent(1, "k", token="new"), "pin") == [AcknowledgeAgain("new")]


@pytest.mark.parametrize("end", [Partition.complete, Partition.wait_for_retry])
def test_a_broker_that_lost_its_disk_counts_from_one_again(end: Callable[[Partition, HeldEvent], list[Action]]) -> None:
    partition = Partition()
    for sequence in (1, 2, 3):
        partition.receive(HeldEvent(sequence, "k", time=10.0 + sequence, token=sequence), "pin")
    partition.settle("pin", 3, 0, partition.changes)
    partition.complete(partition.held[1])
    running = partition.held[2]
    partition.reset()
    assert not partition.held
    assert running.token is None
    news = [HeldEvent(sequence, "k", time=20.0 + sequence, token=sequence) for sequence in (1, 2)]
    for new in news:
        assert partition.receive(new, "other") == []
    assert partition.settle("other", 2, 0, partition.changes) == []  # the key waits for what runs
    assert end(partition, running) == [Start(news[0])]
    assert partition.complete(news[0]) == [Start(news[1])]
    assert partition.receive(HeldEvent(1, "k", time=21.0, token="again"), "other") == [AcknowledgeAgain("again")]


def test_an_old_sequence_with_another_time_is_another_event() -> None:
    """A replica that nobody told of the new stream sees it."""
    partition = Partition()
    partition.receive(HeldEvent(1, "k", time=1.0), "pin")
    partition.settle("pin", 1, 0, partition.changes)
    partition.complete(partition.held[1])
    partition.receive(HeldEvent(2, "k", time=2.0), "pin")
    partition.suspend()
    first, second = HeldEvent(1, "a", time=3.0), HeldEvent(2, "b", time=4.0)
    assert partition.receive(first, "other") == []
    assert partition.receive(second, "other") == []
    assert partition.held == {1: first, 2: second}
    assert partition.settle("other", 2, 0, partition.changes) == [Start(first), Start(second)]


def test_a_lost_partition_gives_back_what_has_not_begun() -> None:
    partition = partition_with(1, 2, 3)
    running, waiting = partition.held[1], [partition.held[2], partition.held[3]]
    assert partition.lose() == [ReturnToBroker(held) for held in waiting]
    assert list(partition.held) == [1]
    assert partition.wait_for_retry(running) == [ReturnToBroker(running)]
    assert not partition.held


def test_what_the_stream_has_dropped_is_not_waited_for() -> None:
    partition = Partition()
    partition.receive(HeldEvent(7, "k"), "pin")
    last = HeldEvent(8, "k")
    partition.receive(last, "pin")
    assert partition.settle("pin", 1, 6, partition.changes) == []
    assert partition.settle("pin", 1, 7, partition.changes) == [
        Start(partition.held[7])
    ]  # 7 was too old; it is here all the same
    assert partition.complete(partition.held[7]) == [Start(last)]


def test_ticks_wait_for_nothing() -> None:
    """A newer tick drops an older one from the stream, so what is held and what is pending need never agree."""
    partition = Partition(ordered=False)
    first, second = HeldEvent(3, "3"), HeldEvent(4, "4")
    assert partition.receive(first, "pin") == [Start(first)]
    assert partition.receive(second, "pin") == [Start(second)]
    partition.suspend()
    third = HeldEvent(5, "5")
    assert partition.receive(third, "pin") == [Start(third)]
    partition.suspend()
    assert partition.settle("other", 0, 0, 0) == []
    partition.settle("pin", 0, 0, 0)
    assert partition.state is PartitionState.ACTIVE
