"""What is refused before anybody looks at it: paths and headers that are too large, lengths that are ambiguous.

The listener refuses most that is malformed by itself, without a body; what it lets through and this refuses is
answered like every other error.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TYPE_CHECKING, cast

from mesh.edge.refusals import refuse
from mesh.errors import Code

if TYPE_CHECKING:
    from mesh.call import Call, Handler, Layer
    from mesh.edge.call import HttpCall

__all__ = ["FIELDS", "bounds"]

FIELDS = 100
"""Header fields of one request."""

_OVERHEAD = 32
"""Bytes that each field counts besides its name and value (RFC 9113, 6.5.2)."""


def bounds(max_uri: int, max_headers: int) -> Layer:
    """Return the layer that answers 414 and 431, and 400 for a ``content-length`` that is there twice or no number.

    Args:
        max_uri: Bytes of path and query.
        max_headers: Bytes of the header section.
    """

    def layer(call: Call, next: Handler) -> Awaitable[None]:
        request = cast("HttpCall", call)
        if len(request.path) + len(request.query) > max_uri:
            raise refuse(request, 414, Code.INVALID_ARGUMENT, f"path and query are longer than {max_uri} bytes")
        size = lengths = 0
        pairs = call.metadata.pairs
        for name, value in pairs:
            size += len(name) + len(value) + _OVERHEAD
            if name == b"content-length":  # RFC 9110, 8.6; h2corn passes on what is there twice alike
                lengths += 1
                if lengths > 1 or not value.isdigit():
                    raise refuse(request, 400, Code.INVALID_ARGUMENT, "send one `content-length`, a number of bytes")
        if size > max_headers:
            raise refuse(request, 431, Code.RESOURCE_EXHAUSTED, f"the headers are larger than {max_headers} bytes")
        if len(pairs) > FIELDS:
            raise refuse(request, 431, Code.RESOURCE_EXHAUSTED, f"there are more than {FIELDS} header fields")
        return next(call)

    return layer
