"""Target: a remote service as a handler. Calls are balanced one by one over the endpoints of its addresses."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING

from mesh.rpc.client.circuit_breaker import CircuitBreaker
from mesh.rpc.client.connection_pool import ConnectionPool
from mesh.rpc.client.grpcio_transport import GrpcioTransport
from mesh.rpc.client.stream_connections import StreamConnections
from mesh.rpc.client.transport import Http2Transport

if TYPE_CHECKING:
    from mesh.call import Call
    from mesh.rpc.client.service_tls import ServiceTls

__all__ = ["MAX_MESSAGE", "Target"]

MAX_MESSAGE = 4 * 2**20
"""Default of the largest message, in bytes; gRPC's own default."""


class Target:
    """Handler that calls the servers at some addresses.

    Args:
        addresses: ``host:port`` or ``[IPv6]:port``. A name may resolve to several servers and is resolved repeatedly.
        transport: ``"ngh2"`` (our channel on libnghttp2) or ``"grpcio"``.
        max_message: Largest message in bytes, for requests and responses. A larger one ends its call with
            RESOURCE_EXHAUSTED, and ``google.rpc.ErrorInfo`` says which of the two it was.
        tls: TLS to the service, or None for plain text.
        name: The service, for messages, logs and metrics.

    Attributes:
        breaker: Circuit breaker of the service.

    Raises:
        ValueError: An address is not ``host:port``, or the transport is unknown.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        *,
        transport: str = "ngh2",
        max_message: int = MAX_MESSAGE,
        tls: ServiceTls | None = None,
        name: str = "",
    ) -> None:
        if not addresses:
            raise ValueError("a target needs at least one address")
        agent = b"grpc-python-mesh/" + version("function-mesh").encode()
        self.breaker = CircuitBreaker(name)
        self._handler: Http2Transport | GrpcioTransport
        if transport == "ngh2":
            pool = ConnectionPool(addresses, tls, name=name, breaker=self.breaker)
            streams = StreamConnections(pool, tls)
            self._handler = Http2Transport(
                pool, streams, self.breaker, max_message=max_message, secure=tls is not None, agent=agent
            )
        elif transport == "grpcio":
            self._handler = GrpcioTransport(addresses, self.breaker, tls, max_message=max_message, agent=agent)
        else:
            raise ValueError(f'transport must be "ngh2" or "grpcio", not {transport!r}')

    def __call__(self, call: Call) -> Awaitable[None]:
        """Answer the call by calling one of the servers.

        Raises:
            StatusError: The server's status, the failure to reach it, or the refusal of the circuit breaker.
        """
        return self._admitted(call) if self.breaker.is_open else self._handler(call)

    async def _admitted(self, call: Call) -> None:
        await self.breaker.admit(call)
        await self._handler(call)

    async def close(self) -> None:
        """Close the connections; calls in progress fail with UNAVAILABLE."""
        await self._handler.close()
