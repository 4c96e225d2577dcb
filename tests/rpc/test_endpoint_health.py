"""Which endpoint is an outlier: decided by counts, with the time as an argument."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.rpc.client.endpoint_health import (
    CONSECUTIVE_FAILURES,
    EJECTION_MAX_DELAY,
    EndpointHealth,
    ejection_allowed,
    ejection_delay,
    failing_method,
    outlier,
)

A, B = "/s.S/A", "/s.S/B"


def health(path=A, *, answers=0, failures=0, seconds=0.01, at=1.0, into=None):
    found = into or EndpointHealth()
    for _ in range(answers):
        found.answered(path, seconds, at)
    for _ in range(failures):
        found.failed(path, seconds, at + seconds)
    return found


def test_an_endpoint_that_fails_what_another_answers_is_an_outlier():
    good = health(answers=1, at=2.0)
    assert not failing_method(health(failures=CONSECUTIVE_FAILURES - 1), A, [good])
    assert failing_method(health(failures=CONSECUTIVE_FAILURES), A, [good])


def test_failures_everywhere_are_no_endpoints_fault():
    bad = health(failures=50)
    assert not failing_method(bad, A, [])
    assert not failing_method(bad, A, [health(failures=50)])
    assert not failing_method(bad, A, [health(answers=1, at=0.5)]), "it answered before the failures began"
    assert not failing_method(bad, A, [health(answers=1, failures=1, at=2.0)]), "it fails now"
    assert not failing_method(bad, A, [health(B, answers=100, at=2.0)]), "another method says nothing of this one"


def test_an_answer_ends_the_failures_in_a_row():
    bad = health(failures=CONSECUTIVE_FAILURES - 1)
    health(answers=1, into=bad)
    health(failures=CONSECUTIVE_FAILURES - 1, into=bad)
    assert not failing_method(bad, A, [health(answers=1, at=9.0)])


def test_failures_of_calls_from_before_a_return_do_not_count():
    returned = EndpointHealth()
    returned.returned_at = 100.0
    health(failures=50, at=99.0, into=returned)
    assert returned.methods == {}


@pytest.mark.parametrize(
    ("mine", "others", "found"),
    [
        (health(answers=60, failures=40), health(answers=100), "40% of 100 calls failed"),
        (health(answers=60, failures=40), health(answers=60, failures=40), ""),
        (health(answers=80, failures=20), health(answers=100), ""),
        (health(answers=12, failures=8), health(answers=100), ""),
        (health(answers=60, failures=40), health(answers=20), ""),
        (health(answers=60, failures=40), health(B, answers=100), ""),
        (health(answers=50, seconds=0.5), health(answers=50, seconds=0.02), "its calls took 0.500 s, and 0.020 s"),
        (health(answers=50, seconds=0.5), health(answers=50, seconds=0.2), ""),
        (health(answers=50, seconds=0.05), health(answers=50, seconds=0.005), ""),
        (health(B, answers=50, seconds=0.5, into=health(answers=9)), health(answers=90, seconds=0.01), ""),
        (health(answers=1, failures=29, seconds=0.125), health(answers=25, failures=5, seconds=1.0), "97% of 30 calls"),
    ],
    ids=[
        "ratio", "all alike", "few failures", "few calls", "few calls elsewhere", "other methods",
        "latency", "hardly slower", "slower, and quick", "a slow method that the other was not asked for",
        "quick failures are no measure",
    ],
)  # fmt: skip
def test_outliers_of_an_interval(mine, others, found):
    assert outlier(mine, [others]).startswith(found)
    assert bool(outlier(mine, [others])) == bool(found)
    assert not outlier(others, [mine]), "the better one is never the outlier"


@given(st.lists(st.tuples(st.integers(0, 200), st.integers(0, 200), st.floats(0.001, 2)), min_size=2, max_size=5))
def test_the_best_endpoint_is_no_outlier(counts):
    endpoints = [health(answers=good, failures=bad, seconds=seconds) for good, bad, seconds in counts]
    found = [outlier(each, [other for other in endpoints if other is not each]) for each in endpoints]
    assert not all(found)


@given(st.integers(1, 20), st.integers(0, 20))
def test_at_most_half_is_ejected_and_never_the_last(endpoints, ejected):
    if ejection_allowed(endpoints, ejected):
        assert ejected + 1 <= endpoints / 2
        assert ejected + 1 < endpoints


@given(st.integers(0, 100))
def test_ejections_grow_longer(number):
    assert ejection_delay(number) <= ejection_delay(number + 1) <= EJECTION_MAX_DELAY
