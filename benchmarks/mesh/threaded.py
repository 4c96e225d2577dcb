"""The function under load as a ``def`` function, which runs in a thread."""

from __future__ import annotations

from bench.v1 import bench_pb2 as pb

from mesh import Context


def register(request: pb.RegisterRequest, context: Context) -> pb.User:  # noqa: ARG001 - the signature of functions
    """Return a user at once."""
    return pb.User(id="u-1", name=request.name, email=request.email, created_at=1700000000, roles=["user"])


rename = register
