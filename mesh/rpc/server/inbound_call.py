"""One inbound gRPC call over ASGI: its requests, its responses, its end.

A unary response waits until the call has ended, so that headers, message and trailers go out together and a failure
after it is still a clean refusal. A caller that goes away is ``asyncio.CancelledError`` in whatever runs for it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, MutableMapping
from time import monotonic  # what the loops' own clocks are
from typing import TYPE_CHECKING, Any

from mesh.boundary import interrupted, revoke
from mesh.call import Call, Metadata, field_bytes
from mesh.errors import Internal, ResourceExhausted, StatusError
from mesh.headers import UNTRAILED
from mesh.rpc import framing

if TYPE_CHECKING:
    from mesh.contract.model import Method

__all__ = ["CONTENT_TYPE", "InboundCall", "Receive", "Send"]

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

CONTENT_TYPE = (b"content-type", b"application/grpc")
_GZIP = (b"grpc-encoding", b"gzip")
_START: dict[str, Any] = {"type": "http.response.start", "status": 200, "headers": [CONTENT_TYPE], "trailers": True}
_END: dict[str, Any] = {"type": "http.response.body", "body": b"", "more_body": False}
_OK: dict[str, Any] = {"type": "http.response.trailers", "headers": framing.OK}

FIELDS = 1000
"""Header fields of one call; beyond that RESOURCE_EXHAUSTED."""
AHEAD = 100
"""Unread pieces of a request behind which it is looked whether the caller has gone."""
COMPRESS_FROM = 1024
"""Bytes; a smaller message goes uncompressed whatever was agreed."""


class InboundCall(Call):
    """A call as it came in.

    Raises (while it is made):
        StatusError: The timeout or the encoding of the caller cannot be understood, or there are too many fields.
    """

    __slots__ = ("_ended", "_frames", "_gone", "_gzip", "_limit", "_receive", "_reply", "_send")

    def __init__(self, method: Method, metadata: Metadata, receive: Receive, send: Send, limit: int) -> None:
        timeout = metadata.wire(b"grpc-timeout")
        deadline = None
        if timeout is not None:
            deadline = monotonic() + framing.parse_timeout(timeout)
        super().__init__(method, metadata, deadline)
        if len(metadata.pairs) > FIELDS:
            raise ResourceExhausted(
                f"the call has more than {FIELDS} header fields; send what they hold in the request"
            )
        encoding = metadata.wire(b"grpc-encoding")
        if encoding is not None:
            framing.check_encoding(encoding)
        self._limit = limit
        self._frames: framing.Deframer | None = None  # made for what does not arrive in one piece
        # Compressed answers for those who compress: it costs a CPU on both sides, so it is the caller's to begin.
        self._gzip = encoding == b"gzip" and b"gzip" in (metadata.wire(b"grpc-accept-encoding") or b"")
        self._receive = receive
        self._send = send
        self.task = asyncio.current_task()
        self._reply: bytes | None = None
        self._ended = False
        self._gone = False

    @property
    def unanswered(self) -> bool:
        """Whether a unary method has not answered yet."""
        return self._reply is None and not self.method.server_streaming

    def cancel(self) -> None:
        """Cancel what answers the call."""
        if self.task is not None:
            revoke(self.task)

    async def left(self) -> bool:
        """Whether the caller has gone. h2corn cancels the task for it; only what ``receive`` gives then says why."""
        for _ in range(AHEAD):  # requests that the function has not read may come first
            if self._gone:
                return True
            reading = asyncio.get_running_loop().create_task(self._read())
            await asyncio.wait([reading], timeout=0)
            if not reading.done():
                reading.cancel()
                await asyncio.wait([reading])
                return False
            if reading.cancelled() or reading.exception() is not None:  # somebody else reads
                return False
            event = reading.result()
            if event["type"] == "http.request" and not event.get("body") and not event.get("more_body", False):
                return False  # the end of the request, which pyvoy repeats
            self._gone = event["type"] != "http.request"
        return self._gone

    async def _read(self) -> MutableMapping[str, Any]:
        return await self._receive()

    async def receive(self) -> bytes | None:
        """Return the next request message, or None after the last (see ``Call.receive``)."""
        frames = self._frames
        while True:
            if frames is not None and frames.pending:
                message = frames.next()
                if message is not None:
                    return message
                if self._ended:
                    raise Internal("malformed request: the stream ended inside a message")
            if self._ended:
                return None
            event = await self._receive()
            if event["type"] != "http.request":
                self._leave()
            self._ended = not event.get("more_body", False)
            data = event.get("body", b"")
            if data:
                if frames is None:
                    message = framing.whole(data, self._limit)
                    if message is not None:
                        return message
                    frames = self._frames = framing.Deframer(self._limit, self.metadata.wire(b"grpc-encoding"))
                frames.feed(data)

    async def send(self, message: bytes) -> None:
        """Send a response message; of a unary method, keep it until the call ends (see ``Call.send``)."""
        if not self.method.server_streaming:
            if self._reply is not None:
                raise RuntimeError(f"{self.method.path} answers once, and a second response was sent")
            self._reply = message
            return
        if not self.headers_sent:
            await self.send_headers()
        await self._put({"type": "http.response.body", "body": self._frame(message), "more_body": True})

    async def send_headers(self) -> None:
        """Send ``headers`` now (see ``Call.send_headers``)."""
        if not self.headers_sent:
            self.headers_sent = True
            await self._put(self._start())

    async def finish(self, status: StatusError | None) -> None:
        """End the call: what is still to be sent, then the status (None: OK)."""
        if status is None and self._reply is not None and not self.headers_sent and not self.trailers:
            # What nearly every call comes to, without a detour.
            self.headers_sent = True
            try:
                await self._send(self._start())
                await self._send({"type": "http.response.body", "body": self._frame(self._reply)})
                await self._send(_OK)
            except OSError:
                self._leave()
            return
        if status is not None and not self.headers_sent and not self.headers:
            # Trailers-Only: one HEADERS frame.
            pairs = [CONTENT_TYPE, *self._trailers(status)]
            await self._put({"type": "http.response.start", "status": 200, "headers": pairs})
            await self._put(_END)
            return
        if not self.headers_sent:
            self.headers_sent = True
            await self._put(self._start())
        if status is None and self._reply is not None:
            await self._put({"type": "http.response.body", "body": self._frame(self._reply)})
        else:
            await self._put(_END)
        if status is None and not self.trailers:
            await self._put(_OK)
        else:
            await self._put({"type": "http.response.trailers", "headers": self._trailers(status)})

    async def abort(self) -> None:
        """End a call whose answer could not be sent, as INTERNAL if the headers have not gone."""
        status = framing.status_pairs(Internal("internal error"))
        with contextlib.suppress(Exception):  # then the server resets the stream
            await self._send({"type": "http.response.start", "status": 200, "headers": [CONTENT_TYPE, *status]})
            await self._send(_END)

    def _start(self) -> dict[str, Any]:
        if not self.headers and not self._gzip:
            return _START
        pairs = [CONTENT_TYPE, _GZIP, *self.headers] if self._gzip else [CONTENT_TYPE, *self.headers]
        return {"type": "http.response.start", "status": 200, "headers": pairs, "trailers": True}

    def _trailers(self, status: StatusError | None) -> list[tuple[bytes, bytes]]:
        """Return the status and the trailing metadata, without what another server set that is none."""
        own = [pair for pair in self.trailers if pair[0] not in UNTRAILED]
        return [*(framing.OK if status is None else framing.status_pairs(status, field_bytes(own))), *own]

    def _frame(self, message: bytes) -> bytes:
        if self._gzip and len(message) >= COMPRESS_FROM:
            return framing.compressed_frame(message)
        return framing.frame(message)

    async def _put(self, event: dict[str, Any]) -> None:
        try:
            await self._send(event)
        except OSError:  # ASGI: send() after the stream has closed
            self._leave()

    def _leave(self) -> None:
        """The caller is gone: end what runs for it."""
        if not self._gone:
            self._gone = True
            if self.task is not None:
                (interrupted if self.task is asyncio.current_task() else revoke)(self.task)
        raise asyncio.CancelledError("the caller went away")
