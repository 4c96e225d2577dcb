"""Scaling: properties for every load, and a few loads computed by hand."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.config.manifest import Duration, WorkersConfig
from mesh.sidecar.workers.scaling import (
    BURST_SECONDS,
    SAMPLE_INTERVAL,
    STABLE_SECONDS,
    DemandRecorder,
    DemandSample,
    workers_needed,
)

Steps = list[tuple[float, int]]

SPECS = st.builds(
    lambda least, more, concurrency, idle: WorkersConfig(
        min=least, max=max(1, least + more), concurrency=concurrency, idle=Duration(idle)
    ),
    st.integers(0, 4),
    st.integers(0, 8),
    st.integers(1, 32),
    st.floats(0, 200),
)
STEPS = st.lists(st.tuples(st.floats(0, 30) | st.floats(0, 0.2), st.integers(0, 300) | st.integers(0, 2)), max_size=40)
"""Changes of the demand: seconds since the last one, calls."""


def played(steps: Steps, begin: float = 1000.0) -> tuple[DemandRecorder, float]:
    demand = DemandRecorder(begin)
    now = begin
    for pause, calls in steps:
        now += pause
        demand.change(calls, now)
    return demand, now


@given(STEPS, SPECS, st.floats(0, 300))
def test_never_outside_min_and_max(steps: Steps, spec: WorkersConfig, later: float) -> None:
    demand, now = played(steps)
    assert spec.min <= workers_needed(demand.samples(now + later), spec, now + later) <= spec.max


@given(STEPS, SPECS, st.integers(1, 300), st.floats(0, 1000))
def test_never_none_while_there_is_demand(steps: Steps, spec: WorkersConfig, calls: int, later: float) -> None:
    demand, now = played([*steps, (0.01, calls)])
    for moment in (now, now + later):
        assert workers_needed(demand.samples(moment), spec, moment) >= 1


@given(STEPS, SPECS, st.floats(0, 100))
def test_the_least_is_all_that_is_left_after_idle_without_calls(
    steps: Steps, spec: WorkersConfig, later: float
) -> None:
    demand, now = played([*steps, (0.01, 0)])
    moment = now + spec.idle + 2 * SAMPLE_INTERVAL + later
    assert workers_needed(demand.samples(moment), spec, moment) == spec.min


@given(STEPS, SPECS, st.integers(1, 300), st.floats(0, 0.99))
def test_the_last_worker_stays_until_idle_has_passed(
    steps: Steps, spec: WorkersConfig, calls: int, part: float
) -> None:
    demand, now = played([*steps, (0.01, calls), (0.5, 0)])
    moment = now + spec.idle * part
    assert workers_needed(demand.samples(moment), spec, moment) >= 1


@given(STEPS, SPECS, st.floats(0, 60), st.data())
def test_more_demand_never_means_fewer_workers(
    steps: Steps, spec: WorkersConfig, later: float, data: st.DataObject
) -> None:
    demand, now = played(steps)
    samples = demand.samples(now + later)
    more = data.draw(st.lists(st.integers(0, 50), min_size=len(samples), max_size=len(samples)))
    greater = [
        DemandSample(one.begin, one.end, one.mean + extra, one.peak + extra)
        for one, extra in zip(samples, more, strict=True)
    ]
    assert workers_needed(greater, spec, now + later) >= workers_needed(samples, spec, now + later)


@given(STEPS, SPECS, st.integers(0, 300), st.lists(st.floats(0, 1), min_size=2, max_size=60))
def test_constant_demand_does_not_flap(steps: Steps, spec: WorkersConfig, calls: int, pauses: list[float]) -> None:
    """The number stays once the past has left the window; until then it rises, then falls."""
    demand, now = played([*steps, (0.1, calls)])
    wanted = []
    moment = now
    for pause in [*pauses, BURST_SECONDS + SAMPLE_INTERVAL]:
        moment += pause
        wanted.append(workers_needed(demand.samples(moment), spec, moment))
    if calls:
        top = wanted.index(max(wanted))
        assert wanted[: top + 1] == sorted(wanted[: top + 1])
        assert wanted[top:] == sorted(wanted[top:], reverse=True)
    settled = now + max(STABLE_SECONDS, spec.idle) + BURST_SECONDS + 2 * SAMPLE_INTERVAL
    later = {workers_needed(demand.samples(settled + pause), spec, settled + pause) for pause in (0, *pauses, 3600)}
    exact = math.ceil(calls / spec.concurrency)
    assert later == {min(max(exact, spec.min), spec.max)}


@given(STEPS, SPECS)
def test_what_was_started_stays_for_the_window(steps: Steps, spec: WorkersConfig) -> None:
    """A worker that was needed stays until the window has passed, whatever the load does."""
    window = STABLE_SECONDS if all(calls for _, calls in steps) else min(STABLE_SECONDS, spec.idle)
    demand = DemandRecorder(0.0)
    now = 0.0
    wanted: list[tuple[float, int]] = []
    for pause, calls in steps:
        now += pause
        demand.change(calls, now)
        number = workers_needed(demand.samples(now), spec, now)
        rises = [moment for moment, before in wanted if before > number]
        assert all(now - moment >= window - SAMPLE_INTERVAL for moment in rises if rose(wanted, moment))
        wanted.append((now, number))


def rose(wanted: list[tuple[float, int]], moment: float) -> bool:
    """Whether more were wanted at the moment than just before."""
    before = [number for earlier, number in wanted if earlier < moment]
    return max(number for at, number in wanted if at == moment) > (before[-1] if before else 0)


@given(STEPS, SPECS, st.floats(0, 10))
def test_time_only_moves_forward(steps: Steps, spec: WorkersConfig, back: float) -> None:
    """A time before the last one changes no sample."""
    demand, now = played([*steps, (0.3, 5)])
    expected = demand.samples(now)
    demand.change(5, now - back)
    assert demand.samples(now - back) == expected
    assert workers_needed(demand.samples(now - back), spec, now - back) >= 1


@given(STEPS)
def test_the_samples_hold_the_whole_demand(steps: Steps) -> None:
    """No time is missing or counted twice, and the means are those of the steps, as far as they are kept."""
    demand, now = played(steps)
    samples = demand.samples(now)
    assert all(before.end == after.begin for before, after in pairwise(samples[:-1]))
    area = sum(one.mean * (one.end - one.begin) for one in samples)
    until = samples[-2].end if len(samples) > 1 else 1000.0
    moment, calls, expected = 1000.0, 0, 0.0
    for pause, following in steps:
        expected += calls * max(0.0, min(moment + pause, until) - max(moment, samples[0].begin))
        moment, calls = moment + pause, following
    assert area == pytest.approx(expected, abs=1e-6)
    assert until > now - SAMPLE_INTERVAL or until == 1000.0


def test_what_is_kept_is_bounded() -> None:
    demand = DemandRecorder(0.0)
    for index in range(20_000):
        demand.change(index % 3, index * 0.037)
    assert len(demand.samples(740.0)) <= (STABLE_SECONDS + BURST_SECONDS) / SAMPLE_INTERVAL + 3


SPEC = WorkersConfig(min=0, max=4, concurrency=16, idle=Duration(60))


def test_no_calls_ever() -> None:
    assert workers_needed(DemandRecorder(0.0).samples(5.0), SPEC, 5.0) == 0


def test_the_first_call_starts_one_at_once() -> None:
    demand, now = played([(5, 1)])
    assert workers_needed(demand.samples(now), SPEC, now) == 1


def test_two_hundred_calls_start_all_at_once() -> None:
    demand, now = played([(5, 200)])
    assert workers_needed(demand.samples(now), SPEC, now) == 4


def test_a_call_too_many_for_a_moment_starts_none() -> None:
    demand, now = played([(5, 16), (10, 17), (0.001, 16)])
    assert workers_needed(demand.samples(now), SPEC, now) == 1


def test_a_call_too_many_for_a_second_starts_one() -> None:
    demand, now = played([(5, 16), (10, 17)])
    assert workers_needed(demand.samples(now + BURST_SECONDS), SPEC, now + BURST_SECONDS) == 2


def test_what_was_needed_stays_for_a_minute() -> None:
    demand, peak = played([(5, 200), (10, 1)])
    seen = {pause: workers_needed(demand.samples(peak + pause), SPEC, peak + pause) for pause in (1, 30, 59, 62, 600)}
    assert seen == {1: 4, 30: 4, 59: 4, 62: 1, 600: 1}


def test_the_past_is_forgotten_with_the_last_worker() -> None:
    spec = WorkersConfig(max=4, concurrency=1, idle=Duration(2))
    demand, now = played([(5, 4), (10, 0), (2.2, 1)])
    assert workers_needed(demand.samples(now), spec, now) == 1


def test_idle_shorter_than_the_window() -> None:
    spec = WorkersConfig(max=4, concurrency=1, idle=Duration(2))
    demand, peak = played([(5, 4), (10, 0)])
    seen = {pause: workers_needed(demand.samples(peak + pause), spec, peak + pause) for pause in (1, 1.9, 2.2)}
    assert seen == {1: 4, 1.9: 4, 2.2: 0}


def test_idle_longer_than_the_window_keeps_one() -> None:
    spec = WorkersConfig(max=4, concurrency=1, idle=Duration(600))
    demand, peak = played([(5, 4), (10, 0)])
    seen = {pause: workers_needed(demand.samples(peak + pause), spec, peak + pause) for pause in (30, 65, 599, 601)}
    assert seen == {30: 4, 65: 1, 599: 1, 601: 0}
