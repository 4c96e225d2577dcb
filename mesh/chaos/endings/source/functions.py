"""Functions of endings.v1.Source."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import suppress

from endings.v1 import endings_pb2 as pb
from endings.v1.endings_pb2_grpc import StepsStub
from sqlalchemy import text

from mesh import Context
from mesh.chaos.endings import choice, ways


async def make(request: pb.MakeRequest, context: Context) -> pb.Made:
    """Write a row and publish an event, and end as the word says: before the commit, after it, or well."""
    await _steps(request, context)
    way = choice.of_call(request.word)
    made = pb.Made(key=choice.key_of(request.word), word=request.word)
    async with context.transaction() as tx:
        await tx.execute(text("INSERT INTO made (word) VALUES (:word)"), {"word": request.word})
        await tx.publish(made)
        if way is not None and not way.late:
            await ways.end_anywhere(way.name)
    if way is not None and way.late:
        await ways.end_anywhere(way.name)
    return made


async def _steps(request: pb.MakeRequest, context: Context) -> None:
    """Call what streams; however that ends, the call goes on."""

    async def requests() -> AsyncIterator[pb.MakeRequest]:
        yield request
        await ways.end_anywhere(choice.of_stream(request.word))

    steps = context.stub(StepsStub)
    with suppress(Exception):
        async for _ in steps.Walk(request):
            pass
    with suppress(Exception):  # what the requests ended with is raised here
        await steps.Join(requests())
