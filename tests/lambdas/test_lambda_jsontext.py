"""Events and results as JSON text: the same as by ``google.protobuf.Value``, with exact numbers."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.message import DecodeError
from google.protobuf.struct_pb2 import Value
from hypothesis import given
from hypothesis import strategies as st
from lambda_project import Project, served

from mesh.lambdas import jsontext, value
from mesh.lambdas.value import CannotMarshal

KEYS = st.text() | st.integers() | st.booleans()
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
    | st.decimals(-1000, 1000, places=2) | st.text(),
    lambda inner: st.lists(inner) | st.tuples(inner) | st.dictionaries(KEYS, inner),
    max_leaves=20,
)  # fmt: skip


def outcome(marshalled: Any) -> Any:
    try:
        return marshalled()
    except CannotMarshal:
        return CannotMarshal


@given(ANYTHING)
def test_text_and_value_say_the_same(result: Any) -> None:
    by_value = outcome(lambda: value.decode(value.encode(result)))
    assert outcome(lambda: json.loads(jsontext.marshal(result))) == by_value


@given(st.text())
def test_a_packed_text_is_what_protobuf_writes_and_reads(text: str) -> None:
    packed = value.pack(text.encode())
    assert packed == Value(string_value=text).SerializeToString()
    assert value.unpack(packed) == text.encode()


def test_what_holds_no_text_is_no_text() -> None:
    assert value.unpack(Value(number_value=1).SerializeToString()) == b""
    assert value.unpack(b"") == b""
    twice = Value(string_value="a").SerializeToString() + Value(string_value="b").SerializeToString()
    assert value.unpack(twice) == b"b"
    for broken in (b"\x1a\x05ab", b"\x1a", b"\xff\xff"):
        with pytest.raises(DecodeError):
            value.unpack(broken)


def holding_itself() -> list[Any]:
    made: list[Any] = []
    made.append(made)
    return made


@pytest.mark.parametrize(
    ("result", "why"),
    [
        (object(), "Object of type object is not JSON serializable"),
        ({"a": {1, 2}}, "Object of type set is not JSON serializable"),
        ({(1, 2): 1}, "keys must be str, int, float, bool or None, not tuple"),
        (float("inf"), "not JSON compliant"),
        (Decimal("NaN"), "not JSON compliant"),
        ("\ud800", "lone surrogates"),
        (b"\xff", "bytes that are no JSON"),
        (holding_itself(), "Circular reference"),
    ],
)
def test_what_has_no_json_form(result: Any, why: str) -> None:
    with pytest.raises(CannotMarshal, match=why):
        jsontext.marshal(result)


async def call(address: str, event: Value, mark: str = "1") -> Value:
    async with grpc.aio.insecure_channel(address) as channel:
        invoke = channel.unary_unary(
            "/functions.v1.Hello/Invoke",
            request_serializer=Value.SerializeToString, response_deserializer=Value.FromString,
        )  # fmt: skip
        found: Value = await invoke(event, timeout=10, metadata=[("x-mesh-json", mark)])
        return found


async def test_a_marked_call_has_exact_numbers(tmp_path: Path) -> None:
    code = "def handler(event, context): return {'n': event['n'] + 1, 'é': event['f']}"
    async with served(Project(tmp_path, code)) as address:
        result = await call(address, Value(string_value='{"n": 9007199254740993, "f": 1.0}'))
    assert result.string_value == '{"n":9007199254740994,"é":1.0}'


async def test_a_mark_without_json_is_refused(tmp_path: Path) -> None:
    async with served(Project(tmp_path, "def handler(event, context): return event")) as address:
        for event in (Value(string_value="{nope"), Value(number_value=1), Value(string_value="[" * 5000)):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(address, event)
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert "the event is not JSON" in (caught.value.details() or "")
        assert (await call(address, Value(string_value="{nope"), mark="0")).string_value == "{nope"
