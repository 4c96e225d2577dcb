"""The stock servicer's methods as functions of the mesh: the same peer behind our own server."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from echo_servicer import Echo
from google.rpc import status_pb2

from mesh import Context, StatusError
from mesh.rpc.status import unpack_details


class ServicerContext:
    """The part of ``grpc.aio.ServicerContext`` that the servicer uses, on a ``Context``."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._trailers: tuple[tuple[str, str | bytes], ...] = ()

    def invocation_metadata(self) -> list[tuple[str, str | bytes]]:
        metadata = self._context.metadata
        return [(key, value) for key in metadata for value in metadata.getall(key)]

    def set_trailing_metadata(self, pairs: Any) -> None:
        self._trailers = tuple(pairs)
        self._context.call.trailers.clear()
        for key, value in self._trailers:
            if key != "grpc-status-details-bin":
                self._context.set_trailer(key, value)

    def trailing_metadata(self) -> tuple[tuple[str, str | bytes], ...]:
        return self._trailers

    async def send_initial_metadata(self, pairs: Any) -> None:
        for key, value in pairs:
            self._context.set_header(key, value)
        await self._context.call.send_headers()

    def time_remaining(self) -> float | None:
        return self._context.remaining()

    async def abort(self, code: Any, message: str) -> None:
        rich = dict(self._trailers).get("grpc-status-details-bin", b"")
        assert isinstance(rich, bytes)
        status_pb2.Status.FromString(rich)
        raise StatusError.of(code.value[0], message, unpack_details(rich))


def module_of(servicer: Echo) -> str:
    """Make a module with the servicer's methods as functions, and return its name."""
    module = ModuleType(f"echo_functions_{id(servicer)}")

    def single(answer: Any) -> Any:
        async def function(request: Any, context: Context) -> Any:
            return await answer(request, ServicerContext(context))

        return function

    def many(answer: Any) -> Any:
        async def function(request: Any, context: Context) -> Any:
            async for response in answer(request, ServicerContext(context)):
                yield response

        return function

    module.unary = single(servicer.Unary)
    module.idempotent = single(servicer.Idempotent)
    module.slow = single(servicer.Slow)
    module.client_stream = single(servicer.ClientStream)
    module.server_stream = many(servicer.ServerStream)
    module.bidi = many(servicer.Bidi)
    sys.modules[module.__name__] = module
    return module.__name__
