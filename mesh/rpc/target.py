"""A remote service as a handler: calls go, balanced one by one, to what its addresses resolve to."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from ssl import SSLContext
from typing import TYPE_CHECKING

from mesh.rpc.exchange import Exchange
from mesh.rpc.pool import Pool

if TYPE_CHECKING:
    from mesh.call import Call

__all__ = ["MAX_MESSAGE", "Target"]

MAX_MESSAGE = 4 * 2**20
"""Largest response message when nothing is said, bytes: gRPC's default."""


class Target:
    """The handler that asks the servers at some addresses.

    Args:
        addresses: ``host:port`` or ``[IPv6]:port``; a name may stand for several servers and is resolved again as time
            passes.
        transport: ``"ngh2"`` (our channel on libnghttp2) or ``"grpcio"``.
        max_message: Largest response message, bytes; a larger one ends its call with RESOURCE_EXHAUSTED.
        tls: TLS context, or None for plain text. Only for ``"ngh2"``.

    Raises:
        ValueError: An address is not ``host:port``, or the transport is neither.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        *,
        transport: str = "ngh2",
        max_message: int = MAX_MESSAGE,
        tls: SSLContext | None = None,
    ) -> None:
        if not addresses:
            raise ValueError("a target needs at least one address")
        agent = b"grpc-python-mesh/" + version("function-mesh").encode()
        if transport == "ngh2":
            self._pool = Pool(addresses, tls)
            self._handler = Exchange(self._pool, max_message=max_message, secure=tls is not None, agent=agent)
        else:
            raise ValueError(f'transport must be "ngh2" or "grpcio", not {transport!r}')

    async def __call__(self, call: Call) -> None:
        """Answer the call by asking one of the servers.

        Raises:
            StatusError: The server's status, or what kept it from answering.
        """
        await self._handler(call)

    async def close(self) -> None:
        """Close the connections; calls that still run fail with UNAVAILABLE."""
        await self._pool.close()
