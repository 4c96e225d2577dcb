"""How a call ended, read from trailers: status, message, rich details, and the metadata beside them.

An end without a status has one all the same: the tables for HTTP statuses and for RST_STREAM are here too. What a
server writes at the end is ``mesh.rpc.framing.status_pairs``.

Sources: PROTOCOL-HTTP2.md and http-grpc-status-mapping.md in https://github.com/grpc/grpc/tree/master/doc.
"""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Iterable, Sequence

from google.protobuf import symbol_database
from google.protobuf.any_pb2 import Any
from google.protobuf.message import DecodeError, Message
from google.rpc import status_pb2

from mesh.errors import Code, DeadlineExceeded, StatusError
from mesh.headers import TRANSPORT
from mesh.rpc.framing import percent_decode

__all__ = [
    "DETAILS",
    "EARLY",
    "at_deadline",
    "code_of_http",
    "code_of_reset",
    "metadata_of",
    "pack",
    "read",
    "unpack",
]

DETAILS = b"grpc-status-details-bin"

_PSEUDO = ord(":")
_DIGITS = 9
"""Of a status code; Python refuses to read thousands of them."""


def metadata_of(pairs: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Return the pairs that are the application's."""
    return [pair for pair in pairs if pair[0] not in TRANSPORT and pair[0][0] != _PSEUDO]


def read(trailers: Sequence[tuple[bytes, bytes]]) -> tuple[StatusError | None, list[tuple[bytes, bytes]]]:
    """Return the status, None for OK, and the trailing metadata."""
    code, message, details = b"", b"", b""
    rest: list[tuple[bytes, bytes]] = []
    for pair in trailers:
        name, value = pair
        if name == b"grpc-status":
            code = value
        elif name == b"grpc-message":
            message = value
        elif name == DETAILS:
            details = value
        elif name not in TRANSPORT and name[0] != _PSEUDO:
            rest.append(pair)
    if code == b"0":
        return None, rest
    if not code.isdigit() or len(code) > _DIGITS:
        return StatusError.of(2, f"the answer has no valid grpc-status ({code[:20].decode('latin-1')!r})"), rest
    number = int(code)
    if not number:  # "00", which grpc-go and grpcio read as OK too
        return None, rest
    return StatusError.of(number, percent_decode(message), _details(details) if details else ()), rest


def _details(value: bytes) -> tuple[Message, ...]:
    try:
        return unpack(b64decode(value + b"=" * (-len(value) % 4)))
    except ValueError:
        return ()


def unpack(status: bytes) -> tuple[Message, ...]:
    """Return the details in a serialized ``google.rpc.Status``; types not known here stay ``Any``."""
    try:
        return tuple(map(_unpack, status_pb2.Status.FromString(status).details))
    except DecodeError:
        return ()


def _unpack(detail: Any) -> Message:
    try:
        message = symbol_database.Default().GetSymbol(detail.TypeName())()
    except KeyError:
        return detail
    try:
        message.ParseFromString(detail.value)
    except DecodeError:
        return detail
    return message


def pack(error: StatusError) -> bytes:
    """Return ``google.rpc.Status`` of an error, serialized (the value of ``grpc-status-details-bin``)."""
    status = status_pb2.Status(code=int(error.code), message=error.message)
    for detail in error.details:
        if isinstance(detail, Any):
            status.details.append(detail)
        else:
            status.details.add().Pack(detail)
    return status.SerializeToString()


_RESETS = {
    0x00: Code.INTERNAL, 0x01: Code.INTERNAL, 0x02: Code.INTERNAL, 0x03: Code.INTERNAL, 0x04: Code.INTERNAL,
    0x06: Code.INTERNAL, 0x07: Code.UNAVAILABLE, 0x08: Code.CANCELLED, 0x09: Code.INTERNAL, 0x0A: Code.INTERNAL,
    0x0B: Code.RESOURCE_EXHAUSTED, 0x0C: Code.PERMISSION_DENIED,
}  # fmt: skip


def code_of_reset(error_code: int) -> Code:
    """Return the status of a stream that ended by RST_STREAM (PROTOCOL-HTTP2.md, Errors)."""
    return _RESETS.get(error_code, Code.UNKNOWN)


EARLY = 0.005
"""Seconds by which a timer may be early, here or in a server. ``grpc-timeout`` is rounded up, so that the deadline of a
server is not before its client's by more."""


def at_deadline(failure: StatusError, deadline: float | None, now: float) -> StatusError:
    """Return the status of a call whose stream was reset: DEADLINE_EXCEEDED for CANCELLED as the deadline passes.

    A server cancels the stream at the deadline that it was told, and may do so before a timer of the client fires; so
    the clock judges.

    Args:
        failure: By the table of ``code_of_reset``.
        deadline: Of the call, seconds; None without one.
        now: Seconds of the same clock.
    """
    if failure.code is not Code.CANCELLED or deadline is None or now < deadline - EARLY:
        return failure
    return DeadlineExceeded("the service did not answer within the deadline").at(f"{failure.where}: {failure.message}")


_HTTP = {
    400: Code.INTERNAL, 401: Code.UNAUTHENTICATED, 403: Code.PERMISSION_DENIED, 404: Code.UNIMPLEMENTED,
    429: Code.UNAVAILABLE, 502: Code.UNAVAILABLE, 503: Code.UNAVAILABLE, 504: Code.UNAVAILABLE,
}  # fmt: skip


def code_of_http(status: int) -> Code:
    """Return the status of an answer that has no ``grpc-status`` (http-grpc-status-mapping.md)."""
    return _HTTP.get(status, Code.UNKNOWN)
