"""Who is kept apart: those that kill their workers, and not those that were only there."""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from mesh.sidecar.workers.suspects import MEMORY, Suspects


def test_nobody_at_first() -> None:
    suspects = Suspects(["/a"])
    for _ in range(1000):
        suspects.answered("/a")
    assert not suspects.names


def test_one_that_always_kills_is_found_at_once_and_stays() -> None:
    suspects = Suspects(["/bad", "/good"])
    for _ in range(20):
        suspects.answered("/good")
    for _ in range(100):
        suspects.died("/bad")
        assert suspects.names == {"/bad"}


def test_one_that_was_only_there_is_cleared_by_its_answers() -> None:
    suspects = Suspects(["/bad", "/good"])
    suspects.died("/bad")
    suspects.died("/good")
    assert suspects.names == {"/bad", "/good"}
    for _ in range(10):
        suspects.answered("/good")
    assert suspects.names == {"/bad"}


def test_what_is_long_ago_does_not_count() -> None:
    suspects = Suspects(["/mended"])
    for _ in range(50):
        suspects.died("/mended")
    for _ in range(10 * MEMORY):
        suspects.answered("/mended")
    assert not suspects.names
    suspects.died("/mended")
    assert not suspects.names, "one death among hundreds of answers"


def test_new_code_is_innocent() -> None:
    suspects = Suspects(["/bad"])
    suspects.died("/bad")
    suspects.forget()
    assert not suspects.names


@given(st.floats(0, 1), st.integers())
def test_how_often_decides(share: float, seed: int) -> None:
    """Far above one in ten a method is a suspect in the end; far below it is not."""
    suspects = Suspects(["/a"])
    random = Random(seed)  # noqa: S311 - calls, not secrets
    for _ in range(2000):
        (suspects.died if random.random() < share else suspects.answered)("/a")
    if share > 0.25:
        assert suspects.names
    if share < 0.03:
        assert not suspects.names
