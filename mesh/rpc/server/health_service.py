"""grpc.health.v1: whether the sidecar, and each service in it, takes calls.

Source: https://github.com/grpc/grpc/blob/master/doc/health-checking.md.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from grpc_health.v1 import health_pb2 as pb

from mesh.call import Call, Handler
from mesh.contract.model import Method
from mesh.errors import NotFound, Unavailable
from mesh.rpc.server.builtin_services import decode, methods_of, unary

__all__ = ["Health"]

Status = pb.HealthCheckResponse.ServingStatus

OVERALL = ""
"""The name that stands for the sidecar as a whole."""


class Health:
    """The health of the services of one sidecar; NOT_SERVING until ``serving``.

    Args:
        services: Full names of the services.
    """

    def __init__(self, services: Iterable[str]) -> None:
        self._statuses: dict[str, int] = dict.fromkeys([OVERALL, *services], pb.HealthCheckResponse.NOT_SERVING)
        self._changed = asyncio.Event()
        self._ended = False

    def serving(self) -> None:
        """Report SERVING for all."""
        self._set(pb.HealthCheckResponse.SERVING)

    def drain(self) -> None:
        """Report NOT_SERVING for all, from now on; every watch hears it and ends, so that none delays the stop."""
        self._ended = True
        self._set(pb.HealthCheckResponse.NOT_SERVING)

    def _set(self, status: int) -> None:
        self._statuses = dict.fromkeys(self._statuses, status)
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def handlers(self) -> dict[str, tuple[Method, Handler]]:
        """Return path → (method, handler)."""
        methods = methods_of(pb.DESCRIPTOR.services_by_name["Health"])
        found = {
            methods["Check"]: unary(methods["Check"], self._check),
            methods["Watch"]: self._watch,
        }
        if "List" in methods:
            found[methods["List"]] = unary(methods["List"], self._list)
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


def _response(status: int) -> pb.HealthCheckResponse:
    return pb.HealthCheckResponse(status=status)
