"""Frame codec: frames survive any cutting into pieces; other bytes are refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.sidecar.workers import frames
from mesh.sidecar.workers.frames import FrameError, FrameKind, FrameReader

IDS = st.integers(0, 2**64 - 1)
BYTES = st.binary(max_size=300)
MAYBE = st.none() | BYTES


@given(
    st.lists(st.tuples(st.sampled_from(FrameKind), IDS, BYTES), max_size=20),
    st.lists(st.integers(1, 400), min_size=1, max_size=50),
)
def test_frames_however_they_are_cut(sent: list[Any], cuts: list[int]) -> None:
    data = b"".join(frames.frame(*one) for one in sent)
    reader, found, at, turn = FrameReader(), [], 0, 0
    while at < len(data):
        size = cuts[turn % len(cuts)]
        found += reader.feed(data[at : at + size])
        at, turn = at + size, turn + 1
    assert found == sent


@given(IDS, st.integers(0, 65535), st.floats(allow_nan=False), BYTES, MAYBE, st.booleans())
def test_open(call: int, method: int, deadline: float, head: bytes, message: bytes | None, ended: bool) -> None:  # noqa: FBT001
    [(kind, number, body)] = FrameReader().feed(frames.open_frame(call, method, deadline, head, message, ended))
    assert (kind, number) == (FrameKind.OPEN, call)
    assert frames.parse_open(body) == (method, deadline, head, message, ended)


@given(IDS, st.integers(0, 16), BYTES, MAYBE)
def test_status(call: int, code: int, extra: bytes, message: bytes | None) -> None:
    [(kind, number, body)] = FrameReader().feed(frames.status_frame(call, code, extra, message))
    assert (kind, number) == (FrameKind.STATUS, call)
    assert frames.parse_status(body) == (code, extra, message)


@given(IDS, st.integers(0, 2**32 - 1))
def test_credit(call: int, size: int) -> None:
    [(kind, number, body)] = FrameReader().feed(frames.credit_frame(call, size))
    assert (kind, number) == (FrameKind.CREDIT, call)
    assert frames.parse_credit(body) == size


@given(st.binary(max_size=100))
def test_any_bytes_are_frames_or_refused(data: bytes) -> None:
    reader = FrameReader()
    try:
        for kind, _, body in reader.feed(data):
            parse = {
                FrameKind.OPEN: frames.parse_open,
                FrameKind.STATUS: frames.parse_status,
                FrameKind.CREDIT: frames.parse_credit,
            }
            parse.get(FrameKind(kind), bytes)(body)
    except FrameError:
        pass


@pytest.mark.parametrize(
    "data", [b"\0\0\0\0\0" + bytes(8), b"\0\0\0\0\x63" + bytes(8), b"\xff\xff\xff\xff\x01" + bytes(8)]
)
def test_no_frame_has_such_a_kind_or_length(data: bytes) -> None:
    with pytest.raises(FrameError, match="no frame has kind"):
        FrameReader().feed(data)


def test_a_frame_that_cannot_be_so_long_is_refused_while_it_comes() -> None:
    reader = FrameReader()
    assert reader.feed(b"\xff") == []
    with pytest.raises(FrameError):
        reader.feed(b"\xff\xff\xff\x02" + bytes(8))
