"""Health service ``grpc.health.v1``: serving status of a sidecar or edge and of each of its services.

Source: https://github.com/grpc/grpc/blob/master/doc/health-checking.md.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from google.protobuf.message import Message
from grpc_health.v1 import health_pb2 as pb

from mesh.call import Call, Handler
from mesh.contract.model import Method
from mesh.errors import NotFound, Unavailable
from mesh.rpc.server.builtin_methods import decode, methods_of

__all__ = ["Health"]

OVERALL = ""
"""The service name that stands for the whole component."""
LIVENESS = "liveness"
"""The service name that stands for the event loop: SERVING whenever it answers, also while the component drains. It is
the name in Kubernetes' example of a gRPC liveness probe."""


class Health:
    """Health service. Every service is NOT_SERVING until ``serving`` is called, except ``LIVENESS``.

    Args:
        services: Full names of the services.
    """

    def __init__(self, services: Iterable[str]) -> None:
        self._statuses: dict[str, int] = dict.fromkeys([OVERALL, *services], pb.HealthCheckResponse.NOT_SERVING)
        self._statuses[LIVENESS] = pb.HealthCheckResponse.SERVING
        self._changed = asyncio.Event()
        self._ended = False

    def serving(self) -> None:
        """Report SERVING for every service."""
        self._set(pb.HealthCheckResponse.SERVING)

    def drain(self) -> None:
        """Report NOT_SERVING for every service from now on, and end every watch, so that none delays the shutdown."""
        self._ended = True
        self._set(pb.HealthCheckResponse.NOT_SERVING)

    def _set(self, status: int) -> None:
        self._statuses = dict.fromkeys(self._statuses, status) | {LIVENESS: pb.HealthCheckResponse.SERVING}
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def handlers(self) -> dict[str, tuple[Method, Handler]]:
        """Return path → (method, handler)."""
        methods = methods_of(pb.DESCRIPTOR.services_by_name["Health"])
        found = {
            methods["Check"]: _unary(methods["Check"], self._check),
            methods["Watch"]: self._watch,
        }
        if "List" in methods:  # grpcio-health-checking 1.80, the oldest that we allow, has no such method
            found[methods["List"]] = _unary(methods["List"], self._list)
        return {method.path: (method, handler) for method, handler in found.items()}

    async def _check(self, request: pb.HealthCheckRequest) -> pb.HealthCheckResponse:
        status = self._statuses.get(request.service)
        if status is None:
            raise NotFound(f"service {request.service!r} is not served here")
        return _response(status)

    async def _list(self, _: pb.HealthListRequest) -> pb.HealthListResponse:
        return pb.HealthListResponse(statuses={name: _response(status) for name, status in self._statuses.items()})

    async def _watch(self, call: Call) -> None:
        request = decode(call.method, await call.receive_one())
        last = None
        while True:
            changed = self._changed
            status = self._statuses.get(request.service, pb.HealthCheckResponse.SERVICE_UNKNOWN)
            if status != last:
                last = status
                await call.send(_response(status).SerializeToString())
            if self._ended:
                raise Unavailable("the server is shutting down")
            await changed.wait()


def _unary(method: Method, function: Callable[[Any], Awaitable[Message]]) -> Handler:
    """Return the handler of a unary method that decodes the request and encodes the response of ``function``."""

    async def handle(call: Call) -> None:
        request = decode(method, await call.receive_one())
        await call.send((await function(request)).SerializeToString())

    return handle


def _response(status: int) -> pb.HealthCheckResponse:
    return pb.HealthCheckResponse(status=status)
