"""Adaptive limit: it finds the capacity of a method that has one, and leaves all others alone."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from math import inf

import pytest

from mesh.layers.adaptive_limit import TOLERATED_DELAY, AdaptiveLimit
from mesh.layers.queue_delay import MAX_RETRY_DELAY, MIN_TARGET_DELAY, OVERLOAD_INTERVAL, QueueDelay

Latency = Callable[[float, int], float]


class Simulated:
    """A method under load: calls that want to run, and a latency by time and calls in progress.

    Attributes:
        adaptive: Its limit.
        refused: Calls that found the limit reached.
        took: Time of each end and latency of the call.
    """

    def __init__(self, latency: Latency) -> None:
        self.adaptive = AdaptiveLimit()
        self.now = 0.0
        self.refused = 0
        self.took: list[tuple[float, float]] = []
        self._latency = latency
        self._running: list[tuple[float, float, int]] = []

    def offer(self, rate: float, seconds: float) -> None:
        """Offer calls at a steady rate; those beyond the limit are refused."""
        end = self.now + seconds
        throttled = False
        while self.now < end:
            self.now += 1 / rate
            while self._running and self._running[0][0] <= self.now:
                ended, began, running = heapq.heappop(self._running)
                self.took.append((ended, ended - began))
                self.adaptive.record(began, ended, running, throttled=throttled)
            running = len(self._running) + 1
            throttled = running > self.adaptive.limit
            if throttled:
                self.refused += 1
            else:
                heapq.heappush(self._running, (self.now + self._latency(self.now, running), self.now, running))

    def mean(self, seconds: float) -> float:
        """Return the mean latency of the last seconds."""
        took = [latency for ended, latency in self.took if ended > self.now - seconds]
        return sum(took) / len(took)

    def throughput(self, seconds: float) -> float:
        """Return the calls a second that ended in the last seconds."""
        return sum(ended > self.now - seconds for ended, _ in self.took) / seconds


def cores(count: int, work: float) -> Latency:
    """Return the latency of a method that takes ``work`` seconds of one of ``count`` cores, in order of arrival."""
    chance = random.Random(1)  # noqa: S311
    free = [0.0] * count

    def latency(now: float, _running: int) -> float:
        ended = max(now, heapq.heappop(free)) + work * chance.uniform(0.9, 1.1)
        heapq.heappush(free, ended)
        return ended - now

    return latency


@pytest.mark.parametrize("overload", [2, 5, 10])
@pytest.mark.parametrize(("count", "work"), [(2, 0.04), (4, 0.2), (8, 0.02)])
def test_a_method_with_a_capacity_keeps_it_under_overload(count: int, work: float, overload: int) -> None:
    capacity = count / work
    method = Simulated(cores(count, work))
    method.offer(capacity / 2, 5)
    assert method.adaptive.limit == inf
    method.offer(capacity * overload, 60)
    assert method.throughput(30) >= 0.9 * capacity
    assert method.mean(30) <= max(2 * work, work + 1.1 * TOLERATED_DELAY)


@pytest.mark.parametrize("overload", [2, 10])
def test_an_overload_from_the_first_call_on_is_found_as_well(overload: int) -> None:
    """The base is then measured during the overload; the trials correct it."""
    method = Simulated(cores(2, 0.04))
    method.offer(50 * overload, 120)
    assert method.throughput(30) >= 0.9 * 50
    assert method.mean(30) <= 3 * 0.04


def test_hundreds_of_calls_that_only_wait_are_not_limited() -> None:
    chance = random.Random(2)  # noqa: S311
    method = Simulated(lambda _now, _running: chance.uniform(0.8, 1.2))
    method.offer(20, 5)
    method.offer(500, 60)
    assert method.refused == 0
    assert method.adaptive.limit == inf


def test_latency_that_grows_for_another_reason_limits_for_a_moment_only() -> None:
    """A dependency becomes ten times slower, whatever the number of calls."""
    method = Simulated(lambda now, _running: 0.1 if now < 20 else 1.0)
    method.offer(200, 60)
    assert method.adaptive.base == pytest.approx(1.0)
    assert method.refused <= 0.1 * 200 * 60
    before = method.refused
    method.offer(200, 60)
    assert method.refused == before


def test_the_limit_is_forgotten_after_the_overload() -> None:
    method = Simulated(cores(2, 0.04))
    method.offer(300, 20)
    assert method.adaptive.limit < 20
    method.offer(20, 30)
    assert method.adaptive.limit == inf


def test_a_method_of_fractions_of_a_millisecond_is_not_limited() -> None:
    """The turns of a busy event loop take longer than such a call."""
    chance = random.Random(3)  # noqa: S311
    method = Simulated(lambda _now, _running: chance.choice([0.0002, 0.004, 0.008]))
    method.offer(5000, 10)
    assert method.refused == 0


class TestQueueDelay:
    def test_a_burst_waits_in_order_and_a_standing_overload_does_not(self) -> None:
        delay = QueueDelay()
        delay.base = 0.04
        delay.waited(0.9, 100.0)
        assert not delay.overloaded(100.0)
        assert delay.bound(100.0) == OVERLOAD_INTERVAL
        for tenth in range(1, 30):
            delay.waited(0.05, 100 + tenth / 10)
        assert delay.overloaded(103.0)
        assert delay.bound(103.0) == MIN_TARGET_DELAY
        assert not delay.overloaded(103.0 + OVERLOAD_INTERVAL), "no call has waited long for an interval"

    def test_short_waits_are_no_overload(self) -> None:
        delay = QueueDelay()
        delay.base = 0.001
        for hundredth in range(1000):
            delay.waited(0.029, 100 + hundredth / 100)
        assert not delay.overloaded(110.0)

    def test_slow_methods_have_longer_bounds(self) -> None:
        delay = QueueDelay()
        assert delay.bound(0.0) == inf, "nothing is known of the method"
        delay.base = 2.0
        assert (delay.target, delay.bound(0.0)) == (1.0, 8.0)

    def test_the_retry_delay_is_the_time_of_the_calls_before(self) -> None:
        delay = QueueDelay()
        for ended in range(40):
            delay.ended(100 + ended / 10, waiting=True)
        assert delay.retry_delay(20, 103.9) == pytest.approx(2.0)
        assert delay.retry_delay(0, 103.9) == 0.1
        assert delay.retry_delay(1, 120.0) == pytest.approx(16.1), "nothing has ended for so long"
        assert delay.retry_delay(1, 500.0) == MAX_RETRY_DELAY

    def test_quiet_times_do_not_count_as_slowness(self) -> None:
        delay = QueueDelay()
        for minute in range(10):
            delay.ended(60.0 * minute, waiting=False)
        assert delay.estimate(100) == 0
