"""Content codings: answers in gzip or zstd when asked for, request bodies out of gzip within a limit.

It refuses to write what would not shrink, and to unpack more than it was allowed.
Sources: RFC 9110, 8.4.1; RFC 1952; RFC 8878.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Iterator
from typing import Any, Protocol

from mesh.errors import InvalidArgument

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

__all__ = ["CODINGS", "Gunzip", "Packer", "pack", "packer", "shrinks"]

CODINGS = ("zstd", "gzip")
"""What answers can be written in; the first is the best."""

FROM = 1024
"""Bytes from which on an answer is worth it."""

PIECE = 64 * 2**10
"""Bytes that are unpacked at once."""

_GZIP = 16 + zlib.MAX_WBITS
_GZIP_LEVEL = 5
_ZSTD_LEVEL = 3
_ZSTD_STREAM = (1, 17)
"""Level and log2 of the window for streams: each that is open holds its packer, of 120 KB with these. With the level
and window that whole answers have it would be some megabytes."""

_TEXT = frozenset(
    (
        "application/javascript", "application/json", "application/protobuf", "application/wasm",
        "application/x-ndjson", "application/x-protobuf", "application/xml", "application/yaml", "image/svg+xml",
    )
)  # fmt: skip


class Packer(Protocol):
    """Packs a stream; what is put in comes out at once."""

    def put(self, data: bytes) -> bytes:
        """Return the bytes that let the reader have all of ``data``."""

    def end(self) -> bytes:
        """Return the last bytes."""


class _Gzip:
    def __init__(self) -> None:
        self._packer = zlib.compressobj(_GZIP_LEVEL, zlib.DEFLATED, _GZIP)

    def put(self, data: bytes) -> bytes:
        return self._packer.compress(data) + self._packer.flush(zlib.Z_SYNC_FLUSH)

    def end(self) -> bytes:
        return self._packer.flush(zlib.Z_FINISH)


class _Zstd:
    def __init__(self) -> None:
        parameter: Any = zstd.CompressionParameter
        level, window = _ZSTD_STREAM
        options = {parameter.compression_level: level, parameter.window_log: window}
        self._packer = zstd.ZstdCompressor(options=options)

    def put(self, data: bytes) -> bytes:
        packed: bytes = self._packer.compress(data, mode=zstd.ZstdCompressor.FLUSH_BLOCK)
        return packed

    def end(self) -> bytes:
        packed: bytes = self._packer.flush(zstd.ZstdCompressor.FLUSH_FRAME)
        return packed


def packer(coding: str) -> Packer:
    """Return a packer for a stream.

    Args:
        coding: One of ``CODINGS``.
    """
    return _Gzip() if coding == "gzip" else _Zstd()


def pack(coding: str, data: bytes) -> bytes:
    """Return a whole body packed."""
    if coding == "gzip":
        return zlib.compress(data, _GZIP_LEVEL, _GZIP)
    packed: bytes = zstd.compress(data, _ZSTD_LEVEL)
    return packed


def shrinks(kind: str) -> bool:
    """Whether a media type (without parameters) is one whose bytes are not packed already."""
    return kind.startswith("text/") or kind in _TEXT or kind.endswith(("+json", "+xml"))


class Gunzip:
    """Unpacks a gzip stream that comes in pieces, a bounded piece at a time."""

    __slots__ = ("_begun", "_unpacker")

    def __init__(self) -> None:
        self._unpacker = zlib.decompressobj(_GZIP)
        self._begun = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield what these bytes unpack to, at most ``PIECE`` bytes at once.

        Raises:
            InvalidArgument: It is not gzip.
        """
        while data:
            if self._unpacker.eof:  # a further member (RFC 1952, 2.2)
                self._unpacker = zlib.decompressobj(_GZIP)
            self._begun = True
            try:
                piece = self._unpacker.decompress(data, PIECE)
            except zlib.error:
                raise InvalidArgument("the body says `content-encoding: gzip`, and is not valid gzip") from None
            data = self._unpacker.unconsumed_tail or self._unpacker.unused_data
            if piece:
                yield piece

    def end(self) -> None:
        """Check that nothing is missing.

        Raises:
            InvalidArgument: It is cut off.
        """
        if self._begun and not self._unpacker.eof:
            raise InvalidArgument("the gzip body is cut off")
