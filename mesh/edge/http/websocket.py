"""A streaming method over a WebSocket: each frame is a message, both ways.

Text frames are JSON, binary frames serialized messages; answers come as the client's first frame was, or as ``$alt``
says. Path and query go into the first message. An empty text frame ends the request stream (a WebSocket cannot be
closed half). A function that ends well closes with 1000; a failure is a last text frame ``{"error": Status}`` and a
close with 4000 + its code. Before the upgrade a refusal is an HTTP response like any other.

Browsers cannot set ``authorization``: they offer the subprotocols ``bearer`` and the token, and ``bearer`` is chosen.
Sources: RFC 6455; the WebSocket part of the ASGI specification.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import orjson

from mesh.boundary import cancel_task
from mesh.call import Call, current
from mesh.edge import refusals
from mesh.edge.call import GONE, HttpCall, Receive, Send, StreamCall
from mesh.edge.http import negotiation, status_response
from mesh.edge.http.negotiation import Form
from mesh.edge.http.response import LAST_WORDS
from mesh.errors import Code, Internal, InvalidArgument, StatusError, Unavailable
from mesh.layers.recover import status_of
from mesh.message_size import Side, oversized

if TYPE_CHECKING:
    from mesh.call import Handler
    from mesh.edge.http.transcoder import Transcoder

__all__ = ["SocketCall", "Sockets"]

log = logging.getLogger("mesh.edge")

NORMAL = 1000
POLICY = 1008
TOO_BIG = 1009
FAILED = 4000
"""Close codes (RFC 6455, 7.4; from 4000 on they are the application's)."""

REASON = 123
"""Bytes of a close's reason (RFC 6455, 5.5)."""

BEARER = "bearer"

Headers = list[tuple[bytes, bytes]]
Find = Callable[[HttpCall, str], "tuple[Transcoder, tuple[str, ...]] | None"]


class SocketCall(HttpCall):
    """The request of a WebSocket, and the socket after the upgrade."""

    __slots__ = ("_connected", "_protocol", "_responds")

    def __init__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        super().__init__(scope, receive, send)
        self._connected = False
        self._responds = "websocket.http.response" in (scope.get("extensions") or {})
        self._protocol: str | None = None
        offered: list[str] = list(scope.get("subprotocols") or ())
        if len(offered) > 1 and offered[0] == BEARER:
            self._protocol = BEARER
            self.metadata.append(b"authorization", b"Bearer " + offered[1].encode("latin-1", "replace"))

    async def accept(self) -> None:
        """Upgrade."""
        await self._connect()
        self.status = 101
        self.answered = True
        await self._put({"type": "websocket.accept", "subprotocol": self._protocol, "headers": self.headers})

    async def answer(self, status: int, headers: Headers, body: bytes) -> None:
        """Refuse to upgrade, with an HTTP response."""
        await self._connect()
        self.status = status
        self.answered = True
        if self._responds:
            await self._put({"type": "websocket.http.response.start", "status": status, "headers": headers})
            await self._put({"type": "websocket.http.response.body", "body": body})
        else:
            await self._put({"type": "websocket.close", "code": POLICY})

    async def _connect(self) -> None:
        if not self._connected:
            self._connected = True
            await self._receive()

    async def next(self) -> str | bytes:
        """Return the next frame.

        Raises:
            asyncio.CancelledError: The client has closed the socket, or has gone.
        """
        event = await self._receive()
        if event["type"] != "websocket.receive":
            self.leave()
        text: str | None = event.get("text")
        return text if text is not None else event["bytes"]

    async def gone(self) -> None:
        """Return when the client has gone; what it still sends is thrown away."""
        while (await self._receive())["type"] == "websocket.receive":
            pass

    async def put(self, frame: str | bytes) -> None:
        """Send a frame; waits while the client does not read."""
        await self._put({"type": "websocket.send", "text" if isinstance(frame, str) else "bytes": frame})

    async def close(self, code: int, reason: str = "") -> None:
        """Close the socket."""
        short = reason.encode()[:REASON].decode(errors="ignore")
        await self._put({"type": "websocket.close", "code": code, "reason": short})


class Sockets:
    """Answers WebSockets.

    Args:
        handler: Makes the gRPC call.
        find: Returns where a path leads under an HTTP method; None if nowhere.
        check: Raises if the caller may not call ``call.method``.
        max_message: Largest frame, bytes.
    """

    def __init__(self, handler: Handler, find: Find, check: Callable[[HttpCall], None], *, max_message: int) -> None:
        self._handler = handler
        self._find = find
        self._check = check
        self._max_message = max_message

    async def __call__(self, call: SocketCall) -> None:
        """Answer one.

        Raises:
            StatusError: The upgrade is refused, or the call has failed; then the socket says so already.
        """
        transcoder, values = self._route(call)
        method = call.method = transcoder.method
        call.route = transcoder.template
        self._check(call)
        wish = negotiation.wish(call.query)
        if wish.form not in (None, Form.JSON, Form.PROTOBUF):
            raise InvalidArgument("query parameter '$alt': a WebSocket has json or proto")
        transcoder.request(values, call.query, b"")  # what is wrong with them is an HTTP status
        loop = asyncio.get_running_loop()
        session = _Session(call, transcoder, values, wish, self._max_message)
        upstream = StreamCall(method, loop.time() + method.timeout if method.timeout else None, session.receive)
        upstream.identity = call.identity
        upstream.sink = session.send
        await call.accept()
        await session.run(self._handler, upstream)

    def _route(self, call: SocketCall) -> tuple[Transcoder, tuple[str, ...]]:
        """Return the streaming method of the path: a WebSocket has no HTTP method of its own, so any is right."""
        known = False
        for verb in ("GET", "POST", "PUT", "PATCH", "DELETE"):
            found = self._find(call, verb)
            if found is not None:
                known = True
                method = found[0].method
                if method.client_streaming or method.server_streaming:
                    return found
        if not known:
            raise refusals.not_found(call)
        raise refusals.refuse(call, 400, Code.INVALID_ARGUMENT, f"{call.path[:200]} does not stream: call it over HTTP")


class _Session:
    """One socket after the upgrade."""

    def __init__(
        self, call: SocketCall, transcoder: Transcoder, values: tuple[str, ...], wish: negotiation.Wish, limit: int
    ) -> None:
        self._call = call
        self._transcoder = transcoder
        self._values: tuple[str, ...] | None = values
        self._wish = wish
        self._limit = limit
        self._binary = wish.form is Form.PROTOBUF
        self._streams = transcoder.method.client_streaming
        self._over = False
        self._count = 0
        self._too_large = False
        self._watch: asyncio.Task[None] | None = None
        self._task = asyncio.current_task()

    async def run(self, handler: Callable[[Call], Awaitable[None]], upstream: StreamCall) -> None:
        """Make the call, and close the socket as it ends.

        Raises:
            StatusError: It has failed.
        """
        call = self._call
        token = current.set(call)
        failed: StatusError | None = None
        try:
            await handler(upstream)
        except asyncio.CancelledError:
            if not call.lapsed():
                call.status = GONE
                raise
            failed = Unavailable(refusals.STOPPING)
        except Exception as error:
            failed = refusals.sized(call, status_of(error))
            if not isinstance(error, StatusError):
                log.exception("%s failed", upstream.method.path)
        finally:
            current.reset(token)
            await self._stop()
        if failed is not None:
            await self._fail(failed)
            raise failed
        await call.close(NORMAL)

    async def _stop(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.wait([self._watch])

    async def _fail(self, error: StatusError) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(LAST_WORDS):
                described = status_response.describe(error, self._call.method)
                await self._call.put(orjson.dumps({"error": described}).decode())
                code = TOO_BIG if self._too_large or oversized(error) is Side.REQUEST else FAILED + int(error.code)
                await self._call.close(code, described["message"])

    async def receive(self) -> bytes | None:
        """Return the next request message, or None after the last."""
        if self._over:
            return None
        if not self._streams:
            self._over = True
            frame = await self._call.next() if self._transcoder.has_body else ""
            self._listen()
            return self._message(frame)
        frame = await self._call.next()
        if frame == "":  # text; an empty binary frame is the empty message
            self._over = True
            self._listen()
            return None
        return self._message(frame)

    def _listen(self) -> None:
        """From now on frames mean nothing, but a close does."""
        self._watch = asyncio.get_running_loop().create_task(self._until_gone())

    async def _until_gone(self) -> None:
        await self._call.gone()
        if self._task is not None:
            cancel_task(self._task)

    def _message(self, frame: str | bytes) -> bytes:
        values, self._values = self._values, None
        query = self._call.query if values is not None else b""
        self._count += 1
        binary = isinstance(frame, bytes)
        if self._count == 1 and binary and self._wish.form is None:
            self._binary = True
        body = frame if isinstance(frame, bytes) else frame.encode()
        if len(body) > self._limit:
            self._too_large = True
            raise StatusError.of(Code.OUT_OF_RANGE, f"message {self._count} is larger than {self._limit} bytes")
        if binary and not self._transcoder.takes_protobuf:
            raise InvalidArgument("messages must be JSON in text frames: the route takes a field that is no message")
        form = Form.PROTOBUF if binary else Form.JSON
        try:
            return self._transcoder.request(values, query, body, form)
        except InvalidArgument as error:
            raise InvalidArgument(f"message {self._count}: {error.message}", details=error.details) from None

    async def send(self, message: bytes) -> None:
        """Send a response message; waits while the client does not read."""
        transcoder, wish = self._transcoder, self._wish
        if self._binary:
            if not transcoder.gives_protobuf:
                raise Internal("the answer of this route is no message: use text frames")
            await self._call.put(transcoder.response(message, Form.PROTOBUF))
            return
        await self._call.put(transcoder.response(message, numbers=wish.numbers, pretty=wish.pretty).decode())
