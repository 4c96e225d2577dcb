"""Python client: one file that needs httpx only, with a blocking and an asynchronous class. Pure.

Messages are dataclasses, requests are keyword arguments, and there is an exception for each code. Values are those that
Python has: ``datetime``, ``timedelta``, ``bytes``, ``int`` for 64 bits.

Sources: https://protobuf.dev/programming-guides/json/, HTML standard ("Server-sent events").
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from string import Template
from typing import Any

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

from mesh.contract.function_names import escaped, function_names
from mesh.contract.model import Access, Contract
from mesh.edge.clients.api import EMPTY, HTTP_BODY, NULL, Api, Operation, PathVariable, ServiceApi
from mesh.protojson.names import json_names
from mesh.protojson.wellknown import WRAPPERS

__all__ = ["client"]

_RUNTIME = Path(__file__).with_name("python_runtime.txt")
_HEADER = '''\
"""Client of the HTTP routes of a mesh, made by `mesh export python`. Do not edit. It needs httpx."""

from __future__ import annotations

import asyncio
import base64
import json
import math
import threading
from collections.abc import (
    AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Generator, Iterable, Iterator, Mapping, Sequence,
)
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from typing import Any, ClassVar, Literal, TypeAlias
from urllib.parse import quote, urlencode

import httpx
'''
_ROOT = '''
class ${prefix}Mesh:
    """$title of the mesh. Use it as a context manager, or close it.

    Args:
        base_url: URL of the edge.
        token: Access token of the user, or an API key. It is not sent with methods that anybody may call.
        refresh: Returns a new access token, or None if the user has to log in again. It is called once when the server
            refuses the token, and the call is made again.
        client: An httpx.${prefix}Client with settings of its own, such as headers or a proxy.
    """

    def __init__(
        self,
        base_url: str,
        *,
        token: str | None = None,
        refresh: Callable[[], $returns] | None = None,
        client: httpx.${prefix}Client | None = None,
    ) -> None:
        self._connection = _${prefix}Connection(base_url, token, refresh, client)
$services
    @property
    def token(self) -> str | None:
        """Access token of the user; None: nobody is logged in."""
        return self._connection.token

    @token.setter
    def token(self, token: str | None) -> None:
        self._connection.token = token

    $def ${a}close(self) -> None:
        """Close the connections."""
        ${wait}self._connection.client.${a}close()

    $def __${a}enter__(self) -> ${prefix}Mesh:
        return self

    $def __${a}exit__(self, *_: object) -> None:
        ${wait}self.${a}close()
'''
_RESERVED = frozenset(
    (
        "Any", "AsyncGenerator", "AsyncIterable", "AsyncIterator", "AsyncMesh", "Awaitable", "Callable", "ClassVar",
        "Decimal", "Exception", "False", "Generator", "Iterable", "Iterator", "Literal", "Mapping", "Mesh", "None",
        "RULES", "Sequence", "True", "TypeAlias", "ValueError", "KeyError", "TypeError", "IndexError",
    )
)  # fmt: skip
_WELL_KNOWN = {
    "google.protobuf.Timestamp": ("datetime", '"time"'),
    "google.protobuf.Duration": ("timedelta", '"duration"'),
    "google.protobuf.FieldMask": ("str", "str"),
    "google.protobuf.Any": ("dict[str, Any]", '"json"'),
    "google.protobuf.ListValue": ("list[Any]", '"json"'),
    "google.protobuf.Struct": ("dict[str, Any]", '"json"'),
    "google.protobuf.Value": ("Any", '"json"'),
    EMPTY: ("dict[str, Any]", '"json"'),
    HTTP_BODY: ("HttpBody", "HttpBody"),
}
"""Full name → type, and its name in the runtime."""
_SHADOWING = frozenset(
    ("self", "field", "str", "int", "float", "bool", "bytes", "list", "dict", "datetime", "timedelta")
)
"""Names of fields that get a final ``_`` as keywords do, because annotations and methods mean others by them."""
_FLOATS = (FieldDescriptor.TYPE_DOUBLE, FieldDescriptor.TYPE_FLOAT)


def client(contract: Contract) -> str:
    """Return the text of the file."""
    return "".join(f"{part}\n" for part in _PythonFile(contract).parts())


class _PythonFile:
    """Writer of one file."""

    def __init__(self, contract: Contract) -> None:
        services = {name.rpartition(".")[2] for name in contract.services}
        classes = {f"{prefix}{name}Service" for name in services for prefix in ("", "Async")}
        self._runtime = _RUNTIME.read_text(encoding="utf-8")
        own = re.findall(r"^class (\w+)", self._runtime, re.MULTILINE)
        self._api = Api(contract, _RESERVED | classes | frozenset(own))

    def parts(self) -> Iterator[str]:
        """Yield the parts of the file."""
        api = self._api
        yield _HEADER
        yield self._runtime
        yield "\n# -- types of the contract --\n"
        for enum in api.enums.values():
            yield self._enum(enum)
        messages = {**api.outputs, **api.inputs}
        for message in messages.values():
            yield self._message(message)
        rules = {api.names[name]: found for name, one in api.inputs.items() if (found := self._rules(one))}
        yield "\n# Rules of the fields of requests, in the keywords of JSON Schema. The server checks them too."
        yield f"RULES: dict[str, dict[str, dict[str, Any]]] = {rules!r}\n"
        yield self._tables(messages)
        yield "\n# -- services --\n"
        for service in api.services:
            yield self._service(service, is_async=False)
            yield self._service(service, is_async=True)
        yield self._root(is_async=False)
        yield self._root(is_async=True).rstrip("\n")

    # -- types --

    def _enum(self, enum: EnumDescriptor) -> str:
        values = ", ".join(json.dumps(value.name) for value in enum.values)
        comment = "".join(
            f"# {line}".rstrip() + "\n" for line in self._api.comments.get(enum.full_name, "").splitlines()
        )
        return f"{comment}{self._api.names[enum.full_name]}: TypeAlias = Literal[{values}]\n"

    def _message(self, message: Descriptor) -> str:
        about = {_attribute(field): self._api.comments.get(field.full_name, "") for field in message.fields}
        lines = [self._api.comments.get(message.full_name, "") or f"Message {message.full_name}."]
        if any(about.values()):
            lines += ["", "Attributes:"]
            lines += [f"    {name}: {' '.join(text.split())}" for name, text in about.items() if text]
        fields = "".join(f"    {self._declaration(field)}\n" for field in message.fields)
        return (
            f"\n@dataclass(kw_only=True, slots=True)\nclass {self._api.names[message.full_name]}:\n"
            f"{_docstring(lines, '    ')}{fields and f'{chr(10)}{fields}'}"
        )

    def _declaration(self, field: FieldDescriptor) -> str:
        """Return name, type and default of a field, as in a dataclass."""
        kind, default = self._type(field), self._default(field)
        if default in ("[]", "{}"):
            default = f"field(default_factory=lambda: {default})"
        elif field.GetOptions().debug_redact:
            default = f"field({f'default={default}, ' if default else ''}repr=False)"
        return f"{_attribute(field)}: {kind}{f' = {default}' if default else ''}"

    def _type(self, field: FieldDescriptor) -> str:
        entry = field.message_type
        if entry is not None and entry.GetOptions().map_entry:
            return f"dict[str, {self._element(entry.fields_by_name['value'])}]"
        element = self._element(field)
        if field.is_repeated:
            return f"list[{element}]"
        return (
            f"{element} | None"
            if field.has_presence and not self._api.required(field) and element != "None"
            else element
        )

    def _default(self, field: FieldDescriptor) -> str:
        """Return the default of a field as an argument; ``""`` for a field that has to be set."""
        if self._api.required(field):
            return ""
        if field.is_repeated:
            return "{}" if field.message_type is not None and field.message_type.GetOptions().map_entry else "[]"
        return "None" if field.has_presence else self._absent(field)

    def _absent(self, field: FieldDescriptor) -> str:
        """Return the value of a field that is left out of a response."""
        if field.has_presence or field.is_repeated:
            return "None"
        if field.enum_type is not None:
            return "None" if field.enum_type.full_name == NULL else json.dumps(field.enum_type.values_by_number[0].name)
        return {"str": '""', "int": "0", "float": "0.0", "bool": "False", "bytes": 'b""'}[_scalar(field)]

    def _element(self, field: FieldDescriptor) -> str:
        if field.message_type is not None:
            return self._message_type(field.message_type)
        if field.enum_type is not None:
            return "None" if field.enum_type.full_name == NULL else self._api.names[field.enum_type.full_name]
        return _scalar(field)

    def _message_type(self, message: Descriptor) -> str:
        if message.full_name in WRAPPERS:
            return _scalar(message.fields_by_name["value"])
        known = _WELL_KNOWN.get(message.full_name)
        return known[0] if known is not None else self._api.names[message.full_name]

    def _codec(self, field: FieldDescriptor) -> str:
        """Return the type of a field's elements as the runtime names it."""
        message = field.message_type
        if message is None:
            if field.enum_type is not None:
                return '"json"'
            return '"bytes"' if _scalar(field) == "bytes" else _scalar(field)
        if message.full_name in WRAPPERS:
            return self._codec(message.fields_by_name["value"])
        known = _WELL_KNOWN.get(message.full_name)
        return known[1] if known is not None else self._api.names[message.full_name]

    def _field(self, field: FieldDescriptor) -> str:
        holder: Any = field.containing_type
        entry = field.message_type
        kind, element = "value", field
        if entry is not None and entry.GetOptions().map_entry:
            kind, element = "map", entry.fields_by_name["value"]
        elif field.is_repeated:
            kind = "list"
        name, json_name = json.dumps(_attribute(field)), json.dumps(json_names(holder)[field.name])
        absent = self._absent(field)
        return (
            f'_Field({name}, {json_name}, "{kind}", {self._codec(element)}{"" if absent == "None" else f", {absent}"})'
        )

    def _rules(self, message: Descriptor) -> dict[str, Any]:
        names = {json_name: name for name, json_name in json_names(message).items()}
        return {_member(names[name]): found for name, found in self._api.rules(message).items()}

    def _tables(self, messages: dict[str, Descriptor]) -> str:
        lines = []
        for name, message in messages.items():
            fields = "".join(f"        {self._field(field)},\n" for field in message.fields)
            lines.append(f"    {self._api.names[name]}: (" + (f"\n{fields}    ),\n" if fields else "),\n"))
        own = '_Field("content_type", "contentType", "value", str, ""), _Field("data", "data", "value", "bytes", b"")'
        routes = [f"    {json.dumps(one.method.path)}: {self._route(one)},\n" for one in self._api.operations()]
        return (
            f"_MESSAGES: dict[Any, tuple[_Field, ...]] = {{\n    HttpBody: ({own}),\n{''.join(lines)}}}\n\n"
            f"_ROUTES: dict[str, _Route] = {{\n{''.join(routes)}}}\n"
        )

    def _route(self, operation: Operation) -> str:
        path = "".join(f"{_part(part)}, " for part in operation.path)
        field = operation.response_field
        if field is not None:
            response = self._field(field)
        else:
            known = _WELL_KNOWN.get(operation.response.full_name)
            codec = known[1] if known is not None else self._api.names.get(operation.response.full_name, '"json"')
            response = f'_Field("", "", "value", {codec})'
        verb = "POST" if operation.route.verb == "*" else operation.route.verb
        arguments = [json.dumps(verb), f"({path.rstrip()})", response]
        if operation.body:
            arguments.append(f"body={json.dumps(operation.body)}")
        if operation.method.access is Access.PUBLIC:
            arguments.append("open=True")
        arguments += [
            f"{name}=True"
            for name, value in (("sends_bytes", operation.sends_bytes), ("receives_bytes", operation.receives_bytes))
            if value
        ]
        return f"_Route({', '.join(arguments)})"

    # -- services --

    def _service(self, service: ServiceApi, *, is_async: bool) -> str:
        prefix = "Async" if is_async else ""
        about = _docstring([service.service.comment or f"Service {service.service.name}."], "    ")
        names = function_names(service.operations)
        methods = "".join(
            f"\n{self._method(names[name], operation, is_async=is_async)}"
            for name, operation in service.operations.items()
        )
        return (
            f"\nclass {prefix}{service.name}Service:\n{about}\n"
            f"    def __init__(self, connection: _{prefix}Connection) -> None:\n"
            f"        self._connection = connection\n{methods}"
        )

    def _method(self, name: str, operation: Operation, *, is_async: bool) -> str:
        method = operation.method
        streams = method.client_streaming and not operation.sends_bytes
        message = self._message_type(operation.request) if operation.request.full_name != EMPTY else "HttpBody"
        fields = [] if operation.request.full_name in (EMPTY, HTTP_BODY) else list(operation.request.fields)
        limit = "timeout_" if any(field.name == "timeout" for field in fields) and not streams else "timeout"
        if streams:
            kinds = f"Iterable[{message}]{f' | AsyncIterable[{message}]' if is_async else ''}"
            parameters, argument = [f"requests: {kinds}", "*"], "requests"
        elif operation.request.full_name == HTTP_BODY:
            parameters, argument = ["body: HttpBody", "*"], "body"
        else:
            parameters, argument = ["*", *map(self._parameter, fields)], self._argument(operation, message, fields)
        parameters.append(f"{limit}: float | None = None")
        response = self._response(operation)
        result = f"{'Async' if is_async else ''}Iterator[{response}]" if method.server_streaming else response
        kind = {(0, 0): "call", (0, 1): "stream", (1, 0): "upload", (1, 1): "exchange"}[
            streams, method.server_streaming
        ]
        wait = "await " if is_async and not method.server_streaming else ""
        call = f"{wait}self._connection.{kind}(_ROUTES[{json.dumps(method.path)}], {argument}, {limit})"
        body = f"        {call}\n" if result == "None" else f"        found: {result} = {call}\n        return found\n"
        about = _docstring(
            [*method.comment.splitlines(), *([""] if method.comment else []), f"{operation.route}"], "        "
        )
        head = f"    {'async ' if wait else ''}def {name}(self, {', '.join(parameters)}) -> {result}:\n"
        return f"{head}{about}{body}"

    def _parameter(self, field: FieldDescriptor) -> str:
        default = self._default(field)
        kind = self._type(field)
        if default in ("[]", "{}"):
            shape = kind.replace("list[", "Sequence[", 1) if default == "[]" else kind.replace("dict[", "Mapping[", 1)
            return f"{_attribute(field)}: {shape} = {'()' if default == '[]' else '{}'}"
        return f"{_attribute(field)}: {kind}{f' = {default}' if default else ''}"

    def _argument(self, operation: Operation, message: str, fields: list[FieldDescriptor]) -> str:
        if operation.request.full_name == EMPTY:
            return "HttpBody()"
        arguments = []
        for field in fields:
            name = _attribute(field)
            kind = self._type(field)
            copied = kind.startswith(("list[", "dict["))
            arguments.append(f"{name}={f'{kind[:4]}({name})' if copied and field.is_repeated else name}")
        return f"{message}({', '.join(arguments)})"

    def _response(self, operation: Operation) -> str:
        if operation.receives_nothing:
            return "None"
        if operation.receives_bytes:
            return "bytes" if operation.method.server_streaming else "HttpBody"
        field = operation.response_field
        return self._message_type(operation.response) if field is None else self._type(field)

    def _root(self, *, is_async: bool) -> str:
        prefix = "Async" if is_async else ""
        names = function_names([service.name for service in self._api.services])
        taken = ("token", "close", "aclose")
        made = "".join(
            f"        self.{name}{'_' if name in taken else ''} = {prefix}{service}Service(self._connection)\n"
            for service, name in names.items()
        )
        values = {
            "prefix": prefix, "services": made, "title": "Asynchronous client" if is_async else "Client",
            "returns": "Awaitable[str | None]" if is_async else "str | None", "a": "a" if is_async else "",
            "def": "async def" if is_async else "def", "wait": "await " if is_async else "",
        }  # fmt: skip
        return Template(_ROOT).substitute(values)


def _scalar(field: FieldDescriptor) -> str:
    if field.type == FieldDescriptor.TYPE_BYTES:
        return "bytes"
    if field.type in _FLOATS:
        return "float"
    if field.type == FieldDescriptor.TYPE_BOOL:
        return "bool"
    return "str" if field.cpp_type == FieldDescriptor.CPPTYPE_STRING else "int"


def _attribute(field: FieldDescriptor) -> str:
    return _member(field.name)


def _member(name: str) -> str:
    if name.startswith("__"):  # Python changes such names in a class, or they mean something to it
        return f"{name.strip('_')}_"
    return f"{name}_" if name in _SHADOWING else escaped(name)


def _part(part: str | PathVariable) -> str:
    if isinstance(part, str):
        return json.dumps(part)
    return f"(({''.join(f'{json.dumps(name)}, ' for name in part.field).rstrip()}), {part.multi})"


def _docstring(lines: list[str], indent: str) -> str:
    """Return a docstring with its line break."""
    text = "\n".join(lines).replace("\\", "\\\\").replace('"""', '\\"\\"\\"').strip()
    if text.endswith('"'):
        text += " "
    first, *rest = text.splitlines()
    if not rest:
        return f'{indent}"""{first}"""\n'
    body = "".join(f"{indent}{line}".rstrip() + "\n" for line in rest)
    return f'{indent}"""{first}\n{body}{indent}"""\n'
