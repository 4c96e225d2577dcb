"""Decisions about deliveries, partition assignment and headers of dead letters: pure, so every case is tested."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from mesh.errors import Code
from mesh.events.consume import assignment
from mesh.events.consume.dead_letters import DeadLetter, dead_letter_headers, original_headers, read_dead_letter
from mesh.events.consume.outcome import PERMANENT, Ack, GiveUp, Retry, RetryLimits, backoff, decide

LIMITS = RetryLimits(attempts=5, first_delay=0.5, max_delay=60.0)


@given(st.sampled_from(sorted(Code)), st.integers(1, 10), st.floats(0, 1), st.booleans())
def test_every_code_has_an_outcome(code: Code, tries: int, random: float, started: bool) -> None:  # noqa: FBT001
    found = decide(code, tries, LIMITS, random, started=started)
    if code is Code.OK:
        assert found == Ack()
    elif not started:
        assert isinstance(found, Retry)
        assert 1 <= found.delay <= 2
    elif code in PERMANENT or tries >= 5:
        assert isinstance(found, GiveUp)
        assert found.reason
    else:
        assert isinstance(found, Retry)
        assert 0 < found.delay <= LIMITS.max_delay


@given(st.integers(1, 10_000), st.floats(0, 1))
def test_backoff_doubles_within_its_bounds(tries: int, random: float) -> None:
    whole = min(60.0, 0.5 * 2.0 ** min(tries - 1, 60))
    assert whole / 2 <= backoff(tries, LIMITS, random) <= whole


@given(st.sets(st.text("abcdef0123456789", min_size=8, max_size=8), min_size=1, max_size=6))
def test_all_replicas_agree_and_a_leaver_moves_only_its_own(replicas: set[str]) -> None:
    partitions = [f"consumer-{number}" for number in range(40)]
    before = {part: assignment.owner(part, list(replicas)) for part in partitions}
    assert before == {part: assignment.owner(part, sorted(replicas, reverse=True)) for part in partitions}
    leaver = min(replicas)
    if len(replicas) > 1:
        after = {part: assignment.owner(part, list(replicas - {leaver})) for part in partitions}
        assert all(after[part] == had for part, had in before.items() if had != leaver)


def test_partitions_spread() -> None:
    owners = [assignment.owner(f"service-Method-{number}", ["one", "two", "three"]) for number in range(300)]
    assert all(60 < owners.count(name) < 140 for name in ("one", "two", "three"))


def test_who_is_silent_is_forgotten() -> None:
    found = assignment.LiveReplicas("me")
    assert found.live(0) == ["me"]
    assert found.heartbeat("other", 10.0)
    assert not found.heartbeat("other", 11.0)
    assert not found.heartbeat("me", 11.0)
    assert found.live(11.0 + assignment.HEARTBEAT_TIMEOUT - 0.1) == ["me", "other"]
    assert found.live(11.0 + assignment.HEARTBEAT_TIMEOUT) == ["me"]
    found.heartbeat("other", 20.0)
    found.left("other")
    assert found.live(20.0) == ["me"]


def test_a_dead_letter_is_the_event_and_the_reason() -> None:
    letter = DeadLetter(
        reason="3 attempts", code="INTERNAL", error="two\r\nlines", attempts=3, trace="ab" * 16, consumer="a-b-0",
        method="/a.B/C", subject="events.a.0.k", stream="EVENTS", sequence=9,
        time=datetime(2026, 11, 22, 1, 2, 3, 456000, UTC),
    )  # fmt: skip
    brokers = dict.fromkeys(["Nats-Msg-Id", "Nats-Pin-Id", "nats-batch-id", "NATS-TTL", "Nats-Schedule-Next"], "x")
    headers = dead_letter_headers(letter, {"ce-id": "1", "x-nats-id": "2", **brokers})
    assert not brokers.keys() & headers.keys()
    assert original_headers({**headers, **brokers}) == {"ce-id": "1", "x-nats-id": "2"}
    assert "\r" not in "".join(headers.values())
    assert read_dead_letter(headers) == replace(letter, error="two lines")


def test_a_loss_beside_others_is_no_try_and_bounded() -> None:
    limits = RetryLimits(attempts=2, first_delay=1.0, max_delay=8.0)
    for losses, after in ((1, 1.0), (2, 2.0), (3, 4.0)):
        assert decide(Code.UNAVAILABLE, 1, limits, 1.0, started=True, losses=losses) == Retry(after)
    last = decide(Code.UNAVAILABLE, 1, limits, 1.0, started=True, losses=4)
    assert isinstance(last, GiveUp)
    assert "its worker ended 4 times" in last.reason
