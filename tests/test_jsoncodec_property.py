"""The codec against ``google.protobuf.json_format`` on arbitrary messages."""

from __future__ import annotations

import json
import math

import pytest
from google.protobuf import json_format
from google.protobuf.descriptor import FieldDescriptor as F
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from mesh.contract import Contract
from mesh.jsoncodec import Codecs, JsonError, JsonSyntaxError

_INTS = {
    F.CPPTYPE_INT32: st.integers(-(2**31), 2**31 - 1),
    F.CPPTYPE_INT64: st.integers(-(2**63), 2**63 - 1),
    F.CPPTYPE_UINT32: st.integers(0, 2**32 - 1),
    F.CPPTYPE_UINT64: st.integers(0, 2**64 - 1),
}
_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
_JSON = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | _TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXT, inner, max_size=3),
    max_leaves=6,
)
_SECONDS = st.integers(-62_135_596_800, 253_402_300_799)


def one_nan(value):
    """JSON has one NaN; floats have many."""
    return math.nan if value != value else value  # noqa: PLR0124


def scalar(field):
    if field.type == F.TYPE_BYTES:
        return st.binary(max_size=8)
    if field.type == F.TYPE_FLOAT:
        return st.floats(width=32).map(one_nan)
    if field.enum_type is not None:
        if field.enum_type.full_name == "google.protobuf.NullValue":
            return st.just(0)
        return st.sampled_from([value.number for value in field.enum_type.values]) | st.integers(-(2**31), 2**31 - 1)
    if field.cpp_type in _INTS:
        return _INTS[field.cpp_type]
    return {F.CPPTYPE_DOUBLE: st.floats().map(one_nan), F.CPPTYPE_BOOL: st.booleans(), F.CPPTYPE_STRING: _TEXT}[
        field.cpp_type
    ]


@st.composite
def duration(draw):
    nanos = draw(st.integers(-315_576_000_000 * 10**9, 315_576_000_000 * 10**9))
    sign = -1 if nanos < 0 else 1
    seconds, rest = divmod(abs(nanos), 10**9)
    return {"seconds": sign * seconds, "nanos": sign * rest}


def fill(draw, message, depth):
    """Set a random part of the fields; returns the message."""
    name = message.DESCRIPTOR.full_name
    if name == "google.protobuf.Timestamp":
        message.seconds = draw(_SECONDS)
        message.nanos = draw(st.integers(0, 999_999_999) | st.sampled_from([0, 10**6, 5000]))
    elif name == "google.protobuf.Duration":
        for key, value in draw(duration()).items():
            setattr(message, key, value)
    elif name == "google.protobuf.FieldMask":
        message.paths.extend(draw(st.lists(st.from_regex(r"\A[a-z]{1,3}(_[a-z]{1,3})?(\.[a-z])?\Z"), max_size=3)))
    elif name in ("google.protobuf.Struct", "google.protobuf.ListValue", "google.protobuf.Value"):
        kinds = {"Struct": st.dictionaries(_TEXT, _JSON, max_size=3), "ListValue": st.lists(_JSON, max_size=3)}
        json_format.ParseDict(draw(kinds.get(message.DESCRIPTOR.name, _JSON)), message)
    elif name == "google.protobuf.Any":
        return message
    else:
        fields = list(message.DESCRIPTOR.fields)
        chosen = fields if len(fields) < 6 else draw(st.lists(st.sampled_from(fields), max_size=4, unique=True))
        for field in chosen:
            set_field(draw, message, field, depth)
    return message


def set_field(draw, message, field, depth):
    if field.message_type is not None and depth == 0:
        return
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        entry = field.message_type.fields_by_name
        target = getattr(message, field.name)
        for key in draw(st.lists(scalar(entry["key"]), max_size=3, unique=True)):
            if entry["value"].message_type is not None:
                fill(draw, target[key], depth - 1)
            else:
                target[key] = draw(scalar(entry["value"]))
    elif field.is_repeated:
        target = getattr(message, field.name)
        for _ in range(draw(st.integers(0, 3))):
            if field.message_type is not None:
                fill(draw, target.add(), depth - 1)
            else:
                target.append(draw(scalar(field)))
    elif field.message_type is not None:
        sub = getattr(message, field.name)
        sub.SetInParent()
        fill(draw, sub, depth - 1)
    else:
        setattr(message, field.name, draw(scalar(field)))


@pytest.fixture(scope="module")
def everything(contract: Contract):
    return contract.message("codec.v1.Everything")


def same(left, right) -> bool:
    """Equal, with NaN equal to itself."""
    return left.SerializeToString(deterministic=True) == right.SerializeToString(deterministic=True)


def normal(value):
    """JSON values with floats by their bits."""
    if isinstance(value, float):
        return ("float", math.copysign(1, value), value)
    if isinstance(value, dict):
        return {key: normal(one) for key, one in value.items()}
    if isinstance(value, list):
        return [normal(one) for one in value]
    return value


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.data())
def test_prints_and_reads_as_json_format_does(everything, data):
    message = fill(data.draw, everything(), 3)
    pool = everything.DESCRIPTOR.file.pool
    codec = Codecs().of(everything)
    text = codec.print(message)
    theirs = json_format.MessageToJson(message, descriptor_pool=pool)
    assert normal(json.loads(text)) == normal(json.loads(theirs))
    again = codec.parse(text)
    if "3.4028235e+38" not in theirs:  # FLT_MAX, which json_format prints and refuses
        assert same(again, json_format.Parse(theirs, everything(), descriptor_pool=pool))
    assert same(again, message)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.data())
def test_prints_defaults_as_json_format_does(everything, data):
    message = fill(data.draw, everything(), 2)
    codec = Codecs(always_print_fields_with_no_presence=True).of(everything)
    theirs = json_format.MessageToJson(message, always_print_fields_with_no_presence=True)
    assert normal(json.loads(codec.print(message))) == normal(json.loads(theirs))


_NAMES = st.sampled_from(
    [
        "fInt32",
        "fFive",
        "rString",
        "mInt32",
        "cString",
        "cNull",
        "wAny",
        "wStruct",
        "wTimestamp",
        "name",
        "fSelf",
        "rSelf",
    ]
)
_ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_NAMES, inner, max_size=3),
)


@settings(max_examples=400, deadline=None)
@given(_ANY_JSON)
@example({"fSelf": {"fInt32": 1.0}})
def test_any_json_is_read_or_refused(everything, value):
    codec = Codecs().of(everything)
    text = json.dumps(value).encode()
    try:
        message = codec.parse(text)
    except (JsonError, JsonSyntaxError):
        return  # refused in its own terms, not by an exception of ours
    assert same(codec.parse(codec.print(message)), message)


_FEW = st.dictionaries(
    st.sampled_from(["name", "born", "teacher", "age", "bigNumber", "big_number", "active", "score", "other"]),
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5) | st.sampled_from(
        ["12", "-1", "NaN", "1e2", {}, {"name": "x"}, {"name": 1}, {"teacher": {"born": "y"}}, []]),
    max_size=5,
)  # fmt: skip


@pytest.mark.parametrize("name", ["codec.v1.Five", "edge.v1.Author"])
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(_FEW)
def test_the_generated_code_does_what_the_general_does(contract, name, value):
    message = contract.message(name)
    fast = Codecs().of(message)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mesh.jsoncodec.suits", lambda _fields: False)
        slow = Codecs().of(message)

    def outcome(codec):
        try:
            made = codec.parse_value(value)
        except JsonError as error:
            return error.path, error.text
        assert fast.print(made) == slow.print(made)
        return made.SerializeToString(deterministic=True)

    assert outcome(fast) == outcome(slow)
