"""Functions that publish events, with and without a transaction."""

from __future__ import annotations

import asyncio
import os
import time

from google.protobuf.empty_pb2 import Empty
from notes.v1 import notes_pb2 as pb
from tally import Tally

from mesh import Context

COMMITTED = Tally(os.environ["TALLY_WRITER"])
UNCOUNTED = 1 << 30
"""Number of events that no tally records."""


async def write(request: pb.Noted, context: Context) -> Empty:
    """Publish in a transaction, and record the time of the commit."""
    async with context.transaction() as tx:
        await tx.publish(request)
    COMMITTED.note(request.number)
    return Empty()


async def publish(request: pb.Burst, context: Context) -> pb.Took:
    """Publish ``count`` events without a transaction, ``at_once`` at a time."""
    left = iter(range(request.count))

    async def some() -> None:
        for number in left:
            await context.publish(pb.Noted(key=f"k{number % 1000}", number=UNCOUNTED, payload=b"p" * 100))

    began = time.perf_counter()
    await asyncio.gather(*[some() for _ in range(request.at_once)])
    return pb.Took(seconds=time.perf_counter() - began)
