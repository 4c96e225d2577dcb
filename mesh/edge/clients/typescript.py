"""TypeScript client: one file without dependencies, for browsers and Node. Pure.

It uses what ``fetch`` and ``WebSocket`` of the platform offer, and syntax that can be erased: no enums, no namespaces.

Sources: https://protobuf.dev/programming-guides/json/, Fetch standard, HTML standard ("Server-sent events").
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor, OneofDescriptor

from mesh.contract.model import Access, Contract
from mesh.edge.clients.api import EMPTY, HTTP_BODY, NULL, Api, Operation, PathVariable, ServiceApi
from mesh.protojson.names import json_names
from mesh.protojson.wellknown import WRAPPERS

__all__ = ["client"]

_RUNTIME = Path(__file__).with_name("runtime.ts")
_CLIENT = "Mesh"
_RESERVED = frozenset(
    (
        "AbortController", "AbortSignal", "AnyMessage", "Array", "AsyncGenerator", "AsyncIterable", "Base64", "Blob",
        "BodyInit", "CallOptions", "Cancel", "ClientOptions", "Code", "Connection", "Date", "Duration", "Error",
        "Exclude", "Field", "FieldMask", "FieldViolation", "Headers", "HttpBody", "HttpBodyInput", "Int64", "Iterable",
        "JSON", "JsonObject", "JsonValue", "MESSAGES", "Map", "Mesh", "MeshError", "MessageEvent", "Number", "Object",
        "OneOf", "Promise", "ReadableStream", "Readonly", "Record", "RequestCredentials", "RequestInit", "Response",
        "ReturnType", "Route", "Set", "String", "Symbol", "TextDecoder", "Timestamp", "URLSearchParams", "Uint8Array",
        "WebSocket", "CODES", "Function", "Boolean", "RegExp", "Infinity", "NaN",
    )
)  # fmt: skip
"""Names of the runtime, and of the platform where the file uses them."""
_WELL_KNOWN = {
    "google.protobuf.Timestamp": "Timestamp",
    "google.protobuf.Duration": "Duration",
    "google.protobuf.FieldMask": "FieldMask",
    "google.protobuf.Any": "AnyMessage",
    "google.protobuf.ListValue": "JsonValue[]",
    "google.protobuf.Struct": "JsonObject",
    "google.protobuf.Value": "JsonValue",
    EMPTY: "Record<string, never>",
    HTTP_BODY: "HttpBody",
}
_FLOATS = (FieldDescriptor.TYPE_DOUBLE, FieldDescriptor.TYPE_FLOAT)
_INT64 = (FieldDescriptor.CPPTYPE_INT64, FieldDescriptor.CPPTYPE_UINT64)
_IDENTIFIER = re.compile(r"[A-Za-z_$][A-Za-z0-9_$]*\Z")


def client(contract: Contract) -> str:
    """Return the text of the file."""
    return "".join(f"{part}\n" for part in _TypescriptFile(contract).parts())


class _TypescriptFile:
    """Writer of one file."""

    def __init__(self, contract: Contract) -> None:
        self._api = Api(contract, _RESERVED | {f"{name}Service" for name in _service_names(contract)})

    def parts(self) -> Iterator[str]:
        """Yield the parts of the file."""
        api = self._api
        yield "// Client of the HTTP routes of a mesh, made by `mesh export typescript`. Do not edit."
        yield "/* eslint-disable */"
        yield "\n// -- types of the contract --\n"
        for enum in api.enums.values():
            yield self._enum(enum)
        for message in api.outputs.values():
            yield self._type(message, is_input=False)
        for message in api.inputs.values():
            yield self._type(message, is_input=True)
        yield self._rules()
        yield "// -- services --\n"
        for service in api.services:
            yield self._service(service)
        yield self._root()
        yield self._messages()
        yield _RUNTIME.read_text(encoding="utf-8").rstrip("\n")

    # -- types --

    def _enum(self, enum: EnumDescriptor) -> str:
        name = self._api.names[enum.full_name]
        values = ", ".join(json.dumps(value.name) for value in enum.values)
        about = "A newer server may send further names, and numbers that it knows no name of."
        comment = _doc(f"{self._api.comments.get(enum.full_name, '')}\n\n{about}".strip())
        return (
            f"{comment}export type {name} = (typeof {_constant(name)})[number];\n"
            f"export const {_constant(name)} = [{values}] as const;\n"
        )

    def _type(self, message: Descriptor, *, is_input: bool) -> str:
        name = self._message_name(message.full_name, is_input=is_input)
        fields = [field for field in message.fields if not is_input or self._api.settable(field)]
        oneofs: dict[str, OneofDescriptor] = {}
        plain = []
        for field in fields:
            oneof = field.containing_oneof
            if oneof is None or len(oneof.fields) == 1:
                plain.append(field)
            else:
                oneofs.setdefault(oneof.name, oneof)
        lines = [line for field in plain for line in self._property(field, is_input=is_input)]
        if message.is_extendable:
            lines.append("  /** Extensions. */\n  [extension: `[${string}]`]: unknown;")
        block = "{\n" + "\n".join(lines) + "\n}" if lines else "{}"
        comment = _doc(self._api.comments.get(message.full_name, ""), deprecated=_deprecated(message))
        if not oneofs:
            return f"{comment}export interface {name} {block}\n"
        choices = [self._oneof(oneof, fields, is_input=is_input) for oneof in oneofs.values()]
        return f"{comment}export type {name} = {' & '.join([*([block] if lines else []), *choices])};\n"

    def _oneof(self, oneof: OneofDescriptor, fields: list[FieldDescriptor], *, is_input: bool) -> str:
        lines: list[str] = []
        for field in oneof.fields:
            if field in fields:
                lines += self._property(field, is_input=is_input, member=True)
        return "OneOf<{\n" + "\n".join(lines) + "\n}>"

    def _property(self, field: FieldDescriptor, *, is_input: bool, member: bool = False) -> Iterator[str]:
        holder: Any = field.containing_type
        comment = _doc(self._api.comments.get(field.full_name, ""), "  ", deprecated=_deprecated(field))
        key = _key(json_names(holder)[field.name])
        kind = self._field(field, is_input=is_input)
        if member:
            yield f"{comment}  {key}: {kind};"
        elif is_input:
            required = self._api.required(field)
            yield f"{comment}  {key}: {kind};" if required else f"{comment}  {key}?: {kind} | undefined;"
        else:
            optional = field.has_presence and not field.is_required
            yield f"{comment}  {key}{'?' if optional else ''}: {kind};"

    def _field(self, field: FieldDescriptor, *, is_input: bool) -> str:
        entry = field.message_type
        if entry is not None and entry.GetOptions().map_entry:
            value = self._element(entry.fields_by_name["value"], is_input=is_input)
            return f"{{ {'readonly ' if is_input else ''}[key: string]: {value} }}"
        element = self._element(field, is_input=is_input)
        if field.is_repeated:
            return f"{'readonly ' if is_input else ''}{f'({element})' if ' ' in element else element}[]"
        return element

    def _element(self, field: FieldDescriptor, *, is_input: bool) -> str:
        if field.message_type is not None:
            return self._message(field.message_type, is_input=is_input)
        if field.enum_type is not None:
            return "null" if field.enum_type.full_name == NULL else self._api.names[field.enum_type.full_name]
        return _scalar(field)

    def _message(self, message: Descriptor, *, is_input: bool) -> str:
        name = message.full_name
        if name in WRAPPERS:
            return _scalar(message.fields_by_name["value"])
        if name == HTTP_BODY and is_input:
            return "HttpBodyInput"
        return _WELL_KNOWN.get(name) or self._message_name(name, is_input=is_input)

    def _message_name(self, full_name: str, *, is_input: bool) -> str:
        return self._api.names[full_name] + ("Input" if is_input and full_name in self._api.outputs else "")

    def _rules(self) -> str:
        rules = {
            self._message_name(name, is_input=True): found
            for name, message in self._api.inputs.items()
            if (found := self._api.rules(message))
        }
        lines = [
            f"  {_key(name)}: {{\n"
            + "".join(f"    {_key(field)}: {_literal(found)},\n" for field, found in fields.items())
            + "  },\n"
            for name, fields in rules.items()
        ]
        text = "Rules of the fields of requests, in the keywords of JSON Schema. The server checks them too."
        return f"{_doc(text)}export const rules = {{\n{''.join(lines)}}} as const;\n"

    # -- services --

    def _service(self, service: ServiceApi) -> str:
        comment = _doc(service.service.comment)
        names = _member_names(service.operations)
        methods = "\n".join(self._method(names[name], operation) for name, operation in service.operations.items())
        return (
            f"{comment}export class {service.name}Service {{\n  readonly #connection: Connection;\n\n"
            f"  constructor(connection: Connection) {{\n    this.#connection = connection;\n  }}\n\n{methods}}}\n"
        )

    def _method(self, name: str, operation: Operation) -> str:
        method = operation.method
        comment = _doc(f"{method.comment}\n\n`{operation.route}`".strip(), "  ", deprecated=_is_deprecated(operation))
        request = self._message(operation.request, is_input=True)
        if operation.request.full_name == EMPTY:
            request = "Record<string, never>"
        response = self._response(operation)
        optional = not self._requires_fields(operation)
        route = self._route(operation)
        if method.client_streaming and not operation.sends_bytes:
            parameter = f"requests: Iterable<{request}> | AsyncIterable<{request}>"
            kind, argument = ("exchange" if method.server_streaming else "upload"), "requests"
        else:
            parameter = f"request: {request}{' = {}' if optional else ''}"
            kind, argument = ("stream" if method.server_streaming else "call"), "request"
        result = f"AsyncGenerator<{response}, void, undefined>" if method.server_streaming else f"Promise<{response}>"
        call = f"this.#connection.{kind}<{response}>({route}, {argument}, options)"
        if operation.receives_nothing:
            body = f"    await {call};\n"
            return f"{comment}  async {name}({parameter}, options: CallOptions = {{}}): {result} {{\n{body}  }}\n"
        return f"{comment}  {name}({parameter}, options: CallOptions = {{}}): {result} {{\n    return {call};\n  }}\n"

    def _requires_fields(self, operation: Operation) -> bool:
        return operation.sends_bytes or any(self._api.required(field) for field in operation.request.fields)

    def _response(self, operation: Operation) -> str:
        if operation.receives_nothing:
            return "void"
        if operation.receives_bytes:
            return "Uint8Array" if operation.method.server_streaming else "HttpBody"
        field = operation.response_field
        if field is None:
            return self._message(operation.response, is_input=False)
        kind = self._field(field, is_input=False)
        nullable = (
            field.message_type is not None and not field.is_repeated and field.message_type.full_name in _WELL_KNOWN
        )
        return f"{kind} | null" if nullable else kind

    def _route(self, operation: Operation) -> str:
        path = ", ".join(_part(part) for part in operation.path)
        parts = [
            f"verb: {json.dumps(operation.route.verb if operation.route.verb != '*' else 'POST')}",
            f"path: [{path}]",
        ]
        if operation.body:
            parts.append(f"body: {json.dumps(operation.body)}")
        if operation.method.access is Access.PUBLIC:
            parts.append("open: true")
        sends, receives = operation.sends_bytes, operation.receives_bytes
        if sends or receives:
            parts.append(f"bytes: {json.dumps('both' if sends and receives else 'in' if sends else 'out')}")
        field = operation.response_field
        shape = ["", "value", self._shape(operation.response)] if field is None else ["", *self._spec(field)[1:]]
        parts.append(f"response: {_array(shape)}")
        return f"{{ {', '.join(parts)} }}"

    def _root(self) -> str:
        names = _member_names({service.name: service for service in self._api.services}, ("token", "constructor"))
        fields = "".join(f"  readonly {names[one.name]}: {one.name}Service;\n" for one in self._api.services)
        made = "".join(
            f"    this.{names[one.name]} = new {one.name}Service(this.#connection);\n" for one in self._api.services
        )
        return (
            f"{_doc('The services of the mesh.')}export class {_CLIENT} {{\n{fields}"
            "  readonly #connection: Connection;\n\n  constructor(options: ClientOptions = {}) {\n"
            f"    this.#connection = new Connection(options);\n{made}  }}\n\n"
            "  /** Access token of the user; undefined: nobody is logged in. */\n"
            "  get token(): string | undefined {\n    return this.#connection.token;\n  }\n\n"
            "  set token(token: string | undefined) {\n    this.#connection.token = token;\n  }\n}\n"
        )

    # -- values of responses --

    def _messages(self) -> str:
        lines = []
        for name, message in self._api.outputs.items():
            specs = [spec for field in message.fields if (spec := self._spec(field))[1:] != ["value"]]
            if specs:
                lines.append(f"  {_key(self._api.names[name])}: [{', '.join(map(_array, specs))}],\n")
        return (
            "/** Fields of responses that may be left out, or whose JSON is not their value. */\n"
            f"const MESSAGES: {{ readonly [type: string]: readonly Field[] }} = {{\n{''.join(lines)}}};\n"
        )

    def _spec(self, field: FieldDescriptor) -> list[Any]:
        """Return a field as the runtime's type ``Field``."""
        holder: Any = field.containing_type
        name = json_names(holder)[field.name]
        entry = field.message_type
        if entry is not None and entry.GetOptions().map_entry:
            return _trimmed([name, "map", self._element_shape(entry.fields_by_name["value"])])
        if field.is_repeated:
            return _trimmed([name, "list", self._element_shape(field)])
        absent = None if field.has_presence else _absent(field)
        return _trimmed([name, "value", self._element_shape(field), absent])

    def _element_shape(self, field: FieldDescriptor) -> str | None:
        return (
            self._shape(field.message_type)
            if field.message_type is not None
            else "#"
            if field.type in _FLOATS
            else None
        )

    def _shape(self, message: Any) -> str | None:
        if message.full_name in WRAPPERS:
            return "#" if message.fields_by_name["value"].type in _FLOATS else None
        return None if message.full_name in _WELL_KNOWN else self._api.names[message.full_name]


def _service_names(contract: Contract) -> set[str]:
    return {name.rpartition(".")[2] for name in contract.services}


def _scalar(field: FieldDescriptor) -> str:
    if field.type == FieldDescriptor.TYPE_BYTES:
        return "Base64"
    if field.cpp_type in _INT64:
        return "Int64"
    if field.type == FieldDescriptor.TYPE_BOOL:
        return "boolean"
    return "string" if field.cpp_type == FieldDescriptor.CPPTYPE_STRING else "number"


def _absent(field: FieldDescriptor) -> Any:
    """Return the JSON value of a field that is left out of a response."""
    if field.enum_type is not None:
        return field.enum_type.values_by_number[0].name if field.enum_type.full_name != NULL else None
    return {"Base64": "", "string": "", "Int64": "0", "boolean": False, "number": 0}[_scalar(field)]


def _trimmed(spec: list[Any]) -> list[Any]:
    while spec[-1] is None:
        spec.pop()
    return spec


def _array(values: list[Any]) -> str:
    return f"[{', '.join('undefined' if value is None else json.dumps(value) for value in _trimmed(list(values)))}]"


def _part(part: str | PathVariable) -> str:
    if isinstance(part, str):
        return json.dumps(part)
    return f"[{json.dumps(list(part.field))}, {json.dumps(part.multi)}]"


def _member_names(names: Any, taken: tuple[str, ...] = ("constructor",)) -> dict[str, str]:
    """Return name → name of a member: ``GetUser`` is ``getUser``; unchanged where two names would be equal."""
    lower = {name: name[:1].lower() + name[1:] for name in names}
    equal = [name for name in lower if list(lower.values()).count(lower[name]) > 1]
    found = {name: name if name in equal else member for name, member in lower.items()}
    return {name: f"{member}_" if member in taken else member for name, member in found.items()}


def _key(name: str) -> str:
    return name if _IDENTIFIER.match(name) else json.dumps(name)


def _constant(name: str) -> str:
    return f"{name[:1].lower()}{name[1:]}Values"


def _literal(value: Any) -> str:
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{_key(key)}: {_literal(one)}' for key, one in value.items())} }}"
    return json.dumps(value)


def _doc(text: str, indent: str = "", *, deprecated: bool = False) -> str:
    """Return a comment for editors, with its line break; ``""`` if there is nothing to say."""
    lines = [*text.replace("*/", "*\\/").splitlines(), *(["@deprecated"] if deprecated else [])]
    if not lines:
        return ""
    if len(lines) == 1:
        return f"{indent}/** {lines[0]} */\n"
    return f"{indent}/**\n" + "".join(f"{indent} * {line}".rstrip() + "\n" for line in lines) + f"{indent} */\n"


def _deprecated(descriptor: Any) -> bool:
    return bool(descriptor.GetOptions().deprecated)


def _is_deprecated(operation: Operation) -> bool:
    pool: Any = operation.request.file.pool
    service = pool.FindServiceByName(operation.method.service)
    return _deprecated(service) or _deprecated(service.methods_by_name[operation.method.name])
