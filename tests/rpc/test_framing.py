"""Message framing: frames are parsed wherever they are cut, malformed ones are refused; ``grpc-timeout``."""

from __future__ import annotations

import contextlib
import gzip
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.errors import Internal, ResourceExhausted, Unimplemented
from mesh.rpc import framing

LIMIT = 10_000
messages = st.lists(st.tuples(st.binary(max_size=2000), st.booleans()), max_size=8)


def _all(frames: framing.Deframer) -> list[bytes]:
    found = []
    while (message := frames.next()) is not None:
        found.append(message)
    return found


@given(messages, st.data())
def test_messages_come_out_as_they_went_in_wherever_they_are_cut(wanted: list[tuple[bytes, bool]], data) -> None:
    raw = b"".join((framing.compressed_frame if packed else framing.frame)(message) for message, packed in wanted)
    cuts = data.draw(st.lists(st.integers(0, len(raw)), max_size=20).map(sorted))
    frames = framing.Deframer(LIMIT, b"gzip")
    found = []
    for start, end in pairwise([0, *cuts, len(raw)]):
        frames.feed(raw[start:end])
        found += _all(frames)
    assert found == [message for message, _ in wanted]
    assert frames.pending == 0


@given(st.binary(max_size=300))
def test_noise_is_refused_or_waited_for_never_more(noise: bytes) -> None:
    frames = framing.Deframer(100, b"gzip")
    frames.feed(noise)
    found: list[bytes] = []
    with contextlib.suppress(Internal, ResourceExhausted):
        found = _all(frames)
    assert all(len(message) <= 100 for message in found)
    assert frames.pending <= len(noise)


@given(st.binary(max_size=200))
def test_the_fast_path_is_the_slow_path(data: bytes) -> None:
    found = framing.single_message(data, 100)
    if found is not None:
        frames = framing.Deframer(100)
        frames.feed(data)
        assert _all(frames) == [found]


def test_the_limit_is_exact() -> None:
    assert framing.single_message(framing.frame(bytes(100)), 100) == bytes(100)
    assert framing.single_message(framing.frame(bytes(101)), 100) is None
    for framed in (framing.frame, framing.compressed_frame):
        frames = framing.Deframer(100, b"gzip")
        frames.feed(framed(bytes(100)))
        assert frames.next() == bytes(100)
        frames.feed(framed(bytes(101)))
        with pytest.raises(ResourceExhausted):
            frames.next()


def test_a_bomb_is_not_unpacked() -> None:
    bomb = gzip.compress(bytes(50_000_000))
    frames = framing.Deframer(len(bomb), b"gzip")
    frames.feed(b"\1" + len(bomb).to_bytes(4, "big") + bomb)
    with pytest.raises(ResourceExhausted, match="the request message decompresses to more than the"):
        frames.next()


@pytest.mark.parametrize("cut", ["", "not gzip", "short", "more"])
def test_broken_gzip(cut: str) -> None:
    whole = gzip.compress(b"abc" * 100)
    payload = {"short": whole[:-9], "more": whole + b"more"}.get(cut, cut.encode())
    frames = framing.Deframer(1000, b"gzip")
    frames.feed(b"\1" + framing.frame(payload)[1:])
    with pytest.raises(Internal, match="gzip"):
        frames.next()


@pytest.mark.parametrize(
    ("head", "declared", "text"),
    [
        (b"\2\0\0\0\0", b"identity", "flag byte is 2"),
        (b"\1\0\0\0\0", b"identity", "compressed, and grpc-encoding is identity"),
        (b"\1\0\0\0\0", None, "compressed, and grpc-encoding is not declared"),
    ],
)
def test_flags_that_cannot_be(head: bytes, declared: bytes | None, text: str) -> None:
    frames = framing.Deframer(1000, declared)
    frames.feed(head)
    with pytest.raises(Internal, match=text):
        frames.next()


def test_a_message_too_large_is_refused_before_it_comes() -> None:
    frames = framing.Deframer(10)
    frames.feed(b"\0\0\0\0\x0b")
    with pytest.raises(ResourceExhausted, match="the request message has 11 bytes, more than the 10 that are allowed"):
        frames.next()


def test_a_message_that_has_begun_is_pending() -> None:
    frames = framing.Deframer(10)
    for piece in (b"\0\0", b"\0\0\1"):
        frames.feed(piece)
        assert frames.next() is None
        assert frames.pending
    frames.feed(b"x")
    assert (frames.next(), frames.pending) == (b"x", 0)


@pytest.mark.parametrize("encoding", [b"identity", b"gzip"])
def test_encodings(encoding: bytes) -> None:
    framing.check_encoding(encoding)
    with pytest.raises(Unimplemented, match="br"):
        framing.check_encoding(b"br")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [(b"1H", 3600), (b"2M", 120), (b"3S", 3), (b"4m", 0.004), (b"5u", 5e-6), (b"6n", 6e-9), (b"99999999S", 99_999_999)],
)
def test_timeouts(text: bytes, seconds: float) -> None:
    assert framing.parse_timeout(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", [b"", b"S", b"1", b"1s", b"-1S", b"123456789S", b"1.5S", b"\xb2S"])
def test_timeouts_that_are_none(text: bytes) -> None:
    with pytest.raises(Internal, match="grpc-timeout"):
        framing.parse_timeout(text)


@given(st.floats(min_value=0.001, max_value=1e9))
def test_timeouts_are_never_cut_short_by_much(seconds: float) -> None:
    text = framing.format_timeout(seconds)
    assert len(text) <= 9
    found = framing.parse_timeout(text)
    if seconds <= 99_999_999:
        assert seconds - 1e-6 <= found <= seconds + (0.0011 if seconds < 99_999 else 1)
