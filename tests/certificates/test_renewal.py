"""Renewal schedule: at half life, spread, with delays after failures, by a clock that may be set."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from mesh.certificates.renewal import MAX_RETRY_DELAY, POLL_INTERVAL, RenewalSchedule

HALF = datetime(2026, 11, 30, 12, tzinfo=UTC)
LIFE = timedelta(hours=24)


@given(chance=st.floats(0, 1), seconds=st.integers(-86400, 86400))
def test_a_renewal_is_due_after_half_life_and_long_before_the_end(chance: float, seconds: int) -> None:
    schedule = RenewalSchedule(lambda: chance)
    due = schedule.renewal_due(HALF + timedelta(seconds=seconds), HALF, LIFE, 0.0)
    if seconds < 0:
        assert not due
    if seconds > 4400:
        assert due


@given(chances=st.lists(st.floats(0, 1), min_size=30, max_size=30))
def test_retries_wait_longer_and_longer_but_not_for_ever(chances: list[float]) -> None:
    values = iter(chances)
    schedule, monotonic, delays = RenewalSchedule(lambda: next(values)), 100.0, []
    for _ in range(20):
        delays.append(schedule.failed(monotonic))
        assert not schedule.renewal_due(HALF + LIFE, HALF, LIFE, monotonic + delays[-1] * 0.99)
        assert not schedule.poll_due(monotonic + delays[-1] * 0.99)
        monotonic += delays[-1]
        assert schedule.renewal_due(HALF + LIFE, HALF, LIFE, monotonic)
    assert 0.5 <= delays[0] <= 1
    assert all(MAX_RETRY_DELAY / 2 <= delay <= MAX_RETRY_DELAY for delay in delays[7:])
    schedule.succeeded(monotonic)
    assert schedule.failed(monotonic) <= 1


def test_the_signer_is_looked_at_from_time_to_time() -> None:
    schedule = RenewalSchedule(lambda: 0.5)
    assert schedule.poll_due(0.0)
    schedule.succeeded(10.0)
    assert not schedule.poll_due(10.0 + POLL_INTERVAL * 0.7)
    assert schedule.poll_due(10.0 + POLL_INTERVAL * 1.3)
