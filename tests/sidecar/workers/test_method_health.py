"""Method health: methods that kill workers, methods that were only present, and new methods."""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from mesh.sidecar.workers.method_health import (
    FUTILE_DEATHS,
    HALVE_AFTER,
    PROVEN_AFTER,
    MethodHealth,
    MethodHealthTracker,
)


def respond(tracker: MethodHealthTracker, method: str, count: int) -> None:
    for _ in range(count):
        tracker.record_response(method)


def test_a_method_is_new_until_it_has_answered() -> None:
    tracker = MethodHealthTracker(["/a", "/b"])
    respond(tracker, "/a", PROVEN_AFTER - 1)
    assert tracker.health == {"/a": MethodHealth.NEW, "/b": MethodHealth.NEW}
    tracker.record_response("/a")
    assert tracker.health == {"/b": MethodHealth.NEW}


def test_one_that_always_ends_its_worker_is_found_at_once_and_stays() -> None:
    tracker = MethodHealthTracker(["/bad", "/good"])
    respond(tracker, "/good", 20)
    for _ in range(100):
        tracker.record_death(["/bad", "/good"])
        assert tracker.health == {"/bad": MethodHealth.SUSPECT}
    assert tracker.retry_is_futile("/bad")
    assert not tracker.retry_is_futile("/good")


def test_new_ones_that_were_only_there_are_cleared_by_their_answers() -> None:
    tracker = MethodHealthTracker(["/bad", "/good"])
    tracker.record_death(["/bad", "/good"])
    assert tracker.health == {"/bad": MethodHealth.SUSPECT, "/good": MethodHealth.SUSPECT}
    tracker.record_response("/good")
    for _ in range(5):  # from now on, a method that has responded is not blamed
        tracker.record_death(["/bad", "/good"])
    respond(tracker, "/good", 9)
    assert tracker.health == {"/bad": MethodHealth.SUSPECT}


def test_a_proven_one_that_begins_to_end_workers_is_found() -> None:
    tracker = MethodHealthTracker(["/turned", "/good"])
    respond(tracker, "/turned", 10 * HALVE_AFTER)
    respond(tracker, "/good", 10 * HALVE_AFTER)
    deaths = 0
    while tracker.health.get("/turned") is not MethodHealth.SUSPECT:
        tracker.record_death(["/turned", "/good"])
        respond(tracker, "/good", 20)
        deaths += 1
    assert deaths <= FUTILE_DEATHS
    assert "/good" not in tracker.health


def test_what_is_long_ago_does_not_count() -> None:
    tracker = MethodHealthTracker(["/mended"])
    for _ in range(50):
        tracker.record_death(["/mended"])
    respond(tracker, "/mended", 10 * HALVE_AFTER)
    assert not tracker.health
    tracker.record_death(["/mended"])
    assert not tracker.health, "one among many answers"


def test_new_code_is_not_blamed_for_the_old() -> None:
    tracker = MethodHealthTracker(["/bad"])
    tracker.record_death(["/bad"])
    tracker.reset()
    assert tracker.health == {"/bad": MethodHealth.NEW}


@given(st.floats(0, 1), st.integers())
def test_how_often_decides(share: float, seed: int) -> None:
    """A method with far more than one death in ten calls becomes a suspect; one without deaths never does."""
    tracker = MethodHealthTracker(["/a"])
    random = Random(seed)  # noqa: S311 - calls, not secrets
    for _ in range(1000):
        if random.random() < share:
            tracker.record_death(["/a"])
        else:
            tracker.record_response("/a")
    if share > 0.4:
        assert tracker.health == {"/a": MethodHealth.SUSPECT}
    if share == 0:
        assert not tracker.health
