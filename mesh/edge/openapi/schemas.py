"""Message types → JSON Schemas of their proto3 JSON, for the ``components`` of an OpenAPI 3.1 document. Pure.

A schema says what the edge prints, which is also what a client does best to send; the other spellings that the mapping
lets a client use (proto names, enum numbers, 64-bit integers as numbers, null) stand in no schema.

Sources: https://protobuf.dev/programming-guides/json/, JSON Schema 2020-12, google/api/field_behavior.proto.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.descriptor_pool import DescriptorPool

from mesh.edge.field_behavior import Behaviors
from mesh.edge.openapi import json_patterns
from mesh.protojson.names import json_name_of, json_names
from mesh.protojson.wellknown import WRAPPERS

__all__ = ["SHARED", "Schema", "Schemas"]

Schema = dict[str, Any]
Path = tuple[str, ...]
"""Names of fields, each in the message that the one before it holds."""

ANY = "google.protobuf.Any"
REF = "#/components/schemas/"

_INT64: Schema = {"type": "string", "format": "int64", "pattern": json_patterns.INT64}
_UINT64: Schema = {"type": "string", "format": "uint64", "pattern": json_patterns.UINT64}
_INT32: Schema = {"type": "integer", "format": "int32", "minimum": -(2**31), "maximum": 2**31 - 1}
_UINT32: Schema = {"type": "integer", "format": "uint32", "minimum": 0, "maximum": 2**32 - 1}
_NOT_FINITE: Schema = {"type": "string", "enum": ["NaN", "Infinity", "-Infinity"]}
_FLT_MAX = 3.4028235e38
"""The largest float as it is printed in its shortest form, which as a double is a little more than the float."""

_SCALARS: Mapping[int, Schema] = {
    FieldDescriptor.TYPE_INT32: _INT32,
    FieldDescriptor.TYPE_SINT32: _INT32,
    FieldDescriptor.TYPE_SFIXED32: _INT32,
    FieldDescriptor.TYPE_UINT32: _UINT32,
    FieldDescriptor.TYPE_FIXED32: _UINT32,
    FieldDescriptor.TYPE_INT64: _INT64,
    FieldDescriptor.TYPE_SINT64: _INT64,
    FieldDescriptor.TYPE_SFIXED64: _INT64,
    FieldDescriptor.TYPE_UINT64: _UINT64,
    FieldDescriptor.TYPE_FIXED64: _UINT64,
    FieldDescriptor.TYPE_DOUBLE: {"oneOf": [{"type": "number", "format": "double"}, _NOT_FINITE]},
    FieldDescriptor.TYPE_FLOAT: {
        "oneOf": [{"type": "number", "format": "float", "minimum": -_FLT_MAX, "maximum": _FLT_MAX}, _NOT_FINITE]
    },
    FieldDescriptor.TYPE_BOOL: {"type": "boolean"},
    FieldDescriptor.TYPE_STRING: {"type": "string"},
    FieldDescriptor.TYPE_BYTES: {"type": "string", "contentEncoding": "base64", "pattern": json_patterns.BASE64},
}

_KEYS: Mapping[int, Schema] = {
    FieldDescriptor.CPPTYPE_BOOL: {"enum": ["true", "false"]},
    FieldDescriptor.CPPTYPE_INT32: {"pattern": json_patterns.INT32},
    FieldDescriptor.CPPTYPE_UINT32: {"pattern": json_patterns.UINT32},
    FieldDescriptor.CPPTYPE_INT64: {"pattern": json_patterns.INT64},
    FieldDescriptor.CPPTYPE_UINT64: {"pattern": json_patterns.UINT64},
}
"""What the keys of a map look like; any text if it is a string."""

_PLAIN: Mapping[str, Schema] = {
    "google.protobuf.Timestamp": {"type": "string", "format": "date-time", "pattern": json_patterns.TIMESTAMP},
    "google.protobuf.Duration": {"type": "string", "pattern": json_patterns.DURATION, "examples": ["1.5s"]},
    "google.protobuf.FieldMask": {
        "type": "string",
        "pattern": json_patterns.FIELD_MASK,
        "examples": ["name,homeAddress.zip"],
    },
}
"""Messages that are one string."""

SHARED: Mapping[str, Schema] = {
    "google.protobuf.Value": {"description": "Any JSON value."},
    "google.protobuf.Struct": {
        "type": "object",
        "description": "Any JSON object.",
        "additionalProperties": {"$ref": REF + "google.protobuf.Value"},
    },
    "google.protobuf.ListValue": {
        "type": "array",
        "description": "Any JSON array.",
        "items": {"$ref": REF + "google.protobuf.Value"},
    },
    ANY: {
        "type": "object",
        "description": "A message of any type: `@type` says which, its fields (or `value`) stand beside it.",
        "properties": {"@type": {"type": "string", "examples": ["type.googleapis.com/google.rpc.ErrorInfo"]}},
        "additionalProperties": True,
    },
    "google.api.HttpBody": {
        "type": "object",
        "description": "Bytes of any media type.",
        "properties": {
            "contentType": {"type": "string"},
            "data": {"type": "string", "contentEncoding": "base64", "pattern": json_patterns.BASE64},
            "extensions": {"type": "array", "items": {"$ref": REF + ANY}},
        },
        "additionalProperties": False,
    },
}
"""Well-known messages with a schema of their own below ``components``."""

_NULL = "google.protobuf.NullValue"

_BEHAVIOR = {"OUTPUT_ONLY": "readOnly", "INPUT_ONLY": "writeOnly"}


class Schemas:
    """The schemas that a document needs, made as they are asked for.

    Args:
        pool: The pool of the contract.
        comments: Full name → comment.

    Attributes:
        components: The schemas of messages and enums, by full name.
    """

    def __init__(self, pool: DescriptorPool, comments: Mapping[str, str]) -> None:
        self.components: dict[str, Schema] = {}
        self._comments = comments
        self._behaviors = Behaviors(pool)

    def message(self, descriptor: Descriptor, given: Sequence[Path] = ()) -> Schema:
        """Return the schema of a message: a reference, or for those that are one scalar the scalar.

        Args:
            descriptor: The message type.
            given: Paths of its fields, by proto names, that a request has in another place. Where one of them is
                required, the schema is an object of its own that does not ask for it.
        """
        name = descriptor.full_name
        if name in _PLAIN:
            return dict(_PLAIN[name])
        if name in WRAPPERS:
            return dict(_SCALARS[descriptor.fields_by_name["value"].type])
        if name not in self.components:
            self._add(descriptor)
        whole = {"$ref": REF + name}
        return self._without(descriptor, given, whole) if any(given) else whole

    def _without(self, descriptor: Descriptor, given: Sequence[Path], whole: Schema) -> Schema:
        """Return the schema of a message that does not require what is given; ``whole`` if it requires none of it."""
        schema = dict(self.components[descriptor.full_name])
        names = json_names(descriptor)
        there: dict[str, Schema] = {}
        for field in descriptor.fields:
            inner = [path[1:] for path in given if path[:1] == (field.name,)]
            if inner:
                there[names[field.name]] = self.field(field, inner)
        asked = [name for name in schema.pop("required", ()) if name not in there or self.asks(there[name])]
        if asked:
            schema["required"] = asked
        if "properties" in schema:
            schema["properties"] = {**schema["properties"], **there}
        return whole if schema == self.components[descriptor.full_name] else schema

    def detail(self, descriptor: Descriptor) -> Schema:
        """Return the schema of a message as it stands in an ``Any``."""
        properties = self._properties(descriptor)
        url = {"type": "string", "const": f"type.googleapis.com/{descriptor.full_name}"}
        return {"type": "object", "properties": {"@type": url, **properties}, "required": ["@type"]}

    def any(self) -> Schema:
        """Return the schema of a message of any type."""
        self.components.setdefault(ANY, SHARED[ANY])
        return {"$ref": REF + ANY}

    def _add(self, descriptor: Descriptor) -> None:
        name = descriptor.full_name
        if name in SHARED:
            self.components[name] = SHARED[name]
            for needed in ("google.protobuf.Value", ANY):
                if REF + needed in str(SHARED[name]):
                    self.components.setdefault(needed, SHARED[needed])
            return
        schema: Schema = {"type": "object"}
        self.components[name] = schema  # before its fields: they may lead back to it
        self._describe(schema, name, descriptor)
        properties = self._properties(descriptor)
        if properties:
            schema["properties"] = properties
        names = json_names(descriptor)
        required = [names[field.name] for field in descriptor.fields if self._required(field)]
        if required:
            schema["required"] = required
        only = {name: {"properties": dict.fromkeys(others, False)} for name, others in _rivals(descriptor)}
        if only:
            schema["dependentSchemas"] = only
        schema["additionalProperties"] = False

    def _properties(self, descriptor: Descriptor) -> dict[str, Schema]:
        """Return the schemas of a message's fields and extensions by their JSON names."""
        names = json_names(descriptor)
        properties = {names[field.name]: self.field(field) for field in descriptor.fields}
        if descriptor.is_extendable:
            found = sorted(descriptor.file.pool.FindAllExtensions(descriptor), key=lambda field: field.number)
            properties |= {json_name_of(field): self.field(field) for field in found}
        return properties

    def _describe(self, schema: Schema, name: str, descriptor: Any) -> None:
        if name in self._comments:
            schema["description"] = self._comments[name]
        if descriptor.GetOptions().deprecated:
            schema["deprecated"] = True

    def _required(self, field: FieldDescriptor) -> bool:
        return field.is_required or self._behaviors.required(field)

    def field(self, field: FieldDescriptor, given: Sequence[Path] = ()) -> Schema:
        """Return the schema of a field's value with all that is said of the field; ``given`` as for ``message``."""
        inner: Any = field.message_type
        within = any(given) and inner is not None and not field.is_repeated
        schema = dict(self.message(inner, given)) if within else self._value(field)
        self._describe(schema, field.full_name, field)
        behaviors = self._behaviors.of(field)
        for behavior, keyword in _BEHAVIOR.items():
            if behavior in behaviors:
                schema[keyword] = True
        notes = [schema["description"]] if "description" in schema else []
        if "IMMUTABLE" in behaviors:
            notes.append("Cannot be changed once it is set.")
        notes.append(self.choice(field))
        if any(notes):
            schema["description"] = "\n\n".join(note for note in notes if note)
        return schema

    def choice(self, field: FieldDescriptor) -> str:
        """Return what is said of a member of a oneof: which fields it excludes; ``""`` of other fields."""
        oneof = field.containing_oneof
        if oneof is None or len(oneof.fields) == 1:
            return ""
        names = ", ".join(f"`{json_name_of(one)}`" for one in oneof.fields)
        comment = self._comments.get(oneof.full_name, "")
        return f"At most one of {names} is set.{' ' + comment if comment else ''}"

    def _value(self, field: FieldDescriptor) -> Schema:
        if not field.is_repeated:
            wrapped = field.message_type is not None and field.message_type.full_name in WRAPPERS
            return _nullable(self._element(field)) if wrapped else self._element(field)
        entry = field.message_type
        if entry is None or not entry.GetOptions().map_entry:
            return {"type": "array", "items": self._element(field)}
        key, value = entry.fields_by_name["key"], entry.fields_by_name["value"]
        schema: Schema = {"type": "object", "additionalProperties": self._element(value)}
        if key.cpp_type in _KEYS:
            schema["propertyNames"] = dict(_KEYS[key.cpp_type])
        return schema

    def _element(self, field: FieldDescriptor) -> Schema:
        if field.message_type is not None:
            return self.message(field.message_type)
        if field.enum_type is None:
            return dict(_SCALARS[field.type])
        if field.enum_type.full_name == _NULL:
            return {"type": "null"}
        return self._enum(field.enum_type)

    def _enum(self, enum: EnumDescriptor) -> Schema:
        name = enum.full_name
        if name not in self.components:
            schema: Schema = {"type": "string", "enum": [value.name for value in enum.values]}
            self._describe(schema, name, enum)
            said = {value.name: self._comments.get(f"{name}.{value.name}", "") for value in enum.values}
            deprecated = {value.name for value in enum.values if value.GetOptions().deprecated}
            if any(said.values()) or deprecated:
                lines = [_value_line(value, text, old=value in deprecated) for value, text in said.items()]
                schema["description"] = "\n\n".join([schema.get("description", ""), "\n".join(lines)]).strip()
            self.components[name] = schema
        return {"$ref": REF + name}

    def answer(self, field: FieldDescriptor) -> Schema:
        """Return the schema of a field that is a whole answer: null where an unset one has no empty form."""
        inner = field.message_type
        empty = inner is None or field.is_repeated or not (inner.full_name in _PLAIN or inner.full_name in SHARED)
        return self.field(field) if empty else _nullable(self.field(field))

    def text(self, field: FieldDescriptor) -> Schema:
        """Return the schema of a field that text in a path or query sets; several values make an array."""
        if field.enum_type is not None and field.enum_type.full_name == _NULL:
            schema = {"type": "string", "const": "NULL_VALUE"}
        else:
            schema = self._element(field)
        return {"type": "array", "items": schema} if field.is_repeated else schema

    def comment(self, field: FieldDescriptor) -> str:
        """Return what is said of a field, or of its type if that is all and the type is no well-known one."""
        own = self._comments.get(field.full_name, "")
        named = field.message_type or field.enum_type
        if own or named is None or named.full_name.startswith("google.protobuf."):
            return own
        return self._comments.get(named.full_name, "")

    def said(self, descriptor: Descriptor) -> str:
        """Return what is said of a message."""
        return self._comments.get(descriptor.full_name, "")

    def asks(self, schema: Schema) -> bool:
        """Whether the schema of a message requires a field."""
        name = schema.get("$ref", "").removeprefix(REF)
        return "required" in (self.components[name] if name else schema)

    def required(self, field: FieldDescriptor) -> bool:
        """Whether a request must set the field (``google.api.field_behavior``)."""
        return self._required(field)


def _rivals(descriptor: Descriptor) -> Iterator[tuple[str, list[str]]]:
    """Yield the members of oneofs, each with the others, which cannot be set beside it."""
    json = json_names(descriptor)
    for oneof in descriptor.oneofs:
        names = [json[field.name] for field in oneof.fields]
        if len(names) > 1:
            yield from ((name, [other for other in names if other != name]) for name in names)


def _value_line(value: str, text: str, *, old: bool) -> str:
    said = " ".join(text.split())
    return f"- `{value}`{' (deprecated)' if old else ''}{': ' + said if said else ''}"


def _nullable(schema: Schema) -> Schema:
    if "type" in schema:
        return {**schema, "type": [schema["type"], "null"]}
    if "oneOf" in schema:
        return {**schema, "oneOf": [*schema["oneOf"], {"type": "null"}]}
    return {"anyOf": [schema, {"type": "null"}]}
