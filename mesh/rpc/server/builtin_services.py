"""Built-in services of a gRPC server: health and reflection.

They are called without a token and served when the concurrency limit is reached, because probes and the first requests
of stock clients must work then too. Therefore only the layers ``recover`` and ``deadline`` are around their handlers,
and, where clients are not trusted, a reserve of their own.
"""

from __future__ import annotations

from mesh.call import Handler, Layer, chain
from mesh.contract.model import Method
from mesh.layers.deadline import deadline
from mesh.layers.recover import recover
from mesh.rpc.server.health_service import Health
from mesh.rpc.server.reflection_service import Reflection

__all__ = ["builtin_handlers"]


def builtin_handlers(*services: Health | Reflection, reserve: Layer | None = None) -> dict[str, tuple[Method, Handler]]:
    """Return path → (method, handler) of the services.

    Args:
        services: Health, reflection, both or none.
        reserve: Layer that limits their calls; None: no limit.
    """
    layers = [recover, deadline] if reserve is None else [recover, deadline, reserve]
    return {
        path: (method, chain(*layers, handler))
        for service in services
        for path, (method, handler) in service.handlers().items()
    }
