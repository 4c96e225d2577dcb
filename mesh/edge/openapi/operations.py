"""Routes of the contract → OpenAPI operations: parameters, request body, answers, who may call. Pure.

The parameters are those of ``mesh.edge.parameters``, by which the edge reads them.

Sources: OpenAPI 3.1, google/api/http.proto, AIP-127.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from google.protobuf.descriptor import FieldDescriptor

from mesh.contract.model import Access, Method, Route
from mesh.edge.openapi import comments, responses
from mesh.edge.openapi.paths import PathTemplate
from mesh.edge.openapi.schemas import Schema, Schemas
from mesh.edge.parameters import Parameters

__all__ = ["BEARER", "Operations"]

BEARER = "bearer"
"""The name of the security scheme."""

JSON, NDJSON, EVENTS = "application/json", "application/x-ndjson", "text/event-stream"
PROTOBUF = "application/x-protobuf"

_HTTP_BODY = "google.api.HttpBody"
_EMPTY = frozenset((204, 205))
"""Statuses of an answer without a body (RFC 9110, 15.3.5 and 15.3.6)."""
_STATUS: Schema = {"$ref": f"#/components/schemas/{responses.STATUS}"}
_FAILED: Schema = {
    "type": "object",
    "description": "The last item of a stream that failed after it had begun.",
    "properties": {"error": _STATUS},
    "required": ["error"],
    "additionalProperties": False,
}

_VERBS = frozenset(("GET", "PUT", "POST", "DELETE", "OPTIONS", "HEAD", "PATCH", "TRACE"))
_ANY_VERB = ("GET", "PUT", "POST", "DELETE", "PATCH")
"""What is written down for a route of any verb."""


class Operations:
    """Collects the path items of a document.

    Args:
        schemas: Makes the schemas; they end below ``components``.

    Attributes:
        paths: The Paths Object.
        others: Routes that OpenAPI 3.1 has no place for (custom HTTP methods; two templates that are one path to it):
            operations with ``method`` and ``path``.
    """

    def __init__(self, schemas: Schemas) -> None:
        self.paths: dict[str, dict[str, Any]] = {}
        self.others: list[dict[str, Any]] = []
        self._schemas = schemas
        self._known: dict[Any, PathTemplate] = {}
        self._ids: set[str] = set()

    def add(self, methods: Sequence[tuple[Method, str]]) -> None:
        """Add all routes of all methods, those of any verb last: one that names the verb is the more specific one.

        Args:
            methods: The methods, each with what its operation ids begin with.
        """
        for any_verb in (False, True):
            for method, prefix in methods:
                self._add(method, [one for one in method.routes if (one.verb == "*") is any_verb], prefix)

    def _add(self, method: Method, routes: Iterable[Route], prefix: str) -> None:
        for route in routes:
            path = PathTemplate.of(route.template)
            first = self._known.setdefault(path.shape, path)
            path.rename(first)
            item = self.paths.get(path.text, {})
            for verb in _ANY_VERB if route.verb == "*" else (route.verb,):
                free = verb.lower() not in item
                if route.verb == "*" and not free:
                    continue
                operation = self._operation(method, route, path, prefix)
                if verb in _VERBS and free:
                    self.paths.setdefault(path.text, item)[verb.lower()] = operation
                else:
                    self.others.append({"method": verb, "path": path.text, **operation})

    def _id(self, name: str) -> str:
        found, number = name, 1
        while found in self._ids:
            number += 1
            found = f"{name}_{number}"
        self._ids.add(found)
        return found

    def _operation(self, method: Method, route: Route, path: PathTemplate, prefix: str) -> dict[str, Any]:
        made: dict[str, Any] = {
            "operationId": self._id(f"{prefix}_{method.name}"),
            "tags": [method.service],
        }
        summary, rest = comments.headline(method.comment)
        if summary:
            made["summary"] = summary
        description = "\n\n".join([*([rest] if rest else []), *_notes(method)])
        if description:
            made["description"] = description
        if method.gateway is not None:
            return made | _of_function(method, route, path)
        parameters = [*self._path(method, path), *self._query(method, route)]
        if parameters:
            made["parameters"] = parameters
        body = self._body(method, route)
        if body is not None:
            made["requestBody"] = body
        made["responses"] = {
            str(method.success_status): self._answer(method, route),
            **responses.refusals(body=body is not None),
        }
        made["security"] = [] if method.access is Access.PUBLIC else _security(method)
        if _deprecated(method):
            made["deprecated"] = True
        return made

    # -- parameters --

    def _path(self, method: Method, path: PathTemplate) -> Iterator[dict[str, Any]]:
        descriptor: Any = method.input.DESCRIPTOR
        for parameter in path.parameters:
            variable = parameter.variable
            comment = pattern = ""
            if variable is not None:
                comment = self._schemas.comment(_leaf(descriptor, variable.field))
                pattern = path.pattern(variable)
            yield parameter.of(lambda names: self._schemas.text(_leaf(descriptor, names)), comment, pattern)

    def _query(self, method: Method, route: Route) -> Iterator[dict[str, Any]]:
        if method.client_streaming:
            return
        for name, fields in Parameters(method, route).offered():
            field = fields[-1]
            made: dict[str, Any] = {"name": name, "in": "query"}
            if all(self._schemas.required(one) for one in fields):
                made["required"] = True
            notes = [self._schemas.comment(field), *(self._schemas.choice(one) for one in fields)]
            if any(notes):
                made["description"] = "\n\n".join(note for note in notes if note)
            if field.GetOptions().deprecated:
                made["deprecated"] = True
            made["schema"] = self._schemas.text(field)
            yield made

    # -- bodies --

    def _body(self, method: Method, route: Route) -> dict[str, Any] | None:
        descriptor: Any = method.input.DESCRIPTOR
        if method.client_streaming:
            return self._requests(descriptor)
        if not route.body:
            return None
        field: FieldDescriptor | None = None
        if route.body != "*":
            field = descriptor.fields_by_name[route.body]
        holder = descriptor if field is None else field.message_type
        if holder is not None and holder.full_name == _HTTP_BODY and not (field is not None and field.is_repeated):
            return {"description": "Bytes of any media type.", "content": {"*/*": {"schema": {}}}}
        paths = [variable.field for variable in route.template.variables]
        if field is None:
            schema = self._schemas.message(descriptor, paths)
            needed = self._schemas.asks(schema)
        else:
            schema = self._schemas.field(field, [path[1:] for path in paths if path[0] == field.name])
            needed = self._schemas.required(field) and (
                not any(path[0] == field.name for path in paths) or self._schemas.asks(schema)
            )
        made: dict[str, Any] = {"content": _one(schema, holder, field)}
        if field is None and paths:
            made["description"] = " and ".join(f"`{'.'.join(path)}`" for path in paths) + ": what the path says wins."
        if needed:
            made["required"] = True
        return made

    def _answer(self, method: Method, route: Route) -> dict[str, Any]:
        descriptor: Any = method.output.DESCRIPTOR
        field: FieldDescriptor | None = None
        if route.response_body:
            field = descriptor.fields_by_name[route.response_body]
        holder = descriptor if field is None else field.message_type
        comment = self._schemas.comment(field) if field is not None else self._schemas.said(descriptor)
        made: dict[str, Any] = {"description": comment or "Done.", "headers": responses.headers(responses.TRACE)}
        if method.success_status in _EMPTY:
            return made
        if holder is not None and holder.full_name == _HTTP_BODY and not (field is not None and field.is_repeated):
            made["content"] = {"*/*": {"schema": {}}}
            return made
        schema = self._schemas.message(descriptor) if field is None else self._schemas.answer(field)
        if method.server_streaming:
            made["content"] = {
                JSON: {"schema": {"type": "array", "items": {"anyOf": [schema, _FAILED]}}},
                NDJSON: {"schema": _lines({"anyOf": [schema, _FAILED]})},
                EVENTS: {"schema": _events({"anyOf": [schema, _STATUS]})},
            }
        else:
            made["content"] = _one(schema, holder, field)
        return made

    def _requests(self, descriptor: Any) -> dict[str, Any]:
        if descriptor.full_name == _HTTP_BODY:
            return {"description": "Bytes of any media type.", "content": {"*/*": {"schema": {}}}}
        schema = self._schemas.message(descriptor)
        return {
            "description": "The requests, each read as it comes. The same path takes a WebSocket.",
            "content": {
                NDJSON: {"schema": _lines(schema)},
                JSON: {"schema": {"type": "array", "items": schema}},
            },
        }


def _of_function(method: Method, route: Route, path: PathTemplate) -> dict[str, Any]:
    """Return what is known of a Lambda function's operation: it takes and answers whatever it likes."""
    said: dict[str, Any] = {
        "parameters": [
            one.of(lambda _: {"type": "string"}, "", path.pattern(one.variable))
            for one in path.parameters
            if one.variable is not None
        ],
        "responses": {"default": {"description": "What the function answers.", "content": {"*/*": {"schema": {}}}}},
        "security": [] if method.access is Access.PUBLIC else _security(method),
    }
    if route.verb in ("POST", "PUT", "PATCH"):
        said["requestBody"] = {"content": {"*/*": {"schema": {}}}}
    return said


def _notes(method: Method) -> Iterator[str]:
    if method.roles:
        yield f"Only for users with the role {' or '.join(f'`{role}`' for role in sorted(method.roles))}."
    if method.server_streaming:
        yield (
            "The answer is a stream, each item sent as it comes: a JSON array, or by `accept` newline-delimited JSON "
            "or server-sent events. If it fails after it has begun, its last item is `error` with the status, of "
            "server-sent events the event `error`."
        )
    if method.client_streaming and method.server_streaming:
        yield "It answers while requests still come in; from a browser, use a WebSocket."


def _security(method: Method) -> list[dict[str, list[str]]]:
    """Return one requirement for each role that will do."""
    return [{BEARER: [role]} for role in sorted(method.roles)] or [{BEARER: []}]


def _deprecated(method: Method) -> bool:
    pool: Any = method.input.DESCRIPTOR.file.pool
    service = pool.FindServiceByName(method.service)
    options = (service.GetOptions(), service.methods_by_name[method.name].GetOptions())
    return any(one.deprecated for one in options)


def _one(schema: Schema, holder: Any, field: FieldDescriptor | None) -> dict[str, Any]:
    """Return the content of a body that is one value; a message may be sent serialized too."""
    content: dict[str, Any] = {JSON: {"schema": schema}}
    if holder is not None and not (field is not None and field.is_repeated):
        content[PROTOBUF] = {"schema": {"description": f"A serialized `{holder.full_name}`."}}
    return content


def _lines(item: Schema) -> Schema:
    return {
        "type": "string",
        "description": "One item a line, as JSON.",
        "contentMediaType": NDJSON,
        "contentSchema": item,
    }


def _events(item: Schema) -> Schema:
    return {
        "type": "string",
        "description": "One event an item; its `data` is the item as JSON.",
        "contentMediaType": EVENTS,
        "contentSchema": item,
    }


def _leaf(descriptor: Any, path: tuple[str, ...]) -> FieldDescriptor:
    *parents, last = path  # the contract was checked: they are there
    for parent in parents:
        descriptor = descriptor.fields_by_name[parent].message_type
    found: FieldDescriptor = descriptor.fields_by_name[last]
    return found
