"""Connect's errors and the end of its response streams, as JSON. Pure.

Source: https://connectrpc.com/docs/protocol/#error-and-endstreamresponse.
"""

from __future__ import annotations

import contextlib
from base64 import b64encode
from math import ceil
from typing import Any

import orjson
from google.protobuf import any_pb2, message_factory
from google.protobuf.message import DecodeError, Message

from mesh.errors import StatusError
from mesh.headers import Headers
from mesh.message_methods import descriptor_of, parser, serialize
from mesh.protojson.codec import Codecs
from mesh.protojson.wellknown import JsonEncodeError

__all__ = ["end_of_stream", "error_body", "error_headers"]

_UNAUTHORIZED = 401

_codecs = Codecs()


def error_body(error: StatusError, pool: Any) -> bytes:
    """Return the body of a unary error response.

    Args:
        error: The status.
        pool: Descriptor pool with the types of the contract, which makes their details readable under ``debug``.
    """
    return orjson.dumps(_error(error, pool))


def end_of_stream(error: StatusError | None, trailers: Headers, pool: Any) -> bytes:
    """Return the last message of a response stream: the error, and the trailing metadata.

    Args:
        error: The status; None: OK.
        trailers: Encoded pairs.
        pool: As for ``error_body``.
    """
    end: dict[str, Any] = {} if error is None else {"error": _error(error, pool)}
    if trailers:
        metadata: dict[str, list[str]] = {}
        for name, value in trailers:
            metadata.setdefault(name.decode("latin-1"), []).append(value.decode("latin-1"))
        end["metadata"] = metadata
    return orjson.dumps(end)


def error_headers(error: StatusError, status: int) -> Headers:
    """Return the headers that HTTP asks for beside an error: ``www-authenticate`` and ``retry-after``.

    Args:
        error: The status.
        status: HTTP status of the response.
    """
    headers: Headers = [(b"www-authenticate", b"Bearer")] if status == _UNAUTHORIZED else []  # RFC 9110, 15.5.2
    for detail in error.details:
        if descriptor_of(detail).full_name == "google.rpc.RetryInfo":
            delay: Any = detail.retry_delay  # type: ignore[attr-defined]
            headers.append((b"retry-after", b"%d" % max(1, ceil(delay.seconds + delay.nanos / 1e9))))
            break
    return headers


def _error(error: StatusError, pool: Any) -> dict[str, Any]:
    value: dict[str, Any] = {"code": error.code.connect_name}
    if error.message:
        value["message"] = error.message
    if error.details:
        value["details"] = [_detail(detail, pool) for detail in error.details]
    return value


def _detail(detail: Message, pool: Any) -> dict[str, Any]:
    message: Message | None = detail
    if isinstance(detail, any_pb2.Any):  # of a type that was unknown where the status was read
        name, data, message = detail.TypeName(), detail.value, _unpacked(detail, pool)
    else:
        name, data = descriptor_of(detail).full_name, serialize(detail)
    value: dict[str, Any] = {"type": name, "value": b64encode(data).rstrip(b"=").decode()}
    if message is not None:
        with contextlib.suppress(JsonEncodeError):
            value["debug"] = _codecs.of(type(message)).dump(message)
    return value


def _unpacked(detail: any_pb2.Any, pool: Any) -> Message | None:
    try:
        found: Message = parser(message_factory.GetMessageClass(pool.FindMessageTypeByName(detail.TypeName())))(
            detail.value
        )
    except (KeyError, DecodeError):
        return None
    return found
