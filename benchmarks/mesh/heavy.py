"""A function that computes for about five milliseconds and never awaits."""

from __future__ import annotations

from bench.v1 import bench_pb2 as pb

from mesh import Context

STEPS = 100_000
"""Steps of the loop, about 5 ms of CPU time."""


async def register(request: pb.RegisterRequest, context: Context) -> pb.User:  # noqa: ARG001 - the signature of functions
    """Return a user after the work."""
    total = 0
    for step in range(STEPS):
        total += step
    return pb.User(id=f"u-{total}", name=request.name)


rename = register
