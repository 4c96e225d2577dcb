"""Content codings of complete bodies and messages: gzip and zstd, decompressed within a limit. Pure.

Sources: RFC 9110, 8.4.1; RFC 1952; RFC 8878.
"""

from __future__ import annotations

import sys
import zlib
from typing import Any

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

__all__ = ["CODINGS", "MIN_SIZE", "THREAD_SIZE", "BadCodingError", "compress", "decompress"]

CODINGS = ("zstd", "gzip")
"""Content codings, the best first."""

MIN_SIZE = 1024
"""Bytes of the smallest body that is compressed."""

THREAD_SIZE = 128 * 2**10
"""Bytes of the smallest body that a thread compresses. It would block the loop for milliseconds."""

_GZIP = 16 + zlib.MAX_WBITS
_GZIP_LEVEL = 5
_ZSTD_LEVEL = 3
_MAX_MEMBERS = 64
"""gzip members or zstd frames of one body. Each costs a copy of the rest of the body."""
_MAX_WINDOW_LOG = 23
"""log2 of the largest window of zstd that is accepted: 8 MiB (RFC 9659, 3). It is allocated before the first byte."""


class BadCodingError(ValueError):
    """The data are not what their content coding says."""


def compress(coding: str, data: bytes) -> bytes:
    """Return a complete body compressed.

    Args:
        coding: One of ``CODINGS``.
        data: The body.
    """
    if coding == "gzip":
        return zlib.compress(data, _GZIP_LEVEL, _GZIP)
    compressed: bytes = zstd.compress(data, _ZSTD_LEVEL)
    return compressed


def decompress(coding: str, data: bytes, limit: int) -> bytes | None:
    """Return a complete body decompressed; None if it would be larger than ``limit`` bytes.

    Several gzip members, or zstd frames, one after the other are one body (RFC 1952, 2.2; RFC 8878, 3).

    Args:
        coding: One of ``CODINGS``.
        data: The compressed body; not empty.
        limit: Bytes of the largest body. No more than one byte above it is decompressed.

    Raises:
        BadCodingError: The data are corrupt or cut off.
    """
    parts: list[bytes] = []
    size = 0
    for _ in range(_MAX_MEMBERS):
        decompressor: Any = zlib.decompressobj(_GZIP) if coding == "gzip" else _zstd_decompressor()
        try:
            part = decompressor.decompress(data, limit + 1 - size)
        except (zlib.error, zstd.ZstdError):
            raise BadCodingError(f"the data are not valid {coding}") from None
        size += len(part)
        if size > limit:
            return None
        if not decompressor.eof:
            raise BadCodingError(f"the {coding} data are cut off")
        parts.append(part)
        data = decompressor.unused_data
        if not data:
            return b"".join(parts)
    raise BadCodingError(f"the {coding} data have more than {_MAX_MEMBERS} parts")


def _zstd_decompressor() -> Any:
    parameter: Any = zstd.DecompressionParameter
    return zstd.ZstdDecompressor(options={parameter.window_log_max: _MAX_WINDOW_LOG})
