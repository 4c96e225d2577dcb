"""A status → an HTTP response: ``google.rpc.Status`` as JSON, with the headers that go with it. Pure.

Source: google/rpc/{status,code,error_details}.proto; RFC 9110 for the headers.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable, Iterator
from math import ceil
from typing import TYPE_CHECKING, Any

import orjson
from google.protobuf import any_pb2, message_factory
from google.protobuf.message import DecodeError, Message

from mesh.errors import StatusError, http_status
from mesh.headers import is_forwarded
from mesh.message_methods import descriptor_of, parser
from mesh.protojson.codec import Codecs
from mesh.protojson.wellknown import JsonEncodeError

if TYPE_CHECKING:
    from mesh.contract.model import Method
    from mesh.edge.call import HttpCall

__all__ = ["EMPTY", "JSON", "describe", "failure", "forwarded", "success"]

Headers = list[tuple[bytes, bytes]]

JSON: Headers = [(b"content-type", b"application/json"), (b"x-content-type-options", b"nosniff")]

_RETRY = {429: b"1", 503: b"1"}
"""Seconds to wait when the status says nothing of it."""

_INSIDE = frozenset(("google.rpc.DebugInfo",))
"""Details that are for those inside: stack traces."""

RESET = 205
EMPTY = frozenset((204, RESET))
"""Statuses whose answer has no body."""

_codecs = Codecs()


def forwarded(headers: Headers) -> Headers:
    """Return the response metadata of a function that becomes HTTP headers."""
    return [pair for pair in headers if is_forwarded(pair[0])]


def success(call: HttpCall, status: int, body: bytes) -> tuple[int, Headers, bytes]:
    """Return status, headers and body of an answer; 204 and 205 have no body (RFC 9110, 15.3.5 and 15.3.6)."""
    if status in EMPTY:
        return status, [(b"content-length", b"0"), *call.headers] if status == RESET else [*call.headers], b""
    return status, [*JSON, (b"content-length", b"%d" % len(body)), *call.headers], body


def failure(call: HttpCall, error: StatusError) -> tuple[int, Headers, bytes]:
    """Return status, headers and body of a refusal.

    Args:
        call: The request; its ``status`` wins if it is set, its ``headers`` go along.
        error: The status.
    """
    status = call.status or http_status(error.code)
    body = orjson.dumps(describe(error, call.method))
    out = [*JSON, (b"content-length", b"%d" % len(body)), *call.headers]
    if status == 401:  # noqa: PLR2004 - RFC 9110, 15.5.2
        out.append((b"www-authenticate", b"Bearer"))
    if status in _RETRY and not any(name == b"retry-after" for name, _ in out):
        out.append((b"retry-after", _retry_after(error.details) or _RETRY[status]))
    return status, out, body


def describe(error: StatusError, method: Method | None = None) -> dict[str, Any]:
    """Return the JSON value of a status (``google.rpc.Status``).

    Args:
        error: The status.
        method: The method that it is of; details of its contract's own types are then readable.
    """
    pool = method.input.DESCRIPTOR.file.pool if method is not None else None
    return {"code": int(error.code), "message": error.message, "details": list(_details(error.details, pool))}


def _details(details: Iterable[Message], pool: Any) -> Iterator[dict[str, Any]]:
    """Yield the details as JSON, each with its ``@type``.

    Args:
        details: The messages; one of a type that was not known where it was read is an ``Any``.
        pool: Where the contract's own types are, or None.
    """
    for detail in details:
        if not isinstance(detail, any_pb2.Any):
            yield from _json(f"type.googleapis.com/{descriptor_of(detail).full_name}", detail)
            continue
        try:
            found: Any = pool.FindMessageTypeByName(detail.TypeName()) if pool is not None else None
            message = found and parser(message_factory.GetMessageClass(found))(detail.value)
        except (KeyError, DecodeError):
            message = None
        if message is not None:
            yield from _json(detail.type_url, message)
        else:  # nobody here can read it; the client may
            yield {"@type": detail.type_url, "value": b64encode(detail.value).decode()}


def _json(url: str, detail: Any) -> Iterator[dict[str, Any]]:
    if descriptor_of(detail).full_name in _INSIDE:
        return
    codec = _codecs.of(type(detail))
    try:
        value = codec.dump(detail)
    except JsonEncodeError:  # a value without a JSON form: the error is worth more than its detail
        return
    if codec.wrapped:
        yield {"@type": url, "value": value}
    elif "@type" not in value:  # a field of that JSON name would take the place of the URL
        yield {"@type": url, **value}


def _retry_after(details: Iterable[Message]) -> bytes | None:
    for detail in details:
        if descriptor_of(detail).full_name == "google.rpc.RetryInfo":
            delay: Any = detail.retry_delay  # type: ignore[attr-defined]
            return b"%d" % max(1, ceil(delay.seconds + delay.nanos / 1e9))
    return None
