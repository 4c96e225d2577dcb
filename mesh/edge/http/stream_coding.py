"""Content codings of bodies in pieces: gzip and zstd of response streams, gzip of request bodies.

A request body is decompressed in bounded pieces. ``mesh.content_coding`` has those of complete bodies.
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

__all__ = ["PIECE_SIZE", "Compressor", "Gunzip", "compressor"]

PIECE_SIZE = 64 * 2**10
"""Bytes that are decompressed at once."""

_FED_SIZE = 4 * 2**10
"""Bytes that the decompressor gets at once. It copies what follows each member, and a body may have many members."""

_GZIP = 16 + zlib.MAX_WBITS
_GZIP_LEVEL = 5
_ZSTD_STREAM = (1, 17)
"""Level and log2 of the window for streams. Each open stream holds its compressor, of 120 KB with these. With the level
and window of complete responses it would be some megabytes."""


class Compressor(Protocol):
    """Compressor of a stream that flushes after each piece."""

    def put(self, data: bytes) -> bytes:
        """Return the bytes from which the reader can decompress all of ``data``."""

    def end(self) -> bytes:
        """Return the last bytes."""


class _GzipCompressor:
    def __init__(self) -> None:
        self._compressor = zlib.compressobj(_GZIP_LEVEL, zlib.DEFLATED, _GZIP)

    def put(self, data: bytes) -> bytes:
        return self._compressor.compress(data) + self._compressor.flush(zlib.Z_SYNC_FLUSH)

    def end(self) -> bytes:
        return self._compressor.flush(zlib.Z_FINISH)


class _ZstdCompressor:
    def __init__(self) -> None:
        parameter: Any = zstd.CompressionParameter
        level, window = _ZSTD_STREAM
        options = {parameter.compression_level: level, parameter.window_log: window}
        self._compressor = zstd.ZstdCompressor(options=options)

    def put(self, data: bytes) -> bytes:
        compressed: bytes = self._compressor.compress(data, mode=zstd.ZstdCompressor.FLUSH_BLOCK)
        return compressed

    def end(self) -> bytes:
        compressed: bytes = self._compressor.flush(zstd.ZstdCompressor.FLUSH_FRAME)
        return compressed


def compressor(coding: str) -> Compressor:
    """Return a compressor for a stream.

    Args:
        coding: One of ``mesh.content_coding.CODINGS``.
    """
    return _GzipCompressor() if coding == "gzip" else _ZstdCompressor()


class Gunzip:
    """Decompressor of a gzip stream that comes in pieces. It returns bounded pieces."""

    __slots__ = ("_decompressor", "_started")

    def __init__(self) -> None:
        self._decompressor = zlib.decompressobj(_GZIP)
        self._started = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield the decompressed bytes, at most ``PIECE_SIZE`` at once.

        Raises:
            InvalidArgument: The data is not gzip.
        """
        for start in range(0, len(data), _FED_SIZE):
            rest = data[start : start + _FED_SIZE]
            while rest:
                if self._decompressor.eof:  # a further member (RFC 1952, 2.2)
                    self._decompressor = zlib.decompressobj(_GZIP)
                self._started = True
                try:
                    piece = self._decompressor.decompress(rest, PIECE_SIZE)
                except zlib.error:
                    raise InvalidArgument("the body says `content-encoding: gzip`, and is not valid gzip") from None
                rest = self._decompressor.unconsumed_tail or self._decompressor.unused_data
                if piece:
                    yield piece

    def end(self) -> None:
        """Check that the stream is complete.

        Raises:
            InvalidArgument: It is cut off.
        """
        if self._started and not self._decompressor.eof:
            raise InvalidArgument("the gzip body is cut off")
