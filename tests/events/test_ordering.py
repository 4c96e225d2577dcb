"""The order of a key against a model: replicas that come, go and are killed, a broker that forgets and sends again."""

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

from mesh.events.consume.ordering import Action, Again, Begin, GiveBack, Held, Lane, State

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
        self.obsolete: dict[int, list[Held]] = {name: [] for name in REPLICAS}
        self.lanes = {name: Lane(self.ordered) for name in REPLICAS}
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
            self.act(self.pinned, self.lanes[self.pinned].lost())
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
            held = Held(sequence, self.keys[sequence], self.stream, token=sequence)
            self.act(self.pinned, self.lanes[self.pinned].arrived(held, str(self.pin)))

    @rule()
    def ask(self) -> None:
        """The broker says how much is pending; what happens meanwhile makes the answer old."""
        if self.pinned is not None:
            floor = min(self.pending, default=self.next) - 1
            self.asked[self.pinned] = str(self.pin), len(self.pending), floor, self.lanes[self.pinned].changes

    @rule()
    def settle(self) -> None:
        for name, answer in self.asked.items():
            self.act(name, self.lanes[name].settled(*answer))
        self.asked.clear()

    @rule(name=st.sampled_from(REPLICAS), random=pick, count=st.integers(1, 3))
    def succeed(self, name: int, random: Any, count: int) -> None:
        for _ in range(count):
            held = self.running(name, random)
            if held is None:
                return
            self.effects.append(held.sequence)
            self.acknowledge(held.sequence)
            self.act(name, self.lanes[name].done(held))

    @rule(name=st.sampled_from(REPLICAS), random=pick)
    def fail(self, name: int, random: Any) -> None:
        held = self.running(name, random)
        if held is not None:
            self.act(name, self.lanes[name].resting(held))

    @rule(name=st.sampled_from(REPLICAS), random=pick)
    def rest_is_over(self, name: int, random: Any) -> None:
        resting = [held for held in self.lanes[name].held.values() if held.rests]
        if resting:
            self.act(name, self.lanes[name].rested(random.choice(resting)))

    @rule(name=st.sampled_from(REPLICAS))
    def kill(self, name: int) -> None:
        self.lanes[name] = Lane(self.ordered)
        self.obsolete[name].clear()
        self.asked.pop(name, None)
        self.due += [sequence for sequence, owner in self.pending.items() if owner == name and sequence not in self.due]
        if self.pinned == name:
            self.pinned = None

    @rule()
    def broker_starts_anew(self) -> None:
        """Nobody is pinned any more; whoever was asks, and hears it."""
        self.pinned = None
        for name, lane in self.lanes.items():
            lane.suspend()
            self.act(name, lane.settled("", len(self.pending), 0, lane.changes))

    @rule(name=st.sampled_from(REPLICAS))
    def connection_breaks(self, name: int) -> None:
        self.lanes[name].suspend()

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

    # -- what lanes ask for --

    def act(self, name: int, actions: list[Any]) -> None:
        for action in actions:
            match action:
                case Begin(held):
                    key = self.keys[held.sequence]
                    older = [one for one in range(1, held.sequence) if self.keys[one] == key]
                    assert set(older) <= {*self.effects, *self.expired}, f"{held.sequence} overtakes one of {older}"
                case GiveBack(held):
                    if self.pending.get(held.sequence) == name and held.sequence not in self.due:
                        self.due.append(held.sequence)
                case Again(sequence):
                    self.acknowledge(sequence)

    def acknowledge(self, sequence: int) -> None:
        self.pending.pop(sequence, None)
        if sequence not in self.expired:
            self.acknowledged.add(sequence)

    def running(self, name: int, random: Any) -> Held | None:
        found = [held for held in self.lanes[name].held.values() if held.running]
        return random.choice(found) if found else None

    # -- what must hold --

    @invariant()
    def one_of_a_key_runs(self) -> None:
        for name, lane in self.lanes.items():
            running: dict[str, list[int]] = defaultdict(list)
            for held in lane.held.values():
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
        lane = self.lanes[0]
        for _ in range(20 * (len(self.keys) + 1)):
            while [one for one in self.due if one in self.pending] or self.next <= len(self.keys):
                self.deliver(_First(), 1)
            self.ask()
            self.settle()
            for held in [held for held in lane.held.values() if held.running]:
                self.effects.append(held.sequence)
                self.acknowledge(held.sequence)
                self.act(0, lane.done(held))
        assert set(self.effects) | self.expired == set(self.keys)
        assert not self.pending
        assert not lane.held


class _First:
    """Chooses what is first."""

    def choice(self, found: list[int]) -> int:
        return found[0]


TestOrdering = Model.TestCase
TestOrdering.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)


class Lossy(Model):
    """And a broker that loses its disk."""

    @rule(name=st.sampled_from(REPLICAS), count=st.integers(1, 4))
    def work(self, name: int, count: int) -> None:
        """So that there is something to lose: by rules one by one a replica seldom comes to run anything."""
        self.publish(KEYS[0], count)
        self.pin_to(name)
        self.deliver(_First(), 9)
        self.ask()
        self.settle()

    @precondition(lambda self: self.effects or self.pending)
    @rule(random=pick)
    def broker_loses_its_disk(self, random: Any) -> None:
        """Another stream counts from 1. Who holds something hears of it, the others perhaps not."""
        for name, lane in self.lanes.items():
            running = [held for held in lane.held.values() if held.running]
            if lane.held or random.random() < 0.5:
                lane.anew()
            else:
                lane.suspend()
            assert not lane.held
            assert all(held.token is None for held in running), "an answer for the old stream would reach the new one"
            self.obsolete[name] += running
        self.stream += 1
        self.keys, self.next, self.pinned = {}, 1, None
        for gone in (self.due, self.pending, self.acknowledged, self.effects, self.expired, self.asked):
            gone.clear()  # type: ignore[attr-defined]

    @rule(name=st.sampled_from(REPLICAS), well=st.booleans())
    def what_ran_for_the_old_stream_ends(self, name: int, well: bool) -> None:  # noqa: FBT001 - a rule's draw
        if self.obsolete[name]:
            held, lane = self.obsolete[name].pop(), self.lanes[name]
            self.act(name, lane.done(held) if well else lane.resting(held))


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


def lane_with(*sequences: int) -> Lane:
    lane = Lane()
    for sequence in sequences:
        lane.arrived(Held(sequence, "k", token=sequence), "pin")
    lane.settled("pin", len(sequences), 0, lane.changes)
    return lane


def test_a_new_owner_waits_for_what_the_last_one_had() -> None:
    lane = Lane()
    assert lane.arrived(Held(7, "k"), "pin") == []
    assert lane.settled("pin", 2, 0, lane.changes) == []
    old = Held(5, "k")
    assert lane.arrived(old, "pin") == []
    assert lane.settled("other", 2, 0, lane.changes) == []
    assert lane.settled("pin", 2, 0, lane.changes - 1) == []
    assert lane.settled("pin", 2, 0, lane.changes) == [Begin(old)]
    assert lane.state is State.ACTIVE


def test_a_broker_that_was_started_anew_has_forgotten_the_owner() -> None:
    lane = lane_with(1, 2)
    running, waiting = lane.held[1], lane.held[2]
    lane.suspend()
    assert lane.settled("", 2, 0, lane.changes - 1) == []
    assert lane.settled("", 2, 0, lane.changes) == [GiveBack(waiting)]
    assert (lane.state, lane.pin) == (State.FOREIGN, "")
    assert lane.resting(running) == [GiveBack(running)]


def test_what_was_done_is_acknowledged_again() -> None:
    lane = lane_with(1)
    lane.done(lane.held[1])
    assert lane.arrived(Held(1, "k", token="new"), "pin") == [Again("new")]


@pytest.mark.parametrize("end", [Lane.done, Lane.resting])
def test_a_broker_that_lost_its_disk_counts_from_one_again(end: Callable[[Lane, Held], list[Action]]) -> None:
    lane = Lane()
    for sequence in (1, 2, 3):
        lane.arrived(Held(sequence, "k", time=10.0 + sequence, token=sequence), "pin")
    lane.settled("pin", 3, 0, lane.changes)
    lane.done(lane.held[1])
    running = lane.held[2]
    lane.anew()
    assert not lane.held
    assert running.token is None
    news = [Held(sequence, "k", time=20.0 + sequence, token=sequence) for sequence in (1, 2)]
    for new in news:
        assert lane.arrived(new, "other") == []
    assert lane.settled("other", 2, 0, lane.changes) == []  # the key waits for what runs
    assert end(lane, running) == [Begin(news[0])]
    assert lane.done(news[0]) == [Begin(news[1])]
    assert lane.arrived(Held(1, "k", time=21.0, token="again"), "other") == [Again("again")]


def test_an_old_sequence_with_another_time_is_another_event() -> None:
    """A replica that nobody told of the new stream sees it."""
    lane = Lane()
    lane.arrived(Held(1, "k", time=1.0), "pin")
    lane.settled("pin", 1, 0, lane.changes)
    lane.done(lane.held[1])
    lane.arrived(Held(2, "k", time=2.0), "pin")
    lane.suspend()
    first, second = Held(1, "a", time=3.0), Held(2, "b", time=4.0)
    assert lane.arrived(first, "other") == []
    assert lane.arrived(second, "other") == []
    assert lane.held == {1: first, 2: second}
    assert lane.settled("other", 2, 0, lane.changes) == [Begin(first), Begin(second)]


def test_a_lost_partition_gives_back_what_has_not_begun() -> None:
    lane = lane_with(1, 2, 3)
    running, waiting = lane.held[1], [lane.held[2], lane.held[3]]
    assert lane.lost() == [GiveBack(held) for held in waiting]
    assert list(lane.held) == [1]
    assert lane.resting(running) == [GiveBack(running)]
    assert not lane.held


def test_what_the_stream_has_dropped_is_not_waited_for() -> None:
    lane = Lane()
    lane.arrived(Held(7, "k"), "pin")
    last = Held(8, "k")
    lane.arrived(last, "pin")
    assert lane.settled("pin", 1, 6, lane.changes) == []
    assert lane.settled("pin", 1, 7, lane.changes) == [Begin(lane.held[7])]  # 7 was too old; it is here all the same
    assert lane.done(lane.held[7]) == [Begin(last)]


def test_ticks_wait_for_nothing() -> None:
    """A newer tick drops an older one from the stream, so what is held and what is pending need never agree."""
    lane = Lane(ordered=False)
    first, second = Held(3, "3"), Held(4, "4")
    assert lane.arrived(first, "pin") == [Begin(first)]
    assert lane.arrived(second, "pin") == [Begin(second)]
    lane.suspend()
    third = Held(5, "5")
    assert lane.arrived(third, "pin") == [Begin(third)]
    lane.suspend()
    assert lane.settled("other", 0, 0, 0) == []
    lane.settled("pin", 0, 0, 0)
    assert lane.state is State.ACTIVE
