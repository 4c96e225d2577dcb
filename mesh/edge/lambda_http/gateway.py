"""API Gateway for Lambda functions: a request becomes its event, the result becomes the response.

The event of a route is that of a REST API or of an HTTP API in format 1.0, or of an HTTP API or of a function URL in
format 2.0. REST APIs hand on paths and path parameters as they were sent. HTTP APIs decode them. Function URLs decode
``requestContext.http.path`` only. Header names are in lower case, as in HTTP/2 and HTTP APIs. A handler finds
``Authorization`` all the same (``mesh.lambdas.handler_events.EventHeaders``). The event has no user: the sidecar of the
function adds the one that it has verified. Text is passed on as it is, everything else as base64. docs/lambda.md has
the cases.

Sources: API Gateway developer guide, "Set up Lambda proxy integrations" and "Create AWS Lambda proxy integrations for
HTTP APIs"; Lambda developer guide, "Invoking Lambda function URLs"; events recorded on AWS (docs/lambda.md, "Paths").
"""

from __future__ import annotations

import logging
import time
from base64 import b64encode
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote

import orjson

from mesh.config import api_document
from mesh.config.api_document import BODY, DEFAULT, HTTP_1, HTTP_2, REST, URL
from mesh.contract.path_template import Template, parse_slashed
from mesh.edge.lambda_http.result import MalformedResult, parse_result
from mesh.errors import Code, Internal, InvalidArgument, StatusError
from mesh.headers import GATEWAY_FORWARDED, Headers
from mesh.lambdas import json_text, json_value, lambda_error
from mesh.lambdas.lambda_context import ACCOUNT, new_request_id
from mesh.media_types import JSON, media_type

if TYPE_CHECKING:
    from mesh.contract.model import Method, Route
    from mesh.edge.calls import HttpCall

__all__ = ["Gateway"]

log = logging.getLogger("mesh.edge")

Invoke = Callable[["HttpCall", bytes, tuple[bytes, bytes]], Awaitable[bytes]]

_FORMAT_2 = (HTTP_2, URL)
"""Events in format 2.0."""
_DECODED = (HTTP_1, HTTP_2)
"""Events with decoded paths."""
_TEXT_TYPES = frozenset((JSON, "application/javascript", "application/xml"))
_FORM = "application/x-www-form-urlencoded"
_WHITESPACE = b" \t\r\n"
"""White space around a JSON value (RFC 8259, section 2)."""
_BAD_GATEWAY = 502
_NO_IDENTITY = dict.fromkeys((
    "accessKey", "accountId", "caller", "cognitoAuthenticationProvider", "cognitoAuthenticationType",
    "cognitoIdentityId", "cognitoIdentityPoolId", "principalOrgId", "user", "userArn",
))  # fmt: skip
"""``identity`` of API Gateway's event for a caller without an identity of AWS."""
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


class Gateway:
    """Route to a Lambda function: makes its event, reads its result.

    Args:
        method: The function's method ``Invoke``.
        route: The route.
        cors: Whether the edge writes the CORS headers. Those of the handler are then dropped, as by an HTTP API.

    Attributes:
        method: The method.
        template: The route's path template as text.
        full_first: Whether a route that matches the rest of a path comes after all full matches: a rule of HTTP APIs.
    """

    def __init__(self, method: Method, route: Route, *, cors: bool) -> None:
        assert method.gateway is not None  # noqa: S101 - the loader has made it
        self.method = method
        self.template = route.template.text
        self._cors = cors
        at = method.routes.index(route)
        self._event_kind = method.gateway.events[at]
        self._is_format_2 = self._event_kind in _FORMAT_2
        self._decoded = self.full_first = self._event_kind in _DECODED
        self._max_event_size = method.gateway.max_message_bytes
        self._depth = method.gateway.base.count("/")
        http_route = api_document.HttpRoute(route.verb, method.gateway.resources[at])
        self._resource = http_route.resource
        self._names = http_route.names
        segments = enumerate(http_route.resource[1:].split("/"))
        self._path_parameters = [
            (at, one[1:-1].removesuffix("+"), one.endswith("+}")) for at, one in segments if one[:1] == "{"
        ]
        verb = "ANY" if route.verb == api_document.ANY else route.verb
        route_key = DEFAULT if http_route.resource == DEFAULT else f"{verb} {http_route.resource}"
        self._context: dict[str, str | None] = {  # the constant part of requestContext
            "accountId": "anonymous" if self._event_kind == URL else ACCOUNT,  # AWS's for a URL without IAM
            "apiId": method.service.rpartition(".")[2].lower(),
            "stage": method.gateway.base.rpartition("/")[2] or "$default",
        }
        if self._is_format_2:
            self._context["routeKey"] = self._route_key = route_key
        else:
            rest = self._event_kind == REST
            self._context["resourceId"] = (self._resource.strip("/") or None) if rest else route_key
            self._context["resourcePath"] = self._resource

    @property
    def templates(self) -> tuple[Template, ...]:
        """The path templates of the route.

        API Gateway's routes ignore a slash at the end of a path. Those of REST APIs also ignore a second one at its
        beginning, which a base URL that ends with a slash causes.
        """
        found = [parse_slashed(self.template)]
        if not self.template.endswith(("/", "**", "**}")):
            found.append(parse_slashed(f"{self.template}/"))
        if self._event_kind == REST:
            found += [_doubled(template, self._depth) for template in found if len(template.segments) > self._depth]
        return tuple(found)

    async def answer(
        self, call: HttpCall, values: tuple[str, ...], invoke: Invoke, *, limit: int, body_timeout: float | None
    ) -> tuple[int, Headers, bytes]:
        """Invoke the function for a request. Return status, headers and body of the response.

        Args:
            call: The request.
            values: Texts of the path parameters, in their order.
            invoke: Makes the gRPC call.
            limit: Largest body, bytes.
            body_timeout: Seconds that reading the body may take; None: no limit.

        Raises:
            StatusError: 400 for a body that is no event, 408, 413; 502 without a reason if the function failed.
        """
        call.check_content_length(limit)
        body = await call.read_body(limit, body_timeout)
        if self._event_kind == BODY:
            event = _body_event(call, dict(zip(self._names, values, strict=True)), body)
        else:
            event = self._event(call, body)
        request = json_value.pack(event)
        if self._max_event_size and len(request) > self._max_event_size:
            text = f"the event is larger than {self._max_event_size} bytes"
            raise call.http_error(413, Code.OUT_OF_RANGE, text)
        try:
            message = await invoke(call, request, json_text.MARK)
        except StatusError as error:
            if error.code in (Code.INTERNAL, Code.UNKNOWN) or lambda_error.is_function_failure(error):
                raise _bad_gateway(call) from error
            raise
        try:
            result = json_value.unpack(message)
            return parse_result(result, format_2=self._is_format_2, non_proxy=self._event_kind == BODY, cors=self._cors)
        except MalformedResult as error:
            log.error("%s: malformed result of the function: %s", self.method.path, error)  # noqa: TRY400 - no bug here
            raise _bad_gateway(call) from error

    # -- the event --

    def _event(self, call: HttpCall, data: bytes) -> bytes:
        segments = call.path[1:].split("/")[self._depth :]  # below the base
        if self._event_kind == REST and len(segments) > 1 and not segments[0]:
            del segments[0]
        parameters = self._parameters(segments)
        body, is_base64 = _text(call, data, form=self._event_kind == REST)
        event = self._format_2(call) if self._is_format_2 else self._format_1(call, "/" + "/".join(segments))
        if not self._is_format_2 or parameters:
            event["pathParameters"] = parameters or None
        if not self._is_format_2 or body is not None:
            event["body"] = body
        event["isBase64Encoded"] = is_base64
        return orjson.dumps(event)

    def _parameters(self, segments: list[str]) -> dict[str, str]:
        """Return the path parameters of a request. REST APIs leave out the slash at the end of a greedy one."""
        found: dict[str, str] = {}
        for at, name, greedy in self._path_parameters:
            text = "/".join(segments[at:]) if greedy else segments[at]
            text = text.rstrip("/") if greedy and not self._decoded else text
            found[name] = unquote(text) if self._decoded else text
        return found

    def _format_1(self, call: HttpCall, own_path: str) -> dict[str, Any]:
        path = unquote(call.path) if self._decoded else call.path
        query = _query(call)
        multi_query: dict[str, list[str]] = {}
        for name, text in query:
            multi_query.setdefault(name, []).append(text)
        headers: dict[str, list[str]] = {}
        for name, text in _headers(call):
            headers.setdefault(name, []).append(text)
        now = time.time()
        host = call.authority
        agent = headers["user-agent"][-1] if "user-agent" in headers else None
        request_id = new_request_id()
        return {
            "version": "1.0",
            "resource": self._resource,
            "path": path if self._decoded else own_path,
            "httpMethod": call.verb,
            "headers": {name: texts[-1] for name, texts in headers.items()},
            "multiValueHeaders": headers,
            "queryStringParameters": dict(query) or None,
            "multiValueQueryStringParameters": multi_query or None,
            "stageVariables": None,
            "requestContext": {
                **self._context,
                "domainName": host,
                "domainPrefix": host.partition(".")[0],
                "extendedRequestId": request_id,
                "httpMethod": call.verb,
                "identity": {**_NO_IDENTITY, "sourceIp": call.address, "userAgent": agent},
                "path": path,
                "protocol": _protocol(call),
                "requestId": request_id,
                "requestTime": _clf(int(now)),
                "requestTimeEpoch": int(now * 1000),
            },
        }

    def _format_2(self, call: HttpCall) -> dict[str, Any]:
        path = unquote(call.path)
        headers: dict[str, str] = {}
        cookies: list[str] = []
        for name, text in _headers(call):
            if name == "cookie":
                cookies += [one for one in (part.strip() for part in text.split(";")) if one]
            if name != "cookie" or self._event_kind == URL:  # HTTP APIs move cookies, function URLs copy them
                separator = "; " if name == "cookie" else ","  # RFC 9113, section 8.2.3; RFC 9110, section 5.3
                headers[name] = f"{headers[name]}{separator}{text}" if name in headers else text
        parameters: dict[str, str] = {}
        for name, text in _query(call):
            parameters[name] = f"{parameters[name]},{text}" if name in parameters else text
        now = time.time()
        host = call.authority
        event: dict[str, Any] = {
            "version": "2.0",
            "routeKey": self._route_key,
            "rawPath": path if self._decoded else call.path,
            "rawQueryString": call.query.decode("latin-1"),
            "headers": headers,
            "requestContext": {
                **self._context,
                "domainName": host,
                "domainPrefix": host.partition(".")[0],
                "http": {
                    "method": call.verb,
                    "path": path,
                    "protocol": _protocol(call),
                    "sourceIp": call.address,
                    "userAgent": headers.get("user-agent", ""),
                },
                "requestId": new_request_id(),
                "time": _clf(int(now)),
                "timeEpoch": int(now * 1000),
            },
        }
        if cookies:
            event["cookies"] = cookies
        if parameters:
            event["queryStringParameters"] = parameters
        return event


def _doubled(template: Template, at: int) -> Template:
    """Return a template with an empty segment before an index."""
    variables = [replace(one, start=one.start + 1, stop=one.stop + 1) for one in template.variables]
    segments = (*template.segments[:at], "=", *template.segments[at:])
    return replace(template, segments=segments, variables=tuple(variables))


def _body_event(call: HttpCall, parameters: dict[str, str], data: bytes) -> bytes:
    """Return the JSON body with the parameters in it. Path parameters replace body members, those replace query ones.

    The text of the body is kept, so that its numbers keep their digits. Members are added around it: of a name that
    stands twice in an object, readers use the last.
    """
    body = data.strip(_WHITESPACE) or b"{}"
    try:
        event = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidArgument(f"the body is not valid JSON: {error}") from None
    if not isinstance(event, dict):
        return body
    parts = (
        part[1:-1].strip(_WHITESPACE) for part in (orjson.dumps(dict(_query(call))), body, orjson.dumps(parameters))
    )
    return b"{%s}" % b",".join(filter(None, parts))


def _text(call: HttpCall, data: bytes, *, form: bool) -> tuple[str | None, bool]:
    """Return the body of an event, and whether it is base64.

    Args:
        call: The request.
        data: The body.
        form: Whether HTML forms are text. They are for REST APIs, not for HTTP APIs and function URLs.
    """
    if not data:
        return None, False
    kind = media_type(call.metadata.wire(b"content-type") or b"")
    known = (
        kind.startswith("text/") or kind in _TEXT_TYPES or kind.endswith(("+json", "+xml")) or (form and kind == _FORM)
    )
    if (known or not kind) and call.metadata.wire(b"content-encoding") in (None, b"identity"):
        try:
            return data.decode(), False
        except UnicodeDecodeError:
            pass
    return b64encode(data).decode(), True


def _headers(call: HttpCall) -> list[tuple[str, str]]:
    """Return the headers of the request and those that API Gateway adds."""
    pairs = [
        (name.decode("latin-1"), text.decode("utf-8", "replace"))
        for name, text in call.metadata.pairs
        if name not in GATEWAY_FORWARDED and name[:1] != b":"
    ]
    if call.metadata.wire(b"host") is None:
        pairs.append(("host", call.authority))
    port = call.authority.rpartition(":")[2]
    default = "443" if call.scheme == "https" else "80"
    return [
        *pairs,
        ("x-forwarded-for", call.address),
        ("x-forwarded-port", port if port.isdigit() else default),
        ("x-forwarded-proto", call.scheme),
    ]


def _query(call: HttpCall) -> list[tuple[str, str]]:
    return parse_qsl(call.query.decode("latin-1"), keep_blank_values=True, errors="replace") if call.query else []


def _protocol(call: HttpCall) -> str:
    return f"HTTP/{call.http_version}"


@lru_cache(1)
def _clf(now: int) -> str:
    """Return a Unix time in the Common Log Format: ``12/Mar/2020:19:03:58 +0000``."""
    at = time.gmtime(now)
    return f"{at.tm_mday:02}/{_MONTHS[at.tm_mon - 1]}/{at.tm_year}:{at.tm_hour:02}:{at.tm_min:02}:{at.tm_sec:02} +0000"


def _bad_gateway(call: HttpCall) -> StatusError:
    call.status = _BAD_GATEWAY
    return Internal("Internal server error")
