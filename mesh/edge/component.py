"""The edge as a component: the application and the listener that it stands on, started and stopped together."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from mesh.edge.app import EdgeApp
from mesh.edge.layers.stack import OPEN, Door

if TYPE_CHECKING:
    from mesh.call import Handler, Layer
    from mesh.contract.model import Contract
    from mesh.layers.concurrency import ConcurrencyLimit

__all__ = ["Edge"]


class Listening(Protocol):
    """What the edge needs of a listener (``mesh.rpc.server.listener.Listener``)."""

    async def start(self) -> str:
        """Listen; returns the bound ``host:port``."""

    async def stop(self) -> None:
        """Stop accepting and finish what is in flight."""


class Edge:
    """The HTTP door of a mesh.

    Args:
        contract: What is reachable.
        handler: The outbound chain that reaches the sidecars.
        trace: The outermost layer.
        authenticate: Sets ``call.identity``.
        concurrency_limit: Bounds the requests in flight.
        max_body: Largest request body, bytes.
        timeout: Seconds that a request may take when its method says nothing; None: as long as it likes.
        door: The layers that the deployment asks for.
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
        max_body: int,
        timeout: float | None,
        listen: Callable[[EdgeApp], Listening],
        door: Door = OPEN,
    ) -> None:
        self.app = EdgeApp(
            contract,
            handler=handler,
            trace=trace,
            authenticate=authenticate,
            concurrency_limit=concurrency_limit,
            max_body=max_body,
            timeout=timeout,
            door=door,
        )
        self._listener = listen(self.app)

    async def start(self) -> str:
        """Serve; returns the bound ``host:port``."""
        address = await self._listener.start()
        self.app.draining = False
        self.app.grpc.health.serving()
        return address

    async def stop(self) -> None:
        """Report that it drains, stop accepting, finish what is in flight."""
        self.app.draining = True
        self.app.grpc.health.drain()
        await self._listener.stop()
