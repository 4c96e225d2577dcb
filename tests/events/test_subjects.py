"""Subjects: escaping of any text as one token, and back."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from mesh.events import subjects

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
TOKEN = re.compile(r"[A-Za-z0-9_%~-]+\Z")


@given(TEXT)
def test_any_text_is_one_token_and_comes_back(text: str) -> None:
    token = subjects.escape(text)
    assert TOKEN.match(token)
    assert len(token) <= 256
    if not token.startswith("~"):
        assert subjects.unescape(token) == text


@given(st.lists(TEXT, unique=True, min_size=2, max_size=2))
def test_two_texts_are_two_tokens(texts: list[str]) -> None:
    assert subjects.escape(texts[0]) != subjects.escape(texts[1])


def test_what_is_easily_mistaken() -> None:
    assert [subjects.escape(text) for text in ("", "_", "a.b", "a*", ">", "~x", "é")] == [
        "_", "%5F", "a%2Eb", "a%2A", "%3E", "%7Ex", "%C3%A9",
    ]  # fmt: skip


def test_a_key_that_is_too_long_is_a_digest() -> None:
    long = "k" * 257
    assert subjects.escape("k" * 256) == "k" * 256
    assert re.fullmatch(r"~[0-9a-f]{64}", subjects.escape(long))
    assert subjects.escape(long) != subjects.escape(long + "k")


def test_the_partition_of_a_key_never_changes() -> None:
    """These numbers are stored in streams and consumers of running meshes."""
    assert [subjects.partition(key) for key in ("", "ada", "bob", "é", "42", "Ada L.")] == [0, 0, 0, 6, 0, 7]


def test_subjects() -> None:
    assert subjects.event_subject("a.v1.Made", "ada", "id-1") == "events.a-v1-Made.0.ada"
    assert subjects.event_filter("a.v1.Made", 7) == "events.a-v1-Made.7.*"
    assert subjects.event_filter("a.v1.Made") == "events.a-v1-Made.*.*"
    assert subjects.change_subject("reg-1", "my.users", "42") == "changes.reg-1.my%2Eusers.0.42"
    assert subjects.change_filter("reg-1", "users", 3) == "changes.reg-1.users.3.*"
    assert subjects.schedule_subject("login.v1.Login", "Purge") == "schedules.login-v1-Login.Purge"
    assert subjects.tick_subject("login.v1.Login", "Purge") == "ticks.login-v1-Login.Purge"
    assert subjects.dead_subject("login.v1.Login", "On") == "dead.login-v1-Login.On"


def test_events_without_a_key_spread_over_the_partitions() -> None:
    found = {subjects.event_subject("a.Made", "", f"id-{number}").split(".")[2] for number in range(200)}
    assert found == {str(number) for number in range(subjects.PARTITIONS)}
