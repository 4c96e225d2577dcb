"""Functions of conformance.v1.Echo, ``def`` and ``async def``, that tell what context they run in, and change it."""

from __future__ import annotations

import asyncio
import decimal
import json
import threading
from collections.abc import AsyncIterator, Iterator
from contextvars import ContextVar
from typing import Any

from conformance.v1 import conformance_pb2 as pb

from mesh import Context

imported: ContextVar[str] = ContextVar("imported", default="lost")
started: ContextVar[str] = ContextVar("started", default="lost")
mended: ContextVar[str] = ContextVar("mended", default="lost")
call: ContextVar[str] = ContextVar("call", default="none")

imported.set("kept")
mended.set("by the import")
decimal.getcontext().prec = 5
ended: list[str] = []


async def startup(service: Any) -> None:
    started.set(f"kept, after {imported.get()}")
    mended.set("by startup")


async def shutdown(service: Any) -> None:
    ended.append(f"{imported.get()} {started.get()}")


def told(request: pb.EchoRequest) -> pb.EchoResponse:
    """Tell all, then change all; a later call must see nothing of it."""
    third = str(decimal.Decimal(1) / 3)
    found = [imported.get(), started.get(), mended.get(), call.get(), third]
    call.set(request.text)
    for variable in (imported, started, mended):
        variable.set("changed")
    decimal.getcontext().prec = 50
    main = threading.current_thread() is threading.main_thread()
    return pb.EchoResponse(text=json.dumps(found), index=int(main))


async def unary(request: pb.EchoRequest, context: Context) -> pb.EchoResponse:
    return await asyncio.create_task(in_a_task(request))


async def in_a_task(request: pb.EchoRequest) -> pb.EchoResponse:
    return told(request)


def idempotent(request: pb.EchoRequest, context: Context) -> pb.EchoResponse:
    asyncio.get_event_loop().run_until_complete(asyncio.sleep(0))  # every thread of def functions has one
    return told(request)


async def slow(request: pb.EchoRequest, context: Context) -> pb.EchoResponse:
    return await asyncio.to_thread(told, request)


async def server_stream(request: pb.EchoRequest, context: Context) -> AsyncIterator[pb.EchoResponse]:
    yield told(request)


def client_stream(requests: Iterator[pb.EchoRequest], context: Context) -> pb.EchoResponse:
    (answer,) = [told(request) for request in requests]
    return answer


def bidi(requests: Iterator[pb.EchoRequest], context: Context) -> Iterator[pb.EchoResponse]:
    for request in requests:
        yield told(request)
