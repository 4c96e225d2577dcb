"""Publishes, in a transaction and by itself."""

from __future__ import annotations

import asyncio
import os
import time

from google.protobuf.empty_pb2 import Empty
from notes.v1 import notes_pb2 as pb
from tally import Tally

from mesh import Context

COMMITTED = Tally(os.environ["TALLY_WRITER"])
FAR = 1 << 30
"""Above all numbers that anyone counts."""


async def write(request: pb.Noted, context: Context) -> Empty:
    """Publish in a transaction, and say when it has committed."""
    async with context.transaction() as tx:
        await tx.publish(request)
    COMMITTED.note(request.number)
    return Empty()


async def publish(request: pb.Burst, context: Context) -> pb.Took:
    """Publish by themselves as many as asked for, so many at once."""
    left = iter(range(request.count))

    async def some() -> None:
        for number in left:
            await context.publish(pb.Noted(key=f"k{number % 1000}", number=FAR, payload=b"p" * 100))

    began = time.perf_counter()
    await asyncio.gather(*[some() for _ in range(request.at_once)])
    return pb.Took(seconds=time.perf_counter() - began)
