"""gRPC's wire format as pure functions: frames, compression, timeouts, percent coding, the pairs that end a call.

Server and channel share it; nothing here knows a transport. It refuses what the specification refuses and says so as a
status. How the channel reads the end of a call is ``mesh.rpc.status``'s.

Source: https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md and doc/compression.md.
"""

from __future__ import annotations

import math
import re
import struct
import zlib
from base64 import b64encode
from urllib.parse import unquote_to_bytes

from google.protobuf import any_pb2
from google.rpc import status_pb2

from mesh.call import MAX_METADATA_SIZE
from mesh.errors import Internal, StatusError, Unimplemented
from mesh.message_size import Side, too_large

__all__ = [
    "ACCEPTED",
    "ENCODINGS",
    "OK",
    "PREFIX",
    "TYPE",
    "TYPES",
    "Deframer",
    "check_encoding",
    "compressed_frame",
    "format_timeout",
    "frame",
    "is_grpc",
    "parse_timeout",
    "percent_decode",
    "percent_encode",
    "status_pairs",
    "unknown_encoding",
    "whole",
]

Pairs = list[tuple[bytes, bytes]]

PREFIX = struct.Struct(">BI")
"""Before each message: one byte flag (1: compressed), then its length."""

TYPE = b"application/grpc"
TYPES = frozenset({TYPE, b"application/grpc+proto"})
"""``content-type`` of gRPC with protobuf messages."""

ENCODINGS = frozenset({b"identity", b"gzip"})
"""What ``grpc-encoding`` may be."""
ACCEPTED = b"identity,gzip"
"""What ``grpc-accept-encoding`` says of us."""

OK: Pairs = [(b"grpc-status", b"0")]
"""The trailers of a call that succeeded; not to be changed."""

_GZIP = 16 + zlib.MAX_WBITS
_LEVEL = 1  # on the event loop: the fastest level still halves JSON-like payloads
_pack = PREFIX.pack
_unpack = PREFIX.unpack_from


def frame(message: bytes) -> bytes:
    """Return the message as it goes over the wire, uncompressed."""
    return _pack(0, len(message)) + message


def compressed_frame(message: bytes) -> bytes:
    """Return the message as it goes over the wire, gzip-compressed."""
    packer = zlib.compressobj(_LEVEL, zlib.DEFLATED, _GZIP)
    data = packer.compress(message) + packer.flush()
    return _pack(1, len(data)) + data


def whole(data: bytes, limit: int) -> bytes | None:
    """Return the message if ``data`` is exactly one plain frame of at most ``limit`` bytes, else None.

    The fast path: a small message arrives in one piece. What it does not take is for a ``Deframer`` to judge.
    """
    if len(data) < PREFIX.size:
        return None
    flag, length = _unpack(data)
    return data[PREFIX.size :] if flag == 0 and length == len(data) - PREFIX.size <= limit else None


def is_grpc(content_type: bytes) -> bool:
    """Whether a ``content-type`` is gRPC's with protobuf messages: alone, as ``+proto``, or with parameters."""
    return content_type == TYPE or content_type.partition(b";")[0].strip().lower() in TYPES


def unknown_encoding(encoding: bytes) -> str:
    """Return the text that refuses a ``grpc-encoding``: INTERNAL for a client, UNIMPLEMENTED for a server."""
    return f"grpc-encoding {encoding[:100].decode('ascii', 'replace')!r} is not understood; identity and gzip are"


def check_encoding(encoding: bytes) -> None:
    """Check the ``grpc-encoding`` of a request.

    Raises:
        Unimplemented: It is neither ``identity`` nor ``gzip`` (doc/compression.md).
    """
    if encoding not in ENCODINGS:
        raise Unimplemented(unknown_encoding(encoding))


class Deframer:
    """Cuts a byte stream into messages.

    Args:
        limit: Largest message in bytes, compressed and not.
        encoding: The peer's ``grpc-encoding``, None when it sent none.
        side: Which messages they are.
    """

    __slots__ = ("_buffer", "_encoding", "_limit", "_side")

    def __init__(self, limit: int, encoding: bytes | None = None, side: Side = Side.REQUEST) -> None:
        self._limit = limit
        self._side = side
        self._encoding = encoding
        self._buffer = bytearray()

    @property
    def pending(self) -> int:
        """Bytes that are not a whole message yet."""
        return len(self._buffer)

    def feed(self, data: bytes) -> None:
        """Take bytes as they arrive, cut anywhere."""
        self._buffer += data

    def next(self) -> bytes | None:
        """Return the next whole message, or None if more bytes are needed.

        Raises:
            ResourceExhausted: The message is larger than the limit.
            Internal: The flag is neither 0 nor 1, or it says compressed and the encoding does not, or the compressed
                data are corrupt.
        """
        buffer = self._buffer
        if len(buffer) < PREFIX.size:
            return None
        flag, length = _unpack(buffer)
        if flag > 1:
            raise Internal(f"malformed message: the flag byte is {flag}; 0 or 1 was expected")
        if flag and self._encoding != b"gzip":
            declared = "not declared" if self._encoding is None else "identity"
            raise Internal(f"malformed message: it is marked compressed, and grpc-encoding is {declared}")
        if length > self._limit:
            raise too_large(self._side, self._limit, length)
        end = PREFIX.size + length
        if len(buffer) < end:
            return None
        message = bytes(memoryview(buffer)[PREFIX.size : end])
        del buffer[:end]
        return self._unzip(message) if flag else message

    def _unzip(self, data: bytes) -> bytes:
        unpacker = zlib.decompressobj(_GZIP)
        try:
            message = unpacker.decompress(data, self._limit + 1)
        except zlib.error:
            raise Internal("malformed message: the gzip data are corrupt") from None
        if len(message) > self._limit:
            raise too_large(self._side, self._limit)
        if not unpacker.eof or unpacker.unused_data:
            raise Internal("malformed message: the gzip data are corrupt")
        return message


_UNITS = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_MAX_TIMEOUT = 9  # 8 digits and a unit
_MAX_AMOUNT = 10**8 - 1


def parse_timeout(value: bytes) -> float:
    """Return the seconds of a ``grpc-timeout``.

    Raises:
        Internal: It is not 1 to 8 digits and a unit. (grpc-go answers a malformed timeout with this code.)
    """
    unit = _UNITS.get(value[-1:])
    digits = value[:-1]
    if unit is None or not digits.isdigit() or len(value) > _MAX_TIMEOUT:
        raise Internal(
            f"malformed grpc-timeout {value.decode('ascii', 'replace')!r}: up to 8 digits and one of H M S m u n"
        )
    return int(digits) * unit


def format_timeout(seconds: float) -> bytes:
    """Return the value of ``grpc-timeout``, rounded up to milliseconds (at most eight digits and a unit).

    Milliseconds, so that calls with the same timeout send the same header and HPACK can index it.
    """
    amount = math.ceil(seconds * 1000 - 1e-6)
    if amount <= _MAX_AMOUNT:
        return b"%dm" % max(amount, 0)
    return b"%dS" % min(math.ceil(seconds), _MAX_AMOUNT)


_ESCAPED = re.compile(rb"\A +| +\Z|[^ -~]|%")


def percent_encode(text: str) -> bytes:
    """Return ``grpc-message``: UTF-8, with everything but printable ASCII, and ``%``, as ``%XX``.

    So are the spaces at either end, though gRPC's specification lets them stand: an HTTP/2 field value must not begin
    or end with one (RFC 9113, 8.2.1), and a peer that checks this loses the whole status.
    """
    raw = text.encode("utf-8", "replace")
    return _ESCAPED.sub(lambda found: b"".join(b"%%%02X" % byte for byte in found[0]), raw)


def percent_decode(value: bytes) -> str:
    """Return the text of ``grpc-message``; what is not valid percent coding or UTF-8 is kept as well as it can be."""
    return (unquote_to_bytes(value) if b"%" in value else value).decode("utf-8", "replace")


MOST_MESSAGE = 2048
MOST_DETAILS = 4096
"""Bytes on the wire. A field of 64 KiB ends the whole connection with COMPRESSION_ERROR: a text that quotes its caller
would hurt everyone else on it."""
_STATUS_FIELDS = 256
"""Bytes of ``content-type``, ``grpc-status`` and the names of the other two, with their overhead."""
_LEAST = 512
"""Bytes that a status has in any case, also beside all the trailers of another server."""


def status_pairs(status: StatusError, taken: int = 0) -> Pairs:
    """Return the trailers of a call that failed: code, message, and the rich status if there are details.

    A message is cut, and details are left out, where all trailers would be more than any client takes.

    Args:
        status: How the call ended.
        taken: Bytes of the trailing metadata that goes beside it (``mesh.call.field_bytes``).
    """
    pairs = [(b"grpc-status", b"%d" % status.code)]
    room = max(MAX_METADATA_SIZE - _STATUS_FIELDS - taken, _LEAST)
    message = status.message
    if message:
        most = min(MOST_MESSAGE, room)
        encoded = percent_encode(message[:most])
        if len(message) > most or len(encoded) > most:
            message, encoded = _cut(message, most)
        pairs.append((b"grpc-message", encoded))
        room -= len(encoded)
    if status.details:
        most = min(MOST_DETAILS, room)
        rich = status_pb2.Status(code=status.code, message=message)
        for detail in status.details:
            packed = any_pb2.Any()
            if isinstance(detail, any_pb2.Any):  # of a type that is not known here: passed on as it came
                packed.CopyFrom(detail)
            else:
                packed.Pack(detail)
            if (rich.ByteSize() + packed.ByteSize() + 8) * 4 // 3 <= most:
                rich.details.append(packed)
        if rich.details or most == MOST_DETAILS:
            pairs.append((b"grpc-status-details-bin", b64encode(rich.SerializeToString()).rstrip(b"=")))
    return pairs


def _cut(message: str, most: int) -> tuple[str, bytes]:
    """Return as much of the message as there is room for, plain and encoded."""
    fits = most
    while True:
        text = f"{message[:fits]}…"
        encoded = percent_encode(text)
        if len(encoded) <= most:
            return text, encoded
        fits = fits * most // (len(encoded) + most // 64 + 1)
