"""Events and results as JSON text: the same as by ``google.protobuf.Value``, with exact numbers."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest
from google.protobuf.message import DecodeError
from google.protobuf.struct_pb2 import Value
from hypothesis import example, given
from hypothesis import strategies as st
from lambda_project import Project, served

from mesh.errors import InvalidArgument
from mesh.lambdas import json_text, json_value
from mesh.lambdas.json_value import CannotMarshal


class Point(NamedTuple):
    x: Any
    y: Any = 2


KEYS = st.text() | st.integers() | st.booleans() | st.text().map(str.encode)
LEAVES = (
    st.none() | st.booleans() | st.integers(-(10**300), 10**300) | st.floats(allow_nan=False, allow_infinity=False)
    | st.decimals("-1e300", "1e300") | st.decimals(-1000, 1000, places=2) | st.text() | st.text().map(str.encode)
)  # fmt: skip


def around(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    some = inner | LEAVES
    held = st.lists(some, max_size=4), st.tuples(some), st.dictionaries(KEYS, some, max_size=4)
    return st.one_of(*held, st.builds(Point, some, some))


NOTHING = [
    float("nan"), float("inf"), Decimal("sNaN"), Decimal("-Infinity"), b"\xff", {b"\xff": 1}, {float("nan"): 1},
    {Decimal(1): 1}, {(1,): 1}, bytearray(b"1"), {1}, "\ud800", 1j,
]  # fmt: skip


@given(around(around(around(LEAVES))))
def test_text_and_value_say_the_same(result: Any) -> None:
    text = json_text.marshal(result)
    assert json.loads(text, parse_int=float) == json_value.decode(json_value.encode(result))


@pytest.mark.parametrize("nothing", NOTHING, ids=repr)
def test_text_and_value_refuse_the_same(nothing: Any) -> None:
    for write in (json_text.marshal, json_value.encode):
        for result in (nothing, [nothing], (nothing,), {"a": nothing}, Point(nothing)):
            with pytest.raises(CannotMarshal):
                write(result)


@pytest.mark.parametrize(
    ("result", "text"),
    [
        (Decimal(5), "5"),
        ([Decimal(12345678901234567890), Decimal("1.10"), Decimal("1E+2")], "[12345678901234567890,1.10,1E+2]"),
        ({"b": b"h\xc3\xa9llo", b"k": 2**70}, '{"b":"héllo","k":1180591620717411303424}'),
        ([Point(1), (1, Point((2,)))], '[{"x":1,"y":2},[1,{"x":[2],"y":2}]]'),
        (b'{"n": 12345678901234567890.10}', '{"n": 12345678901234567890.10}'),
    ],
)
def test_what_lambda_writes(result: Any, text: str) -> None:
    assert json_text.marshal(result).decode() == text


def parse_event(text: str) -> Any:
    return json_text.parse_event(json_value.pack(text.encode()))


@example([2**63, 2**64 - 1, 2**64, -(2**63) - 1, {"n": 10**30}, "1" * 19])
@given(st.recursive(st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))
def test_an_event_has_exact_integers(event: Any) -> None:
    assert parse_event(json.dumps(event, ensure_ascii=False)) == event


@pytest.mark.parametrize("text", [f"[{2**64}, NaN]", f'[{2**64}, "\\ud800"]', f"[{2**64}, 1e999]", f'{{"a": {2**64}'])
def test_a_long_integer_excuses_nothing(text: str) -> None:
    with pytest.raises(InvalidArgument, match="the event is not JSON"):
        parse_event(text)


@given(st.text())
def test_a_packed_text_is_what_protobuf_writes_and_reads(text: str) -> None:
    packed = json_value.pack(text.encode())
    assert packed == Value(string_value=text).SerializeToString()
    assert json_value.unpack(packed) == text.encode()


def test_what_holds_no_text_is_no_text() -> None:
    assert json_value.unpack(Value(number_value=1).SerializeToString()) == b""
    assert json_value.unpack(b"") == b""
    twice = Value(string_value="a").SerializeToString() + Value(string_value="b").SerializeToString()
    assert json_value.unpack(twice) == b"b"
    for broken in (b"\x1a\x05ab", b"\x1a", b"\xff\xff"):
        with pytest.raises(DecodeError):
            json_value.unpack(broken)


def holding_itself() -> list[Any]:
    made: list[Any] = []
    made.append(made)
    return made


def nested(levels: int) -> Any:
    made: list[Any] = []
    for _ in range(levels):
        made = [made]
    return made


@pytest.mark.parametrize(
    ("result", "why"),
    [
        (object(), "Object of type object is not JSON serializable"),
        ({"a": {1, 2}}, "Object of type set is not JSON serializable"),
        ({(1, 2): 1}, "keys must be str, int, float, bool or None, not tuple"),
        (float("inf"), "not JSON compliant"),
        (Decimal("NaN"), "not JSON compliant"),
        (Decimal("-Infinity"), "not JSON compliant"),
        ({Decimal(1): 1}, "keys must be str, int, float, bool or None, not Decimal"),
        ([b"\xff"], "can't decode byte 0xff"),
        (b"[NaN]", "bytes that are no JSON"),
        ("\ud800", "lone surrogates"),
        (b"\xff", "bytes that are no JSON"),
        (holding_itself(), "Circular reference"),
        (nested(100_000), "too many levels"),
    ],
)
def test_what_has_no_json_form(result: Any, why: str) -> None:
    with pytest.raises(CannotMarshal, match=why):
        json_text.marshal(result)


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
