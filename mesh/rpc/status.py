"""gRPC status: code, message and rich details, read from trailers and written to them within limits on their size.

A response without a status gets one from its HTTP status or its RST_STREAM error code, by the tables below. Pure
functions; client and server share them. ``mesh.rpc.framing`` has the messages.

Sources: PROTOCOL-HTTP2.md and http-grpc-status-mapping.md in https://github.com/grpc/grpc/tree/master/doc.
"""

from __future__ import annotations

import re
from base64 import b64decode, b64encode
from collections.abc import Iterable, Sequence
from urllib.parse import unquote_to_bytes

from google.protobuf import symbol_database
from google.protobuf.any_pb2 import Any
from google.protobuf.message import DecodeError, Message
from google.rpc import status_pb2

from mesh.call import MAX_METADATA_SIZE
from mesh.errors import Code, DeadlineExceeded, StatusError
from mesh.headers import TRANSPORT

__all__ = [
    "DEADLINE_TOLERANCE_SECONDS",
    "DETAILS",
    "OK",
    "code_of_http",
    "code_of_reset",
    "deadline_exceeded",
    "metadata_of",
    "pack_status",
    "percent_decode",
    "percent_encode",
    "read_status",
    "unpack_details",
    "write_status",
]

Pairs = list[tuple[bytes, bytes]]

CODE = b"grpc-status"
MESSAGE = b"grpc-message"
DETAILS = b"grpc-status-details-bin"

OK: Pairs = [(CODE, b"0")]
"""Trailers of a call that succeeded; not to be changed."""

_PSEUDO = ord(":")
_CODE_DIGITS = 9
"""Longest status code that is read; Python refuses to parse thousands of digits."""

MAX_MESSAGE_BYTES = 2048
MAX_DETAILS_BYTES = 4096
"""Bytes on the wire. A field of 64 KiB ends the whole connection with COMPRESSION_ERROR, so a text that quotes its
caller would fail all other calls on that connection."""
_OTHER_FIELDS_BYTES = 256
"""Bytes of ``content-type``, ``grpc-status`` and the names of the other two fields, with their overhead."""
_LEAST_STATUS_BYTES = 512
"""Bytes that a status may take even where the trailing metadata of another server leaves no space for it."""


def metadata_of(pairs: Iterable[tuple[bytes, bytes]]) -> Pairs:
    """Return the pairs that are the application's."""
    return [pair for pair in pairs if pair[0] not in TRANSPORT and pair[0][0] != _PSEUDO]


# -- grpc-message --

_ESCAPED = re.compile(rb"\A +| +\Z|[^ -~]|%")


def percent_encode(text: str) -> bytes:
    """Return ``grpc-message``: UTF-8, with ``%`` and everything but printable ASCII as ``%XX``.

    Spaces at either end are encoded as well, although gRPC's specification lets them stand: an HTTP/2 field value must
    not begin or end with one (RFC 9113, 8.2.1), and a peer that checks this loses the whole status.
    """
    raw = text.encode("utf-8", "replace")
    return _ESCAPED.sub(lambda found: b"".join(b"%%%02X" % byte for byte in found[0]), raw)


def percent_decode(value: bytes) -> str:
    """Return the text of ``grpc-message``. Invalid percent coding is kept as it is, invalid UTF-8 is replaced."""
    return (unquote_to_bytes(value) if b"%" in value else value).decode("utf-8", "replace")


# -- trailers --


def read_status(trailers: Sequence[tuple[bytes, bytes]]) -> tuple[StatusError | None, Pairs]:
    """Return the status in trailers, None for OK, and the trailing metadata."""
    code, message, details = b"", b"", b""
    metadata: Pairs = []
    for pair in trailers:
        name, value = pair
        if name == CODE:
            code = value
        elif name == MESSAGE:
            message = value
        elif name == DETAILS:
            details = value
        elif name not in TRANSPORT and name[0] != _PSEUDO:
            metadata.append(pair)
    if code == b"0":
        return None, metadata
    if not code.isdigit() or len(code) > _CODE_DIGITS:
        found = code[:20].decode("latin-1")
        return StatusError.of(Code.UNKNOWN, f"the response has no valid grpc-status ({found!r})"), metadata
    number = int(code)
    if not number:  # "00", which grpc-go and grpcio read as OK too
        return None, metadata
    return StatusError.of(number, percent_decode(message), _read_details(details) if details else ()), metadata


def write_status(status: StatusError, metadata_bytes: int = 0) -> Pairs:
    """Return the trailers of a call that failed: code, message, and the rich status if there are details.

    The message is cut, and details are left out, where all trailers together would be more than any client takes.

    Args:
        status: The status.
        metadata_bytes: Size of the trailing metadata that is sent with it (``mesh.call.field_bytes``).
    """
    pairs = [(CODE, b"%d" % status.code)]
    free = max(MAX_METADATA_SIZE - _OTHER_FIELDS_BYTES - metadata_bytes, _LEAST_STATUS_BYTES)
    message = status.message
    if message:
        limit = min(MAX_MESSAGE_BYTES, free)
        encoded = percent_encode(message[:limit])
        if len(message) > limit or len(encoded) > limit:
            message, encoded = _cut(message, limit)
        pairs.append((MESSAGE, encoded))
        free -= len(encoded)
    if status.details:
        limit = min(MAX_DETAILS_BYTES, free)
        rich = status_pb2.Status(code=status.code, message=message)
        for detail in status.details:
            packed = _pack(detail)
            if (rich.ByteSize() + packed.ByteSize() + 8) * 4 // 3 <= limit:
                rich.details.append(packed)
        if rich.details or limit == MAX_DETAILS_BYTES:
            pairs.append((DETAILS, b64encode(rich.SerializeToString()).rstrip(b"=")))
    return pairs


def _cut(message: str, limit: int) -> tuple[str, bytes]:
    """Return the longest beginning of the message that fits ``limit`` bytes encoded, plain and encoded."""
    length = limit
    while True:
        text = f"{message[:length]}…"
        encoded = percent_encode(text)
        if len(encoded) <= limit:
            return text, encoded
        length = length * limit // (len(encoded) + limit // 64 + 1)


# -- rich details --


def pack_status(error: StatusError) -> bytes:
    """Return the serialized ``google.rpc.Status`` of an error, without a limit on its size."""
    packed = map(_pack, error.details)
    return status_pb2.Status(code=error.code, message=error.message, details=packed).SerializeToString()


def unpack_details(status: bytes) -> tuple[Message, ...]:
    """Return the details in a serialized ``google.rpc.Status``; a detail of a type unknown here stays an ``Any``."""
    try:
        return tuple(map(_unpack, status_pb2.Status.FromString(status).details))
    except DecodeError:
        return ()


def _read_details(value: bytes) -> tuple[Message, ...]:
    try:
        return unpack_details(b64decode(value + b"=" * (-len(value) % 4)))
    except ValueError:
        return ()


def _pack(detail: Message) -> Any:
    if isinstance(detail, Any):  # of a type that is unknown here; forwarded unchanged
        return detail
    packed = Any()
    packed.Pack(detail)
    return packed


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


# -- responses without a status --

_RESETS = {
    0x00: Code.INTERNAL, 0x01: Code.INTERNAL, 0x02: Code.INTERNAL, 0x03: Code.INTERNAL, 0x04: Code.INTERNAL,
    0x06: Code.INTERNAL, 0x07: Code.UNAVAILABLE, 0x08: Code.CANCELLED, 0x09: Code.INTERNAL, 0x0A: Code.INTERNAL,
    0x0B: Code.RESOURCE_EXHAUSTED, 0x0C: Code.PERMISSION_DENIED,
}  # fmt: skip

_HTTP = {
    400: Code.INTERNAL, 401: Code.UNAUTHENTICATED, 403: Code.PERMISSION_DENIED, 404: Code.UNIMPLEMENTED,
    429: Code.UNAVAILABLE, 502: Code.UNAVAILABLE, 503: Code.UNAVAILABLE, 504: Code.UNAVAILABLE,
}  # fmt: skip


def code_of_reset(error_code: int) -> Code:
    """Return the status code of a stream that ended with RST_STREAM (PROTOCOL-HTTP2.md, Errors)."""
    return _RESETS.get(error_code, Code.UNKNOWN)


def code_of_http(status: int) -> Code:
    """Return the status code of an HTTP response that has no ``grpc-status`` (http-grpc-status-mapping.md)."""
    return _HTTP.get(status, Code.UNKNOWN)


DEADLINE_TOLERANCE_SECONDS = 0.005
"""A timer, here or in a server, can fire this much before its time. ``grpc-timeout`` is rounded up, so the server's
deadline is not earlier than its client's by more than this."""


def deadline_exceeded(failure: StatusError, deadline: float | None, now: float) -> StatusError:
    """Return the failure of a stream that was reset, with DEADLINE_EXCEEDED for CANCELLED once the deadline has passed.

    A server resets the stream with CANCEL at the deadline that ``grpc-timeout`` gave it, and may do so before a timer
    of the client fires. The clock therefore decides which of the two codes is right.

    Args:
        failure: The failure by the table of ``code_of_reset``.
        deadline: Deadline of the call in seconds, or None.
        now: Seconds of the same clock.
    """
    if failure.code is not Code.CANCELLED or deadline is None or now < deadline - DEADLINE_TOLERANCE_SECONDS:
        return failure
    return DeadlineExceeded("the service did not answer within the deadline").at(f"{failure.where}: {failure.message}")
