"""The small pieces of the wire: each codec against its inverse, each reader against bytes cut anywhere."""

from __future__ import annotations

import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.errors import Code, Internal, ResourceExhausted, Unimplemented
from mesh.rpc import framing
from mesh.rpc.framing import Reader, frame

messages = st.lists(st.binary(max_size=300), max_size=8)


@given(messages, st.data(), st.booleans())
def test_messages_survive_any_cutting(sent, data, gzip):
    wire = b"".join(frame(message, gzip=gzip) for message in sent)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(wire)), max_size=12)))
    reader = Reader(1000, b"gzip" if gzip else b"identity")
    found = []
    for begin, end in zip([0, *cuts], [*cuts, len(wire)], strict=True):
        found += reader.feed(wire[begin:end])
    assert found == sent
    assert not reader.partial


@given(st.binary(max_size=60))
def test_a_reader_survives_anything(data):
    reader = Reader(20, b"gzip")
    try:
        for byte in data:
            reader.feed(bytes([byte]))
    except (Internal, ResourceExhausted):
        pass


def test_a_message_that_has_begun_is_partial():
    reader = Reader(10)
    assert not reader.partial
    reader.feed(b"\0\0")
    assert reader.partial
    reader.feed(b"\0\0\1")
    assert reader.partial
    assert reader.feed(b"x") == [b"x"]
    assert not reader.partial


def test_limits_hold_before_the_bytes_come():
    with pytest.raises(ResourceExhausted, match="11 bytes is larger than the limit of 10"):
        Reader(10).feed(b"\0\0\0\0\x0b")
    bomb = frame(zlib.compress(bytes(10**7), wbits=31))
    with pytest.raises(ResourceExhausted, match="decompresses"):
        Reader(10**5, b"gzip").feed(b"\1" + bomb[1:])


@pytest.mark.parametrize("payload", [b"not gzip", zlib.compress(b"abc" * 100, wbits=31)[:-9], b""])
def test_broken_gzip(payload):
    with pytest.raises(Internal, match="gzip"):
        Reader(1000, b"gzip").feed(b"\1" + frame(payload)[1:])


def test_encodings():
    framing.check_encoding(b"identity")
    framing.check_encoding(b"gzip")
    with pytest.raises(Unimplemented, match="snappy"):
        framing.check_encoding(b"snappy")


@given(st.text())
def test_percent_coding(text):
    wire = framing.encode_message(text)
    assert wire.isascii()
    assert all(0x20 <= byte < 0x7F for byte in wire)
    assert framing.decode_message(wire) == text.encode("utf-8", "replace").decode()


@given(st.binary())
def test_percent_decoding_takes_anything(value):
    framing.decode_message(value)


def test_percent_coding_by_example():
    assert framing.encode_message("a%b\nü") == b"a%25b%0A%C3%BC"
    assert framing.decode_message(b"100%zz") == "100%zz"


@given(st.floats(min_value=0.001, max_value=1e9))
def test_timeouts_are_never_cut_short_by_much(seconds):
    wire = framing.encode_timeout(seconds)
    assert len(wire) <= 9
    found = framing.decode_timeout(wire)
    if seconds <= 99_999_999:
        assert seconds - 1e-6 <= found <= seconds + (0.0011 if seconds < 99_999 else 1)


@pytest.mark.parametrize(
    ("wire", "seconds"), [(b"1H", 3600), (b"2M", 120), (b"3S", 3), (b"4m", 0.004), (b"5u", 5e-6), (b"6n", 6e-9)]
)
def test_units(wire, seconds):
    assert framing.decode_timeout(wire) == pytest.approx(seconds)


@pytest.mark.parametrize("wire", [b"", b"S", b"1", b"1s", b"-1S", b"123456789S", b"1.5S", b"\xb2S"])
def test_timeouts_that_are_none(wire):
    with pytest.raises(ValueError, match="grpc-timeout"):
        framing.decode_timeout(wire)


def test_code_tables():
    assert framing.code_of_reset(7) is Code.UNAVAILABLE
    assert framing.code_of_reset(0xFFFF) is Code.UNKNOWN
    assert framing.code_of_http(404) is Code.UNIMPLEMENTED
    assert framing.code_of_http(418) is Code.UNKNOWN
