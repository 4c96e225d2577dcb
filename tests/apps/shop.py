"""Functions of ``events.v1.Shop``: they publish in every way that there is."""

from __future__ import annotations

from events.v1 import events_pb2 as pb
from google.protobuf.empty_pb2 import Empty

from mesh import Context


async def order(request: pb.OrderRequest, context: Context) -> Empty:
    async with context.transaction() as tx:
        for number in range(request.count or 1):
            await tx.publish(pb.Ordered(customer=request.customer, number=request.number + number))
    return Empty()


async def note(request: pb.Noted, context: Context) -> Empty:
    await context.publish(request)
    return Empty()
