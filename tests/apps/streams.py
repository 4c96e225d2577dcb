"""Functions of stream.v1.Streams, and what happened to them."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from typing import Any

from google.api.httpbody_pb2 import HttpBody
from stream.v1 import stream_pb2 as pb

from mesh.errors import FailedPrecondition, NotFound

PIECE = 64 * 1024


class Seen:
    """What happened since ``reset``."""

    def reset(self) -> None:
        """Forget it."""
        self._counts = {"sent": 0, "received": 0}
        self.begun = asyncio.Event()
        self.ended = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.more = asyncio.Semaphore(0)
        self._changed = asyncio.Event()

    @property
    def sent(self) -> int:
        return self._counts["sent"]

    @property
    def received(self) -> int:
        return self._counts["received"]

    def note(self, what: str) -> None:
        """Count a message."""
        self._counts[what] += 1
        self._changed.set()

    async def until(self, found: Callable[[], bool]) -> None:
        """Return when it is so, looking at each message."""
        async with asyncio.timeout(10):
            while not found():
                self._changed.clear()
                await self._changed.wait()

    async def quiet(self) -> int:
        """Return how many items were sent when no message has come for a while: something holds the function."""
        while True:
            self._changed.clear()
            try:
                async with asyncio.timeout(0.3):
                    await self._changed.wait()
            except TimeoutError:
                return self.sent


seen = Seen()


async def count(request: pb.CountRequest, context: Any) -> AsyncIterator[pb.Item]:
    """Count up to ``count``; without end below 0; each item when the test says so at ``room`` "stepwise"."""
    seen.begun.set()
    if request.fail == "first":
        raise NotFound("there is no such room")
    context.set_header("x-mine", "yes")
    number = 0
    try:
        while request.count < 0 or number < request.count:
            if request.room == "stepwise":
                await seen.more.acquire()
            number += 1
            yield pb.Item(room=request.room, number=number, text="x" * request.size, mood=pb.GOOD)
            seen.note("sent")
    except (asyncio.CancelledError, GeneratorExit):
        seen.cancelled.set()
        raise
    finally:
        seen.ended.set()
    if request.fail == "last":
        raise FailedPrecondition("it broke")
    if request.fail == "bug":
        raise RuntimeError("secret of the inside")


async def brief(request: pb.CountRequest, _context: Any) -> AsyncIterator[pb.Item]:
    """Send what is asked for, then nothing until the deadline."""
    for number in range(request.count):
        yield pb.Item(number=number)
    await asyncio.Event().wait()


async def gather(requests: AsyncIterator[pb.Item], _context: Any) -> pb.Total:
    total = pb.Total()
    seen.begun.set()
    try:
        async for item in requests:
            seen.note("received")
            total.items += 1
            total.text += item.text
            total.room = total.room or item.room
    except asyncio.CancelledError:
        seen.cancelled.set()
        raise
    return total


async def chat(requests: AsyncIterator[pb.Item], _context: Any) -> AsyncIterator[pb.Item]:
    """Answer each item with itself; "bye" ends it, "fail" too, "silent" gets no answer any more."""
    try:
        async for item in requests:
            seen.note("received")
            if item.text == "bye":
                return
            if item.text == "fail":
                raise NotFound("nobody is here")
            if item.text == "silent":
                seen.begun.set()
                await asyncio.Event().wait()
            yield item
            seen.note("sent")
    except (asyncio.CancelledError, GeneratorExit):
        seen.cancelled.set()
        raise


secret = chat


async def echo(request: pb.Item, _context: Any) -> pb.Item:
    return request


async def put(request: pb.Upload, _context: Any) -> pb.Saved:
    file = request.file
    return pb.Saved(name=request.name, content_type=file.content_type, size=len(file.data))


async def put_large(requests: AsyncIterator[pb.Upload], _context: Any) -> pb.Saved:
    saved = pb.Saved()
    digest = hashlib.sha256()
    seen.begun.set()
    async for part in requests:
        seen.note("received")
        if saved.name == "" and part.name == "stuck":
            await asyncio.Event().wait()
        saved.name = saved.name or part.name
        saved.content_type = saved.content_type or part.file.content_type
        saved.size += len(part.file.data)
        digest.update(part.file.data)
    saved.digest = digest.hexdigest()
    return saved


async def raw(request: HttpBody, _context: Any) -> HttpBody:
    return request


async def get_page(request: pb.CountRequest, _context: Any) -> pb.Page:
    data = f"<p>{request.room}</p>".encode() * max(1, request.count)
    kind = {"none": "", "bad": "text/html\r\nx: y"}.get(request.room, "text/html; charset=utf-8")
    return pb.Page(number=1, body=HttpBody(content_type=kind, data=data))


async def get_large(request: pb.CountRequest, _context: Any) -> AsyncIterator[HttpBody]:
    """``count`` pieces of 64 KiB."""
    for number in range(request.count):
        yield HttpBody(content_type="application/x-tar" if number == 0 else "", data=bytes([number % 251]) * PIECE)
        seen.note("sent")
    if request.fail == "last":
        raise FailedPrecondition("the tape tore")
