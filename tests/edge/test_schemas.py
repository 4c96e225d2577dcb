"""Schemas of JSON as the codec prints it, field by field."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from arbitrary import messages
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mesh.contract.model import Contract
from mesh.edge.openapi import comments, json_patterns
from mesh.edge.openapi.schemas import SHARED, Schemas
from mesh.edge.parameters import WHOLE
from mesh.protojson.codec import Codecs

REF = "#/components/schemas/"
INT32 = {"type": "integer", "format": "int32", "minimum": -2147483648, "maximum": 2147483647}
UINT32 = {"type": "integer", "format": "uint32", "minimum": 0, "maximum": 4294967295}
INT64 = {"type": "string", "format": "int64", "pattern": json_patterns.INT64}
UINT64 = {"type": "string", "format": "uint64", "pattern": json_patterns.UINT64}
NOT_FINITE = {"type": "string", "enum": ["NaN", "Infinity", "-Infinity"]}
DOUBLE = {"oneOf": [{"type": "number", "format": "double"}, NOT_FINITE]}
LARGEST = 3.4028235e38
FLOAT = {"oneOf": [{"type": "number", "format": "float", "minimum": -LARGEST, "maximum": LARGEST}, NOT_FINITE]}
BYTES = {
    "type": "string",
    "contentEncoding": "base64",
    "pattern": "^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$",
}
TEXT = {"type": "string"}
BOOL = {"type": "boolean"}
TIME = {"type": "string", "format": "date-time", "pattern": json_patterns.TIMESTAMP}
DURATION = {"type": "string", "pattern": json_patterns.DURATION, "examples": ["1.5s"]}


def ref(name: str) -> dict[str, str]:
    return {"$ref": REF + name}


def array(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


def mapping(values: dict[str, Any], **keys: Any) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": values, **({"propertyNames": keys} if keys else {})}


def nullable(schema: dict[str, Any]) -> dict[str, Any]:
    return {**schema, "type": [schema["type"], "null"]}


@pytest.fixture(scope="session")
def schemas(contract: Contract) -> Schemas:
    made = Schemas(contract.pool, comments.read(contract.files))
    made.message(contract.pool.FindMessageTypeByName("codec.v1.Everything"))
    return made


FIELDS: list[tuple[str, dict[str, Any]]] = [
    ("fInt32", INT32), ("fInt64", INT64), ("fUint32", UINT32), ("fUint64", UINT64), ("fSint32", INT32),
    ("fSint64", INT64), ("fFixed32", UINT32), ("fFixed64", UINT64), ("fSfixed32", INT32), ("fSfixed64", INT64),
    ("fFloat", FLOAT), ("fDouble", DOUBLE), ("fBool", BOOL), ("fString", TEXT), ("fBytes", BYTES),
    ("fColour", ref("codec.v1.Colour")), ("fNested", ref("codec.v1.Everything.Nested")),
    ("fFive", ref("codec.v1.Five")), ("fSelf", ref("codec.v1.Everything")),
    ("rInt64", array(INT64)), ("rDouble", array(DOUBLE)), ("rBytes", array(BYTES)),
    ("rColour", array(ref("codec.v1.Colour"))), ("rSelf", array(ref("codec.v1.Everything"))),
    ("oInt64", INT64), ("oColour", ref("codec.v1.Colour")),
    ("mString", mapping(TEXT)), ("mInt32", mapping(INT64, pattern=json_patterns.INT32)),
    ("mInt64", mapping(BYTES, pattern=INT64["pattern"])), ("mUint32", mapping(DOUBLE, pattern=json_patterns.UINT32)),
    ("mUint64", mapping(FLOAT, pattern=UINT64["pattern"])), ("mBool", mapping(TEXT, enum=["true", "false"])),
    ("mFixed64", mapping(ref("codec.v1.Everything"), pattern=UINT64["pattern"])),
    ("mValue", mapping(ref("google.protobuf.Value"))), ("mTimestamp", mapping(TIME)), ("mWrapper", mapping(INT64)),
    ("wTimestamp", TIME), ("wDuration", DURATION),
    ("wMask", {"type": "string", "pattern": "^[!-^`-~]*$", "examples": ["name,homeAddress.zip"]}),
    ("wStruct", ref("google.protobuf.Struct")), ("wValue", ref("google.protobuf.Value")),
    ("wList", ref("google.protobuf.ListValue")), ("wNull", {"type": "null"}), ("wAny", ref("google.protobuf.Any")),
    ("wEmpty", ref("google.protobuf.Empty")),
    ("wDouble", {"oneOf": [*DOUBLE["oneOf"], {"type": "null"}]}), ("wInt64", nullable(INT64)),
    ("wUint64", nullable(UINT64)), ("wInt32", nullable(INT32)), ("wUint32", nullable(UINT32)),
    ("wBool", nullable(BOOL)), ("wString", nullable(TEXT)), ("wBytes", nullable(BYTES)),
    ("rwTimestamp", array(TIME)), ("rwInt32", array(INT32)), ("rwAny", array(ref("google.protobuf.Any"))),
    ("@other", TEXT),
]  # fmt: skip


@pytest.mark.parametrize(("name", "expected"), FIELDS, ids=[name for name, _ in FIELDS])
def test_a_field(schemas: Schemas, name: str, expected: dict[str, Any]) -> None:
    assert schemas.components["codec.v1.Everything"]["properties"][name] == expected


def test_a_message_names_every_field_and_no_other(schemas: Schemas, contract: Contract) -> None:
    schema = schemas.components["codec.v1.Everything"]
    fields = contract.pool.FindMessageTypeByName("codec.v1.Everything").fields
    assert list(schema["properties"]) == [field.json_name for field in fields]
    assert schema["additionalProperties"] is False
    assert "required" not in schema


def test_members_of_a_oneof_say_so(schemas: Schemas) -> None:
    said = schemas.components["codec.v1.Everything"]["properties"]["cString"]["description"]
    assert said.startswith("At most one of `cInt32`, `cString`, `cFive`")


def test_an_enum_has_its_names_the_aliases_too(schemas: Schemas) -> None:
    assert schemas.components["codec.v1.Colour"] == {
        "type": "string",
        "enum": ["COLOUR_UNSPECIFIED", "RED", "GREEN", "BLUE"],
    }
    assert schemas.components["codec.v1.Everything.Nested"]["enum"] == ["NESTED_ZERO", "NESTED_ONE", "NESTED_UNO"]


TEXTS: list[tuple[str, dict[str, Any]]] = [
    ("f_int64", INT64), ("f_bool", BOOL), ("r_colour", array(ref("codec.v1.Colour"))), ("w_int32", INT32),
    ("rw_string", array(TEXT)), ("w_null", {"type": "string", "const": "NULL_VALUE"}), ("w_timestamp", TIME),
]  # fmt: skip


@pytest.mark.parametrize(("name", "expected"), TEXTS, ids=[name for name, _ in TEXTS])
def test_text_of_a_field(schemas: Schemas, contract: Contract, name: str, expected: dict[str, Any]) -> None:
    message = contract.pool.FindMessageTypeByName("codec.v1.Everything")
    assert schemas.text(message.fields_by_name[name]) == expected


@pytest.fixture(scope="session")
def validator(schemas: Schemas) -> Any:
    """Validator that accepts numbers for enums too, because a value without a name is printed as a number."""
    components = {
        name: {"anyOf": [one, {"type": "integer"}]} if "enum" in one else one
        for name, one in schemas.components.items()
    }
    return jsonschema.Draft202012Validator(
        {"$ref": REF + "codec.v1.Everything", "components": {"schemas": components}},
        format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER,
    )


CODECS = Codecs()


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(data=st.data())
def test_what_the_codec_prints_is_valid(contract: Contract, validator: Any, data: st.DataObject) -> None:
    message = contract.message("codec.v1.Everything")
    printed = CODECS.of(message).print(data.draw(messages(message, 2)))
    validator.validate(json.loads(printed))


WRONG: list[dict[str, Any]] = [
    {"fInt64": 1}, {"fInt64": "01"}, {"fInt64": "1.0"}, {"fInt64": "9223372036854775808"},
    {"fUint64": "18446744073709551616"}, {"fUint64": "-1"}, {"fInt32": "1"}, {"fInt32": 2**31}, {"fUint32": -1},
    {"fDouble": "1"}, {"fFloat": 1e39}, {"fBool": "true"}, {"fBytes": 1}, {"fBytes": "a"}, {"fBytes": "_w=="},
    {"wMask": "a_b"}, {"cInt32": 1, "cString": ""}, {"fColour": "PINK"}, {"f_int32": 1}, {"nothing": 1},
    {"mInt32": {"x": "1"}}, {"mInt32": {"2147483648": "1"}}, {"mUint32": {"4294967296": 1}}, {"mBool": {"yes": ""}},
    {"wDuration": "1m"}, {"wDuration": "315576000001s"}, {"wTimestamp": "yesterday"},
    {"wTimestamp": "0000-01-01T00:00:00Z"}, {"wTimestamp": "2026-01-31t12:00:00z"}, {"wNull": 0}, {"rInt32": 1},
    {"rwInt32": [None]}, {"wEmpty": {"x": 1}},
]  # fmt: skip


@pytest.mark.parametrize("value", WRONG, ids=str)
def test_what_the_codec_never_prints_is_not(validator: Any, value: Any) -> None:
    assert not validator.is_valid(value)


def test_no_field_of_a_shared_schema_is_a_query_parameter() -> None:
    assert set(SHARED) == WHOLE
