"""Who is taken for what: what ends its workers, what was only there, what is not known yet."""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from mesh.sidecar.workers.method_health import HOPELESS, MEMORY, PROOF, Records, Standing


def answers(records: Records, method: str, count: int) -> None:
    for _ in range(count):
        records.answered(method)


def test_a_method_is_new_until_it_has_answered() -> None:
    records = Records(["/a", "/b"])
    answers(records, "/a", PROOF - 1)
    assert records.standing == {"/a": Standing.NEW, "/b": Standing.NEW}
    records.answered("/a")
    assert records.standing == {"/b": Standing.NEW}


def test_one_that_always_ends_its_worker_is_found_at_once_and_stays() -> None:
    records = Records(["/bad", "/good"])
    answers(records, "/good", 20)
    for _ in range(100):
        records.died(["/bad", "/good"])
        assert records.standing == {"/bad": Standing.SUSPECT}
    assert records.hopeless("/bad")
    assert not records.hopeless("/good")


def test_new_ones_that_were_only_there_are_cleared_by_their_answers() -> None:
    records = Records(["/bad", "/good"])
    records.died(["/bad", "/good"])
    assert records.standing == {"/bad": Standing.SUSPECT, "/good": Standing.SUSPECT}
    records.answered("/good")
    for _ in range(5):  # from now on, who has answered is not taken for the cause
        records.died(["/bad", "/good"])
    answers(records, "/good", 9)
    assert records.standing == {"/bad": Standing.SUSPECT}


def test_a_proven_one_that_begins_to_end_workers_is_found() -> None:
    records = Records(["/turned", "/good"])
    answers(records, "/turned", 10 * MEMORY)
    answers(records, "/good", 10 * MEMORY)
    deaths = 0
    while records.standing.get("/turned") is not Standing.SUSPECT:
        records.died(["/turned", "/good"])
        answers(records, "/good", 20)
        deaths += 1
    assert deaths <= HOPELESS
    assert "/good" not in records.standing


def test_what_is_long_ago_does_not_count() -> None:
    records = Records(["/mended"])
    for _ in range(50):
        records.died(["/mended"])
    answers(records, "/mended", 10 * MEMORY)
    assert not records.standing
    records.died(["/mended"])
    assert not records.standing, "one among many answers"


def test_new_code_is_not_blamed_for_the_old() -> None:
    records = Records(["/bad"])
    records.died(["/bad"])
    records.forget()
    assert records.standing == {"/bad": Standing.NEW}


@given(st.floats(0, 1), st.integers())
def test_how_often_decides(share: float, seed: int) -> None:
    """Far above one in ten a method is a suspect in the end; a method that never does it never is."""
    records = Records(["/a"])
    random = Random(seed)  # noqa: S311 - calls, not secrets
    for _ in range(1000):
        if random.random() < share:
            records.died(["/a"])
        else:
            records.answered("/a")
    if share > 0.4:
        assert records.standing == {"/a": Standing.SUSPECT}
    if share == 0:
        assert not records.standing
