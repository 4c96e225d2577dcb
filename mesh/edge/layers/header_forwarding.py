"""Request headers that become metadata of the calls that answer the request: those of an explicit list, no others."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from mesh.call import current
from mesh.errors import InvalidArgument

if TYPE_CHECKING:
    from mesh.call import Call, Handler, Layer

__all__ = ["passing"]


def passing(names: Iterable[str]) -> Layer:
    """Return the outbound layer that adds the named headers of the request that is being answered.

    Args:
        names: In lower case; the manifest has checked that none belongs to the connection or to the mesh.
    """
    wanted = frozenset(name.encode() for name in names)

    async def layer(call: Call, next: Handler) -> None:
        request = current.get()
        if request is not None:
            for name, value in request.metadata.pairs:
                if name in wanted:
                    if not (value.isascii() and value.decode("ascii").isprintable()):  # PROTOCOL-HTTP2.md, ASCII-Value
                        raise InvalidArgument(f"the header `{name.decode()}` may hold only printable ASCII")
                    call.metadata.append(name, value)
        await next(call)

    return layer
