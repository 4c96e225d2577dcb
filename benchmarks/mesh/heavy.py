"""A function that computes for some five milliseconds and never waits."""

from __future__ import annotations

from bench.v1 import bench_pb2 as pb

from mesh import Context

STEPS = 100_000
"""About 5 ms of the interpreter."""


async def register(request: pb.RegisterRequest, context: Context) -> pb.User:  # noqa: ARG001 - its shape
    """Answer when the work is done."""
    total = 0
    for step in range(STEPS):
        total += step
    return pb.User(id=f"u-{total}", name=request.name)


rename = register
