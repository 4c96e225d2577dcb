"""Tables of the JSON mapping: accepted values, refused values with their errors, printed values."""

from __future__ import annotations

import json
import math

import pytest

from mesh.contract.model import Contract
from mesh.protojson.codec import Codecs
from mesh.protojson.scalars import JsonError
from mesh.protojson.syntax import JsonSyntaxError, loads
from mesh.protojson.wellknown import JsonEncodeError


@pytest.fixture(scope="module")
def everything(contract: Contract):
    return contract.message("codec.v1.Everything")


@pytest.fixture(scope="module")
def codec(everything):
    return Codecs().of(everything)


ANY = "type.googleapis.com/"


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        # integers
        ('{"fInt32": 1}', None),
        ('{"fInt32": -0}', "{}"),
        ('{"fInt32": 1.0}', '{"fInt32": 1}'),
        ('{"fInt32": 1e5}', '{"fInt32": 100000}'),
        ('{"fInt32": "12"}', '{"fInt32": 12}'),
        ('{"fInt32": "1.5e1"}', '{"fInt32": 15}'),
        ('{"fInt32": -2147483648, "fUint32": 4294967295}', None),
        ('{"fInt64": 9223372036854775807}', '{"fInt64": "9223372036854775807"}'),
        ('{"fInt64": "-9223372036854775808", "fUint64": "18446744073709551615"}', None),
        ('{"fInt64": "9007199254740993.0"}', '{"fInt64": "9007199254740993"}'),
        ('{"fSfixed64": "1", "fFixed64": "2", "fSint64": "3", "fFixed32": 4}',
         '{"fSint64": "3", "fFixed32": 4, "fFixed64": "2", "fSfixed64": "1"}'),
        # floats
        ('{"fDouble": 1.7976931348623157e308, "fFloat": 3.4028235e38}',
         '{"fFloat": 3.4028235e38, "fDouble": 1.7976931348623157e308}'),
        ('{"fFloat": -3.402823466e+38}', '{"fFloat": -3.4028235e38}'),
        ('{"fFloat": 0.1}', None),
        ('{"fFloat": 1e-45}', '{"fFloat": 1.4013e-45}'),
        ('{"fDouble": 5e-324}', None),
        ('{"fDouble": -0.0}', None),
        ('{"fDouble": "NaN", "fFloat": "-Infinity"}', '{"fFloat": "-Infinity", "fDouble": "NaN"}'),
        ('{"fDouble": "1.5"}', '{"fDouble": 1.5}'),
        ('{"fDouble": 3}', '{"fDouble": 3.0}'),
        # bytes
        ('{"fBytes": "-_8"}', '{"fBytes": "+/8="}'),
        ('{"fBytes": "+/8="}', None),
        ('{"fBytes": ""}', "{}"),
        # enums
        ('{"fColour": "GREEN"}', None),
        ('{"fColour": 2}', '{"fColour": "GREEN"}'),
        ('{"fColour": 77}', None),
        ('{"fColour": "BLUE", "rColour": [0, "RED", -3]}',
         '{"fColour": "BLUE", "rColour": ["COLOUR_UNSPECIFIED", "RED", "BLUE"]}'),
        ('{"fNested": "NESTED_UNO"}', '{"fNested": "NESTED_ONE"}'),
        # names
        ('{"f_int32": 1, "r_string": ["a"]}', '{"fInt32": 1, "rString": ["a"]}'),
        ('{"@other": "a"}', None),
        ('{"renamed": "a"}', '{"@other": "a"}'),
        ('{"UnderScore": "a"}', None),
        # null
        ('{"fInt32": null, "fFive": null, "rInt32": null, "mString": null, "wInt64": null, "oInt32": null}', "{}"),
        ('{"wValue": null}', None),
        ('{"wNull": null}', "{}"),
        ('{"cNull": null}', None),
        ('{"cNull": "NULL_VALUE"}', '{"cNull": null}'),
        ('{"cString": null, "cInt32": 1}', '{"cInt32": 1}'),
        ('{"cInt32": 1, "cString": null}', '{"cInt32": 1}'),
        ('{"rwValue": [null, 1.0]}', None),
        # presence
        ('{"oInt32": 0, "oString": "", "oBool": false, "oBytes": "", "oColour": "COLOUR_UNSPECIFIED"}', None),
        ('{"cString": ""}', None),
        ('{"fFive": {}}', None),
        ('{"wInt64": "0", "wString": "", "wBool": false}', None),
        # maps
        ('{"mInt32": {"-1": "2"}, "mBool": {"true": "a", "false": "b"}, "mUint64": {"18446744073709551615": 0.5}}',
         '{"mInt32": {"-1": "2"}, "mUint64": {"18446744073709551615": 0.5}, "mBool": {"true": "a", "false": "b"}}'),
        ('{"mFixed32": {"1": {}}, "mFixed64": {"2": {"mString": {"": ""}}}}', None),
        ('{"mValue": {"a": null}, "mWrapper": {"b": "0"}, "mTimestamp": {"c": "1970-01-01T00:00:00Z"}}',
         '{"mValue": {"a": null}, "mTimestamp": {"c": "1970-01-01T00:00:00Z"}, "mWrapper": {"b": "0"}}'),
        # timestamps
        ('{"wTimestamp": "0001-01-01T00:00:00Z"}', None),
        ('{"wTimestamp": "9999-12-31T23:59:59.999999999Z"}', None),
        ('{"wTimestamp": "1969-12-31T23:59:59.5Z"}', '{"wTimestamp": "1969-12-31T23:59:59.500Z"}'),
        ('{"wTimestamp": "1970-01-01T08:00:00.000010+08:00"}', '{"wTimestamp": "1970-01-01T00:00:00.000010Z"}'),
        ('{"wTimestamp": "2024-02-29T00:00:00-23:59"}', '{"wTimestamp": "2024-02-29T23:59:00Z"}'),
        # durations
        ('{"wDuration": "315576000000.999999999s"}', None),
        ('{"wDuration": "-315576000000.999999999s"}', None),
        ('{"wDuration": "-0.000000001s"}', None),
        ('{"wDuration": "1.5s"}', '{"wDuration": "1.500s"}'),
        ('{"wDuration": "0s"}', None),
        # masks
        ('{"wMask": "a,fooBar.bazQux"}', None),
        ('{"wMask": ""}', None),
        # struct
        ('{"wStruct": {"a": [1.0, "b", null, true, {"c": {}}], "d": []}}', None),
        ('{"wList": []}', None),
        ('{"wValue": {}}', None),
        ('{"wValue": []}', None),
        ('{"wValue": 9007199254740993}', '{"wValue": 9007199254740992.0}'),
        # any
        ('{"wAny": {}}', None),
        (f'{{"wAny": {{"name": "x", "@type": "{ANY}codec.v1.Five"}}}}',
         f'{{"wAny": {{"@type": "{ANY}codec.v1.Five", "name": "x"}}}}'),
        (f'{{"wAny": {{"@type": "{ANY}google.protobuf.Duration", "value": "1s"}}}}', None),
        (f'{{"wAny": {{"@type": "{ANY}google.protobuf.Int64Value", "value": "1"}}}}', None),
        (f'{{"wAny": {{"@type": "{ANY}google.protobuf.Value", "value": null}}}}', None),
        (f'{{"wAny": {{"@type": "{ANY}google.protobuf.Empty"}}}}', None),
        (f'{{"wAny": {{"@type": "{ANY}google.protobuf.Any", "value": {{"@type": "{ANY}codec.v1.Five"}}}}}}', None),
        # text
        ('{"fString": "\\u0000\\ud83d\\ude00 \\u2028"}', None),
        ('  {"fString" :\n"a:b{[" }\t', '{"fString": "a:b{["}'),
        ('{"rSelf": [{"fSelf": {}}, {}], "wEmpty": {}}', None),
    ],
)  # fmt: skip
def test_it_reads(codec, text, printed):
    message = codec.parse(text.encode())
    expected = json.loads(text if printed is None else printed)
    # By text, because 1 == 1.0 == True and -0.0 == 0.0.
    assert json.dumps(json.loads(codec.print(message)), sort_keys=True) == json.dumps(expected, sort_keys=True)


@pytest.mark.parametrize(
    ("text", "path", "words"),
    [
        ('{"nothing": 1}', "nothing", "no such field"),
        ('{"fFive": {"nothing": 1}}', "fFive.nothing", "no such field"),
        ('{"rFive": [{}, {"age": "x"}]}', "rFive[1].age", "expected an integer from -2147483648 to 2147483647"),
        ('{"mFixed32": {"1": {"age": 1.5}}}', 'mFixed32["1"].age', "fraction"),
        ("[]", "", "expected an object, got an array"),
        ("null", "", "expected an object, got null"),
        ("1", "", "expected an object, got a number"),
        ('{"fInt32": 2147483648}', "fInt32", "out of range"),
        ('{"fInt32": "2147483648"}', "fInt32", "out of range"),
        ('{"fInt32": "1e999999999"}', "fInt32", "out of range"),
        ('{"fUint32": -1}', "fUint32", "out of range"),
        ('{"fUint64": 18446744073709551616}', "fUint64", "out of range"),
        ('{"fInt64": 9223372036854775808}', "fInt64", "out of range"),
        ('{"fInt32": true}', "fInt32", "got a boolean"),
        ('{"fInt32": ""}', "fInt32", "string that is no number"),
        ('{"fInt32": " 1"}', "fInt32", "string that is no number"),
        ('{"fInt32": "1 "}', "fInt32", "string that is no number"),
        ('{"fInt32": "1_0"}', "fInt32", "string that is no number"),
        ('{"fInt32": "0x1"}', "fInt32", "string that is no number"),
        ('{"fInt32": "\\u0661"}', "fInt32", "string that is no number"),
        ('{"fInt32": {}}', "fInt32", "got an object"),
        ('{"fFloat": 3.5e38}', "fFloat", "range of a float"),
        ('{"fFloat": "1e40"}', "fFloat", "range of a float"),
        ('{"fDouble": "1e400"}', "fDouble", "range of a double"),
        ('{"fDouble": "inf"}', "fDouble", "expected a number"),
        ('{"fDouble": "nan"}', "fDouble", "expected a number"),
        ('{"fDouble": ""}', "fDouble", "expected a number"),
        ('{"fDouble": false}', "fDouble", "got a boolean"),
        ('{"fBool": "true"}', "fBool", "expected true or false, got a string"),
        ('{"fBool": 1}', "fBool", "expected true or false, got a number"),
        ('{"fString": 1}', "fString", "expected a string"),
        ('{"fBytes": "a"}', "fBytes", "base64"),
        ('{"fBytes": "a==="}', "fBytes", "base64"),
        ('{"fBytes": "aa=a"}', "fBytes", "base64"),
        ('{"fBytes": "a a="}', "fBytes", "base64"),
        ('{"fBytes": "\\u00e9\\u00e9=="}', "fBytes", "base64"),
        ('{"fBytes": [1]}', "fBytes", "got an array"),
        ('{"fColour": "green"}', "fColour", "expected one of COLOUR_UNSPECIFIED, RED, GREEN, BLUE"),
        ('{"fColour": true}', "fColour", "got a boolean"),
        ('{"fColour": 1.5}', "fColour", "fraction"),
        ('{"fColour": 2147483648}', "fColour", "out of range"),
        ('{"rInt32": 1}', "rInt32", "expected an array"),
        ('{"rInt32": {"0": 1}}', "rInt32", "expected an array"),
        ('{"rInt32": [1, null]}', "rInt32[1]", "got null"),
        ('{"rFive": [null]}', "rFive[0]", "got null"),
        ('{"rwInt32": [null]}', "rwInt32[0]", "got null"),
        ('{"mString": []}', "mString", "expected an object"),
        ('{"mString": {"a": null}}', 'mString["a"]', "got null"),
        ('{"mFixed32": {"1": null}}', 'mFixed32["1"]', "got null"),
        ('{"mInt32": {"a": "1"}}', 'mInt32["a"]', "expected an integer"),
        ('{"mBool": {"True": "1"}}', 'mBool["True"]', "true or false"),
        ('{"fInt32": 1, "f_int32": 1}', "f_int32", "twice"),
        ('{"f_int32": 1, "fInt32": 1}', "f_int32", "twice"),
        ('{"cInt32": 1, "cString": "a"}', "cString", "only one field of 'choice'"),
        ('{"cNull": null, "cString": "a"}', "cString", "only one field of 'choice'"),
        ('{"cFive": {}, "cValue": null}', "cValue", "only one field of 'choice'"),
        ('{"wNull": 1}', "wNull", "expected null"),
        ('{"wInt64": "x"}', "wInt64", "expected an integer"),
        ('{"wInt64": {"value": 1}}', "wInt64", "got an object"),
        ('{"wTimestamp": "2026-02-30T00:00:00Z"}', "wTimestamp", "date that exists"),
        ('{"wTimestamp": "2026-01-01T24:00:00Z"}', "wTimestamp", "time of day"),
        ('{"wTimestamp": "2026-01-01T00:00:60Z"}', "wTimestamp", "time of day"),
        ('{"wTimestamp": "2026-01-01t00:00:00Z"}', "wTimestamp", "RFC 3339"),
        ('{"wTimestamp": "2026-01-01T00:00:00z"}', "wTimestamp", "RFC 3339"),
        ('{"wTimestamp": "2026-01-01T00:00:00"}', "wTimestamp", "RFC 3339"),
        ('{"wTimestamp": "2026-01-01T00:00:00.Z"}', "wTimestamp", "RFC 3339"),
        ('{"wTimestamp": "2026-01-01T00:00:00.0123456789Z"}', "wTimestamp", "RFC 3339"),
        ('{"wTimestamp": "2026-01-01T00:00:00+24:00"}', "wTimestamp", "offset"),
        ('{"wTimestamp": "0001-01-01T00:00:00+00:01"}', "wTimestamp", "0001-01-01"),
        ('{"wTimestamp": "10000-01-01T00:00:00Z"}', "wTimestamp", "RFC 3339"),
        ('{"wTimestamp": "0000-01-01T00:00:00Z"}', "wTimestamp", "date"),
        ('{"wTimestamp": 1}', "wTimestamp", "RFC 3339"),
        ('{"wDuration": "1"}', "wDuration", "seconds"),
        ('{"wDuration": "1.s"}', "wDuration", "seconds"),
        ('{"wDuration": ".5s"}', "wDuration", "seconds"),
        ('{"wDuration": "+1s"}', "wDuration", "seconds"),
        ('{"wDuration": "1.0000000000s"}', "wDuration", "seconds"),
        ('{"wDuration": "315576000001s"}', "wDuration", "from -315576000000.999999999s"),
        ('{"wDuration": "-315576000001s"}', "wDuration", "from -315576000000.999999999s"),
        ('{"wMask": "foo_bar"}', "wMask", "lowerCamelCase"),
        ('{"wMask": ["a"]}', "wMask", "got an array"),
        ('{"wStruct": []}', "wStruct", "expected an object"),
        ('{"wList": {}}', "wList", "expected an array"),
        ('{"wAny": {"name": 1}}', "wAny.@type", "type.googleapis.com"),
        ('{"wAny": {"@type": "codec.v1.Five"}}', "wAny.@type", "type.googleapis.com"),
        ('{"wAny": {"@type": "x/no.Such"}}', "wAny.@type", "known message type"),
        ('{"wAny": {"@type": 1}}', "wAny.@type", "known message type"),
        (f'{{"wAny": {{"@type": "{ANY}codec.v1.Five", "age": "x"}}}}', "wAny.age", "expected an integer"),
        (f'{{"wAny": {{"@type": "{ANY}google.protobuf.Duration"}}}}', "wAny", '"value"'),
        (f'{{"wAny": {{"@type": "{ANY}google.protobuf.Duration", "value": 1}}}}', "wAny.value", "seconds"),
        (f'{{"wAny": {{"@type": "{ANY}google.protobuf.Duration", "value": "1s", "x": 1}}}}', "wAny", '"value"'),
    ],
)  # fmt: skip
def test_it_refuses(codec, text, path, words):
    with pytest.raises(JsonError) as caught:
        codec.parse(text.encode())
    assert caught.value.path == path
    assert words in caught.value.text


@pytest.mark.parametrize(
    ("data", "line", "column"),
    [
        (b"", 1, 1),
        (b"{", 1, 2),
        (b'{"a": 1,\n "b": tru}', 2, 7),
        (b"{'a': 1}", 1, 2),
        (b"{a: 1}", 1, 2),
        (b'{"a": NaN}', 1, 7),
        (b'{"a": 01}', 1, 7),
        (b'{"a": 1,}', 1, 8),
        (b'{"a": 1} x', 1, 10),
        (b'{"a": 1} // no', 1, 10),
        (b'{"a": "\\ud800"}', 1, None),
        (b'\n{"a": "\xc3\xa9\xff"}', 2, 9),
        (b'{"a": 1, "a": 2}', 1, 10),
        (b'{"b": {"c:": 1,\n "c:": 2}}', 2, 2),
        (b"\xef\xbb\xbf{}", 1, 1),
    ],
)
def test_what_is_no_json_is_told_where(codec, data, line, column):
    with pytest.raises(JsonSyntaxError) as caught:
        codec.parse(data)
    assert caught.value.line == line
    if column is not None:
        assert caught.value.column == column
    assert f"at line {line}" in str(caught.value)


def test_names_that_look_like_duplicates_are_none():
    assert loads(b'{"a": "x:y\\":z", "b": {"a": ":"}, "c": [{"a": 1}, {"a": 2}]}')["b"] == {"a": ":"}


def test_nesting_has_an_end(codec):
    assert codec.parse(b'{"wValue": ' + b"[" * 99 + b"]" * 99 + b"}")
    for deep in (b'{"wValue": ' + b"[" * 100 + b"]" * 100 + b"}", b'{"fSelf":' * 101 + b"{}" + b"}" * 101, b"[" * 5000):
        with pytest.raises(JsonSyntaxError):
            codec.parse(deep)
    assert codec.parse(b'{"rInt32": [' + b",".join([b"1"] * 500) + b'], "rwList": [' + b",".join([b"[]"] * 500) + b"]}")


def test_unknown_names_are_passed_over_on_request(everything):
    codec = Codecs(ignore_unknown_fields=True).of(everything)
    text = (
        b'{"nothing": {"x": [1]}, "fColour": "PINK", "rColour": ["RED", "PINK"], "cColour": "PINK",'
        b' "mSint64": {"1": "PINK", "2": "RED"}, "fFive": {"z": 1, "age": 2}}'
    )
    assert json.loads(codec.print(codec.parse(text))) == {
        "rColour": ["RED"], "mSint64": {"2": "RED"}, "fFive": {"age": 2},
    }  # fmt: skip
    with pytest.raises(JsonError):
        codec.parse(b'{"fColour": true}')


def test_defaults_are_printed_on_request(contract):
    five = contract.message("codec.v1.Five")
    codec = Codecs(always_print_fields_with_no_presence=True).of(five)
    assert codec.print(five()) == b'{"name":"","age":0,"bigNumber":"0","active":false,"score":0.0}'
    assert Codecs().of(five).print(five()) == b"{}"


@pytest.mark.parametrize(
    "change",
    [
        lambda message: setattr(message.w_timestamp, "seconds", 253_402_300_800),
        lambda message: setattr(message.w_timestamp, "nanos", -1),
        lambda message: setattr(message.w_duration, "seconds", 315_576_000_001),
        lambda message: (setattr(message.w_duration, "seconds", 1), setattr(message.w_duration, "nanos", -1)),
        lambda message: setattr(message.w_value, "number_value", math.nan),
        lambda message: setattr(message.w_value, "number_value", math.inf),
        lambda message: message.w_mask.paths.append("fooBar"),
        lambda message: message.w_mask.paths.append("foo__bar"),
        lambda message: message.w_mask.paths.append("foo_3"),
        lambda message: setattr(message.w_any, "type_url", "x/no.Such"),
        lambda message: (
            setattr(message.w_any, "type_url", "x/codec.v1.Five"),
            setattr(message.w_any, "value", b"\xff"),
        ),
    ],
)
def test_what_has_no_json_form_is_not_printed(codec, everything, change):
    message = everything()
    change(message)
    with pytest.raises(JsonEncodeError):
        codec.print(message)


def test_a_small_and_a_wide_message_print_alike(contract):
    everything, five = contract.message("codec.v1.Everything"), contract.message("codec.v1.Five")
    assert len(everything.DESCRIPTOR.fields) > 12 > len(five.DESCRIPTOR.fields)
    inner = five(name="a", big_number=2, score=-0.0)
    outer = everything(f_five=inner)
    codecs = Codecs()
    assert json.loads(codecs.of(everything).print(outer))["fFive"] == json.loads(codecs.of(five).print(inner))
