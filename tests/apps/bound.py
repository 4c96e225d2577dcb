"""Functions of conformance.v1.Echo whose module, ``startup`` and ``shutdown`` hold what belongs to one thread."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any

from apps.echo import bidi, client_stream, server_stream, slow  # noqa: F401 - found by name
from conformance.v1 import conformance_pb2 as pb

from mesh import Context

database = sqlite3.connect(":memory:")
kept = threading.local()
opened: list[sqlite3.Connection] = []


async def startup(service: Any) -> None:
    database.execute("CREATE TABLE seen (n)")
    kept.value = "by startup"
    opened.append(sqlite3.connect(service.settings["file"]))


async def shutdown(service: Any) -> None:
    (rows,) = database.execute("SELECT count(*) FROM seen").fetchone()
    opened[0].execute("CREATE TABLE ended AS SELECT ? AS rows", [rows])
    opened[0].commit()
    opened[0].close()
    Path(service.settings["file"]).with_suffix(".ended").touch()


def idempotent(request: pb.EchoRequest, context: Context) -> pb.EchoResponse:
    database.execute("INSERT INTO seen VALUES (1)")
    loop = asyncio.new_event_loop()
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    return pb.EchoResponse(text=getattr(kept, "value", "lost"))


def unary(request: pb.EchoRequest, context: Context) -> pb.EchoResponse:
    """Go on for a while, whatever becomes of the call."""
    until = time.monotonic() + request.sleep_ms / 1000
    while time.monotonic() < until:
        sum(range(1000))
    return pb.EchoResponse()
