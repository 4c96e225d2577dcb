"""Functions of ``delivery.v1.Recorder`` that do with an event what its ``what`` says, wherever they run."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

from delivery.v1 import delivery_pb2 as pb
from events.v1 import events_pb2
from google.protobuf.empty_pb2 import Empty
from sqlalchemy import text

from mesh import Context, Unavailable

_INSERT = text("INSERT INTO seen (key, number) VALUES (:key, :number)")


async def _write(context: Context, request: pb.Happened, *events: Any) -> None:
    async with context.transaction() as tx:
        await tx.execute(_INSERT, {"key": request.key, "number": request.number})
        for event in events:
            await tx.publish(event)
        if request.what == "roll back":
            raise Unavailable("after the write")


async def on_happened(request: pb.Happened, context: Context) -> Empty:
    what, _, more = request.what.partition(" ")
    context.log.warning("called for %s %d", request.key, request.number)
    if more == "meets":  # all that are here must have come before one goes on
        await _meet(Path(context.settings["meeting"]), request)
    if what == "crash":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "publish":
        await context.publish(pb.Noted(number=request.number))
    if what == "undeclared":
        await context.publish(events_pb2.Undeclared())
    if what == "large":
        await context.publish(pb.Happened(what="x" * 1_000_000))
    if what == "once":  # the effect, and then the end before anybody hears of it
        await _write(context, request)
        _end_once(Path(context.settings["meeting"]) / "ended")
    await _write(context, request, *([pb.Noted(number=request.number)] if what == "both" else []))
    if what == "twice":
        await _write(context, request)
    return Empty()


async def on_noted(request: pb.Noted, context: Context) -> Empty:
    return Empty()


async def _meet(folder: Path, request: pb.Happened) -> None:
    (folder / f"{request.key}").touch()
    async with asyncio.timeout(20):
        while len(os.listdir(folder)) < request.number:  # noqa: ASYNC110, PTH208 - the test is among those who come
            await asyncio.sleep(0.01)


def _end_once(mark: Path) -> None:
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
