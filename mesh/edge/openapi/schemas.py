"""JSON Schemas of message types in proto3 JSON, for the ``components`` of an OpenAPI 3.1 document. Pure.

A schema describes JSON as the edge prints it, which is also the best form for a client to send. Other spellings that
the mapping allows in requests (proto names, enum numbers, 64-bit integers as numbers, null) are in no schema.

A message type has a schema of its own in requests (``a.v1.Book-request``) if it differs there: OUTPUT_ONLY fields
belong into no request. Beside an ``update_mask`` (AIP-134) no field is REQUIRED, because the mask says which ones
change (``a.v1.Book-update``).

Sources: https://protobuf.dev/programming-guides/json/, JSON Schema 2020-12, google/api/field_behavior.proto.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.descriptor_pool import DescriptorPool

from mesh.edge.openapi import json_patterns
from mesh.edge.openapi.rule_keywords import RuleKeywords
from mesh.protojson.names import json_name_of, json_names
from mesh.protojson.wellknown import WRAPPERS
from mesh.rules.field_behavior import OUTPUT_ONLY, REQUIRED, Behaviors
from mesh.rules.message_types import containing, reachable

__all__ = ["SHARED", "Schema", "Schemas"]

Schema = dict[str, Any]
FieldPath = tuple[str, ...]
"""Proto names of nested fields, outermost first."""

ANY = "google.protobuf.Any"
REF = "#/components/schemas/"

_INT64: Schema = {"type": "string", "format": "int64", "pattern": json_patterns.INT64}
_UINT64: Schema = {"type": "string", "format": "uint64", "pattern": json_patterns.UINT64}
_INT32: Schema = {"type": "integer", "format": "int32", "minimum": -(2**31), "maximum": 2**31 - 1}
_UINT32: Schema = {"type": "integer", "format": "uint32", "minimum": 0, "maximum": 2**32 - 1}
_NON_FINITE: Schema = {"type": "string", "enum": ["NaN", "Infinity", "-Infinity"]}
_FLT_MAX = 3.4028235e38
"""The largest float in its shortest printed form; as a double it is slightly larger than the float."""

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
    FieldDescriptor.TYPE_DOUBLE: {"oneOf": [{"type": "number", "format": "double"}, _NON_FINITE]},
    FieldDescriptor.TYPE_FLOAT: {
        "oneOf": [{"type": "number", "format": "float", "minimum": -_FLT_MAX, "maximum": _FLT_MAX}, _NON_FINITE]
    },
    FieldDescriptor.TYPE_BOOL: {"type": "boolean"},
    FieldDescriptor.TYPE_STRING: {"type": "string"},
    FieldDescriptor.TYPE_BYTES: {"type": "string", "contentEncoding": "base64", "pattern": json_patterns.BASE64},
}

_MAP_KEYS: Mapping[int, Schema] = {
    FieldDescriptor.CPPTYPE_BOOL: {"enum": ["true", "false"]},
    FieldDescriptor.CPPTYPE_INT32: {"pattern": json_patterns.INT32},
    FieldDescriptor.CPPTYPE_UINT32: {"pattern": json_patterns.UINT32},
    FieldDescriptor.CPPTYPE_INT64: {"pattern": json_patterns.INT64},
    FieldDescriptor.CPPTYPE_UINT64: {"pattern": json_patterns.UINT64},
}
"""C++ type of a map's keys → schema of their text. Keys of type string have no schema: any text is allowed."""

_STRING_MESSAGES: Mapping[str, Schema] = {
    "google.protobuf.Timestamp": {"type": "string", "format": "date-time", "pattern": json_patterns.TIMESTAMP},
    "google.protobuf.Duration": {"type": "string", "pattern": json_patterns.DURATION, "examples": ["1.5s"]},
    "google.protobuf.FieldMask": {
        "type": "string",
        "pattern": json_patterns.FIELD_MASK,
        "examples": ["name,homeAddress.zip"],
    },
}
"""Well-known messages whose JSON is a string."""

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
        "description": "A message of any type: `@type` names it, and its fields (or `value`) stand beside it.",
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

_BEHAVIOR = {OUTPUT_ONLY: "readOnly", "INPUT_ONLY": "writeOnly"}
_MASK = "update_mask"
_RESPONSE, _REQUEST, _UPDATE = "", "-request", "-update"
"""Uses of a message type, as they are at the end of the names of their schemas."""


class Schemas:
    """Schemas of a document, made on demand.

    Args:
        pool: Descriptor pool of the contract.
        comments: Full name of a declaration → its comment.
        use: Use of the messages, for ``requests``.
        components: The components of other uses, which are extended.

    Attributes:
        components: Schemas of messages and enums by full name.
        requests: The same for messages in requests. It shares ``components``.
    """

    def __init__(
        self,
        pool: DescriptorPool,
        comments: Mapping[str, str],
        *,
        use: str = _RESPONSE,
        components: dict[str, Schema] | None = None,
    ) -> None:
        self.components: dict[str, Schema] = {} if components is None else components
        self._comments = comments
        self._behaviors = Behaviors(pool)
        self._rules = RuleKeywords(pool)
        self._use = use
        self._differing: dict[str, bool] = {}
        same = self.components
        self.requests = Schemas(pool, comments, use=_REQUEST, components=same) if use == _RESPONSE else self
        self._updates = self if use == _UPDATE else Schemas(pool, comments, use=_UPDATE, components=same)

    def _key(self, descriptor: Descriptor) -> str:
        """Return the name of the schema of a message type in this use."""
        name = descriptor.full_name
        if self._use == _RESPONSE:
            return name
        if name not in self._differing:
            types = reachable(descriptor)
            found = containing(types, self._differs)
            self._differing.update({one.full_name: one.full_name in found for one in types})
        return f"{name}{self._use}" if self._differing[name] else name

    def _differs(self, descriptor: Descriptor) -> bool:
        if self._use == _REQUEST and _MASK in descriptor.fields_by_name:
            return True
        behaviors = [self._behaviors.of(field) for field in descriptor.fields]
        return any(OUTPUT_ONLY in one or (self._use == _UPDATE and REQUIRED in one) for one in behaviors)

    def message(self, descriptor: Descriptor, given: Sequence[FieldPath] = ()) -> Schema:
        """Return the schema of a message: a reference, or a scalar for messages whose JSON is one.

        Args:
            descriptor: The message type.
            given: Paths of fields that the request sets outside of this message. Where one of them is required, the
                schema is an object of its own that does not require it.
        """
        name = descriptor.full_name
        if name in _STRING_MESSAGES:
            return dict(_STRING_MESSAGES[name])
        if name in WRAPPERS:
            return dict(_SCALARS[descriptor.fields_by_name["value"].type])
        key = self._key(descriptor)
        if key not in self.components:
            self._add(descriptor, key)
        reference = {"$ref": REF + key}
        return self._without(descriptor, given, reference) if any(given) else reference

    def _without(self, descriptor: Descriptor, given: Sequence[FieldPath], reference: Schema) -> Schema:
        """Return the schema of a message without the requirement of given fields; ``reference`` if it has none."""
        key = self._key(descriptor)
        schema = dict(self.components[key])
        names = json_names(descriptor)
        given_schemas: dict[str, Schema] = {}
        for field in descriptor.fields:
            inner = [path[1:] for path in given if path[:1] == (field.name,)]
            if inner:
                given_schemas[names[field.name]] = self.field(field, inner)
        required = [
            name
            for name in schema.pop("required", ())
            if name not in given_schemas or self.requires_fields(given_schemas[name])
        ]
        if required:
            schema["required"] = required
        if "properties" in schema:
            schema["properties"] = {**schema["properties"], **given_schemas}
        return reference if schema == self.components[key] else schema

    def detail(self, descriptor: Descriptor) -> Schema:
        """Return the schema of a message within an ``Any``."""
        properties = self._properties(descriptor)
        url = {"type": "string", "const": f"type.googleapis.com/{descriptor.full_name}"}
        return {"type": "object", "properties": {"@type": url, **properties}, "required": ["@type"]}

    def any(self) -> Schema:
        """Return the schema of a message of any type."""
        self.components.setdefault(ANY, SHARED[ANY])
        return {"$ref": REF + ANY}

    def _add(self, descriptor: Descriptor, key: str) -> None:
        name = descriptor.full_name
        if name in SHARED:
            self.components[name] = SHARED[name]
            for needed in ("google.protobuf.Value", ANY):
                if REF + needed in str(SHARED[name]):
                    self.components.setdefault(needed, SHARED[needed])
            return
        schema: Schema = {"type": "object"}
        self.components[key] = schema  # before its fields, which may refer back to it
        self._describe(schema, name, descriptor)
        _add_notes(schema, self._rules.message_notes(descriptor))
        properties = self._properties(descriptor)
        if properties:
            schema["properties"] = properties
        names = json_names(descriptor)
        required = [names[field.name] for field in self._fields(descriptor) if self.required(field)]
        if required:
            schema["required"] = required
        exclusions = {
            name: {"properties": dict.fromkeys(others, False)}
            for name, others in _exclusive(descriptor)
            if name in properties
        }
        if exclusions:
            schema["dependentSchemas"] = exclusions
        schema["additionalProperties"] = False

    def _properties(self, descriptor: Descriptor) -> dict[str, Schema]:
        """Return the schemas of a message's fields and extensions by their JSON names."""
        names = json_names(descriptor)
        masked = _MASK in descriptor.fields_by_name
        properties = {
            names[field.name]: self._updates.field(field) if masked and not field.is_repeated else self.field(field)
            for field in self._fields(descriptor)
        }
        if descriptor.is_extendable:
            found = sorted(descriptor.file.pool.FindAllExtensions(descriptor), key=lambda field: field.number)
            properties |= {json_name_of(field): self.field(field) for field in found}
        return properties

    def _fields(self, descriptor: Descriptor) -> list[FieldDescriptor]:
        """Return the fields that a message has in this use."""
        fields = list(descriptor.fields)
        return fields if self._use == _RESPONSE else [field for field in fields if not self.output_only(field)]

    def output_only(self, field: FieldDescriptor) -> bool:
        """Whether the field belongs into no request (``google.api.field_behavior``)."""
        return OUTPUT_ONLY in self._behaviors.of(field)

    def _describe(self, schema: Schema, name: str, descriptor: Any) -> None:
        if name in self._comments:
            schema["description"] = self._comments[name]
        if descriptor.GetOptions().deprecated:
            schema["deprecated"] = True

    def field(self, field: FieldDescriptor, given: Sequence[FieldPath] = ()) -> Schema:
        """Return the schema of a field with its comment and behaviors; ``given`` as for ``message``."""
        inner: Any = field.message_type
        nested = any(given) and inner is not None and not field.is_repeated
        schema = dict(self.message(inner, given)) if nested else self._value(field)
        schema, rules = self._rules.apply(field, schema)
        self._describe(schema, field.full_name, field)
        behaviors = self._behaviors.of(field)
        for behavior, keyword in _BEHAVIOR.items():
            if behavior in behaviors:
                schema[keyword] = True
        notes = [schema["description"]] if "description" in schema else []
        if "IMMUTABLE" in behaviors:
            notes.append("It cannot be changed after it is set.")
        notes += [self.oneof_note(field), "\n".join(rules)]
        if any(notes):
            schema["description"] = "\n\n".join(note for note in notes if note)
        return schema

    def body(self, field: FieldDescriptor, given: Sequence[FieldPath] = ()) -> Schema:
        """Return the schema of a request field that the body holds; ``given`` as for ``message``."""
        message: Any = field.containing_type
        masked = _MASK in message.fields_by_name and not field.is_repeated
        return (self._updates if masked else self).field(field, given)

    @staticmethod
    def plain(field: FieldDescriptor) -> Schema:
        """Return the schema of a type whose JSON is a scalar, whatever the contract says of the field; else ``{}``."""
        if field.is_repeated:
            return {}
        if field.message_type is None:
            return dict(_SCALARS.get(field.type, {}))
        name = field.message_type.full_name
        wrapped = field.message_type.fields_by_name["value"].type if name in WRAPPERS else 0
        return dict(_STRING_MESSAGES.get(name) or _SCALARS.get(wrapped, {}))

    def oneof_note(self, field: FieldDescriptor) -> str:
        """Return the note on a member of a oneof that names the members; ``""`` for other fields."""
        oneof = field.containing_oneof
        if oneof is None or len(oneof.fields) == 1:
            return ""
        names = ", ".join(f"`{json_name_of(member)}`" for member in oneof.fields)
        comment = self._comments.get(oneof.full_name, "")
        number = "Exactly" if self._rules.oneof_required(oneof) else "At most"
        return f"{number} one of {names} is set.{' ' + comment if comment else ''}"

    def _value(self, field: FieldDescriptor) -> Schema:
        if not field.is_repeated:
            wrapped = field.message_type is not None and field.message_type.full_name in WRAPPERS
            return _nullable(self._element(field)) if wrapped else self._element(field)
        entry = field.message_type
        if entry is None or not entry.GetOptions().map_entry:
            return {"type": "array", "items": self._element(field)}
        key, value = entry.fields_by_name["key"], entry.fields_by_name["value"]
        schema: Schema = {"type": "object", "additionalProperties": self._element(value)}
        if key.cpp_type in _MAP_KEYS:
            schema["propertyNames"] = dict(_MAP_KEYS[key.cpp_type])
        return schema

    def _element(self, field: FieldDescriptor) -> Schema:
        if field.message_type is not None:
            return self.message(field.message_type)
        if field.enum_type is None:
            secret = field.type == FieldDescriptor.TYPE_STRING and field.GetOptions().debug_redact
            return {**_SCALARS[field.type], "format": "password"} if secret else dict(_SCALARS[field.type])
        if field.enum_type.full_name == _NULL:
            return {"type": "null"}
        return self._enum(field.enum_type)

    def _enum(self, enum: EnumDescriptor) -> Schema:
        name = enum.full_name
        if name not in self.components:
            schema: Schema = {"type": "string", "enum": [value.name for value in enum.values]}
            self._describe(schema, name, enum)
            comments = {value.name: self._comments.get(f"{name}.{value.name}", "") for value in enum.values}
            deprecated = {value.name for value in enum.values if value.GetOptions().deprecated}
            if any(comments.values()) or deprecated:
                lines = [_value_line(value, text, deprecated=value in deprecated) for value, text in comments.items()]
                schema["description"] = "\n\n".join([schema.get("description", ""), "\n".join(lines)]).strip()
            self.components[name] = schema
        return {"$ref": REF + name}

    def response(self, field: FieldDescriptor) -> Schema:
        """Return the schema of a field that is the whole response: nullable if an unset field has no empty value."""
        message = field.message_type
        if message is None or field.is_repeated:
            return self.field(field)
        nullable = message.full_name in _STRING_MESSAGES or message.full_name in SHARED
        return _nullable(self.field(field)) if nullable else self.field(field)

    def text(self, field: FieldDescriptor) -> Schema:
        """Return the schema of a field that a path or query parameter sets; several values make an array."""
        if field.enum_type is not None and field.enum_type.full_name == _NULL:
            schema: Schema = {"type": "string", "const": "NULL_VALUE"}
        else:
            schema = self._element(field)
        schema = {"type": "array", "items": schema} if field.is_repeated else schema
        return self._rules.apply(field, schema)[0]

    def comment(self, field: FieldDescriptor) -> str:
        """Return the comment of a field, or else of its type unless that is a well-known type."""
        own = self._comments.get(field.full_name, "")
        field_type = field.message_type or field.enum_type
        if own or field_type is None or field_type.full_name.startswith("google.protobuf."):
            return own
        return self._comments.get(field_type.full_name, "")

    def message_comment(self, descriptor: Descriptor) -> str:
        """Return the comment of a message."""
        return self._comments.get(descriptor.full_name, "")

    def requires_fields(self, schema: Schema) -> bool:
        """Whether the schema of a message requires any field."""
        name = schema.get("$ref", "").removeprefix(REF)
        return "required" in (self.components[name] if name else schema)

    def required(self, field: FieldDescriptor) -> bool:
        """Whether a request must set the field (proto2, ``google.api.field_behavior``, ``buf.validate``)."""
        behavior = self._use != _UPDATE and self._behaviors.required(field)
        return field.is_required or behavior or self._rules.required(field)


def _exclusive(descriptor: Descriptor) -> Iterator[tuple[str, list[str]]]:
    """Yield each member of a oneof with the other members, which must not be set beside it."""
    json = json_names(descriptor)
    for oneof in descriptor.oneofs:
        names = [json[field.name] for field in oneof.fields]
        if len(names) > 1:
            yield from ((name, [other for other in names if other != name]) for name in names)


def _add_notes(schema: Schema, notes: Sequence[str]) -> None:
    """Add notes to a description."""
    if notes:
        schema["description"] = "\n\n".join([*([schema["description"]] if "description" in schema else []), *notes])


def _value_line(value: str, comment: str, *, deprecated: bool) -> str:
    text = " ".join(comment.split())
    return f"- `{value}`{' (deprecated)' if deprecated else ''}{': ' + text if text else ''}"


def _nullable(schema: Schema) -> Schema:
    if "type" in schema:
        return {**schema, "type": [schema["type"], "null"]}
    if "oneOf" in schema:
        return {**schema, "oneOf": [*schema["oneOf"], {"type": "null"}]}
    return {"anyOf": [schema, {"type": "null"}]}
