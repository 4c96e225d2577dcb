"""Calls on a worker connection: pending calls, which this end opened, and served calls, which the other end opened."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Coroutine
from inspect import CORO_CREATED, getcoroutinestate
from typing import TYPE_CHECKING, Any, cast

from mesh.boundary import cancel_task
from mesh.call import Call
from mesh.sidecar.workers import frames
from mesh.sidecar.workers.frame_payloads import encode
from mesh.sidecar.workers.frames import FrameKind

if TYPE_CHECKING:
    from mesh.sidecar.workers.worker_connection import WorkerConnection

__all__ = [
    "MIN_MESSAGE_BYTES", "OVERRUN_TIMEOUT", "ConnectionLostError", "PendingCall", "ServedCall", "SpanNotes", "wake",
]  # fmt: skip

OVERRUN_TIMEOUT = 2.0
"""Seconds that a function may go on after its call was cancelled, before its worker is replaced."""
WINDOW_BYTES = 256 * 2**10
"""Bytes of a stream's messages that its reader may leave unread before the writer waits."""
MIN_MESSAGE_BYTES = 64
"""Bytes that every message counts at least, because many small messages cost memory too."""

SpanNotes = list[tuple[str, list[Any]]]


class ConnectionLostError(ConnectionError):
    """The other end is gone.

    Attributes:
        call: Id of the call, whose outcome is unknown; None if it was not sent.
    """

    def __init__(self, call: int | None) -> None:
        super().__init__()
        self.call = call


class PendingCall:
    """A call that this end opened and whose STATUS has not come.

    Attributes:
        id: Its id.
        path: Its method.
        cancelled: Whether its caller has given up.
        received: Frames from the other end that were not read yet: kind, body. Kind 0 with an exception, or None when
            the connection was lost, ends the call.
        waiter: Done when ``received`` has grown; None if no task waits.
    """

    __slots__ = ("_taken", "cancelled", "credit", "credit_waiter", "id", "path", "received", "waiter")

    def __init__(self, number: int, path: str) -> None:
        self.id = number
        self.path = path
        self.cancelled = False
        self.received: deque[tuple[int, Any]] = deque()
        self.credit = WINDOW_BYTES
        self.credit_waiter: asyncio.Future[None] | None = None
        self.waiter: asyncio.Future[None] | None = None
        self._taken = 0

    def put(self, kind: int, body: Any) -> None:
        """Add a frame of the other end."""
        self.received.append((kind, body))
        wake(self.waiter)

    def consumed(self, size: int) -> int:
        """Count a message that was passed on; return the bytes to credit to the sender, or 0 while they are few."""
        self._taken += max(size, MIN_MESSAGE_BYTES)
        if self._taken < WINDOW_BYTES // 2:
            return 0
        size, self._taken = self._taken, 0
        return size


class ServedCall(Call):
    """A call that the other end opened and this end serves."""

    __slots__ = (
        "_connection", "_ended", "_first", "_inbox", "_taken", "_waiter", "cancelled", "credit", "credit_waiter", "id",
        "response", "task",
    )  # fmt: skip

    def __init__(self, connection: WorkerConnection, number: int, method: Any, opened: frames.OpenBody) -> None:
        self.id = number
        self.method = method
        self.deadline = None if opened.deadline == frames.NO_DEADLINE else opened.deadline
        self.auth_error = None
        self.deadline_enforced = False
        self.peer = ""
        self.queued = None
        self.headers = []
        self.headers_sent = False
        self.trailers = []
        self.response: bytes | None = None
        self.cancelled = False
        self.task: asyncio.Task[None] | None = None
        self.credit = WINDOW_BYTES
        self.credit_waiter: asyncio.Future[None] | None = None
        self._connection = connection
        self._first = opened.message
        self._ended = opened.ended
        self._inbox: deque[bytes] | None = None  # for requests after the first
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
        self._taken += max(len(message), MIN_MESSAGE_BYTES)
        if self._taken >= WINDOW_BYTES // 2 and not self._ended:
            self._connection.write(frames.credit_frame(self.id, self._taken))
            self._taken = 0
        return message

    async def receive_one(self) -> bytes:
        """Return the one request message (see ``Call``); one that came with OPEN is returned without a second read."""
        first = self._first
        if first is not None and self._ended and not self._inbox:
            self._first = None
            return first
        return await super().receive_one()

    async def send(self, message: bytes) -> None:
        """Send a response message; that of a unary method is sent with the status."""
        if not self.method.server_streaming:
            if self.response is not None:
                raise RuntimeError(f"{self.method.path} is unary and has one response; a second one was sent")
            self.response = message
            return
        if not self.headers_sent:
            await self.send_headers()
        while self.credit <= 0:
            self.credit_waiter = asyncio.get_running_loop().create_future()
            await self.credit_waiter
        self.credit -= max(len(message), MIN_MESSAGE_BYTES)
        self._connection.write(frames.frame(FrameKind.MESSAGE, self.id, message))

    async def send_headers(self) -> None:
        """Send ``headers`` now."""
        if not self.headers_sent:
            self.headers_sent = True
            if self.headers:
                self._connection.write(frames.frame(FrameKind.HEADERS, self.id, encode(self.headers)))

    def put(self, message: bytes) -> None:
        """Add a request message."""
        if self._inbox is None:
            self._inbox = deque()
        self._inbox.append(message)
        wake(self._waiter)

    def end(self) -> None:
        """Record that no request follows."""
        self._ended = True
        wake(self._waiter)

    def cancel(self) -> None:
        """Cancel the task that serves the call."""
        self.cancelled = True
        task = self.task
        if task is not None:
            cancel_task(task)
            coroutine = cast("Coroutine[Any, Any, None]", task.get_coro())
            if getcoroutinestate(coroutine) == CORO_CREATED:  # cancelled before its first line, which never runs
                self._connection.end_unstarted(self)

    def notes(self) -> SpanNotes:
        """Return the function's operations on the server span."""
        return []


def wake(waiter: asyncio.Future[None] | None) -> None:
    """Wake the coroutine that waits, if there is one."""
    if waiter is not None and not waiter.done():
        waiter.set_result(None)
