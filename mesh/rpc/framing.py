"""gRPC's message framing: length-prefixed messages, their compression, and ``grpc-timeout``.

Pure functions that client and server share; no transport. A malformed frame, encoding or timeout is refused with the
status that the specification names. ``mesh.rpc.status`` has the trailers.

Source: https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md and doc/compression.md.
"""

from __future__ import annotations

import math
import struct
import zlib

from mesh.errors import Internal, Unimplemented
from mesh.media_types import media_type
from mesh.message_size import Side, too_large

__all__ = [
    "ACCEPTED",
    "ENCODINGS",
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
    "prefix",
    "single_message",
    "unknown_encoding",
]

PREFIX = struct.Struct(">BI")
"""Prefix of each message: one byte flag (1: compressed), then the length of the message."""

TYPE = b"application/grpc"
"""``content-type`` that we send."""
TYPES = frozenset({"application/grpc", "application/grpc+proto"})
"""Media types of gRPC with protobuf messages."""

ENCODINGS = frozenset({b"identity", b"gzip"})
"""Values of ``grpc-encoding`` that are understood."""
ACCEPTED = b"identity,gzip"
"""The ``grpc-accept-encoding`` that client and server send."""

_GZIP = 16 + zlib.MAX_WBITS
_GZIP_LEVEL = 1  # on the event loop: the fastest level still halves JSON-like payloads
_pack = PREFIX.pack
_unpack = PREFIX.unpack_from


def prefix(message: bytes) -> bytes:
    """Return the prefix of an uncompressed message."""
    return _pack(0, len(message))


def frame(message: bytes) -> bytes:
    """Return the length-prefixed message, uncompressed."""
    return _pack(0, len(message)) + message


def compressed_frame(message: bytes) -> bytes:
    """Return the length-prefixed message, gzip-compressed."""
    packer = zlib.compressobj(_GZIP_LEVEL, zlib.DEFLATED, _GZIP)
    data = packer.compress(message) + packer.flush()
    return _pack(1, len(data)) + data


def single_message(data: bytes, limit: int) -> bytes | None:
    """Return the message if ``data`` is exactly one uncompressed frame of at most ``limit`` bytes, else None.

    This is the fast path: a small message arrives in one piece. A ``Deframer`` takes everything else.
    """
    if len(data) < PREFIX.size:
        return None
    flag, length = _unpack(data)
    return data[PREFIX.size :] if flag == 0 and length == len(data) - PREFIX.size <= limit else None


def is_grpc(content_type: bytes) -> bool:
    """Whether a ``content-type`` is gRPC with protobuf messages: as such, with ``+proto``, or with parameters."""
    return content_type == TYPE or media_type(content_type) in TYPES


def unknown_encoding(encoding: bytes) -> str:
    """Return the error text for a ``grpc-encoding``; a client fails with INTERNAL, a server with UNIMPLEMENTED."""
    return f"grpc-encoding {encoding[:100].decode('ascii', 'replace')!r} is not understood; identity and gzip are"


def check_encoding(encoding: bytes) -> None:
    """Check the ``grpc-encoding`` of a request.

    Raises:
        Unimplemented: It is neither ``identity`` nor ``gzip`` (doc/compression.md).
    """
    if encoding not in ENCODINGS:
        raise Unimplemented(unknown_encoding(encoding))


class Deframer:
    """Incremental parser: a byte stream → messages.

    Args:
        limit: Largest message in bytes, compressed and uncompressed.
        encoding: The peer's ``grpc-encoding``, None if it sent none.
        side: Whether they are requests or responses, for error texts.
    """

    __slots__ = ("_buffer", "_encoding", "_limit", "_side")

    def __init__(self, limit: int, encoding: bytes | None = None, side: Side = Side.REQUEST) -> None:
        self._limit = limit
        self._side = side
        self._encoding = encoding
        self._buffer = bytearray()

    @property
    def pending(self) -> int:
        """Bytes of an incomplete message, or of messages that ``next`` has not returned yet."""
        return len(self._buffer)

    @property
    def expected(self) -> int:
        """Bytes of the next message as its prefix declares them; 0 before the prefix has come."""
        return int(_unpack(self._buffer)[1]) if len(self._buffer) >= PREFIX.size else 0

    def feed(self, data: bytes) -> None:
        """Add bytes of the stream; frames may be cut anywhere."""
        self._buffer += data

    def next(self) -> bytes | None:
        """Return the next message, or None if more bytes are needed.

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
_TIMEOUT_LENGTH = 9  # 8 digits and a unit
_MAX_AMOUNT = 10**8 - 1


def parse_timeout(value: bytes) -> float:
    """Return the seconds of a ``grpc-timeout``.

    Raises:
        Internal: It is not 1 to 8 digits and a unit. (grpc-go answers a malformed timeout with this code.)
    """
    unit = _UNITS.get(value[-1:])
    digits = value[:-1]
    if unit is None or not digits.isdigit() or len(value) > _TIMEOUT_LENGTH:
        raise Internal(
            f"malformed grpc-timeout {value.decode('ascii', 'replace')!r}: up to 8 digits and one of H M S m u n"
        )
    return int(digits) * unit


def format_timeout(seconds: float) -> bytes:
    """Return the value of ``grpc-timeout``, rounded up to milliseconds (at most eight digits and a unit).

    Milliseconds let calls with the same timeout send the same header, which HPACK can index.
    """
    amount = math.ceil(seconds * 1000 - 1e-6)
    if amount <= _MAX_AMOUNT:
        return b"%dm" % max(amount, 0)
    return b"%dS" % min(math.ceil(seconds), _MAX_AMOUNT)
