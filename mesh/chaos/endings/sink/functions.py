"""Functions of endings.v1.Sink."""

from __future__ import annotations

from endings.v1 import endings_pb2 as pb
from google.protobuf.empty_pb2 import Empty
from meshapi.v1 import annotations_pb2 as meshapi
from sqlalchemy import text

from mesh import Context
from mesh.chaos.endings import choice, ways


async def on_made(request: pb.Made, context: Context) -> Empty:
    """Write down that the event was delivered, and end as its word says."""
    return await _record("OnMade", request.word, context)


async def on_row(request: meshapi.Change, context: Context) -> Empty:
    """Write down that the change was delivered, and end as its word says."""
    return await _record("OnRow", str(request.after["word"]), context)


async def every_second(request: meshapi.Tick, context: Context) -> Empty:
    """End in one way after the other."""
    await ways.end_anywhere(choice.of_tick(context, str(context.metadata["ce-id"])))
    return Empty()


async def _record(method: str, word: str, context: Context) -> Empty:
    event = str(context.metadata["ce-id"])
    way = choice.of_attempt(context, method, event, word)
    if way is not None and not way.late:
        await ways.end_anywhere(way.name)
    async with context.transaction() as tx:
        row = {"event": event, "method": method}
        await tx.execute(text("INSERT INTO seen (event_id, method) VALUES (:event, :method)"), row)
    if way is not None:
        await ways.end_anywhere(way.name)
    return Empty()
