"""Streaming methods over a WebSocket: each frame is a message, in both directions.

Text frames are JSON, binary frames are serialized messages. Responses have the kind of the client's first frame, or
that of ``$alt``. Path and query are part of the first message. An empty text frame ends the request stream, because a
WebSocket cannot be half-closed. A function that succeeds closes with 1000. A failure is a last text frame
``{"error": Status}`` and a close with 4000 + its code. An error before the upgrade is an HTTP response.

Browsers cannot set ``authorization``. They offer the subprotocols ``bearer`` and the token, and ``bearer`` is chosen.
Sources: RFC 6455; the WebSocket part of the ASGI specification.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING

import orjson

from mesh.asgi import Receive, Scope, Send
from mesh.boundary import cancel_task
from mesh.call import Call, current
from mesh.edge import refusals
from mesh.edge.calls import CLIENT_CLOSED_REQUEST, HttpCall, StreamCall
from mesh.edge.http import negotiation
from mesh.edge.http.negotiation import Form
from mesh.edge.http.status_json import status_json
from mesh.edge.http.streaming import ERROR_FLUSH_TIMEOUT
from mesh.errors import Code, Internal, InvalidArgument, StatusError, Unavailable
from mesh.headers import Headers
from mesh.layers.recover import status_of
from mesh.message_size import Side, oversized

if TYPE_CHECKING:
    from mesh.call import Handler, Layer
    from mesh.edge.http.transcoder import Transcoder

__all__ = ["WebSocketCall", "WebSockets"]

log = logging.getLogger("mesh.edge")

NORMAL_CLOSURE = 1000
POLICY_VIOLATION = 1008
MESSAGE_TOO_BIG = 1009
ERROR_BASE = 4000
"""Close codes (RFC 6455, 7.4). From 4000 on they belong to the application."""

REASON_BYTES = 123
"""Bytes of the longest reason of a close frame (RFC 6455, 5.5)."""

BEARER = "bearer"

Find = Callable[[HttpCall, str], "tuple[Transcoder, tuple[str, ...]] | None"]


class WebSocketCall(HttpCall):
    """The request of a WebSocket, and the socket after the upgrade."""

    __slots__ = ("_connected", "_protocol", "_responds")

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        super().__init__(scope, receive, send)
        self._connected = False
        self._responds = "websocket.http.response" in (scope.get("extensions") or {})
        self._protocol: str | None = None
        offered: list[str] = list(scope.get("subprotocols") or ())
        if len(offered) > 1 and offered[0] == BEARER:
            self._protocol = BEARER
            self.metadata.append(b"authorization", b"Bearer " + offered[1].encode("latin-1", "replace"))

    async def accept(self) -> None:
        """Accept the upgrade."""
        await self._connect()
        self.status = 101
        self.response_started = True
        await self._put({"type": "websocket.accept", "subprotocol": self._protocol, "headers": self.headers})

    async def answer(self, status: int, headers: Headers, body: bytes) -> None:
        """Refuse the upgrade with an HTTP response."""
        await self._connect()
        self.status = status
        self.response_started = True
        if self._responds:
            await self._put({"type": "websocket.http.response.start", "status": status, "headers": headers})
            await self._put({"type": "websocket.http.response.body", "body": body})
        else:
            await self._put({"type": "websocket.close", "code": POLICY_VIOLATION})

    async def _connect(self) -> None:
        if not self._connected:
            self._connected = True
            await self._receive()

    async def next(self) -> str | bytes:
        """Return the next frame.

        Raises:
            asyncio.CancelledError: The client has closed the socket or has disconnected.
        """
        event = await self._receive()
        if event["type"] != "websocket.receive":
            self.abandon()
        text: str | None = event.get("text")
        frame: str | bytes = text if text is not None else event["bytes"]
        self.release_request()  # the frame before was passed on
        self.hold_request(len(frame))
        return frame

    async def wait_for_disconnect(self) -> None:
        """Return when the client has closed the socket or has disconnected. Further frames are discarded."""
        while (await self._receive())["type"] == "websocket.receive":
            pass

    async def put(self, frame: str | bytes) -> None:
        """Send a frame. Waits while the client does not read."""
        self.hold_response(len(frame))
        await self._put({"type": "websocket.send", "text" if isinstance(frame, str) else "bytes": frame})
        self.release_response()

    async def close(self, code: int, reason: str = "") -> None:
        """Close the socket."""
        short = reason.encode()[:REASON_BYTES].decode(errors="ignore")
        await self._put({"type": "websocket.close", "code": code, "reason": short})


class WebSockets:
    """WebSocket endpoint of streaming methods.

    Args:
        limit: Limits the open streams. It refuses a WebSocket before the upgrade.
        handler: Makes the gRPC call.
        find: Returns the route of a path for an HTTP method; None if there is none.
        check: Raises if the caller has no access to ``call.method``.
        max_message: Largest frame, bytes.
    """

    def __init__(
        self, limit: Layer, handler: Handler, find: Find, check: Callable[[HttpCall], None], *, max_message: int
    ) -> None:
        self._limit = limit
        self._handler = handler
        self._find = find
        self._check = check
        self._max_message = max_message

    async def __call__(self, call: WebSocketCall) -> None:
        """Answer one WebSocket.

        Raises:
            StatusError: The upgrade is refused, or the call has failed. A failure after the upgrade was reported on it.
        """
        transcoder, values = self._route(call)
        method = call.method = transcoder.method
        call.route = transcoder.template
        self._check(call)
        parameters = negotiation.system_parameters(call.query)
        if parameters.form not in (None, Form.JSON, Form.PROTOBUF):
            raise InvalidArgument("query parameter '$alt': a WebSocket has json or proto")
        transcoder.request(values, call.query, b"")  # a fault in path or query is an HTTP status
        loop = asyncio.get_running_loop()
        session = _WebSocketSession(call, transcoder, values, parameters, self._max_message)
        upstream = StreamCall(call, loop.time() + method.timeout if method.timeout else None, session.receive)
        upstream.sink = session.send

        async def serve(_: Call) -> None:
            await call.accept()
            await session.run(self._handler, upstream)

        token = current.set(call)
        try:
            await self._limit(upstream, serve)
        finally:
            current.reset(token)

    def _route(self, call: WebSocketCall) -> tuple[Transcoder, tuple[str, ...]]:
        """Return the streaming method of the path. A WebSocket has no HTTP method of its own, so any matches."""
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
        raise call.http_error(400, Code.INVALID_ARGUMENT, f"{call.path[:200]} does not stream: call it over HTTP")


class _WebSocketSession:
    """One socket after the upgrade."""

    def __init__(
        self,
        call: WebSocketCall,
        transcoder: Transcoder,
        values: tuple[str, ...],
        parameters: negotiation.SystemParameters,
        limit: int,
    ) -> None:
        self._call = call
        self._transcoder = transcoder
        self._values: tuple[str, ...] | None = values
        self._parameters = parameters
        self._limit = limit
        self._binary = parameters.form is Form.PROTOBUF
        self._streams = transcoder.method.client_streaming
        self._requests_ended = False
        self._count = 0
        self._too_large = False
        self._watcher: asyncio.Task[None] | None = None
        self._task = asyncio.current_task()

    async def run(self, handler: Callable[[Call], Awaitable[None]], upstream: StreamCall) -> None:
        """Make the call, and close the socket as it ends.

        Raises:
            StatusError: It has failed.
        """
        call = self._call
        failure: StatusError | None = None
        try:
            await handler(upstream)
        except asyncio.CancelledError:
            if not call.take_expiry():
                call.status = CLIENT_CLOSED_REQUEST
                raise
            failure = Unavailable(refusals.STOPPING)
        except Exception as error:
            failure = refusals.translate_oversize(call, status_of(error))
            if not isinstance(error, StatusError):
                log.exception("%s failed", upstream.method.path)
        finally:
            await self._stop()
        if failure is not None:
            await self._fail(failure)
            raise failure
        await call.close(NORMAL_CLOSURE)

    async def _stop(self) -> None:
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.wait([self._watcher])

    async def _fail(self, error: StatusError) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(ERROR_FLUSH_TIMEOUT):
                described = status_json(error, self._call.method)
                await self._call.put(orjson.dumps({"error": described}).decode())
                code = (
                    MESSAGE_TOO_BIG
                    if self._too_large or oversized(error) is Side.REQUEST
                    else ERROR_BASE + int(error.code)
                )
                await self._call.close(code, described["message"])

    async def receive(self) -> bytes | None:
        """Return the next request message, or None after the last."""
        if self._requests_ended:
            return None
        if not self._streams:
            self._requests_ended = True
            frame = await self._call.next() if self._transcoder.has_body else ""
            self._watch_for_close()
            return self._message(frame)
        frame = await self._call.next()
        if frame == "":  # text; an empty binary frame is the empty message
            self._requests_ended = True
            self._watch_for_close()
            return None
        return self._message(frame)

    def _watch_for_close(self) -> None:
        """Watch for a close. The client sends no further message."""
        self._watcher = asyncio.get_running_loop().create_task(self._cancel_on_close())

    async def _cancel_on_close(self) -> None:
        await self._call.wait_for_disconnect()
        if self._task is not None:
            cancel_task(self._task)

    def _message(self, frame: str | bytes) -> bytes:
        values, self._values = self._values, None
        query = self._call.query if values is not None else b""
        self._count += 1
        binary = isinstance(frame, bytes)
        if self._count == 1 and binary and self._parameters.form is None:
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
        """Send a response message. Waits while the client does not read."""
        transcoder, parameters = self._transcoder, self._parameters
        if self._binary:
            if not transcoder.gives_protobuf:
                raise Internal("the response of this route is no message: send text frames to get JSON")
            await self._call.put(transcoder.response(message, Form.PROTOBUF))
            return
        await self._call.put(
            transcoder.response(message, numbers=parameters.numbers, pretty=parameters.pretty).decode()
        )
