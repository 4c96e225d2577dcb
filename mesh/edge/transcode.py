"""One HTTP route ⇄ one gRPC method: path, query and body → request message; response message → JSON.

Compiled for each route when the edge starts. Every field comes from one place: the path, else the body, else the query.
Sources: google/api/http.proto ("Rules for HTTP mapping"), AIP-127, https://protobuf.dev/programming-guides/json/.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote_to_bytes

import orjson
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError, EncodeError

from mesh.contract import Method, Route
from mesh.edge.negotiate import Form
from mesh.errors import InvalidArgument
from mesh.jsoncodec import BadValue, Codecs, JsonError, JsonSyntaxError, loads, text_setter
from mesh.messages import descriptor_of, has_field, merge, parser, serialize, which_oneof

__all__ = ["Transcoder"]

Setter = Callable[[Any, str], None]

HTTP_BODY = "google.api.HttpBody"

_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_KNOWN_PARAMETERS = 256
"""Query parameter names that one route remembers; a recursive message has no end of them."""

_DEEP = 100
"""Names in one field path; protobuf reads no message that is nested deeper."""

_SHALLOW = 32
"""Levels of JSON that stay within the 100 of messages that protobuf reads; ``Value`` takes up to three for one."""


class _Parameter:
    """One leaf field that text can set.

    Attributes:
        name: Its path by proto names.
        parents: Names of the messages on the way to it.
        choices: The oneofs that it and the messages on the way are members of: the names on the way to the message that
            has the oneof, the oneof, the member.
    """

    __slots__ = ("choices", "field", "name", "parents", "setter")

    def __init__(self, fields: list[FieldDescriptor], setter: Setter) -> None:
        names = tuple(field.name for field in fields)
        self.name = ".".join(names)
        self.parents = names[:-1]
        self.field = fields[-1]
        self.setter = setter
        self.choices = [
            (names[:depth], field.containing_oneof.name, field.name)
            for depth, field in enumerate(fields)
            if field.containing_oneof is not None and len(field.containing_oneof.fields) > 1
        ]

    def set(self, message: Any, text: str) -> None:
        """Set the field, or add an element to it.

        Raises:
            BadValue: The text does not fit.
        """
        for parent in self.parents:
            message = getattr(message, parent)
        self.setter(message, text)

    def rival(self, message: Any) -> tuple[str, str] | None:
        """Return a oneof of which another member than this field is set, and that member; None if there is none."""
        for parents, oneof, member in self.choices:
            at = message
            for parent in parents:
                at = getattr(at, parent)
            other = which_oneof(at, oneof)
            if other is not None and other != member:
                return oneof, other
        return None


class Transcoder:
    """Translates the requests and responses of one route.

    Args:
        method: The method.
        route: One of its routes.
        codecs: The JSON codecs, with their options.

    Attributes:
        method: The method.
        template: The route's path template as text.
        has_body: Whether the route takes a body.
        takes_media: The body is a ``google.api.HttpBody``: any media type.
        takes_protobuf: The body can be a serialized message.
        gives_media: The answer is a ``google.api.HttpBody``.
        gives_protobuf: The answer can be a serialized message.
    """

    def __init__(self, method: Method, route: Route, codecs: Codecs) -> None:
        self.method = method
        self.template = route.template.text
        self.has_body = bool(route.body)
        self._input = method.input
        self._descriptor: Any = method.input.DESCRIPTOR
        self._body = route.body
        self._fill_body: Callable[[Any, Any], None] | None = None
        self._body_name = ""
        body_type: Any = None
        if route.body and route.body != "*":
            field = self._descriptor.fields_by_name[route.body]
            self._body_name = field.json_name
            self._fill_body = codecs.field(field)[0]
            body_type = None if field.is_repeated else field.message_type
        elif route.body or method.client_streaming:  # the frames of a WebSocket are messages whatever the route says
            self._fill_body = codecs.of(method.input).fill
            body_type = self._descriptor
        self.takes_protobuf = body_type is not None
        self.takes_media = body_type is not None and body_type.full_name == HTTP_BODY
        self._variables = [self._variable(variable.field) for variable in route.template.variables]
        self._bound = {parameter.name for parameter in self._variables}
        self._chosen = {
            (parents, oneof): member for variable in self._variables for parents, oneof, member in variable.choices
        }
        self._parameters: dict[str, _Parameter | None] = {}
        self._output: Any = method.output
        self._parse = parser(method.output)
        self._codecs = codecs
        self._response_body = route.response_body
        answer_type: Any = method.output.DESCRIPTOR
        if route.response_body:
            field = answer_type.fields_by_name[route.response_body]
            answer_type = None if field.is_repeated else field.message_type
        self.gives_protobuf = answer_type is not None
        self.gives_media = answer_type is not None and answer_type.full_name == HTTP_BODY
        self._dump = self._dumper(codecs)
        self._dump_numbers: Callable[[Any], Any] | None = None

    def _dumper(self, codecs: Codecs) -> Callable[[Any], Any]:
        if not self._response_body:
            return codecs.of(self.method.output).dump
        return _field_dump(self._output.DESCRIPTOR.fields_by_name[self._response_body], codecs)

    def _variable(self, path: tuple[str, ...]) -> _Parameter:
        parameter = _resolve(self._descriptor, path)
        assert parameter is not None  # noqa: S101 - the contract was checked: a path names fields that text can set
        return parameter

    # -- requests --

    def request(
        self,
        values: tuple[str, ...] | None,
        query: bytes,
        body: bytes,
        form: Form = Form.JSON,
        kind: bytes = b"",
    ) -> bytes:
        """Return the serialized request message.

        Args:
            values: Decoded texts of the path variables, in their order; None for a message of a stream after the
                first, which has the body alone.
            query: The raw query.
            body: The body; empty for none.
            form: How the body is written.
            kind: Its ``content-type``, for ``Form.MEDIA``.

        Raises:
            InvalidArgument: With the field and what was expected.
        """
        message: Any = self._input()
        if form is not Form.JSON:
            self._read_bytes(message, body, form, kind)
        elif body and self._fill_body is not None:
            self._read_body(message, body)
        if query:
            self._read_query(message, query)
        if values is not None:
            for parameter, text in zip(self._variables, values, strict=True):
                try:
                    parameter.set(message, text)
                except BadValue as error:
                    raise _invalid(parameter.name, error.text, f"{parameter.name} in the path") from None
        try:
            data = serialize(message)
            if (form is Form.JSON and body.count(b"{") + body.count(b"[") > _SHALLOW) or query.count(b".") > _SHALLOW:
                parser(self._input)(data)  # a message that its receiver cannot read is the client's fault
        except (EncodeError, DecodeError):
            raise InvalidArgument("the request is nested too deeply, or lacks a required field") from None
        return data

    def _read_bytes(self, message: Any, body: bytes, form: Form, kind: bytes) -> None:
        target = getattr(message, self._body) if self._body_name else message
        if form is Form.MEDIA:
            target.content_type = kind.decode("latin-1")
            target.data = body
            return
        try:
            merge(target, body)
        except DecodeError:
            name = descriptor_of(target).full_name
            raise InvalidArgument(f"the body is not a serialized {name}") from None

    def _read_body(self, message: Any, body: bytes) -> None:
        try:
            value = loads(body)
        except JsonSyntaxError as error:
            raise InvalidArgument(
                f"the body is not valid JSON: {error.text} (line {error.line}, column {error.column})"
            ) from None
        try:
            self._fill_body(message, value)  # type: ignore[misc]
        except BadValue as error:
            if self._body_name:
                error.path.append(self._body_name)
            wrong = JsonError.of(error)
            raise _invalid(wrong.path, wrong.text, wrong.path or "the body") from None

    def _read_query(self, message: Any, query: bytes) -> None:
        seen: set[str] = set()
        for pair in query.split(b"&"):
            if not pair:
                continue
            raw_name, _, raw_value = pair.partition(b"=")
            name, value = _text(raw_name), _text(raw_value)
            if name.startswith("$"):  # system parameters such as $alt: none of ours
                continue
            parameter = self._parameter(name)
            if not parameter.field.is_repeated:
                if parameter.name in seen:
                    raise _invalid(name, "is there twice", f"query parameter {name!r}")
                seen.add(parameter.name)
            rival = parameter.rival(message) if parameter.choices else None
            if rival is not None:
                text = f"only one of {rival[0]!r} can be set, and {rival[1]!r} is"
                raise _invalid(name, text, f"query parameter {name!r}")
            try:
                parameter.set(message, value)
            except BadValue as error:
                raise _invalid(name, error.text, f"query parameter {name!r}") from None

    def _parameter(self, name: str) -> _Parameter:
        known = self._parameters.get(name)
        if known is not None:
            return known
        where = f"query parameter {name!r}"
        if self._body == "*":
            raise _invalid(name, "is not accepted: the whole request stands in the body", where)
        parameter = _resolve(self._descriptor, name.split("."), json=True)
        if parameter is None:
            raise _invalid(name, "is not a field of the request that a query can set", where)
        if any(_overlap(parameter.name, bound) for bound in self._bound):
            raise _invalid(name, "is part of the path already", where)
        if self._body and parameter.name.split(".")[0] == self._body:
            raise _invalid(name, "belongs in the body", where)
        self._check_choice(parameter, name, where)
        if len(self._parameters) < _KNOWN_PARAMETERS:
            self._parameters[name] = parameter
        return parameter

    def _check_choice(self, parameter: _Parameter, name: str, where: str) -> None:
        for parents, oneof, member in parameter.choices:
            other = self._chosen.get((parents, oneof), member)
            if other != member:
                raise _invalid(name, f"only one of {oneof!r} can be set, and {other!r} is part of the path", where)

    # -- responses --

    def response(self, data: bytes, form: Form = Form.JSON, *, numbers: bool = False, pretty: bool = False) -> bytes:
        """Return a serialized response message as text, or for ``Form.PROTOBUF`` as the bytes of what the route gives.

        Args:
            data: The message.
            form: What is wanted; every form but PROTOBUF is JSON here.
            numbers: Enums as numbers.
            pretty: Over several lines.

        Raises:
            mesh.jsoncodec.CannotPrint: It has no JSON form.
            google.protobuf.message.DecodeError: It is no such message.
        """
        if form is Form.PROTOBUF:
            return serialize(self._answer(data)) if self._response_body else data
        dump = self._numbers() if numbers else self._dump
        return orjson.dumps(dump(self._parse(data)), option=orjson.OPT_INDENT_2 if pretty else None)

    def media(self, data: bytes) -> tuple[str, bytes]:
        """Return type and bytes of the ``google.api.HttpBody`` that a response message is or holds."""
        body = self._answer(data)
        return body.content_type, body.data

    def _answer(self, data: bytes) -> Any:
        message = self._parse(data)
        return getattr(message, self._response_body) if self._response_body else message

    def _numbers(self) -> Callable[[Any], Any]:
        if self._dump_numbers is None:
            self._dump_numbers = self._dumper(self._codecs.with_numbers())
        return self._dump_numbers


def _overlap(one: str, other: str) -> bool:
    """Whether two field paths are the same, or one lies in the message that the other names."""
    return one == other or one.startswith(f"{other}.") or other.startswith(f"{one}.")


def _field_dump(field: Any, codecs: Codecs) -> Callable[[Any], Any]:
    """Return message → JSON value of one of its fields; null for what is unset and has no empty form."""
    name = field.name
    dump = codecs.field(field)[1]
    single = field.message_type is not None and not field.is_repeated
    nullable = single and codecs.of_descriptor(field.message_type).wrapped
    if nullable:
        return lambda message: dump(getattr(message, name)) if has_field(message, name) else None
    return lambda message: dump(getattr(message, name))


def _resolve(descriptor: Descriptor, path: tuple[str, ...] | list[str], *, json: bool = False) -> _Parameter | None:
    """Return the leaf field of a path by proto names, or with ``json`` also JSON names; None if text cannot set it."""
    at: Descriptor | None = descriptor
    fields: list[FieldDescriptor] = []
    if len(path) > _DEEP:
        return None
    field: FieldDescriptor | None = None
    for part in path:
        if at is None or (field is not None and field.is_repeated):
            return None
        field = at.fields_by_camelcase_name.get(part) if json else None
        if json and (field is None or field.json_name != part):
            field = next((one for one in at.fields if one.json_name == part), None)
        field = field or at.fields_by_name.get(part)
        if field is None:
            return None
        fields.append(field)
        at = field.message_type
    if field is None:
        return None
    setter = text_setter(field)
    return _Parameter(fields, setter) if setter is not None else None


def _text(raw: bytes) -> str:
    """Return a part of the query decoded (application/x-www-form-urlencoded)."""
    if b"%" in raw:
        if _BAD_ESCAPE.search(raw):
            raise InvalidArgument(
                "the query has a '%' that is not followed by two hexadecimal digits; write '%25' for the sign"
            )
        raw = unquote_to_bytes(raw.replace(b"+", b" "))
    elif b"+" in raw:
        raw = raw.replace(b"+", b" ")
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise InvalidArgument("the query is not UTF-8") from None


def _invalid(field: str, text: str, where: str) -> InvalidArgument:
    return InvalidArgument(f"{where}: {text}", violations={field: text})
