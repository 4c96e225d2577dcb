"""The wire format by itself: whatever is framed is deframed, cut anywhere; what is malformed is refused."""

from __future__ import annotations

import contextlib
import gzip
from base64 import b64decode
from itertools import pairwise
from urllib.parse import unquote

import pytest
from google.rpc import error_details_pb2, status_pb2
from hypothesis import given
from hypothesis import strategies as st

from mesh.errors import Internal, NotFound, ResourceExhausted, Unimplemented
from mesh.rpc import wire

LIMIT = 10_000
messages = st.lists(st.tuples(st.binary(max_size=2000), st.booleans()), max_size=8)


def _all(frames: wire.Deframer) -> list[bytes]:
    found = []
    while (message := frames.next()) is not None:
        found.append(message)
    return found


@given(messages, st.data())
def test_messages_come_out_as_they_went_in_wherever_they_are_cut(wanted: list[tuple[bytes, bool]], data) -> None:
    raw = b"".join((wire.compressed_frame if packed else wire.frame)(message) for message, packed in wanted)
    cuts = data.draw(st.lists(st.integers(0, len(raw)), max_size=20).map(sorted))
    frames = wire.Deframer(LIMIT, b"gzip")
    found = []
    for start, end in pairwise([0, *cuts, len(raw)]):
        frames.feed(raw[start:end])
        found += _all(frames)
    assert found == [message for message, _ in wanted]
    assert frames.pending == 0


@given(st.binary(max_size=300))
def test_noise_is_refused_or_waited_for_never_more(noise: bytes) -> None:
    frames = wire.Deframer(100, b"gzip")
    frames.feed(noise)
    found: list[bytes] = []
    with contextlib.suppress(Internal, ResourceExhausted):
        found = _all(frames)
    assert all(len(message) <= 100 for message in found)
    assert frames.pending <= len(noise)


@given(st.binary(max_size=200))
def test_the_fast_path_is_the_slow_path(data: bytes) -> None:
    found = wire.whole(data, 100)
    if found is not None:
        frames = wire.Deframer(100)
        frames.feed(data)
        assert _all(frames) == [found]


def test_the_limit_is_exact() -> None:
    assert wire.whole(wire.frame(bytes(100)), 100) == bytes(100)
    assert wire.whole(wire.frame(bytes(101)), 100) is None
    for framed in (wire.frame, wire.compressed_frame):
        frames = wire.Deframer(100, b"gzip")
        frames.feed(framed(bytes(100)))
        assert frames.next() == bytes(100)
        frames.feed(framed(bytes(101)))
        with pytest.raises(ResourceExhausted):
            frames.next()


def test_a_bomb_is_not_unpacked() -> None:
    bomb = gzip.compress(bytes(50_000_000))
    frames = wire.Deframer(len(bomb), b"gzip")
    frames.feed(b"\1" + len(bomb).to_bytes(4, "big") + bomb)
    with pytest.raises(ResourceExhausted, match="when decompressed"):
        frames.next()


@pytest.mark.parametrize("encoding", [b"identity", b"gzip"])
def test_encodings(encoding: bytes) -> None:
    wire.check_encoding(encoding)
    with pytest.raises(Unimplemented, match="br"):
        wire.check_encoding(b"br")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [(b"1H", 3600), (b"2M", 120), (b"3S", 3), (b"4m", 0.004), (b"5u", 5e-6), (b"6n", 6e-9), (b"99999999S", 99_999_999)],
)
def test_timeouts(text: bytes, seconds: float) -> None:
    assert wire.parse_timeout(text) == pytest.approx(seconds)


@given(st.text())
def test_percent_encoding_is_printable_and_can_be_undone(text: str) -> None:
    encoded = wire.percent_encode(text)
    assert all(0x20 <= byte <= 0x7E for byte in encoded)
    assert unquote(encoded.decode(), errors="strict") == text


def test_the_pairs_of_a_rich_status() -> None:
    info = error_details_pb2.ErrorInfo(reason="GONE")
    pairs = dict(wire.status_pairs(NotFound("no such user", details=[info])))
    assert (pairs[b"grpc-status"], pairs[b"grpc-message"]) == (b"5", b"no such user")
    raw = pairs[b"grpc-status-details-bin"]
    rich = status_pb2.Status.FromString(b64decode(raw + b"=" * (-len(raw) % 4)))
    assert (rich.code, rich.message, rich.details[0].type_url) == (
        5, "no such user", "type.googleapis.com/google.rpc.ErrorInfo",
    )  # fmt: skip
    assert wire.status_pairs(NotFound()) == [(b"grpc-status", b"5")]
