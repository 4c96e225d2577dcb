"""Header forwarding: an allowlist of request headers becomes metadata of the calls that answer the request."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from mesh.call import current
from mesh.errors import InvalidArgument

if TYPE_CHECKING:
    from mesh.call import Call, Handler, Layer

__all__ = ["forward_headers"]


def forward_headers(names: Iterable[str]) -> Layer:
    """Return the outbound layer that adds the named headers of the current request.

    Args:
        names: In lower case. The manifest refuses names that belong to the connection or to the mesh.
    """
    forwarded = frozenset(name.encode() for name in names)

    async def layer(call: Call, next: Handler) -> None:
        request = current.get()
        if request is not None:
            for name, value in request.metadata.pairs:
                if name in forwarded:
                    if not (value.isascii() and value.decode("ascii").isprintable()):  # PROTOCOL-HTTP2.md, ASCII-Value
                        raise InvalidArgument(f"the header `{name.decode()}` may hold only printable ASCII")
                    call.metadata.append(name, value)
        await next(call)

    return layer
