"""Queue delay: standing queues, the limit of an overload, and the delay that a refused caller is told."""

from __future__ import annotations

from math import inf

import pytest

from mesh.layers.queue_delay import MAX_RETRY_DELAY, MIN_INTERVAL, MIN_TARGET_DELAY, QueueDelay


def wait_long(delay: QueueDelay, since: float, until: float, seconds: float = 1.5, budget: float = inf) -> None:
    for tenth in range(int(since * 10), int(until * 10) + 1):
        delay.waited(seconds, budget, tenth / 10)


class TestOverload:
    def test_long_waits_for_half_of_an_interval_are_an_overload_until_nobody_is_refused(self) -> None:
        delay = QueueDelay()
        wait_long(delay, 100.0, 100.4)
        assert not delay.overloaded(100.4)
        wait_long(delay, 100.5, 101.0)
        assert delay.overloaded(101.0)
        delay.refused(101.5)
        assert delay.overloaded(101.5 + 0.9 * MIN_INTERVAL)
        assert not delay.overloaded(101.5 + MIN_INTERVAL)

    def test_a_queue_that_gets_short_is_none(self) -> None:
        delay = QueueDelay()
        for tenth in range(1000, 1100):
            delay.waited(0.1 if tenth % 4 == 0 else 5.0, inf, tenth / 10)
        assert not delay.overloaded(110.0)

    def test_calls_that_fail_before_the_queue_hide_no_overload(self) -> None:
        delay = QueueDelay()
        for tenth in range(1000, 1100):
            delay.waited(0.0 if tenth % 20 == 19 else 5.0, inf, tenth / 10)
        assert delay.overloaded(110.0)

    def test_half_of_the_time_to_the_deadline_is_long(self) -> None:
        delay = QueueDelay()
        wait_long(delay, 100.0, 102.0, seconds=0.3, budget=1.0)
        assert not delay.overloaded(102.0)
        wait_long(delay, 103.0, 105.0, seconds=0.3, budget=0.5)
        assert delay.overloaded(105.0)

    def test_few_calls_are_no_overload(self) -> None:
        delay = QueueDelay()
        for second in range(100, 105):
            delay.waited(5.0, inf, second)
        assert not delay.overloaded(105.0)

    def test_a_slow_method_has_longer_bounds(self) -> None:
        delay = QueueDelay()
        assert (delay.target, delay.interval(0.0)) == (MIN_TARGET_DELAY, MIN_INTERVAL)
        for call in range(8):
            delay.measured(2.0, 0.0, 1, 100.0 + call)
        assert (delay.target, delay.interval(110.0)) == (2.0, 8.0)


class TestLimit:
    @staticmethod
    def overloaded(now: float) -> QueueDelay:
        delay = QueueDelay()
        wait_long(delay, now - 1, now)
        return delay

    def test_there_is_none_without_an_overload(self) -> None:
        delay = QueueDelay()
        for call in range(100):
            delay.measured(1.0, 0.9, 10, 100 + call / 10)
        assert delay.limit(110.0) == inf

    def test_it_is_the_number_of_calls_that_do_not_wait_and_a_few_more(self) -> None:
        """100 calls in progress, of which 90 wait: ten end each second, after 10 s, of which they worked 1 s."""
        delay = self.overloaded(100.0)
        for call in range(80):
            now = 100 + call / 10
            delay.refused(now)
            delay.measured(10.0, 9.0, 100, now)
        assert 10 < delay.limit(108.0) <= 14

    def test_it_doubles_while_nothing_waits_inside(self) -> None:
        delay = self.overloaded(100.0)
        for call in range(8):
            delay.measured(0.1, 0.0, 3, 100 + call / 10)
        assert delay.limit(100.7) == 6


class TestRetryDelay:
    def test_it_is_the_time_of_the_calls_before(self) -> None:
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
