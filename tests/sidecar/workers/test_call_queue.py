"""Call queue: the next call, and the refused call."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mesh.errors import ResourceExhausted
from mesh.sidecar.workers.call_queue import MAX_RUNNING_PER_FREE_PERMIT, CallQueue

METHODS = ("/a", "/b", "/c")


class Played(RuleBasedStateMachine):
    """Any order of calls that arrive, run, end and are cancelled, compared with plain lists."""

    queue: CallQueue[int]

    @initialize(limit=st.integers(0, 6), permits=st.integers(1, 24))
    def begin(self, limit: int, permits: int) -> None:
        self.queue = CallQueue(limit, permits)
        self.waiting: dict[str, list[int]] = {method: [] for method in METHODS}
        self.running: dict[str, int] = dict.fromkeys(METHODS, 0)
        self.served = dict.fromkeys(METHODS, 0)
        self.moment = 0
        self.next = 0

    def _ran(self, method: str) -> None:
        self.running[method] += 1
        self.moment += 1
        self.served[method] = self.moment

    def _may(self, method: str) -> bool:
        return self.running[method] < MAX_RUNNING_PER_FREE_PERMIT * (self.queue.permits - sum(self.running.values()))

    @rule(method=st.sampled_from(METHODS))
    def comes(self, method: str) -> None:
        allowed = not self.waiting[method] and self._may(method)
        assert self.queue.enter(method) is allowed
        if allowed:
            self._ran(method)

    @rule(method=st.sampled_from(METHODS))
    def waits(self, method: str) -> None:
        self.next += 1
        longest = max(len(waiting) for waiting in self.waiting.values())
        if sum(map(len, self.waiting.values())) < self.queue.limit:
            assert self.queue.push(method, self.next) is None
        elif longest <= len(self.waiting[method]) + 1:
            with pytest.raises(ResourceExhausted, match=f"and {self.queue.limit} wait; try again later"):
                self.queue.push(method, self.next)
            return
        else:
            lost = self.queue.push(method, self.next)
            victim = next(waiting for waiting in self.waiting.values() if lost in waiting)
            assert len(victim) == longest
            assert victim.pop() == lost, "the newest call is displaced"
        self.waiting[method].append(self.next)

    @rule()
    def a_place_is_free(self) -> None:
        free = [method for method in METHODS if self.waiting[method] and self._may(method)]
        item = self.queue.pop()
        if not free:
            assert item is None
            return
        method = next(method for method in free if item in self.waiting[method])
        fewest = min((self.running[one], self.served[one]) for one in free)
        assert (self.running[method], self.served[method]) == fewest
        assert item == self.waiting[method].pop(0), "first in, first out"
        self._ran(method)

    @precondition(lambda self: any(self.running.values()))
    @rule(data=st.data())
    def ends(self, data: st.DataObject) -> None:
        method = data.draw(st.sampled_from([method for method in METHODS if self.running[method]]))
        self.queue.leave(method)
        self.running[method] -= 1

    @rule(data=st.data(), method=st.sampled_from(METHODS))
    def gives_up(self, data: st.DataObject, method: str) -> None:
        item = data.draw(st.sampled_from([*self.waiting[method], 0]))
        assert self.queue.remove(method, item) is (item != 0)
        if item:
            self.waiting[method].remove(item)

    @invariant()
    def the_counts_are_right_and_bounded(self) -> None:
        if hasattr(self, "running"):
            assert self.queue.waiting == sum(map(len, self.waiting.values())) <= self.queue.limit
            assert self.queue.running == sum(self.running.values()) <= self.queue.permits


TestPlayed = Played.TestCase
TestPlayed.settings = settings(max_examples=60, stateful_step_count=50)


def test_a_flood_does_not_starve_a_quiet_method() -> None:
    """One method keeps the queue full; another, with less than its share of calls, is never refused and all served."""
    queue: CallQueue[tuple[str, int]] = CallQueue(limit=20, permits=16)
    running: list[str] = []
    asked = 0
    counts = {"/flood": 0, "/quiet": 0}
    for moment in range(1000):
        for number in range(5):
            with contextlib.suppress(ResourceExhausted):
                queue.push("/flood", ("/flood", 5 * moment + number))
        if moment % 3 == 0:
            queue.push("/quiet", ("/quiet", moment))
            asked += 1
        while (item := queue.pop()) is not None:
            counts[item[0]] += 1
            running.append(item[0])
        if moment >= 16:
            queue.leave(running.pop(0))
    assert counts["/quiet"] >= asked - 1, counts
    assert counts["/flood"] >= 600


def test_slow_calls_share_places_and_not_turns() -> None:
    """Of eight permits a slow method holds four while fast calls wait, however many of its own wait before them."""
    queue: CallQueue[Any] = CallQueue(limit=100, permits=8)
    for number in range(20):
        queue.push("/slow", ("/slow", number))
    for number in range(20):
        queue.push("/fast", ("/fast", number))
    first = [queue.pop()[0] for _ in range(8)]
    assert first.count("/slow") == 4
    queue.leave("/fast")
    assert queue.pop()[0] == "/fast", "the permit of a fast call goes to the next fast call"


def test_calls_that_hang_leave_places_to_others() -> None:
    queue: CallQueue[Any] = CallQueue(limit=100, permits=36)
    hung = 0
    while queue.enter("/hangs"):
        hung += 1
    assert hung == 32
    assert all(queue.enter("/healthy") for _ in range(3))


def test_one_method_alone_may_use_every_place_of_a_small_pool() -> None:
    for permits in (1, 2, 8):
        queue: CallQueue[Any] = CallQueue(limit=0, permits=permits)
        assert sum(queue.enter("/only") for _ in range(10)) == permits


def test_the_newest_of_the_longest_line_is_refused() -> None:
    queue: CallQueue[str] = CallQueue(limit=3, permits=1)
    for name in ("one", "two", "three"):
        assert queue.push("/flood", name) is None
    assert queue.push("/quiet", "mine") == "three"
    with pytest.raises(ResourceExhausted) as refused:
        queue.push("/flood", "four")
    assert refused.value.details[0].retry_delay.seconds == 1  # type: ignore[attr-defined]
    with pytest.raises(ResourceExhausted):
        queue.push("/quiet", "second")
    assert [queue.pop(), queue.pop()] == ["one", None]
    queue.leave("/flood")
    assert queue.pop() == "mine"
