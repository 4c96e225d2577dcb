"""JSON values as ``google.protobuf.Value``, against protobuf itself."""

from __future__ import annotations

import json
from decimal import Decimal
from enum import StrEnum
from typing import Any, NamedTuple

import pytest
from google.protobuf import json_format
from google.protobuf.message import DecodeError
from google.protobuf.struct_pb2 import ListValue, Value
from hypothesis import given
from hypothesis import strategies as st

from mesh.lambdas.json_value import CannotMarshal, decode, encode

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(alphabet=st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=6)
    | st.dictionaries(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=200), inner, max_size=6),
    max_leaves=40,
)  # fmt: skip


@given(JSON)
def test_what_is_written_is_what_protobuf_reads(value: Any) -> None:
    assert json_format.MessageToDict(Value.FromString(encode(value))) == value


@given(JSON)
def test_what_protobuf_writes_is_read(value: Any) -> None:
    message = json_format.ParseDict(value, Value())
    assert decode(message.SerializeToString()) == value


@given(JSON)
def test_what_is_written_is_read_in_its_order(value: Any) -> None:
    assert json.dumps(decode(encode(value))) == json.dumps(value).replace("-0.0", "0") or value == decode(encode(value))


@given(st.binary(max_size=60))
def test_bytes_are_a_value_for_both_or_for_none(data: bytes) -> None:
    try:
        message = Value.FromString(data)
    except DecodeError:
        with pytest.raises(DecodeError):
            decode(data)
    else:
        read = decode(data)
        assert repr(read) == repr(decode(message.SerializeToString())) or isinstance(read, dict)


def test_the_order_of_keys_stays() -> None:
    value = dict.fromkeys(["zebra", "apple", "mango", "1", "kiwi"])
    assert list(decode(encode(value))) == list(value)


def test_a_whole_number_is_an_int() -> None:
    assert [type(one) for one in decode(encode([1, 1.0, 1.5, 1e300, True]))] == [int, int, float, float, bool]


def test_fields_that_come_twice_are_left_to_protobuf() -> None:
    first, last = Value(string_value="a").SerializeToString(), Value(number_value=7).SerializeToString()
    assert decode(first + last) == 7
    lists = [Value(list_value=ListValue(values=[Value(number_value=n)])).SerializeToString() for n in (1, 2)]
    assert decode(b"".join(lists)) == [1, 2]  # messages merge
    assert decode(b"") is None


class Colour(StrEnum):
    RED = "red"


class Point(NamedTuple):
    x: int
    y: int


class Told:
    def __init__(self, what: Any = None) -> None:
        self.what = what

    def _asdict(self) -> Any:
        return self.what or {"told": 1}


class Broken:
    def _asdict(self) -> Any:
        raise KeyError("gone")


def test_what_lambda_can_write() -> None:
    value = {"c": Colour.RED, Colour.RED: (1, 2), "p": Point(1, 2), "d": Decimal("1.25"), 1: None, None: 2.5, False: 0}
    value |= {"b": b"\xc3\xa9", b"k": Told(), "i": [True, Point(1, (2,))]}
    assert decode(encode(value)) == {
        "c": "red", "red": [1, 2], "p": {"x": 1, "y": 2}, "d": 1.25, "1": None, "null": 2.5, "false": 0,
        "b": "é", "k": {"told": 1}, "i": [True, {"x": 1, "y": [2]}],
    }  # fmt: skip
    assert decode(encode(b'{"a": 1}')) == {"a": 1}


def holding_itself() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (object(), "Object of type object is not JSON serializable"),
        ({"a": {1, 2}}, "Object of type set is not JSON serializable"),
        ({(1, 2): 1}, "keys must be str, int, float, bool or None, not tuple"),
        ({Decimal(1): 1}, "keys must be str, int, float, bool or None, not Decimal"),
        ({float("nan"): 1}, "not JSON compliant"),
        ([b"\xff"], "can't decode byte 0xff"),
        (Told([1]), "must return a dict, not list"),
        (Broken(), "gone"),
        (Decimal("sNaN"), "NaN"),
        (float("nan"), "not JSON compliant"),
        (10**400, "too large"),
        ("\ud800", "lone surrogates"),
        (b"\xff", "bytes that are no JSON"),
        (holding_itself(), "holds itself"),
    ],
)
def test_what_it_cannot(value: Any, why: str) -> None:
    with pytest.raises(CannotMarshal, match=why):
        encode(value)


def test_nesting_has_an_end_on_both_sides() -> None:
    deep: Any = 1
    for _ in range(32):
        deep = [deep]
    assert decode(encode(deep)) == deep
    with pytest.raises(CannotMarshal, match="more than 32 levels"):
        encode([deep])
    data = Value(number_value=1).SerializeToString()
    for _ in range(2000):
        inner = b"\x0a" + _varint(len(data)) + data
        data = b"\x32" + _varint(len(inner)) + inner
    with pytest.raises(DecodeError):
        decode(data)


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])
