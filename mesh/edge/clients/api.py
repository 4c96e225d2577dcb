"""The edge's HTTP routes as clients call them: operations, types and their names, whatever the language. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

from mesh.contract.model import Access, Contract, GrpcService, Method, Route
from mesh.contract.path_template import Template
from mesh.edge.openapi import comments
from mesh.edge.openapi.schemas import Schemas
from mesh.protojson.names import json_names
from mesh.protojson.wellknown import WRAPPERS
from mesh.rules.field_behavior import Behaviors

__all__ = ["EMPTY", "HTTP_BODY", "NULL", "SCALAR_MESSAGES", "WHOLE", "Api", "Operation", "PathVariable", "ServiceApi"]

HTTP_BODY = "google.api.HttpBody"
NULL = "google.protobuf.NullValue"
EMPTY = "google.protobuf.Empty"
SCALAR_MESSAGES = ("google.protobuf.Timestamp", "google.protobuf.Duration", "google.protobuf.FieldMask")
WHOLE = (
    "google.protobuf.Any", "google.protobuf.ListValue", "google.protobuf.Struct", "google.protobuf.Value", EMPTY,
    HTTP_BODY,
)  # fmt: skip
"""Messages that have a type of their own in the runtime."""
_RULES = (
    "minLength", "maxLength", "pattern", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf",
    "minItems", "maxItems", "uniqueItems", "minProperties", "maxProperties", "const", "enum", "format",
)  # fmt: skip
"""Keywords of a field's schema that a client can check before it sends a request."""
_ANY_SEGMENT, _REST = "*", "**"


@dataclass(frozen=True, slots=True)
class PathVariable:
    """Variable of a path.

    Attributes:
        field: JSON names on the way to the field of the request.
        multi: Whether the value may have several segments. Its slashes are not escaped.
    """

    field: tuple[str, ...]
    multi: bool


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of a service, as a client calls it.

    Attributes:
        method: The method.
        route: The route that is used.
        path: Texts and variables of the path, in their order.
    """

    method: Method
    route: Route
    path: tuple[str | PathVariable, ...]

    @property
    def request(self) -> Any:
        """Descriptor of the request."""
        return self.method.input.DESCRIPTOR

    @property
    def response(self) -> Any:
        """Descriptor of the response."""
        return self.method.output.DESCRIPTOR

    @property
    def response_field(self) -> FieldDescriptor | None:
        """The field that is the whole body of the response, or None."""
        return self.response.fields_by_name[self.route.response_body] if self.route.response_body else None

    @property
    def sends_bytes(self) -> bool:
        """Whether the body of the request is a ``google.api.HttpBody``."""
        if self.route.body in ("", "*"):
            return bool(self.route.body) and self.request.full_name == HTTP_BODY
        message = self.request.fields_by_name[self.route.body].message_type
        return message is not None and message.full_name == HTTP_BODY

    @property
    def receives_bytes(self) -> bool:
        """Whether the body of the response is a ``google.api.HttpBody``."""
        field = self.response_field
        message = self.response if field is None else field.message_type
        return message is not None and message.full_name == HTTP_BODY

    @property
    def receives_nothing(self) -> bool:
        """Whether the response has no value."""
        return self.response.full_name == EMPTY and not self.method.server_streaming

    @property
    def body(self) -> str:
        """JSON name of the field that is the body, ``"*"`` for the whole request, ``""`` for none."""
        return self.route.body if self.route.body in ("", "*") else json_names(self.request)[self.route.body]


@dataclass(frozen=True, slots=True)
class ServiceApi:
    """Service with its operations.

    Attributes:
        service: The service.
        name: Its name in the client, in CamelCase.
        operations: Its operations by the name of the method.
    """

    service: GrpcService
    name: str
    operations: Mapping[str, Operation]


class Api:
    """The edge's HTTP routes.

    Args:
        contract: The contract.
        reserved: Names that no type may have.

    Attributes:
        services: Services with routes.
        inputs: Messages that requests contain, by full name.
        outputs: Messages that responses contain, by full name.
        enums: Enums of both, by full name.
        names: Full name of a message or an enum → its name in the client.
        comments: Full name of a declaration → its comment.
    """

    def __init__(self, contract: Contract, reserved: Collection[str]) -> None:
        self.comments = comments.read(contract.files)
        self._behaviors = Behaviors(contract.pool)
        self._schemas = Schemas(contract.pool, {})
        self.services = list(_services(contract))
        self.inputs: dict[str, Descriptor] = {}
        self.outputs: dict[str, Descriptor] = {}
        self.enums: dict[str, EnumDescriptor] = {}
        for operation in self.operations():
            self._collect(operation.request, self.inputs)
            self._collect(operation.response, self.outputs)
        self.names = _unique_names([*self.inputs.values(), *self.outputs.values(), *self.enums.values()], reserved)
        self._path_fields = self._fields_of_paths()

    def operations(self) -> Iterator[Operation]:
        """Yield every operation."""
        for service in self.services:
            yield from service.operations.values()

    def _collect(self, descriptor: Any, into: dict[str, Descriptor]) -> None:
        name = descriptor.full_name
        if name in into or name in WHOLE or name in SCALAR_MESSAGES or name in WRAPPERS:
            return
        if not descriptor.GetOptions().map_entry:
            into[name] = descriptor
        for field in descriptor.fields:
            if field.message_type is not None:
                self._collect(field.message_type, into)
            elif field.enum_type is not None and field.enum_type.full_name != NULL:
                self.enums.setdefault(field.enum_type.full_name, field.enum_type)

    def _fields_of_paths(self) -> dict[str, frozenset[str]]:
        """Return full name of a request → its fields that every operation with this request has in its path.

        A message that is also a part of another one has none.
        """
        found: dict[str, frozenset[str]] = {}
        for operation in self.operations():
            name = operation.request.full_name
            fields = frozenset(variable.field[0] for variable in operation.route.template.variables)
            found[name] = found.get(name, fields) & fields
        nested = {
            field.message_type.full_name for one in self.inputs.values() for field in one.fields if field.message_type
        }
        return {name: fields for name, fields in found.items() if name not in nested}

    def required(self, field: FieldDescriptor) -> bool:
        """Whether a request must set the field: the contract requires it, or the path contains it."""
        holder: Any = field.containing_type
        return self._schemas.required(field) or field.name in self._path_fields.get(holder.full_name, ())

    def settable(self, field: FieldDescriptor) -> bool:
        """Whether a client may set the field: it is not OUTPUT_ONLY."""
        return "OUTPUT_ONLY" not in self._behaviors.of(field)

    def rules(self, message: Descriptor) -> dict[str, dict[str, Any]]:
        """Return JSON name of a field → its rules, in the keywords of JSON Schema and ``required``."""
        names = json_names(message)
        found: dict[str, dict[str, Any]] = {}
        for field in message.fields:
            if not self.settable(field):
                continue
            schema, plain = self._schemas.field(field), self._schemas.plain(field)
            # "password" tells a form to hide the value. It is no rule of the value.
            plain.setdefault("format", "password")
            rules = {key: schema[key] for key in _RULES if key in schema and schema[key] != plain.get(key)}
            if self._schemas.required(field):
                rules = {"required": True, **rules}
            if rules:
                found[names[field.name]] = rules
        return found


def _services(contract: Contract) -> Iterator[ServiceApi]:
    offered = {
        service.name: {name: found for name, method in service.methods.items() if (found := _operation(method))}
        for service in contract.services.values()
    }
    shorts = Counter(name.rpartition(".")[2] for name, operations in offered.items() if operations)
    for name, operations in offered.items():
        if operations:
            short = name.rpartition(".")[2]
            unique = short if shorts[short] == 1 else _camel(name)
            yield ServiceApi(contract.services[name], unique, operations)


def _operation(method: Method) -> Operation | None:
    """Return the operation of a method, or None if no route of it can be called with a request alone."""
    if method.access is Access.INTERNAL or method.gateway is not None:
        return None
    for route in method.routes:
        path = _path(route.template, method.input.DESCRIPTOR)
        bodiless = route.verb in ("GET", "HEAD") and (route.body or method.client_streaming)
        if path is not None and not bodiless:
            return Operation(method, route, path)
    return None


def _path(template: Template, request: Any) -> tuple[str | PathVariable, ...] | None:
    """Return the path; None if it has a wildcard that no variable names."""
    starts = {variable.start: variable for variable in template.variables}
    parts: list[str | PathVariable] = []
    index = 0
    while index < len(template.segments):
        parts.append("/")
        variable = starts.get(index)
        if variable is not None:
            parts.append(PathVariable(_json_path(request, variable.field), variable.multi))
            index = variable.stop
            continue
        segment = template.segments[index]
        if segment in (_ANY_SEGMENT, _REST):
            return None
        parts.append(_quoted(segment[1:]))
        index += 1
    if template.verb is not None:
        parts.append(f":{_quoted(template.verb)}")
    return tuple(_joined(parts))


def _joined(parts: Sequence[str | PathVariable]) -> Iterator[str | PathVariable]:
    text = ""
    for part in parts:
        if isinstance(part, str):
            text += part
            continue
        if text:
            yield text
        text = ""
        yield part
    if text:
        yield text


def _quoted(text: str) -> str:
    return quote(text, safe="-._~!$&'()*+,;=:@")


def _json_path(descriptor: Any, names: Sequence[str]) -> tuple[str, ...]:
    path = []
    for name in names:
        path.append(json_names(descriptor)[name])
        descriptor = descriptor.fields_by_name[name].message_type
    return tuple(path)


def _unique_names(types: Sequence[Any], reserved: Collection[str]) -> dict[str, str]:
    """Return full name → name: the short one, with its package where two types or the runtime have it."""
    wanted = {one.full_name: one for one in types}
    shorts = Counter(_short(one) for one in wanted.values())
    names: dict[str, str] = {}
    taken = set(reserved)
    for full, one in wanted.items():
        name = _short(one)
        if shorts[name] > 1 or name in taken or f"{name}Input" in taken:
            name = _camel(full)
        while name in taken or f"{name}Input" in taken:
            name += "_"
        names[full] = name
        taken |= {name, f"{name}Input"}
    return names


def _short(descriptor: Any) -> str:
    package = descriptor.file.package
    name = descriptor.full_name[len(package) + 1 :] if package else descriptor.full_name
    return "".join(_capital(part) for part in name.split("."))


def _camel(full: str) -> str:
    return "".join(_capital(part) for name in full.split(".") for part in name.split("_") if part)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
