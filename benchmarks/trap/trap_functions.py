"""Functions of ``trap.v1.Trap``."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

from trap.v1 import trap_pb2 as pb

from mesh import Context


async def echo(request: pb.EchoRequest, context: Context) -> pb.EchoResponse:  # noqa: ARG001
    return pb.EchoResponse(text=request.text)


async def large(request: pb.LargeRequest, context: Context) -> pb.LargeResponse:  # noqa: ARG001
    return pb.LargeResponse(text="a" * request.size)


async def hang(request: pb.HangRequest, context: Context) -> pb.HangResponse:  # noqa: ARG001
    await asyncio.get_running_loop().create_future()
    return pb.HangResponse()


async def wait(request: pb.WaitRequest, context: Context) -> AsyncIterator[pb.WaitResponse]:  # noqa: ARG001
    yield pb.WaitResponse(text="begun")
    await asyncio.get_running_loop().create_future()


async def block(request: pb.BlockRequest, context: Context) -> pb.BlockResponse:  # noqa: ARG001
    time.sleep(request.seconds)  # noqa: ASYNC251 - that is what it is for
    return pb.BlockResponse()
