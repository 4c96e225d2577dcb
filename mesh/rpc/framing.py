"""gRPC's wire in small pieces that server and channel share: message frames, percent coding, timeouts, code tables.

It knows no HTTP/2 library and no connection; bytes in, values out.

Sources: PROTOCOL-HTTP2.md, http-grpc-status-mapping.md and compression.md in https://github.com/grpc/grpc/tree/master/doc.
"""

from __future__ import annotations

import math
import zlib
from struct import Struct
from urllib.parse import unquote_to_bytes

from mesh.errors import Code, Internal, ResourceExhausted, Unimplemented

__all__ = [
    "ENCODINGS",
    "Reader",
    "check_encoding",
    "code_of_http",
    "code_of_reset",
    "decode_message",
    "decode_timeout",
    "encode_message",
    "encode_timeout",
    "frame",
]

ENCODINGS = b"identity,gzip"
"""What this side takes, as the value of ``grpc-accept-encoding``."""

_PREFIX = Struct(">BI")
_pack = _PREFIX.pack
_unpack = _PREFIX.unpack_from
_PREFIX_SIZE = _PREFIX.size
_MAX_FRAME = 2**32 - 1
_GZIP = 16 + zlib.MAX_WBITS
"""zlib's way to say: with gzip's header and checksum."""


def frame(message: bytes, *, gzip: bool = False) -> bytes:
    """Return the message behind its five-byte prefix (compressed flag, length).

    Raises:
        ResourceExhausted: It is longer than the prefix can say (4 GiB).
    """
    if gzip:
        packer = zlib.compressobj(6, zlib.DEFLATED, _GZIP)
        message = packer.compress(message) + packer.flush()
    if len(message) > _MAX_FRAME:
        raise ResourceExhausted(f"a message of {len(message)} bytes is beyond gRPC's 4 GiB")
    return _pack(gzip, len(message)) + message


class Reader:
    """Cuts the bytes of one stream, in pieces of any size, into messages.

    Args:
        limit: Largest message, bytes, before and after decompression.
        encoding: ``grpc-encoding`` of the stream: ``identity`` or ``gzip``; a message says itself whether it uses it.
    """

    __slots__ = ("_chunks", "_compressed", "_have", "_need", "encoding", "limit")

    def __init__(self, limit: int, encoding: bytes = b"identity") -> None:
        self.limit = limit
        self.encoding = encoding
        self._chunks: list[bytes] = []
        self._have = 0
        self._need = -1  # length of the message that has begun; -1 before its prefix is whole
        self._compressed = False

    @property
    def partial(self) -> bool:
        """Whether a message has begun and not ended."""
        return self._have > 0 or self._need >= 0

    def feed(self, data: bytes) -> list[bytes]:
        """Return the messages that these bytes complete.

        Raises:
            ResourceExhausted: A message is larger than the limit; known from its prefix, before its bytes are held.
            Internal: The compressed flag is neither 0 nor 1, or is set though no encoding was agreed, or the
                compressed bytes are broken.
        """
        if self._need < 0 and not self._have and len(data) >= _PREFIX_SIZE:  # the usual case: one frame, one message
            flag, size = _unpack(data)
            if not flag and size == len(data) - _PREFIX_SIZE and size <= self.limit:
                return [data[_PREFIX_SIZE:]]
        self._chunks.append(data)
        self._have += len(data)
        found: list[bytes] = []
        while self._have >= (self._need if self._need >= 0 else _PREFIX_SIZE):
            buffer = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
            position = 0
            while True:
                if self._need < 0:
                    if len(buffer) - position < _PREFIX_SIZE:
                        break
                    self._begin(*_unpack(buffer, position))
                    position += _PREFIX_SIZE
                if len(buffer) - position < self._need:
                    break
                end = position + self._need
                found.append(self._finish(buffer[position:end]))
                position = end
                self._need = -1
            rest = buffer[position:]
            self._chunks = [rest] if rest else []
            self._have = len(rest)
        return found

    def _begin(self, flag: int, size: int) -> None:
        if flag > 1:
            raise Internal(f"a message's compressed flag is {flag}, not 0 or 1")
        if flag and self.encoding == b"identity":
            raise Internal("a message is flagged as compressed, but the stream names no grpc-encoding")
        if size > self.limit:
            raise ResourceExhausted(f"a message of {size} bytes is larger than the limit of {self.limit}")
        self._compressed = bool(flag)
        self._need = size

    def _finish(self, payload: bytes) -> bytes:
        return self._decompress(payload) if self._compressed else payload

    def _decompress(self, payload: bytes) -> bytes:
        unpacker = zlib.decompressobj(_GZIP)
        try:
            message = unpacker.decompress(payload, self.limit + 1)
        except zlib.error:
            raise Internal("a gzip-compressed message is broken") from None
        if len(message) > self.limit:
            raise ResourceExhausted(f"a message decompresses to more than the limit of {self.limit} bytes")
        if not unpacker.eof:
            raise Internal("a gzip-compressed message is cut off")
        return message


def check_encoding(encoding: bytes) -> None:
    """Refuse a ``grpc-encoding`` that this side cannot read.

    Raises:
        Unimplemented: It is neither ``identity`` nor ``gzip`` (compression.md, test case 2).
    """
    if encoding not in (b"identity", b"gzip"):
        raise Unimplemented(f"grpc-encoding {encoding.decode('latin-1')!r} is not supported; use identity or gzip")


_PLAIN = bytes(byte for byte in range(0x20, 0x7F) if byte != ord("%"))


def encode_message(text: str) -> bytes:
    """Return the percent-encoded value of ``grpc-message`` (PROTOCOL-HTTP2.md, Status-Message)."""
    raw = text.encode("utf-8", "replace")
    if not raw.translate(None, _PLAIN):
        return raw
    return b"".join(bytes((byte,)) if byte in _PLAIN else b"%%%02X" % byte for byte in raw)


def decode_message(value: bytes) -> str:
    """Return the text of ``grpc-message``; what is not valid percent coding or UTF-8 is kept as well as it can be."""
    return (unquote_to_bytes(value) if b"%" in value else value).decode("utf-8", "replace")


_UNITS = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_MAX_DIGITS = 8
_MAX_AMOUNT = 10**_MAX_DIGITS - 1


def encode_timeout(seconds: float) -> bytes:
    """Return the value of ``grpc-timeout``, rounded up to milliseconds (at most eight digits and a unit).

    Milliseconds, so that calls with the same timeout send the same header and HPACK can index it.
    """
    amount = math.ceil(seconds * 1000 - 1e-6)
    if amount <= _MAX_AMOUNT:
        return b"%dm" % max(amount, 0)
    return b"%dS" % min(math.ceil(seconds), _MAX_AMOUNT)


def decode_timeout(value: bytes) -> float:
    """Return the seconds of ``grpc-timeout``.

    Raises:
        ValueError: It is not one to eight digits and one of ``HMSmun``.
    """
    digits, unit = value[:-1], _UNITS.get(value[-1:])
    if unit is None or not 0 < len(digits) <= _MAX_DIGITS or not digits.isdigit():
        raise ValueError(f"grpc-timeout {value!r} is not one to eight digits and one of H, M, S, m, u, n")
    return int(digits) * unit


_RESETS = {
    0x00: Code.INTERNAL, 0x01: Code.INTERNAL, 0x02: Code.INTERNAL, 0x03: Code.INTERNAL, 0x04: Code.INTERNAL,
    0x06: Code.INTERNAL, 0x07: Code.UNAVAILABLE, 0x08: Code.CANCELLED, 0x09: Code.INTERNAL, 0x0A: Code.INTERNAL,
    0x0B: Code.RESOURCE_EXHAUSTED, 0x0C: Code.PERMISSION_DENIED,
}  # fmt: skip


def code_of_reset(error_code: int) -> Code:
    """Return the status of a stream that ended by RST_STREAM (PROTOCOL-HTTP2.md, Errors)."""
    return _RESETS.get(error_code, Code.UNKNOWN)


_HTTP = {
    400: Code.INTERNAL, 401: Code.UNAUTHENTICATED, 403: Code.PERMISSION_DENIED, 404: Code.UNIMPLEMENTED,
    429: Code.UNAVAILABLE, 502: Code.UNAVAILABLE, 503: Code.UNAVAILABLE, 504: Code.UNAVAILABLE,
}  # fmt: skip


def code_of_http(status: int) -> Code:
    """Return the status of an answer that has no ``grpc-status`` (http-grpc-status-mapping.md)."""
    return _HTTP.get(status, Code.UNKNOWN)
