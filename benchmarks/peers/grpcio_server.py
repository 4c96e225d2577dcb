"""Peer: a grpcio servicer as grpcio's documentation shows it.

    python grpcio_server.py (asyncio | uvloop | otel | sync)

Prints the address that it listens on. ``otel`` is ``uvloop`` with OpenTelemetry's gRPC instrumentation, which exports
to ``OTEL_EXPORTER_OTLP_ENDPOINT``.
"""

from __future__ import annotations

import asyncio
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from bench.v1 import bench_pb2 as pb
from bench.v1 import bench_pb2_grpc as rpc


def user_of(request: pb.RegisterRequest) -> pb.User:
    """Return the response, as the function under load does."""
    return pb.User(id="u-1", name=request.name, email=request.email, created_at=1700000000, roles=["user"])


class Users(rpc.UsersServicer):
    """The asynchronous servicer."""

    async def Register(self, request: pb.RegisterRequest, context: Any) -> pb.User:  # noqa: ARG002, N802
        """Return a user at once."""
        return user_of(request)


class SyncUsers(rpc.UsersServicer):
    """The servicer for a thread pool."""

    def Register(self, request: pb.RegisterRequest, context: Any) -> pb.User:  # noqa: ARG002, N802
        """Return a user at once."""
        return user_of(request)


async def serve(*, instrumented: bool) -> None:
    """Serve until killed."""
    interceptors = []
    if instrumented:
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.instrumentation.grpc import aio_server_interceptor
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        provider = TracerProvider()
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        trace.set_tracer_provider(provider)
        interceptors = [aio_server_interceptor()]
    server = grpc.aio.server(interceptors=interceptors)
    rpc.add_UsersServicer_to_server(Users(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"127.0.0.1:{port}", flush=True)
    await server.wait_for_termination()


def serve_sync() -> None:
    """Serve until killed."""
    server = grpc.server(ThreadPoolExecutor(10))
    rpc.add_UsersServicer_to_server(SyncUsers(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(f"127.0.0.1:{port}", flush=True)
    server.wait_for_termination()


def main() -> None:
    """Run the kind of server that the command line names."""
    kind = sys.argv[1]
    if kind == "sync":
        serve_sync()
    elif kind == "asyncio":
        asyncio.run(serve(instrumented=False))
    else:
        import uvloop

        uvloop.run(serve(instrumented=kind == "otel"))


if __name__ == "__main__":
    main()
