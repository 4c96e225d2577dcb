"""Documents that say which HTTP routes reach a Lambda function: Swagger 2.0, OpenAPI 3, event lists. Pure.

Paths are API Gateway's: a segment is a literal, ``{name}``, or as the last one ``{name+}``, which takes the rest of the
path, at least one segment. ``x-amazon-apigateway-any-method`` is every HTTP method. Operations that API Gateway answers
or forwards without a function (``mock``, ``http``) are none of ours.

Sources: https://swagger.io/specification/v2/, https://spec.openapis.org/oas/v3.1.1.html (Server Object), API Gateway
developer guide ("x-amazon-apigateway-any-method", "x-amazon-apigateway-integration", "resource paths").
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import quote, urlsplit

__all__ = ["ANY", "DocumentError", "HttpRoute", "format_of", "integration_of", "of_events", "of_openapi"]

ANY = "*"
"""Every HTTP method."""

_VERBS = frozenset(("GET", "PUT", "POST", "DELETE", "OPTIONS", "HEAD", "PATCH", "TRACE"))
_ANY_METHOD = "x-amazon-apigateway-any-method"
_INTEGRATION = "x-amazon-apigateway-integration"
_ELSEWHERE = frozenset(("mock", "http", "http_proxy"))
_KINDS: dict[str, Literal["proxy", "event"]] = {"aws_proxy": "proxy", "aws": "event"}
_TYPES = {kind: name for name, kind in _KINDS.items()}
_AS_IT_IS = frozenset(("", "None", "$input.json('$')", '$input.json("$")', "$input.body"))
"""Mapping templates without effect."""
_NAME = re.compile(r"\{([A-Za-z0-9._:-]+)(\+?)\}\Z")
_SAFE = "-._~!$&'()+,;=@"
"""What a literal of a path template may hold unescaped (``mesh.template``)."""


class DocumentError(ValueError):
    """The document does not say routes; the message begins with where."""


@dataclass(frozen=True, slots=True)
class HttpRoute:
    """One route.

    Attributes:
        verb: HTTP method in upper case, or ``ANY``.
        resource: API Gateway's path, ``/users/{user-id}``; what the event says as ``resource``.
        base: What stands before it in the URL, ``""`` or ``/prod``.
        slash: The URL ends with a slash: the root of a base is reached with and without.
    """

    verb: str
    resource: str
    base: str = ""
    slash: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """The names of its path parameters, in order."""
        found = (_NAME.match(segment) for segment in self.resource.split("/"))
        return tuple(match[1] for match in found if match)

    @property
    def template(self) -> str:
        """The path as ``google.api.http`` writes it; its variables are words made of the names."""
        parts: list[str] = []
        taken: set[str] = set()
        for segment in f"{self.base}{self.resource}".strip("/").split("/"):
            match = _NAME.match(segment)
            if match:
                name = re.sub(r"\W", "_", match[1])
                name = name if name.isidentifier() else f"_{name}"
                while name in taken:
                    name += "_"
                taken.add(name)
                parts.append(f"{{{name}=*/**}}" if match[2] else f"{{{name}}}")
            else:
                parts.append(quote(segment, safe=_SAFE))
        return "/" + "/".join(parts) + ("/" if self.slash else "")


def of_openapi(document: Any) -> tuple[HttpRoute, ...]:
    """Return the routes of a Swagger 2.0 or OpenAPI 3 document.

    The URL of a route is the document's base (``basePath``, or the path of the first of ``servers``) and its path.

    Raises:
        DocumentError: It is no such document, or has no path that reaches a function.
    """
    if not isinstance(document, dict) or not ({"swagger", "openapi"} & document.keys()):
        raise DocumentError('expected a Swagger 2.0 or OpenAPI 3 document: an object with "swagger" or "openapi"')
    paths = document.get("paths")
    if not isinstance(paths, dict):
        raise DocumentError("paths: expected an object of paths")
    base = _base(document)
    routes = tuple(route for path, item in paths.items() for route in _path_item(str(path), item, base, document))
    if not routes:
        raise DocumentError("paths: no operation reaches the function")
    return routes


def format_of(document: Any) -> str | None:
    """Return the ``payloadFormatVersion`` that the integrations of an API document say; None when none does.

    Raises:
        DocumentError: They say different ones.
    """
    found: dict[str, str] = {}
    for path, key, operation in _operations(document):
        integration = operation.get(_INTEGRATION)
        said = integration.get("payloadFormatVersion") if isinstance(integration, dict) else None
        if said is not None and not _elsewhere(operation):
            found.setdefault(str(said), f"paths {path} {key}")
    if len(found) > 1:
        places = ", ".join(f"{said!r} at {place}" for said, place in found.items())
        raise DocumentError(f"payloadFormatVersion is {places}; one function gets one: say payload in mesh.toml")
    return next(iter(found), None)


def integration_of(document: Any) -> Literal["proxy", "event"] | None:
    """Return what the handler gets by the types of an API document's integrations; None when none says a type.

    ``aws_proxy`` is ``"proxy"``; ``aws`` is ``"event"``: without mapping templates API Gateway hands the body on as it
    is. Templates (Velocity) are not run here, so a document that needs them is refused.

    Raises:
        DocumentError: They say different ones; one has a mapping template.
    """
    found: dict[Literal["proxy", "event"], str] = {}
    for path, key, operation in _operations(document):
        integration = operation.get(_INTEGRATION)
        kind = _KINDS.get(_type(integration))
        if kind is None:
            continue
        place = f"paths {path} {key}"
        found.setdefault(kind, place)
        if kind == "event" and _mapped(integration):
            raise DocumentError(
                f"{place}: mapping templates are not run here; take them out, and the JSON body with the parameters of "
                'path and query is the event; or say integration = "proxy" in mesh.toml for API Gateway\'s event'
            )
    if len(found) > 1:
        places = ", ".join(f"{_TYPES[kind]!r} at {place}" for kind, place in found.items())
        raise DocumentError(f"the type of integration is {places}; one function gets one: say integration in mesh.toml")
    return next(iter(found), None)


def _mapped(integration: Any) -> bool:
    """Whether requests or responses of an integration are changed by a template that does more than to hand them on."""
    requests, responses = integration.get("requestTemplates"), integration.get("responses")
    said = [requests, *(one.get("responseTemplates") for one in _values(responses) if isinstance(one, dict))]
    return any(re.sub(r"\s", "", str(text)) not in _AS_IT_IS for templates in said for text in _values(templates))


def _values(said: Any) -> list[Any]:
    return list(said.values()) if isinstance(said, dict) else []


def _type(integration: Any) -> str:
    return str(integration.get("type", "")).lower() if isinstance(integration, dict) else ""


def _base(document: dict[str, Any]) -> str:
    if "swagger" in document:
        where, path = "basePath", document.get("basePath", "")
    else:
        servers = document.get("servers") or [{}]
        server = servers[0] if isinstance(servers, list) and isinstance(servers[0], dict) else {}
        where, path = "servers[0].url", _url_path(server)
    if not isinstance(path, str) or "{" in path:
        raise DocumentError(f"{where}: expected a path such as /v1, got {path!r}")
    path = path.rstrip("/")
    return path if not path or path.startswith("/") else f"/{path}"


def _url_path(server: dict[str, Any]) -> str:
    url, variables = str(server.get("url", "")), server.get("variables") or {}
    for name, variable in variables.items() if isinstance(variables, dict) else ():
        default = variable.get("default", "") if isinstance(variable, dict) else ""
        value = str(default)
        # API Gateway exports `{basePath}` after a slash, with a default that begins with one.
        url = url.replace(f"/{{{name}}}", "/" + value.lstrip("/")).replace(f"{{{name}}}", value)
    return urlsplit(url).path


def _operations(document: Any) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield path, key and operation of a document that ``of_openapi`` has read."""
    for path, item in document["paths"].items():
        for key, operation in item.items():
            if (key == _ANY_METHOD or key.upper() in _VERBS) and isinstance(operation, dict):
                yield path, key, operation


def _path_item(path: str, item: Any, base: str, document: dict[str, Any]) -> Iterator[HttpRoute]:
    if not isinstance(item, dict):
        raise DocumentError(f"paths {path}: expected an object of operations")
    resource = _resource(path, f"paths {path}")
    for key, operation in item.items():
        verb = ANY if key == _ANY_METHOD else key.upper()
        if verb != ANY and verb not in _VERBS:
            continue  # `parameters`, `summary` and extensions
        if not isinstance(operation, dict):
            raise DocumentError(f"paths {path} {key}: expected an operation, an object, not {operation!r}")
        if _elsewhere(operation):
            continue
        route = HttpRoute(verb, resource, base)
        for owner, where in ((item, f"paths {path}"), (operation, f"paths {path} {key}")):
            _check_parameters(owner.get("parameters"), route, where, document)
        yield route
        if base and resource == "/":
            yield HttpRoute(verb, resource, base, slash=True)


def _elsewhere(operation: dict[str, Any]) -> bool:
    """Whether API Gateway answers or forwards an operation without a function."""
    return _type(operation.get(_INTEGRATION)) in _ELSEWHERE


def _check_parameters(parameters: Any, route: HttpRoute, where: str, document: dict[str, Any]) -> None:
    """Refuse a parameter that is said to be in the path and is not: its handler would wait for it in vain."""
    for said in parameters if isinstance(parameters, list) else ():
        parameter = _referred(said, document)
        if not isinstance(parameter, dict) or parameter.get("in") != "path":
            continue
        name = str(parameter.get("name", "")).removesuffix("+")
        if name not in route.names:
            there = ", ".join(route.names) or "none"
            raise DocumentError(f"{where}: parameter {name!r} is said to be in the path, which has: {there}")


def _referred(said: Any, document: Any) -> Any:
    """Return what a ``$ref`` within the document names, or what was said."""
    reference = said.get("$ref") if isinstance(said, dict) else None
    if not isinstance(reference, str) or not reference.startswith("#/"):
        return said
    for part in reference[2:].split("/"):
        document = document.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(document, dict) else None
    return document


def of_events(document: Any) -> tuple[HttpRoute, ...]:
    """Return the routes of a function configuration: ``{"events": [{"http": {"method": "get", "path": "/hello"}}]}``.

    ``httpApi`` means the same as ``http``; both may be one text, ``"GET /hello"``, ``*`` or ``any`` for every method.

    Raises:
        DocumentError: It is no such document, or has no such event.
    """
    events = document.get("events") if isinstance(document, dict) else None
    if not isinstance(events, list):
        raise DocumentError('expected an object with "events": [{"http": {"method": …, "path": …}}]')
    routes = tuple(route for index, event in enumerate(events) for route in _http_event(event, f"events[{index}]"))
    if not routes:
        raise DocumentError('events: there is none of the kind {"http": {"method": …, "path": …}}')
    return routes


def _http_event(event: Any, place: str) -> Iterator[HttpRoute]:
    if not isinstance(event, dict):
        raise DocumentError(f"{place}: expected an object such as {{'http': {{…}}}}, got {event!r}")
    for kind in ("http", "httpApi"):
        rule = event.get(kind)
        if rule is None:
            continue
        if isinstance(rule, str):
            verb, _, path = rule.strip().partition(" ")
        elif isinstance(rule, dict):
            verb, path = str(rule.get("method", "any")), str(rule.get("path", ""))
        else:
            raise DocumentError(f"{place}.{kind}: expected an object with method and path")
        verb = verb.upper()
        verb = ANY if verb == "ANY" else verb
        if verb != ANY and verb not in _VERBS:
            raise DocumentError(f"{place}.{kind}.method: expected an HTTP method or 'any', got {verb!r}")
        path = path.strip()
        path = path if path.startswith("/") else f"/{path}"
        yield HttpRoute(verb, _resource(path, f"{place}.{kind}.path"))


def _resource(path: str, place: str) -> str:
    """Return the path without a slash at its end, checked segment by segment."""
    if not path.startswith("/"):
        raise DocumentError(f"{place}: a path begins with '/'")
    path = path.rstrip("/") or "/"
    segments = path[1:].split("/") if path != "/" else []
    for index, segment in enumerate(segments):
        match = _NAME.match(segment)
        if not segment or (match is None and ("{" in segment or "}" in segment)):
            raise DocumentError(f"{place}: a segment is text, {{name}}, or at the end {{name+}}; {segment!r} is not")
        if match and match[2] and index != len(segments) - 1:
            raise DocumentError(f"{place}: {segment} takes the rest of the path, so it must be the last segment")
        if match and segment in segments[:index]:
            raise DocumentError(f"{place}: {segment} is there twice")
    return path
