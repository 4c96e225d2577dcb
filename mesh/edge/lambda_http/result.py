"""Results of Lambda functions as HTTP responses. Pure.

An object with ``statusCode`` is a response. Anything else is the JSON body of a response with status 200. API Gateway
does so in format 2.0 only; here it holds for 1.0 too. A text without a status is the body as it is, so that it can be
JSON. If the event is the body (non-proxy integration), a text is JSON too, in quotes.

Source: API Gateway developer guide, "Output format of a Lambda function for proxy integration" and "Lambda function
response format".
"""

from __future__ import annotations

import binascii
import re
from base64 import b64decode
from collections.abc import Iterator
from typing import Any

import orjson

from mesh.headers import CORS_PREFIX, LAMBDA_OWNED, Headers
from mesh.media_types import JSON

__all__ = ["MalformedResult", "parse_result"]

_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+\Z")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
"""Control characters except the tab (RFC 9110, 5.5)."""
_STATUSES = range(200, 600)
_WITHOUT_BODY = (204, 304)
_JSON = JSON.encode()
_PLAIN = b"text/plain; charset=utf-8"


class MalformedResult(ValueError):
    """A result that is no response. The message is for the author of the function."""


def parse_result(
    result: bytes, *, format_2: bool, non_proxy: bool = False, cors: bool = False
) -> tuple[int, Headers, bytes]:
    """Return status, headers and body of the response. Headers that only the mesh writes are left out.

    Args:
        result: The value that the handler returned, as JSON text.
        format_2: Whether the payload format is 2.0.
        non_proxy: Whether the integration is non-proxy.
        cors: Whether the edge writes the CORS headers.

    Raises:
        MalformedResult: Its status, headers or body is invalid.
    """
    try:
        value = orjson.loads(result)
    except orjson.JSONDecodeError as error:
        raise MalformedResult(f"the result cannot be read: {error}") from None
    if not isinstance(value, dict) or "statusCode" not in value:
        body = value.encode() if isinstance(value, str) and not non_proxy else result
        return 200, [(b"content-type", _JSON)], body
    status = _status(value["statusCode"])
    headers = [
        pair
        for pair in _headers(value)
        if pair[0] not in LAMBDA_OWNED and not (cors and pair[0].startswith(CORS_PREFIX))
    ]
    body = _body(value)
    if status in _WITHOUT_BODY:
        return status, headers, b""
    if not any(name == b"content-type" for name, _ in headers):
        headers.append((b"content-type", _PLAIN if format_2 else _JSON))
    return status, headers, body


def _status(value: Any) -> int:
    number = int(value) if isinstance(value, str) and re.fullmatch(r"[0-9]{3}", value) else value
    if type(number) is not int or number not in _STATUSES:
        raise MalformedResult(f"statusCode must be a number from 200 to 599, not {value!r}")
    return number


def _body(result: dict[str, Any]) -> bytes:
    body = result.get("body")
    if body is None:
        return b""
    if not isinstance(body, str):
        raise MalformedResult(f"body must be a string, not {type(body).__name__}; write json.dumps(...)")
    if result.get("isBase64Encoded") is not True:
        return body.encode()
    try:
        return b64decode(body, validate=True)
    except (binascii.Error, ValueError):
        raise MalformedResult("body is not base64, although isBase64Encoded is true") from None


def _headers(result: dict[str, Any]) -> Iterator[tuple[bytes, bytes]]:
    """Yield the headers. For a name in both tables, ``multiValueHeaders`` is used."""
    multi_value = _table(result, "multiValueHeaders")
    listed = {name.lower() for name in multi_value}
    for name, text in _table(result, "headers").items():
        if name.lower() not in listed:
            yield from _pair(name, text)
    for name, texts in multi_value.items():
        if not isinstance(texts, list):
            raise MalformedResult(f"multiValueHeaders {name!r} must be a list, not {type(texts).__name__}")
        for text in texts:
            yield from _pair(name, text)
    cookies = result.get("cookies") or []
    if not isinstance(cookies, list):
        raise MalformedResult("cookies must be a list")
    for cookie in cookies:
        yield from _pair("set-cookie", cookie)


def _table(result: dict[str, Any], name: str) -> dict[str, Any]:
    table = result.get(name)
    if table is None:
        return {}
    if not isinstance(table, dict):
        raise MalformedResult(f"{name} must be an object, not {type(table).__name__}")
    return table


def _pair(name: str, value: Any) -> Iterator[tuple[bytes, bytes]]:
    if isinstance(value, bool):
        text = "true" if value else "false"
    elif isinstance(value, str | int | float):
        text = str(value)
    else:
        raise MalformedResult(f"header {name!r} must be a text, not {type(value).__name__}")
    if not _NAME.match(name) or _CONTROL.search(text):
        raise MalformedResult(f"header {name!r} has a name or a value that no header can have")
    yield name.lower().encode(), text.strip().encode()
