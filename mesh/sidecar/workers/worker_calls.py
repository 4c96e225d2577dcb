"""The calls on a link: those that were opened here and wait for their answer, and those that are answered here."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Coroutine
from inspect import CORO_CREATED, getcoroutinestate
from typing import TYPE_CHECKING, Any, cast

from mesh.boundary import cancel_task
from mesh.call import Call
from mesh.sidecar.workers import frames
from mesh.sidecar.workers.call_headers import encode
from mesh.sidecar.workers.frames import Kind

if TYPE_CHECKING:
    from mesh.sidecar.workers.worker_connection import Link

__all__ = ["COST", "Answered", "Exchange", "LostError", "Notes", "wake"]

WINDOW = 256 * 2**10
"""Bytes of a stream's messages that its reader may leave unread before the writer waits."""
COST = 64
"""What a message counts at least: many small ones cost memory too."""

Notes = list[tuple[str, list[Any]]]


class LostError(ConnectionError):
    """The other end is gone.

    Attributes:
        call: The number of the call whose fate is not known; -1 if it was not sent.
    """

    def __init__(self, call: int) -> None:
        super().__init__()
        self.call = call


class Exchange:
    """A call that was opened here, until its STATUS has come.

    Attributes:
        id: Its number.
        path: The method.
        revoked: Nobody waits for it any more.
        events: What the other end said and nobody has looked at yet: kind, body.
        waiter: Done when there is more of it.
    """

    __slots__ = ("_taken", "credit", "events", "id", "path", "revoked", "room", "waiter")

    def __init__(self, number: int, path: str) -> None:
        self.id = number
        self.path = path
        self.revoked = False
        self.events: deque[tuple[int, Any]] = deque()
        self.credit = WINDOW
        self.room: asyncio.Future[None] | None = None
        self.waiter: asyncio.Future[None] | None = None
        self._taken = 0

    def put(self, kind: int, body: Any) -> None:
        """Take what the other end said."""
        self.events.append((kind, body))
        wake(self.waiter)

    def taken(self, size: int) -> int:
        """Note that a message has been passed on; returns the bytes to give back, or 0 while they are few."""
        self._taken += max(size, COST)
        if self._taken < WINDOW // 2:
            return 0
        size, self._taken = self._taken, 0
        return size


class Answered(Call):
    """A call that the other end opened and this one answers."""

    __slots__ = (
        "_ended", "_first", "_inbox", "_link", "_taken", "_waiter", "credit", "id", "reply", "revoked", "room", "task",
    )  # fmt: skip

    def __init__(self, link: Link, number: int, method: Any, opened: frames.Open) -> None:
        self.id = number
        self.method = method
        self.deadline = None if opened.deadline == frames.DEADLINE else opened.deadline
        self.auth_error = None
        self.deadline_enforced = False
        self.peer = ""
        self.headers = []
        self.headers_sent = False
        self.trailers = []
        self.reply: bytes | None = None
        self.revoked = False
        self.task: asyncio.Task[None] | None = None
        self.credit = WINDOW
        self.room: asyncio.Future[None] | None = None
        self._link = link
        self._first = opened.message
        self._ended = opened.ended
        self._inbox: deque[bytes] | None = None  # made for what follows the first message
        self._waiter: asyncio.Future[None] | None = None
        self._taken = 0

    async def receive(self) -> bytes | None:
        """Return the next request message, or None after the last."""
        first = self._first
        if first is not None:
            self._first = None
            return first
        while not self._inbox:
            if self._ended:
                return None
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        message = self._inbox.popleft()
        self._taken += max(len(message), COST)
        if self._taken >= WINDOW // 2 and not self._ended:
            self._link.write(frames.credit(self.id, self._taken))
            self._taken = 0
        return message

    async def receive_one(self) -> bytes:
        """Return the one request message (see ``Call``); a call that came whole is not asked twice."""
        first = self._first
        if first is not None and self._ended and not self._inbox:
            self._first = None
            return first
        return await super().receive_one()

    async def send(self, message: bytes) -> None:
        """Send a response message; the one of a unary method goes with the status."""
        if not self.method.server_streaming:
            if self.reply is not None:
                raise RuntimeError(f"{self.method.path} answers once, and a second response was sent")
            self.reply = message
            return
        if not self.headers_sent:
            await self.send_headers()
        while self.credit <= 0:
            self.room = asyncio.get_running_loop().create_future()
            await self.room
        self.credit -= max(len(message), COST)
        self._link.write(frames.frame(Kind.MESSAGE, self.id, message))

    async def send_headers(self) -> None:
        """Send ``headers`` now."""
        if not self.headers_sent:
            self.headers_sent = True
            if self.headers:
                self._link.write(frames.frame(Kind.HEADERS, self.id, encode(self.headers)))

    def put(self, message: bytes) -> None:
        """Take a request message."""
        if self._inbox is None:
            self._inbox = deque()
        self._inbox.append(message)
        wake(self._waiter)

    def end(self) -> None:
        """Take that no request follows."""
        self._ended = True
        wake(self._waiter)

    def revoke(self) -> None:
        """Cancel what answers the call."""
        self.revoked = True
        task = self.task
        if task is not None:
            cancel_task(task)
            made = cast("Coroutine[Any, Any, None]", task.get_coro())
            if getcoroutinestate(made) == CORO_CREATED:  # cancelled now, not a line of it ever runs
                self._link.unbegun(self)

    def notes(self) -> Notes:
        """Return what the function did to the current span."""
        return []


def wake(waiter: asyncio.Future[None] | None) -> None:
    """Let the one that waits go on."""
    if waiter is not None and not waiter.done():
        waiter.set_result(None)
