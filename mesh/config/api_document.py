"""HTTP routes of a Lambda function from API documents: Swagger 2.0 and OpenAPI 3. Pure.

Paths have API Gateway's syntax. A segment is a literal, ``{name}``, or at the end ``{name+}``, which matches the
rest of the path, at least one segment. ``x-amazon-apigateway-any-method`` matches every HTTP method, ``$default`` every
request without another route. Operations that API Gateway answers or forwards without a function (``mock``, ``http``)
are ignored.

Sources: https://swagger.io/specification/v2/, https://spec.openapis.org/oas/v3.1.1.html (Server Object), API Gateway
developer guide ("Create routes for HTTP APIs", "x-amazon-apigateway-any-method", "x-amazon-apigateway-integration",
"x-amazon-apigateway-integrations object").
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal
from urllib.parse import quote, urlsplit

__all__ = [
    "ANY", "BODY", "DEFAULT", "HTTP_1", "HTTP_2", "NO_OVERRIDES", "REST", "URL", "VERBS", "DocumentError", "HttpRoute",
    "Overrides", "of_openapi", "operations_of", "resource_of",
]  # fmt: skip

ANY = "*"
"""Every HTTP method."""
DEFAULT = "$default"
"""Resource of the catch-all route of an HTTP API."""

REST, HTTP_1, HTTP_2, URL, BODY = "rest", "http-1.0", "http-2.0", "url", "body"
"""Event format of a route: REST API (format 1.0), HTTP API in format 1.0 or 2.0, function URL (format 2.0), or the JSON
body itself with the parameters of path and query."""

VERBS = frozenset(("GET", "PUT", "POST", "DELETE", "OPTIONS", "HEAD", "PATCH", "TRACE"))
_ANY_METHOD = "x-amazon-apigateway-any-method"
_INTEGRATION = "x-amazon-apigateway-integration"
_INTEGRATIONS_WITHOUT_FUNCTION = frozenset(("mock", "http", "http_proxy"))
_VERSIONS = {"1": HTTP_1, "1.0": HTTP_1, "2": HTTP_2, "2.0": HTTP_2}
"""``payloadFormatVersion`` → event format. A converter from YAML may write 2.0 as a number."""
_IDENTITY_TEMPLATES = frozenset(("", "None", "$input.json('$')", '$input.json("$")', "$input.body"))
"""Mapping templates that change nothing."""
_NAME = re.compile(r"\{([A-Za-z0-9._:-]+)(\+?)\}\Z")
_SAFE = "-._~!$&'()+,;=@"
"""Characters that a literal of a path template may contain unescaped (``mesh.contract.path_template``)."""


class DocumentError(ValueError):
    """The document defines no valid routes. Each argument is a text that begins with the place of the error."""


@dataclass(frozen=True, slots=True)
class Overrides:
    """Settings of mesh.toml that take precedence over a document.

    Attributes:
        integration: ``"proxy"`` or ``"event"``; None: the document decides.
        payload: ``"1.0"`` or ``"2.0"``; None: the document decides.
        access: Whether mesh.toml sets the access level.
        cors: Whether the edge has CORS origins.
        schedule: Whether mesh.toml sets a schedule.
        subscribes: Whether mesh.toml sets subscriptions.
    """

    integration: Literal["proxy", "event"] | None = None
    payload: Literal["1.0", "2.0"] | None = None
    access: bool = False
    cors: bool = False
    schedule: bool = False
    subscribes: bool = False

    def event(self, documented: str) -> str:
        """Return the event format of a route with the format ``documented`` in the document."""
        if self.integration == "event":
            return BODY
        if documented == BODY and self.integration == "proxy":
            documented = REST
        if documented in (BODY, URL) or self.payload is None:
            return documented
        return HTTP_2 if self.payload == "2.0" else HTTP_1 if documented == HTTP_2 else documented


NO_OVERRIDES = Overrides()
"""mesh.toml overrides nothing."""


@dataclass(frozen=True, slots=True)
class HttpRoute:
    """HTTP route of a Lambda function.

    Attributes:
        verb: HTTP method in upper case, or ``ANY``.
        resource: API Gateway's path, ``/users/{user-id}``, or ``DEFAULT``. It is the ``resource`` of the event.
        base: Prefix of the path in the URL, ``""`` or ``/prod``.
        event: Event format for the handler: ``REST``, ``HTTP_1``, ``HTTP_2``, ``URL`` or ``BODY``.
    """

    verb: str
    resource: str
    base: str = ""
    event: str = REST

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the path parameters, in order."""
        found = (_NAME.match(segment) for segment in self.resource.split("/"))
        return tuple(match[1] for match in found if match)

    @property
    def template(self) -> str:
        """Path template of ``google.api.http``. Its variables are identifiers derived from the parameter names."""
        if self.resource == DEFAULT:
            return f"{quote(self.base, safe=_SAFE + '/')}/**"
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
        return "/" + "/".join(parts)


def of_openapi(document: Any, overrides: Overrides = NO_OVERRIDES) -> tuple[HttpRoute, ...]:
    """Return the routes of a Swagger 2.0 or OpenAPI 3 document.

    The URL of a route is the base of the document (``basePath``, or the path of the first of ``servers``) and the path.
    The integration determines the event format. ``payloadFormatVersion`` exists for HTTP APIs only. ``aws`` without
    mapping templates passes the body unchanged. An operation without ``payloadFormatVersion`` gets the one of the other
    operations, because all belong to the same API.

    Raises:
        DocumentError: The text is no such document, has no operation with a function, or needs mapping templates
            (Velocity), which the mesh does not run.
    """
    if not isinstance(document, dict) or not ({"swagger", "openapi"} & document.keys()):
        raise DocumentError('expected a Swagger 2.0 or OpenAPI 3 document: an object with "swagger" or "openapi"')
    paths = document.get("paths")
    if not isinstance(paths, dict):
        raise DocumentError("paths: expected an object of paths")
    found = [(route, place, _integration(one, document)) for route, _, one, place in operations_of(document)]
    if not found:
        raise DocumentError("paths: no operation reaches the function")
    versions = {version for _, place, integration in found if (version := _version(integration, place))}
    fallback = HTTP_2 if any(route.resource == DEFAULT for route, _, _ in found) else REST  # only HTTP APIs have it
    return tuple(
        replace(route, event=overrides.event(_event(place, integration, versions or {fallback}, overrides)))
        for route, place, integration in found
    )


def operations_of(document: dict[str, Any]) -> Iterator[tuple[HttpRoute, dict[str, Any], dict[str, Any], str]]:
    """Yield each operation with a function: its route, its path item, the operation, its place in the document.

    Raises:
        DocumentError: A path or an operation is not valid.
    """
    base = _base(document)
    for path, item in document["paths"].items():
        if not str(path).startswith("x-"):
            yield from _path_item(str(path), item, base, document)


def _version(integration: dict[str, Any], place: str) -> str | None:
    """Return the event format of ``payloadFormatVersion``, or None."""
    version = integration.get("payloadFormatVersion")
    if version is None:
        return None
    if str(version) not in _VERSIONS:
        raise DocumentError(f"{place}: payloadFormatVersion is 1.0 or 2.0, not {version!r}")
    return _VERSIONS[str(version)]


def _event(place: str, integration: dict[str, Any], versions: set[str], overrides: Overrides) -> str:
    """Return the event format of an operation. ``versions`` are those of all operations of the document."""
    if _type(integration) == "aws":
        if _mapped(integration) and overrides.integration is None:
            raise DocumentError(
                f"{place}: the mesh does not run mapping templates; remove them to get the JSON body with the "
                'parameters of path and query as the event, or set integration = "proxy" in mesh.toml'
            )
        return BODY
    own = _version(integration, place)
    if own is None and len(versions) > 1 and overrides.payload is None:
        raise DocumentError(f"{place}: other operations have payloadFormatVersion 1.0 and 2.0; set it here too")
    return own or next(iter(versions))


def _mapped(integration: Any) -> bool:
    """Whether a mapping template changes requests or responses of an integration."""
    requests, responses = integration.get("requestTemplates"), integration.get("responses")
    templates = [requests, *(one.get("responseTemplates") for one in _values(responses) if isinstance(one, dict))]
    return any(
        re.sub(r"\s", "", str(text)) not in _IDENTITY_TEMPLATES for mapping in templates for text in _values(mapping)
    )


def _values(value: Any) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else []


def _type(integration: dict[str, Any]) -> str:
    return str(integration.get("type", "")).lower()


def _base(document: dict[str, Any]) -> str:
    if "swagger" in document:
        where, path = "basePath", document.get("basePath", "")
    else:
        servers = document.get("servers") or [{}]
        server = servers[0] if isinstance(servers, list) and isinstance(servers[0], dict) else {}
        where, path = "servers[0].url", _url_path(server)
    if not isinstance(path, str) or "{" in path:
        raise DocumentError(f"{where}: expected a path such as /v1, got {path!r}")
    path = path.strip("/")
    return f"/{path}" if path and path != DEFAULT else ""  # API Gateway serves the stage $default at the root


def _url_path(server: dict[str, Any]) -> str:
    url, variables = str(server.get("url", "")), server.get("variables") or {}
    for name, variable in variables.items() if isinstance(variables, dict) else ():
        default = variable.get("default", "") if isinstance(variable, dict) else ""
        value = str(default)
        # API Gateway exports `{basePath}` after a slash, with a default that begins with one.
        url = url.replace(f"/{{{name}}}", "/" + value.lstrip("/")).replace(f"{{{name}}}", value)
    return urlsplit(url).path


def _path_item(
    path: str, item: Any, base: str, document: dict[str, Any]
) -> Iterator[tuple[HttpRoute, dict[str, Any], dict[str, Any], str]]:
    """Yield each route of a path with the path item, its operation and its place."""
    if not isinstance(item, dict):
        raise DocumentError(f"paths {path}: expected an object of operations")
    resource = DEFAULT if path.strip("/") == DEFAULT else resource_of(path, f"paths {path}")
    for key, operation in item.items():
        verb = ANY if key == _ANY_METHOD else key.upper()
        if verb != ANY and verb not in VERBS:
            continue  # `parameters`, `summary` and extensions
        if not isinstance(operation, dict):
            raise DocumentError(f"paths {path} {key}: expected an operation, an object, not {operation!r}")
        if _without_function(_integration(operation, document)):
            continue
        route = HttpRoute(verb, resource, base)
        for owner, where in ((item, f"paths {path}"), (operation, f"paths {path} {key}")):
            _check_parameters(owner.get("parameters"), route, where, document)
        yield route, item, operation, f"paths {path} {key}"


def _integration(operation: dict[str, Any], document: dict[str, Any]) -> dict[str, Any]:
    integration = _resolved(operation.get(_INTEGRATION), document)
    return integration if isinstance(integration, dict) else {}


def _without_function(integration: dict[str, Any]) -> bool:
    """Whether API Gateway answers or forwards an operation without a function."""
    kind, uri = _type(integration), str(integration.get("uri", ""))
    other = uri.startswith("arn:") and ":apigateway:" in uri and ":lambda:" not in uri
    return kind in _INTEGRATIONS_WITHOUT_FUNCTION or "integrationSubtype" in integration or (kind == "aws" and other)


def _check_parameters(parameters: Any, route: HttpRoute, where: str, document: dict[str, Any]) -> None:
    """Refuse a path parameter that the path does not have, because the handler would never get it."""
    for value in parameters if isinstance(parameters, list) else ():
        parameter = _resolved(value, document)
        if not isinstance(parameter, dict) or parameter.get("in") != "path":
            continue
        name = str(parameter.get("name", "")).removesuffix("+")
        if name not in route.names:
            there = ", ".join(route.names) or "none"
            raise DocumentError(f"{where}: parameter {name!r} is declared in the path, which has: {there}")


def _resolved(value: Any, document: Any) -> Any:
    """Return the target of a ``$ref`` within the document, or the value itself."""
    reference = value.get("$ref") if isinstance(value, dict) else None
    if not isinstance(reference, str) or not reference.startswith("#/"):
        return value
    for part in reference[2:].split("/"):
        document = document.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(document, dict) else None
    return document


def resource_of(path: str, place: str) -> str:
    """Return a checked path without a slash at its end.

    Args:
        path: The path in the document.
        place: Place of the path in the document.

    Raises:
        DocumentError: The text is no path of API Gateway.
    """
    if not path.startswith("/"):
        raise DocumentError(f"{place}: a path begins with '/'")
    path = path.rstrip("/") or "/"
    segments = path[1:].split("/") if path != "/" else []
    for index, segment in enumerate(segments):
        match = _NAME.match(segment)
        if not segment or (match is None and ("{" in segment or "}" in segment)):
            raise DocumentError(f"{place}: a segment is text, {{name}}, or at the end {{name+}}; {segment!r} is not")
        if match is None and "*" in segment:
            raise DocumentError(f"{place}: '*' is no wildcard in a path; write {{proxy+}} for the rest of it")
        if match and match[2] and index != len(segments) - 1:
            raise DocumentError(f"{place}: {segment} matches the rest of the path, so it must be the last segment")
        if match and segment in segments[:index]:
            raise DocumentError(f"{place}: {segment} occurs twice")
    return path
