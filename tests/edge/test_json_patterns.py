"""Patterns of the document against the codec: it reads all texts that match, and all texts that it prints match."""

from __future__ import annotations

import re

import pytest
from arbitrary import messages, scalar
from google.protobuf.descriptor import FieldDescriptor
from hypothesis import assume, given
from hypothesis import strategies as st

from mesh.contract.model import Contract
from mesh.edge.openapi import json_patterns
from mesh.protojson.codec import Codecs
from mesh.protojson.scalars import decoder, key_decoder

LIMITS = {
    "INT32": (json_patterns.INT32, -(2**31), 2**31 - 1),
    "UINT32": (json_patterns.UINT32, 0, 2**32 - 1),
    "INT64": (json_patterns.INT64, -(2**63), 2**63 - 1),
    "UINT64": (json_patterns.UINT64, 0, 2**64 - 1),
}


@pytest.mark.parametrize("name", LIMITS)
def test_integers_end_where_their_type_does(name: str) -> None:
    pattern, low, high = LIMITS[name]
    for limit in (low, high):
        for number in range(limit - 1100, limit + 1101):
            assert bool(re.fullmatch(pattern, str(number))) is (low <= number <= high), number

    @given(st.integers(2 * low - 10, 2 * high))
    def agrees(number: int) -> None:
        assert bool(re.fullmatch(pattern, str(number))) is (low <= number <= high)

    agrees()


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("INT64", "f_int64"), ("UINT64", "f_uint64"), ("BASE64", "f_bytes"), ("TIMESTAMP", "w_timestamp"),
        ("DURATION", "w_duration"), ("FIELD_MASK", "w_mask"), ("INT32", "m_int32"), ("UINT32", "m_uint32"),
    ],
)  # fmt: skip
def test_what_matches_is_read(contract: Contract, name: str, field: str) -> None:
    found: FieldDescriptor = contract.pool.FindMessageTypeByName("codec.v1.Everything").fields_by_name[field]
    if found.message_type is None:
        read = decoder(found)
    elif found.message_type.GetOptions().map_entry:
        read = key_decoder(found.message_type.fields_by_name["key"])
    else:
        codec = Codecs().of_descriptor(found.message_type)
        read = codec.parse_value

    @given(st.from_regex(getattr(json_patterns, name), fullmatch=True))
    def is_read(text: str) -> None:
        assume(not re.search(r"-(02-(29|30|31)|0[469]-31|11-31)T", text))  # `format` refuses days that do not exist
        assume(name != "BASE64" or text.isascii())
        read(text.rstrip("\n"))

    is_read()


@pytest.mark.parametrize(
    ("name", "type_"), [("TIMESTAMP", "Timestamp"), ("DURATION", "Duration"), ("FIELD_MASK", "FieldMask")]
)
def test_what_is_printed_matches(contract: Contract, name: str, type_: str) -> None:
    message = contract.message(f"google.protobuf.{type_}")
    codec = Codecs().of(message)

    @given(messages(message))
    def matches(made: object) -> None:
        assert re.fullmatch(getattr(json_patterns, name), codec.dump(made))

    matches()


@pytest.mark.parametrize(
    "text", ["0001-01-01T00:00:00Z", "9999-12-31T23:59:59.999999999Z", "0002-01-01T00:00:00+23:59"]
)
def test_first_and_last_timestamps(contract: Contract, text: str) -> None:
    assert re.fullmatch(json_patterns.TIMESTAMP, text)
    Codecs().of(contract.message("google.protobuf.Timestamp")).parse_value(text)


@pytest.mark.parametrize("text", ["0000-12-31T23:59:59Z", "0001-01-01T00:00:00+00:01", "9999-12-31T23:59:59-00:01"])
def test_what_is_before_the_first_or_after_the_last_is_not_offered(text: str) -> None:
    assert not re.fullmatch(json_patterns.TIMESTAMP, text)


def test_base64_is_what_is_printed(contract: Contract) -> None:
    field = contract.pool.FindMessageTypeByName("codec.v1.Everything").fields_by_name["f_bytes"]
    dump = Codecs().field(field)[1]

    @given(scalar(field))
    def matches(value: bytes) -> None:
        assert re.fullmatch(json_patterns.BASE64, dump(value))

    matches()
