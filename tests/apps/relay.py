"""The functions of apps.echo, but ``Idempotent`` calls itself on the next service, and fails as its text says."""

from __future__ import annotations

import grpc
from apps.echo import bidi, client_stream, server_stream, slow, unary
from conformance.v1 import conformance_pb2 as pb
from conformance.v1.conformance_pb2_grpc import EchoStub

from mesh import Context, Unavailable

__all__ = ["bidi", "client_stream", "idempotent", "server_stream", "slow", "unary"]


async def idempotent(request: pb.EchoRequest, context: Context) -> pb.EchoResponse:
    """Pass the failure of the next service on ("pass"), replace it ("replace"), or fail without a cause ("hide")."""
    try:
        return await context.stub(EchoStub).Idempotent(request)
    except grpc.aio.AioRpcError:
        if request.text == "pass":
            raise
        if request.text == "replace":
            raise Unavailable("the next service is down") from None
    raise Unavailable("not now")
