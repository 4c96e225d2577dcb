"""Limits on URI and header size (414, 431), and refusal of ambiguous lengths (400).

The server refuses most malformed requests itself, without a response body. The layer gives the ones that it lets
through an error like every other.
"""

from __future__ import annotations

from collections.abc import Awaitable
from itertools import chain
from typing import TYPE_CHECKING, Any

from mesh.call import FIELD_OVERHEAD_BYTES
from mesh.errors import Code

if TYPE_CHECKING:
    from mesh.call import Call, Handler, Layer

__all__ = ["MAX_FIELDS", "size_limits"]

MAX_FIELDS = 100
"""Header fields of one request."""


def size_limits(max_uri: int, max_headers: int) -> Layer:
    """Return the layer that answers 414 and 431, and 400 for a ``content-length`` that is duplicate or no number.

    Args:
        max_uri: Bytes of path and query.
        max_headers: Bytes of the header section.
    """

    def layer(call: Call, next: Handler) -> Awaitable[None]:
        request: Any = call  # an ``HttpCall``
        if len(request.path) + len(request.query) > max_uri:
            raise request.http_error(414, Code.INVALID_ARGUMENT, f"path and query are longer than {max_uri} bytes")
        pairs, fields = call.metadata.pairs, call.metadata.fields
        length = fields.get(b"content-length", b"0")
        duplicate = len(fields) < len(pairs) and sum(name == b"content-length" for name, _ in pairs) > 1
        if duplicate or not length.isdigit():  # RFC 9110, 8.6; h2corn passes equal duplicates on
            raise request.http_error(400, Code.INVALID_ARGUMENT, "send one `content-length`, a number of bytes")
        if sum(map(len, chain.from_iterable(pairs))) + FIELD_OVERHEAD_BYTES * len(pairs) > max_headers:
            raise request.http_error(431, Code.RESOURCE_EXHAUSTED, f"the headers are larger than {max_headers} bytes")
        if len(pairs) > MAX_FIELDS:
            raise request.http_error(431, Code.RESOURCE_EXHAUSTED, f"there are more than {MAX_FIELDS} header fields")
        return next(call)

    return layer
