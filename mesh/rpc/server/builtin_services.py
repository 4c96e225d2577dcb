"""Built-in services of a gRPC server: health and reflection.

They are called without a token and served when the concurrency limit is reached, because probes and the first requests
of stock clients must work then too. Therefore only the layers ``recover`` and ``deadline`` are around their handlers.
"""

from __future__ import annotations

from mesh.call import Handler, chain
from mesh.contract.model import Method
from mesh.layers.deadline import deadline
from mesh.layers.recover import recover
from mesh.rpc.server.health_service import Health
from mesh.rpc.server.reflection_service import Reflection

__all__ = ["builtin_handlers"]


def builtin_handlers(health: Health, reflection: Reflection) -> dict[str, tuple[Method, Handler]]:
    """Return path → (method, handler) of both services."""
    return {
        path: (method, chain(recover, deadline, handler))
        for path, (method, handler) in {**health.handlers(), **reflection.handlers()}.items()
    }
