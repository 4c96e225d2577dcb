"""Edge component: the ASGI application and its listener, started and stopped together."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from mesh.edge.app import EdgeApp
from mesh.edge.layers.stack import NO_LAYERS, OptionalLayers

if TYPE_CHECKING:
    from mesh.call import Handler, Layer
    from mesh.contract.model import Contract
    from mesh.layers.concurrency import ConcurrencyLimit
    from mesh.rpc.server.clients.limits import ClientLimits

__all__ = ["Edge"]


class EdgeListener(Protocol):
    """The listener that the edge needs (``mesh.rpc.server.listener.Listener``)."""

    async def start(self) -> str:
        """Listen. Return the bound ``host:port``."""

    async def renew(self, tls: Any) -> None:
        """Present other certificates to new connections."""

    async def stop(self) -> None:
        """Stop accepting and finish the requests in progress."""


class Edge:
    """HTTP entry point of a mesh.

    Args:
        contract: The contract. Methods with HTTP routes are reachable.
        handler: The outbound chain that ends at the sidecars.
        trace: The outermost layer.
        authenticate: Sets ``call.identity``.
        concurrency_limit: Limits the unary calls to the sidecars.
        stream_limit: Limits the open streams.
        max_body: Largest request body, bytes.
        timeout: Seconds that a request may take if its method has no timeout; None: no limit.
        clients: Limits on what clients make the edge wait for; None: the defaults.
        layers: Optional layers of the deployment.
        listen: Makes the listener of the application.

    Attributes:
        app: The ASGI application.
    """

    def __init__(
        self,
        contract: Contract,
        *,
        handler: Handler,
        trace: Layer,
        authenticate: Layer,
        concurrency_limit: ConcurrencyLimit,
        stream_limit: Layer,
        max_body: int,
        timeout: float | None,
        listen: Callable[[EdgeApp], EdgeListener],
        clients: ClientLimits | None = None,
        layers: OptionalLayers = NO_LAYERS,
    ) -> None:
        self.app = EdgeApp(
            contract,
            handler=handler,
            trace=trace,
            authenticate=authenticate,
            concurrency_limit=concurrency_limit,
            stream_limit=stream_limit,
            max_body=max_body,
            timeout=timeout,
            clients=clients,
            layers=layers,
        )
        self._listener = listen(self.app)

    async def start(self) -> str:
        """Start serving. Return the bound ``host:port``."""
        address = await self._listener.start()
        self.app.draining = False
        self.app.grpc.health.serving()
        return address

    async def renew(self, tls: Any) -> None:
        """Present other certificates (``mesh.rpc.server.listener.CertificateFiles``) to new connections.

        Raises:
            ListenError: The files cannot be used. The edge goes on with the certificates that it has.
        """
        await self._listener.renew(tls)

    async def stop(self) -> None:
        """Report the drain, stop accepting, finish the requests in progress."""
        self.app.draining = True
        self.app.grpc.health.drain()
        await self._listener.stop()
