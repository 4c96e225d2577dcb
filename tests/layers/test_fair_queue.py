"""Fair queue: admission, the next call, and the refused call."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mesh.layers.fair_queue import IDLE_SHARES, MAX_RUNNING_PER_FREE_PERMIT, FairQueue, QueueFull, Waiter

KEYS = st.tuples(st.sampled_from("mn"), st.sampled_from(["a", "b", None]), st.sampled_from("xyz"))


def waiter(queue: FairQueue[Any], *keys: str | None) -> Waiter:
    return Waiter(queue.shares(keys))


def _differ(keys: tuple[str | None, ...], others: tuple[str | None, ...]) -> list[int]:
    return [at for at, key in enumerate(keys) if key is not None and key != others[at]]


def _only(keys: tuple[str | None, ...], at: int) -> tuple[str | None, ...]:
    return tuple(key if index == at else None for index, key in enumerate(keys))


class Played(RuleBasedStateMachine):
    """Any order of calls that arrive, run, end and are cancelled, compared with plain lists."""

    queue: FairQueue[Waiter]

    @initialize(limit=st.integers(1, 24), size=st.integers(0, 6))
    def begin(self, limit: int, size: int) -> None:
        self.queue = FairQueue(limit, size)
        self.waiting: list[tuple[tuple[str | None, ...], Waiter]] = []
        self.running: list[tuple[str | None, ...]] = []
        self.caps: dict[str, int] = {}

    def _count(self, calls: list[tuple[str | None, ...]], keys: tuple[str | None, ...]) -> list[int]:
        """Count the calls of each share of a call."""
        return [sum(call[at] == key for call in calls) for at, key in enumerate(keys) if key is not None]

    def _may(self, keys: tuple[str | None, ...]) -> bool:
        free = self.queue.limit - len(self.running)
        counts = self._count(self.running, keys)
        capped = counts[0] >= self.caps.get(keys[0] or "", 99)
        return free > 0 and not capped and all(count < MAX_RUNNING_PER_FREE_PERMIT * free for count in counts)

    @rule(keys=KEYS)
    def comes(self, keys: tuple[str | None, ...]) -> None:
        allowed = self._may(keys) and keys not in [other for other, _ in self.waiting]
        shares = self.queue.shares(keys)
        assert self.queue.enter(shares) is allowed
        if allowed:
            self.running.append(keys)
            return
        lines = [other for other, _ in self.waiting]
        newcomer = waiter(self.queue, *keys)
        try:
            displaced = self.queue.push(newcomer)
        except QueueFull:
            assert len(lines) == self.queue.size
            return
        if displaced is None:
            assert len(lines) < self.queue.size
        else:
            (victim,) = (other for other, one in self.waiting if one is displaced)
            theirs = [self._count(lines, _only(victim, at))[0] for at in _differ(victim, keys)]
            ours = [self._count(lines, _only(keys, at))[0] for at in _differ(keys, victim)]
            assert max(theirs) > max(ours, default=0) + 1
            self.waiting = [(other, one) for other, one in self.waiting if one is not displaced]
        self.waiting.append((keys, newcomer))

    @rule(newest=st.booleans())
    def a_permit_is_free(self, newest: bool) -> None:  # noqa: FBT001
        free = [keys for keys, _ in self.waiting if self._may(keys)]
        found = self.queue.pop(newest=lambda _: newest)
        if not free:
            assert found is None
            return
        (keys,) = (other for other, one in self.waiting if one is found)
        assert sorted(self._count(self.running, keys), reverse=True) == min(
            sorted(self._count(self.running, other), reverse=True) for other in free
        )
        same = [one for other, one in self.waiting if other == keys]
        assert found is same[-1 if newest else 0]
        self.waiting = [(other, one) for other, one in self.waiting if one is not found]
        self.running.append(keys)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def ends(self, data: st.DataObject) -> None:
        keys = data.draw(st.sampled_from(self.running))
        self.queue.leave(self.queue.shares(keys))
        self.running.remove(keys)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def gives_up(self, data: st.DataObject) -> None:
        at = data.draw(st.integers(0, len(self.waiting) - 1))
        _, gone = self.waiting.pop(at)
        assert self.queue.remove(gone)
        assert not self.queue.remove(gone)

    @rule(method=st.sampled_from("mn"), cap=st.integers(1, 5))
    def is_capped(self, method: str, cap: int) -> None:
        self.caps[method] = cap
        self.queue.cap(self.queue.shares((method,))[0], cap)

    @invariant()
    def the_counts_are_right_and_bounded(self) -> None:
        if hasattr(self, "running"):
            assert self.queue.waiting == len(self.waiting) <= self.queue.size
            assert self.queue.running == len(self.running) <= self.queue.limit


TestPlayed = Played.TestCase
TestPlayed.settings = settings(max_examples=60, stateful_step_count=40)


def test_a_flood_does_not_starve_a_quiet_client() -> None:
    """One client keeps the queue full; another, with less than its share of calls, is never refused and all served."""
    queue: FairQueue[Waiter] = FairQueue(limit=16, size=20)
    running: list[Waiter] = []
    pushed = 0
    counts = {"flood": 0, "quiet": 0}
    clients = {}
    for moment in range(1000):
        for _ in range(5):
            with contextlib.suppress(QueueFull):
                one = waiter(queue, "m", "flood", "target")
                clients[one] = "flood"
                queue.push(one)
        if moment % 3 == 0:
            one = waiter(queue, "m", "quiet", "target")
            clients[one] = "quiet"
            queue.push(one)
            pushed += 1
        while (found := queue.pop()) is not None:
            counts[clients[found]] += 1
            running.append(found)
        if moment >= 16:
            queue.leave(running.pop(0).shares)
    assert counts["quiet"] >= pushed - 1, counts
    assert counts["flood"] >= 600


def test_slow_calls_share_permits_and_not_turns() -> None:
    """Of eight permits a slow method holds four while fast calls wait, however many of its own wait before them."""
    queue: FairQueue[Waiter] = FairQueue(limit=8, size=100)
    for method in ("slow", "fast"):
        for _ in range(20):
            queue.push(waiter(queue, method))
    (slow,), (fast,) = queue.shares(("slow",)), queue.shares(("fast",))
    for _ in range(8):
        queue.pop()
    assert (slow.running, fast.running) == (4, 4)
    queue.leave((fast,))
    found = queue.pop()
    assert found is not None
    assert found.shares == (fast,), "the permit of a fast call goes to the next fast call"


def test_calls_that_hang_leave_permits_to_others() -> None:
    queue: FairQueue[Waiter] = FairQueue(limit=36, size=100)
    hung = 0
    while queue.enter(queue.shares(("m", f"client {hung}", "hung target"))):
        hung += 1
    assert hung == 32
    assert all(queue.enter(queue.shares(("m2", "client 1", "healthy target"))) for _ in range(3))


def test_a_hung_target_and_a_client_together_leave_permits_to_others() -> None:
    queue: FairQueue[Waiter] = FairQueue(limit=100, size=100, bulkheads=(2,))
    hung = client = 0
    while queue.enter(queue.shares(("m", f"client {hung}", "hung target"))):
        hung += 1
    while queue.enter(queue.shares(("m2", "greedy client", f"target {client}"))):
        client += 1
    assert 45 <= hung <= 55
    assert client >= 20
    assert all(queue.enter(queue.shares(("m3", f"quiet {number}", "another target"))) for number in range(4))


def test_one_share_alone_may_use_every_permit_of_a_small_limit() -> None:
    for limit in (1, 2, 8):
        queue: FairQueue[Waiter] = FairQueue(limit=limit, size=0, bulkheads=(0,))
        assert sum(queue.enter(queue.shares(("only",))) for _ in range(10)) == limit


def test_the_newest_of_the_longest_line_is_refused() -> None:
    queue: FairQueue[Waiter] = FairQueue(limit=1, size=3)
    flood = [waiter(queue, "m", "flood") for _ in range(3)]
    assert [queue.push(one) for one in flood] == [None, None, None]
    mine = waiter(queue, "m", "quiet")
    assert queue.push(mine) is flood[2]
    for refused in ("flood", "quiet"):
        with pytest.raises(QueueFull):
            queue.push(waiter(queue, "m", refused))
    assert [queue.pop(), queue.pop()] == [flood[0], None]
    queue.leave(flood[0].shares)
    assert queue.pop() is mine


def test_the_flood_is_refused_and_not_the_others_of_its_target() -> None:
    """The target's line is the longest as well, but only because of the flood."""
    queue: FairQueue[Waiter] = FairQueue(limit=0, size=20)
    flood = [waiter(queue, "flood", "hung") for _ in range(19)]
    for one in flood:
        queue.push(one)
    honest = waiter(queue, "honest", "hung")
    queue.push(honest)
    assert queue.push(waiter(queue, "other", "healthy")) is flood[-1]
    assert queue.push(waiter(queue, "third", "hung")) is flood[-2]


def test_shares_of_clients_that_are_gone_are_forgotten() -> None:
    queue: FairQueue[Waiter] = FairQueue(limit=10, size=0)
    for number in range(10 * IDLE_SHARES):
        shares = queue.shares(("m", number))
        assert queue.enter(shares)
        queue.leave(shares)
    assert sum(map(len, queue._dimensions)) <= 2 * IDLE_SHARES


def test_a_call_displaces_within_a_share_that_is_full() -> None:
    """The flood of one method is refused first; calls of another method stay, however many of them wait."""
    queue: FairQueue[Waiter] = FairQueue(limit=0, size=100)
    others = [waiter(queue, "m2", "crowd") for _ in range(50)]
    flood = [waiter(queue, "m", "flood") for _ in range(9)]
    for one in [*others, *flood]:
        queue.push(one)
    honest = waiter(queue, "m", "honest")
    assert queue.push(honest, full=honest.shares[0]) is flood[-1]
    with pytest.raises(QueueFull):
        queue.push(waiter(queue, "m", "flood"), full=honest.shares[0])


def test_a_scan_that_found_nothing_is_not_repeated_for_unrelated_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand clients that wait for a hung target cost the others nothing."""
    queue: FairQueue[Waiter] = FairQueue(limit=36, size=1000)
    while queue.enter(queue.shares(("m", "any", "hung"))):
        pass
    for number in range(1000):
        queue.push(waiter(queue, "m", f"client {number}", "hung"))
    assert queue.pop() is None
    shares = queue.shares(("m2", "honest", "healthy"))
    assert queue.enter(shares)
    queue.leave(shares)
    monkeypatch.setattr(queue, "_groups", None)
    assert queue.pop() is None
