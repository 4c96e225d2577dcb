"""A remote service as a handler: calls go, balanced one by one, to what its addresses resolve to."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from importlib.metadata import version
from ssl import SSLContext
from typing import TYPE_CHECKING

from mesh.rpc.client.connection_pool import Pool
from mesh.rpc.client.grpcio_transport import GrpcioExchange
from mesh.rpc.client.stream_connections import Lanes
from mesh.rpc.client.transport import Exchange

if TYPE_CHECKING:
    from mesh.call import Call

__all__ = ["MAX_MESSAGE", "Target"]

MAX_MESSAGE = 4 * 2**20
"""Largest message when nothing is said, bytes: gRPC's default."""


class Target:
    """The handler that asks the servers at some addresses.

    Args:
        addresses: ``host:port`` or ``[IPv6]:port``; a name may stand for several servers and is resolved again as time
            passes.
        transport: ``"ngh2"`` (our channel on libnghttp2) or ``"grpcio"``.
        max_message: Largest message, request and response alike, bytes; a larger one ends its call with
            RESOURCE_EXHAUSTED, and its ``google.rpc.ErrorInfo`` says which it was.
        tls: TLS context, or None for plain text. Only for ``"ngh2"``.

    Raises:
        ValueError: An address is not ``host:port``, the transport is neither, or cannot do what is asked.
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
        self._handler: Exchange | GrpcioExchange
        if transport == "ngh2":
            pool = Pool(addresses, tls)
            lanes = Lanes(pool, tls)
            self._handler = Exchange(pool, lanes, max_message=max_message, secure=tls is not None, agent=agent)
        elif transport == "grpcio":
            if tls is not None:
                raise ValueError('an ssl.SSLContext cannot be given to grpcio: use transport "ngh2" with TLS')
            self._handler = GrpcioExchange(addresses, max_message=max_message, agent=agent)
        else:
            raise ValueError(f'transport must be "ngh2" or "grpcio", not {transport!r}')

    def __call__(self, call: Call) -> Awaitable[None]:
        """Answer the call by asking one of the servers.

        Raises:
            StatusError: The server's status, or what kept it from answering.
        """
        return self._handler(call)

    async def close(self) -> None:
        """Close the connections; calls that still run fail with UNAVAILABLE."""
        await self._handler.close()
