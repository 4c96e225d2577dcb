"""Transcoder of one HTTP route: path, query and body → request message; response message → JSON.

It is compiled for each route when the edge starts. ``mesh.edge.parameters`` decides which fields path and query set.
Sources: google/api/http.proto ("Rules for HTTP mapping"), AIP-127, https://protobuf.dev/programming-guides/json/.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote_to_bytes

import orjson
from google.protobuf.message import DecodeError

from mesh.contract.model import Method, Route
from mesh.edge.http.negotiation import Form
from mesh.edge.parameters import SYSTEM, Parameters, invalid
from mesh.errors import InvalidArgument
from mesh.message_methods import descriptor_of, has_field, merge, parser, serialize
from mesh.protojson.codec import Codecs
from mesh.protojson.names import json_name_of
from mesh.protojson.scalars import BadValue, JsonError
from mesh.protojson.serialized import SAFE_DEPTH, is_deep, serialized
from mesh.protojson.syntax import JsonSyntaxError, loads

__all__ = ["Transcoder"]

HTTP_BODY = "google.api.HttpBody"

_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")


class Transcoder:
    """Transcoder between the requests and responses of one route and messages of its method.

    Args:
        method: The method.
        route: One of its routes.
        codecs: The JSON codecs, with their options.

    Attributes:
        method: The method.
        template: The route's path template as text.
        has_body: Whether the route takes a body.
        takes_media: Whether the body is a ``google.api.HttpBody`` of any media type.
        takes_protobuf: Whether the body can be a serialized message.
        gives_media: Whether the response is a ``google.api.HttpBody``.
        gives_protobuf: Whether the response can be a serialized message.
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
            field: Any = self._descriptor.fields_by_name[route.body]
            self._body_name = json_name_of(field)
            self._fill_body = codecs.field(field)[0]
            body_type = None if field.is_repeated else field.message_type
        elif route.body or method.client_streaming:  # frames of a WebSocket are always messages
            self._fill_body = codecs.of(method.input).fill
            body_type = self._descriptor
        self.takes_protobuf = body_type is not None
        self.takes_media = body_type is not None and body_type.full_name == HTTP_BODY
        self._parameters = Parameters(method, route)
        self._output: Any = method.output
        self._parse = parser(method.output)
        self._codecs = codecs
        self._response_body = route.response_body
        response_type: Any = method.output.DESCRIPTOR
        if route.response_body:
            field = response_type.fields_by_name[route.response_body]
            response_type = None if field.is_repeated else field.message_type
        self.gives_protobuf = response_type is not None
        self.gives_media = response_type is not None and response_type.full_name == HTTP_BODY
        self._dump = self._dumper(codecs)
        self._dump_numbers: Callable[[Any], Any] | None = None

    def _dumper(self, codecs: Codecs) -> Callable[[Any], Any]:
        if not self._response_body:
            return codecs.of(self.method.output).dump
        return _field_dump(self._output.DESCRIPTOR.fields_by_name[self._response_body], codecs)

    # -- requests --

    def request(
        self,
        values: tuple[str, ...] | None,
        query: bytes,
        body: bytes,
        form: Form = Form.JSON,
        content_type: bytes = b"",
    ) -> bytes:
        """Return the serialized request message.

        Args:
            values: Decoded texts of the path variables, in their order; None for the later messages of a stream, which
                are made of the body alone.
            query: The raw query.
            body: The body; empty for none.
            form: Form of the body.
            content_type: ``content-type`` of the body, for ``Form.MEDIA``.

        Raises:
            InvalidArgument: With the field and what was expected.
        """
        message: Any = self._input()
        if form is not Form.JSON:
            self._read_bytes(message, body, form, content_type)
        elif body and self._fill_body is not None:
            self._read_body(message, body)
        if query:
            self._read_query(message, query)
        if values is not None:
            for parameter, text in zip(self._parameters.variables, values, strict=True):
                try:
                    parameter.set(message, text)
                except BadValue as error:
                    raise invalid(parameter.name, error.text, f"{parameter.name} in the path") from None
        return serialized(message, deep=(form is Form.JSON and is_deep(body)) or query.count(b".") > SAFE_DEPTH)

    def _read_bytes(self, message: Any, body: bytes, form: Form, content_type: bytes) -> None:
        target = getattr(message, self._body) if self._body_name else message
        if form is Form.MEDIA:
            target.content_type = content_type.decode("latin-1")
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
            raise invalid(wrong.path, wrong.text, wrong.path or "the body") from None

    def _read_query(self, message: Any, query: bytes) -> None:
        seen: set[str] = set()
        for pair in query.split(b"&"):
            if not pair:
                continue
            raw_name, _, raw_value = pair.partition(b"=")
            name, value = _text(raw_name), _text(raw_value)
            if name in SYSTEM:
                continue
            parameter = self._parameters.find(name)
            if not parameter.field.is_repeated:
                if parameter.name in seen:
                    raise invalid(name, "is given twice", f"query parameter {name!r}")
                seen.add(parameter.name)
            rival = parameter.rival(message) if parameter.choices else None
            if rival is not None:
                text = f"only one of {rival[0]!r} can be set, and {rival[1]!r} is"
                raise invalid(name, text, f"query parameter {name!r}")
            try:
                parameter.set(message, value)
            except BadValue as error:
                raise invalid(name, error.text, f"query parameter {name!r}") from None

    # -- responses --

    def response(self, data: bytes, form: Form = Form.JSON, *, numbers: bool = False, pretty: bool = False) -> bytes:
        """Return the body for a serialized response message: JSON text, or for ``Form.PROTOBUF`` a serialized message.

        Args:
            data: The message.
            form: The form. Every form but PROTOBUF is JSON here.
            numbers: Enums as numbers.
            pretty: JSON over several lines.

        Raises:
            mesh.protojson.wellknown.JsonEncodeError: The message has no JSON form.
            google.protobuf.message.DecodeError: The bytes are no message of this type.
        """
        if form is Form.PROTOBUF:
            return serialize(self._response_value(data)) if self._response_body else data
        dump = self._numbers() if numbers else self._dump
        return orjson.dumps(dump(self._parse(data)), option=orjson.OPT_INDENT_2 if pretty else None)

    def media(self, data: bytes) -> tuple[str, bytes]:
        """Return media type and bytes of the ``google.api.HttpBody`` that a response message is or contains."""
        body = self._response_value(data)
        return body.content_type, body.data

    def _response_value(self, data: bytes) -> Any:
        message = self._parse(data)
        return getattr(message, self._response_body) if self._response_body else message

    def _numbers(self) -> Callable[[Any], Any]:
        if self._dump_numbers is None:
            self._dump_numbers = self._dumper(self._codecs.with_numbers())
        return self._dump_numbers


def _field_dump(field: Any, codecs: Codecs) -> Callable[[Any], Any]:
    """Return a function from message to JSON value of a field: null for an unset field without an empty form."""
    name = field.name
    dump = codecs.field(field)[1]
    single = field.message_type is not None and not field.is_repeated
    nullable = single and codecs.of_descriptor(field.message_type).wrapped
    if nullable:
        return lambda message: dump(getattr(message, name)) if has_field(message, name) else None
    return lambda message: dump(getattr(message, name))


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
