"""Metadata: the mapping for functions, and the encoded pairs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.call import Call, Metadata, decode_values, encode_pair
from mesh.errors import Unimplemented


def test_a_mapping_of_text_and_bytes() -> None:
    metadata = Metadata([("X-A", "1"), ("x-a", "2"), ("k-bin", b"\x00\xff")])
    assert dict(metadata) == {"x-a": "2", "k-bin": b"\x00\xff"}
    assert metadata.getall("X-A") == ["1", "2"]
    assert metadata.getall("none") == []
    assert "X-a" in metadata
    assert len(metadata) == 2
    with pytest.raises(KeyError):
        metadata["nope"]


def test_what_belongs_to_the_transport_is_not_metadata() -> None:
    metadata = Metadata.from_wire(
        [(b":path", b"/x"), (b"te", b"trailers"), (b"grpc-timeout", b"1S"), (b"content-type", b"x"), (b"a", b"b")]
    )
    assert dict(metadata) == {"a": "b"}
    assert metadata.get("grpc-timeout") is None
    assert metadata.getall("te") == []
    assert metadata.wire(b"grpc-timeout") == b"1S"
    metadata.append(b"traceparent", b"00")
    assert metadata["traceparent"] == "00"


def test_binary_values_joined_by_commas_are_several() -> None:
    assert Metadata.from_wire([(b"a-bin", b"AQ, Ag==")]).getall("a-bin") == [b"\x01", b"\x02"]


@given(st.binary())
def test_any_bytes_survive(value: bytes) -> None:
    assert decode_values(*encode_pair("k-bin", value)) == [value]


@pytest.mark.parametrize(
    ("key", "value"),
    [("a b", "x"), ("", "x"), ("ä", "x"), ("a", "ä"), ("a", "x\r\ny"), ("a-bin", "text"), (":path", "x")],
)
def test_what_cannot_be_sent_is_refused(key: str, value: str) -> None:
    with pytest.raises(ValueError, match="metadata"):
        encode_pair(key, value)


class Stream(Call):
    """A call whose requests are given."""

    __slots__ = ("requests",)

    def __init__(self, *requests: bytes) -> None:
        super().__init__(None, Metadata())
        self.requests = list(requests)

    async def receive(self) -> bytes | None:
        return self.requests.pop(0) if self.requests else None


async def test_one_request_is_exactly_one() -> None:
    assert await Stream(b"a").receive_one() == b"a"
    with pytest.raises(Unimplemented, match="without one"):
        await Stream().receive_one()
    with pytest.raises(Unimplemented, match="holds more"):
        await Stream(b"a", b"b").receive_one()
