"""What a Lambda function returned → an HTTP response. Pure.

An object with ``statusCode`` is a response; anything else is the JSON body of one with 200, which is what API Gateway
does in format 2.0 and what nobody misses in 1.0. A text without a status is the body as it is, so that it can be JSON;
where the event is the body (the non-proxy kind), it is JSON too, a text in quotes.

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

from mesh.headers import LAMBDA_OWNED

__all__ = ["Malformed", "response"]

Headers = list[tuple[bytes, bytes]]

_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+\Z")
_UNFIT = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
"""Control characters, but not the tab (RFC 9110, 5.5)."""
_STATUSES = range(200, 600)
_BARE = (204, 304)
_JSON = b"application/json"
_PLAIN = b"text/plain; charset=utf-8"


class Malformed(ValueError):
    """The result is no response; the message is for the function's author."""


def response(said: bytes, *, second: bool, bare: bool = False) -> tuple[int, Headers, bytes]:
    """Return status, headers and body.

    Args:
        said: What the handler returned, as JSON text.
        second: By format 2.0.
        bare: By the non-proxy kind.

    Raises:
        Malformed: It says a status, headers or a body that cannot be.
    """
    try:
        result = orjson.loads(said)
    except orjson.JSONDecodeError as error:
        raise Malformed(f"the result cannot be read: {error}") from None
    if not isinstance(result, dict) or "statusCode" not in result:
        body = result.encode() if isinstance(result, str) and not bare else said
        return 200, [(b"content-type", _JSON), _length(body)], body
    status = _status(result["statusCode"])
    headers = list(_headers(result))
    body = _body(result)
    if status in _BARE:
        return status, headers, b""
    if not any(name == b"content-type" for name, _ in headers):
        headers.append((b"content-type", _PLAIN if second else _JSON))
    return status, [*headers, _length(body)], body


def _length(body: bytes) -> tuple[bytes, bytes]:
    return b"content-length", b"%d" % len(body)


def _status(said: Any) -> int:
    number = int(said) if isinstance(said, str) and re.fullmatch(r"[0-9]{3}", said) else said
    if type(number) is not int or number not in _STATUSES:
        raise Malformed(f"statusCode must be a number from 200 to 599, not {said!r}")
    return number


def _body(result: dict[str, Any]) -> bytes:
    body = result.get("body")
    if body is None:
        return b""
    if not isinstance(body, str):
        raise Malformed(f"body must be a string, not {type(body).__name__}; write json.dumps(...)")
    if result.get("isBase64Encoded") is not True:
        return body.encode()
    try:
        return b64decode(body, validate=True)
    except (binascii.Error, ValueError):
        raise Malformed("body is not base64, and isBase64Encoded says so") from None


def _headers(result: dict[str, Any]) -> Iterator[tuple[bytes, bytes]]:
    """Yield the headers; of a name that stands in both tables, those of ``multiValueHeaders``."""
    many = _table(result, "multiValueHeaders")
    listed = {name.lower() for name in many}
    for name, text in _table(result, "headers").items():
        if name.lower() not in listed:
            yield from _pair(name, text)
    for name, texts in many.items():
        if not isinstance(texts, list):
            raise Malformed(f"multiValueHeaders {name!r} must be a list, not {type(texts).__name__}")
        for text in texts:
            yield from _pair(name, text)
    cookies = result.get("cookies") or []
    if not isinstance(cookies, list):
        raise Malformed("cookies must be a list")
    for cookie in cookies:
        yield from _pair("set-cookie", cookie)


def _table(result: dict[str, Any], name: str) -> dict[str, Any]:
    table = result.get(name)
    if table is None:
        return {}
    if not isinstance(table, dict):
        raise Malformed(f"{name} must be an object, not {type(table).__name__}")
    return table


def _pair(name: str, said: Any) -> Iterator[tuple[bytes, bytes]]:
    if isinstance(said, bool):
        text = "true" if said else "false"
    elif isinstance(said, str | int | float):
        text = str(said)
    else:
        raise Malformed(f"header {name!r} must be a text, not {type(said).__name__}")
    if not _NAME.match(name) or _UNFIT.search(text):
        raise Malformed(f"header {name!r} has a name or a value that no header can have")
    key = name.lower().encode()
    if key not in LAMBDA_OWNED:
        yield key, text.strip().encode()
