"""OpenAPI operations of the contract's routes: parameters, request body, responses, security. Pure.

The query parameters come from ``mesh.edge.parameters``, by which the edge reads them too.

Sources: OpenAPI 3.1, google/api/http.proto, AIP-127.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from google.protobuf.descriptor import FieldDescriptor

from mesh.contract.model import Access, Method, Route
from mesh.edge.openapi import comments, responses
from mesh.edge.openapi.lambda_operations import LambdaOperations
from mesh.edge.openapi.paths import PathTemplate
from mesh.edge.openapi.schemas import Schema, Schemas
from mesh.edge.parameters import Parameters
from mesh.media_types import EVENT_STREAM, JSON, NDJSON, PROTOBUF

__all__ = ["API_KEY", "BEARER", "Operations"]

BEARER = "bearer"
API_KEY = "apiKey"
"""Name of the security scheme."""

_HTTP_BODY = "google.api.HttpBody"
_ANY_CONTENT: dict[str, Any] = {"content": {"*/*": {"schema": {}}}}
_ANY_BYTES: dict[str, Any] = {"description": "Bytes of any media type.", **_ANY_CONTENT}
_NO_CONTENT = frozenset((204, 205))
"""Statuses of a response without a body (RFC 9110, 15.3.5 and 15.3.6)."""
_STATUS: Schema = {"$ref": f"#/components/schemas/{responses.STATUS}"}
_STREAM_ERROR: Schema = {
    "type": "object",
    "description": "The last item of a stream that failed after it had started.",
    "properties": {"error": _STATUS},
    "required": ["error"],
    "additionalProperties": False,
}

_VERBS = frozenset(("GET", "PUT", "POST", "DELETE", "OPTIONS", "HEAD", "PATCH", "TRACE"))
"""HTTP methods that a Path Item Object has keys for."""
_ANY_VERB = ("GET", "PUT", "POST", "DELETE", "PATCH")
"""HTTP methods under which a route of any HTTP method is listed."""


class Operations:
    """Path items of a document.

    Args:
        schemas: The schemas of the document; those that the operations refer to are added.

    Attributes:
        paths: The Paths Object.
        others: Operations, with ``method`` and ``path``, of routes that the Paths Object cannot hold: custom HTTP
            methods, and templates whose path and HTTP method another route has already.
        lambdas: What the documents of Lambda functions say of their operations.
    """

    def __init__(self, schemas: Schemas) -> None:
        self.paths: dict[str, dict[str, Any]] = {}
        self.others: list[dict[str, Any]] = []
        self.lambdas = LambdaOperations()
        self._schemas = schemas
        self._template_of_shape: dict[Any, PathTemplate] = {}
        self._ids: set[str] = set()
        self._own_ids: list[tuple[dict[str, Any], str]] = []

    def add(self, methods: Sequence[tuple[Method, str]]) -> None:
        """Add the routes of methods; those of any HTTP method last, because routes that name one take precedence.

        Args:
            methods: The methods, each with the prefix of its operation ids.
        """
        for any_verb in (False, True):
            for method, prefix in methods:
                self._add(method, [route for route in method.routes if (route.verb == "*") is any_verb], prefix)
        for operation, name in self._own_ids:  # last, so that those of the contract do not change
            operation["operationId"] = self._unique_id(name)
        self._own_ids.clear()

    def _add(self, method: Method, routes: Iterable[Route], prefix: str) -> None:
        for route in routes:
            path = PathTemplate.of(route.template)
            first = self._template_of_shape.setdefault(path.shape, path)
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

    def _unique_id(self, name: str) -> str:
        unique, number = name, 1
        while unique in self._ids:
            number += 1
            unique = f"{name}_{number}"
        self._ids.add(unique)
        return unique

    def _operation(self, method: Method, route: Route, path: PathTemplate, prefix: str) -> dict[str, Any]:
        own = self.lambdas.described(method, route)
        made: dict[str, Any] = {"operationId": "", "tags": own.get("tags", [method.service])}
        if "operationId" in own:
            self._own_ids.append((made, own["operationId"]))
        else:
            made["operationId"] = self._unique_id(f"{prefix}_{method.name}")
        summary, rest = comments.headline(method.comment)
        summary, rest = own.get("summary", summary), own.get("description", rest)
        if summary:
            made["summary"] = summary
        description = "\n\n".join([*([rest] if rest else []), *_notes(method)])
        if description:
            made["description"] = description
        if method.gateway is not None:
            made |= {key: own[key] for key in ("externalDocs", "deprecated") if key in own}
            made |= self.lambdas.body(method, route, path)
            made["security"] = [] if method.access is Access.PUBLIC else _security(method)
            return made
        parameters = [*self._path_parameters(method, path), *self._query_parameters(method, route)]
        if parameters:
            made["parameters"] = parameters
        body = self._request_body(method, route)
        if body is not None:
            made["requestBody"] = body
        made["responses"] = {
            str(method.success_status): self._success_response(method, route),
            **responses.error_responses(body=body is not None),
        }
        made["security"] = [] if method.access is Access.PUBLIC else _security(method)
        if _deprecated(method):
            made["deprecated"] = True
        return made

    # -- parameters --

    def _path_parameters(self, method: Method, path: PathTemplate) -> Iterator[dict[str, Any]]:
        descriptor: Any = method.input.DESCRIPTOR
        for parameter in path.parameters:
            variable = parameter.variable
            comment = pattern = ""
            if variable is not None:
                comment = self._schemas.comment(_leaf(descriptor, variable.field))
                pattern = path.pattern(variable)
            yield parameter.to_object(lambda names: self._schemas.text(_leaf(descriptor, names)), comment, pattern)

    def _query_parameters(self, method: Method, route: Route) -> Iterator[dict[str, Any]]:
        if method.client_streaming:
            return
        for name, fields in Parameters(method, route).offered():
            field = fields[-1]
            if any(map(self._schemas.output_only, fields)):
                continue
            made: dict[str, Any] = {"name": name, "in": "query"}
            if all(self._schemas.required(part) for part in fields):
                made["required"] = True
            notes = [self._schemas.comment(field), *(self._schemas.oneof_note(part) for part in fields)]
            if any(notes):
                made["description"] = "\n\n".join(note for note in notes if note)
            if field.GetOptions().deprecated:
                made["deprecated"] = True
            made["schema"] = self._schemas.text(field)
            yield made

    # -- bodies --

    def _request_body(self, method: Method, route: Route) -> dict[str, Any] | None:
        descriptor: Any = method.input.DESCRIPTOR
        if method.client_streaming:
            return self._request_stream(descriptor)
        if not route.body:
            return None
        field: FieldDescriptor | None = None
        if route.body != "*":
            field = descriptor.fields_by_name[route.body]
        message = _message_of(descriptor, field)
        if message is not None and message.full_name == _HTTP_BODY:
            return dict(_ANY_BYTES)
        paths = [variable.field for variable in route.template.variables]
        if field is None:
            schema = self._schemas.requests.message(descriptor, paths)
            required = self._schemas.requires_fields(schema)
        else:
            schema = self._schemas.requests.body(field, [path[1:] for path in paths if path[0] == field.name])
            required = self._schemas.required(field) and (
                not any(path[0] == field.name for path in paths) or self._schemas.requires_fields(schema)
            )
        made: dict[str, Any] = {"content": _content(schema, message)}
        if field is None and paths:
            names = " and ".join(f"`{'.'.join(path)}`" for path in paths)
            made["description"] = f"The path sets {names}; values in the body are ignored."
        if required:
            made["required"] = True
        return made

    def _success_response(self, method: Method, route: Route) -> dict[str, Any]:
        descriptor: Any = method.output.DESCRIPTOR
        field: FieldDescriptor | None = None
        if route.response_body:
            field = descriptor.fields_by_name[route.response_body]
        message = _message_of(descriptor, field)
        comment = self._schemas.comment(field) if field is not None else self._schemas.message_comment(descriptor)
        made: dict[str, Any] = {"description": comment or "Success.", "headers": responses.headers(responses.TRACE)}
        if method.success_status in _NO_CONTENT:
            return made
        if message is not None and message.full_name == _HTTP_BODY:
            made["content"] = _ANY_BYTES["content"]
            return made
        schema = self._schemas.message(descriptor) if field is None else self._schemas.response(field)
        if method.server_streaming:
            made["content"] = {
                JSON: {"schema": {"type": "array", "items": {"anyOf": [schema, _STREAM_ERROR]}}},
                NDJSON: {"schema": _lines({"anyOf": [schema, _STREAM_ERROR]})},
                EVENT_STREAM: {"schema": _events({"anyOf": [schema, _STATUS]})},
            }
        else:
            made["content"] = _content(schema, message)
        return made

    def _request_stream(self, descriptor: Any) -> dict[str, Any]:
        if descriptor.full_name == _HTTP_BODY:
            return dict(_ANY_BYTES)
        schema = self._schemas.requests.message(descriptor)
        return {
            "description": "The request messages; each is read as soon as it arrives. A WebSocket is accepted too.",
            "content": {
                NDJSON: {"schema": _lines(schema)},
                JSON: {"schema": {"type": "array", "items": schema}},
            },
        }


def _notes(method: Method) -> Iterator[str]:
    if method.roles:
        yield f"Only for users with the role {' or '.join(f'`{role}`' for role in sorted(method.roles))}."
    if method.access is Access.KEY:
        scopes = " and ".join(f"`{scope}`" for scope in sorted(method.scopes))
        yield f"Only for API keys{f' with the scope {scopes}' if scopes else ''}."
    if method.server_streaming:
        yield (
            "The response is a stream: a JSON array, or by `accept` newline-delimited JSON or server-sent events. Each "
            "item is sent as soon as it is ready. If the stream fails after it has started, its last item is `error` "
            "with the status; with server-sent events it is the event `error`."
        )
    if method.client_streaming and method.server_streaming:
        yield "Responses are sent while requests still arrive; from a browser, use a WebSocket."


def _security(method: Method) -> list[dict[str, list[str]]]:
    """Return one security requirement for each role that may call the method, or the one of an API key."""
    if method.access is Access.KEY:
        return [{API_KEY: sorted(method.scopes)}]
    return [{BEARER: [role]} for role in sorted(method.roles)] or [{BEARER: []}]


def _deprecated(method: Method) -> bool:
    pool: Any = method.input.DESCRIPTOR.file.pool
    service = pool.FindServiceByName(method.service)
    options = (service.GetOptions(), service.methods_by_name[method.name].GetOptions())
    return any(option.deprecated for option in options)


def _message_of(descriptor: Any, field: FieldDescriptor | None) -> Any:
    """Return the type of a body that is one message, the whole one or a field of it; None for other bodies."""
    if field is None:
        return descriptor
    return None if field.is_repeated else field.message_type


def _content(schema: Schema, message: Any) -> dict[str, Any]:
    """Return the content of a body that is one value; a message may be sent serialized too."""
    content: dict[str, Any] = {JSON: {"schema": schema}}
    if message is not None:
        content[PROTOBUF] = {"schema": {"description": f"A serialized `{message.full_name}`."}}
    return content


def _lines(item: Schema) -> Schema:
    return {
        "type": "string",
        "description": "One line for each item, as JSON.",
        "contentMediaType": NDJSON,
        "contentSchema": item,
    }


def _events(item: Schema) -> Schema:
    return {
        "type": "string",
        "description": "One event for each item; its `data` is the item as JSON.",
        "contentMediaType": EVENT_STREAM,
        "contentSchema": item,
    }


def _leaf(descriptor: Any, path: tuple[str, ...]) -> FieldDescriptor:
    *parents, last = path  # the loader has checked that the fields exist
    for parent in parents:
        descriptor = descriptor.fields_by_name[parent].message_type
    found: FieldDescriptor = descriptor.fields_by_name[last]
    return found
