"""The codec against ``google.protobuf.json_format`` on arbitrary messages."""

from __future__ import annotations

import json
import math

import pytest
from arbitrary import messages
from google.protobuf import json_format
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from mesh.contract.model import Contract
from mesh.protojson.codec import Codecs
from mesh.protojson.scalars import JsonError
from mesh.protojson.syntax import JsonSyntaxError


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
    message = data.draw(messages(everything))
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
    message = data.draw(messages(everything, 2))
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
        patch.setattr("mesh.protojson.codec.is_fast", lambda _fields: False)
        slow = Codecs().of(message)

    def outcome(codec):
        try:
            made = codec.parse_value(value)
        except JsonError as error:
            return error.path, error.text
        assert fast.print(made) == slow.print(made)
        return made.SerializeToString(deterministic=True)

    assert outcome(fast) == outcome(slow)
