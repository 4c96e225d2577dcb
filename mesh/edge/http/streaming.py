"""Streaming methods over HTTP: request messages from the body, response messages as array, lines or events.

The edge holds one message at a time: the function is as fast as the client reads, and the client can send as fast as
the function reads. A stream lasts as long as the timeout of its method, without a limit if the method has none.

The response starts with its first message, so that a failure before it is an HTTP status. A later failure is reported
in the form of the stream. Each message is sent at once, and the function waits for it.

Sources: RFC 8259; https://github.com/ndjson/ndjson-spec; https://html.spec.whatwg.org/#server-sent-events.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import orjson

from mesh.boundary import cancel_task, uncancel_task
from mesh.call import current
from mesh.edge import refusals
from mesh.edge.calls import CLIENT_CLOSED_REQUEST, HttpCall, StreamCall
from mesh.edge.http import request_body, response, stream_coding
from mesh.edge.http.disconnect import DisconnectWatcher
from mesh.edge.http.negotiation import Form
from mesh.edge.http.response import ResponseFormat
from mesh.edge.http.status_json import status_json
from mesh.errors import Internal, StatusError, Unavailable
from mesh.layers.recover import status_of
from mesh.media_types import OCTET_STREAM

if TYPE_CHECKING:
    from mesh.call import Handler
    from mesh.edge.http.transcoder import Transcoder

__all__ = ["ERROR_FLUSH_TIMEOUT", "MessageStream", "Streams"]

log = logging.getLogger("mesh.edge")

Source = Callable[[], Awaitable[bytes | None]]

START_DELAY = 3.0
"""Seconds without a message after which a stream starts all the same. Its client then knows that it is open."""
KEEPALIVE_INTERVAL = 15.0
"""Seconds of silence after which a stream sends a sign of life. Proxies close silent connections, and the disconnect of
an HTTP/1.1 client is noticed only by writing to it."""

ERROR_FLUSH_TIMEOUT = 10.0
"""Seconds that sending the report of a failure may take."""


class Streams:
    """HTTP endpoint of streaming methods.

    Args:
        handler: Makes the gRPC call.
        max_message: Largest request message as it stands in the body, bytes.
        timeout: Seconds that the body of a method with one request may take; None: no limit.
    """

    def __init__(self, handler: Handler, *, max_message: int, timeout: float | None) -> None:
        self._handler = handler
        self._max_message = max_message
        self._timeout = timeout

    async def __call__(self, call: HttpCall, transcoder: Transcoder, values: tuple[str, ...]) -> None:
        """Answer one request.

        Raises:
            StatusError: The call has failed. If its response had started, the failure was reported in the stream.
        """
        response_format = response.negotiate(call, transcoder)
        method = transcoder.method
        loop = asyncio.get_running_loop()
        watcher = DisconnectWatcher(call)
        source = await self._source(call, transcoder, values, watcher)
        upstream = StreamCall(call, loop.time() + method.timeout if method.timeout else None, source)
        if not method.server_streaming:
            single = _SingleResponse()
            upstream.sink = single.send
            await self._invoke(call, upstream, watcher, None)
            response.forward_headers(call, upstream)
            await response.send_message(call, transcoder, response_format, single.get(), method.success_status)
            return
        stream = MessageStream(call, upstream, transcoder, response_format)
        upstream.sink = stream.send
        stream.start()
        try:
            await self._invoke(call, upstream, watcher, stream)
        except StatusError as error:
            await stream.stop()
            if stream.started:
                await stream.fail(error)
            raise
        finally:
            await stream.stop()

    async def _invoke(
        self, call: HttpCall, upstream: StreamCall, watcher: DisconnectWatcher, stream: MessageStream | None
    ) -> None:
        """Make the gRPC call. A disconnect of the client cancels it."""
        token = current.set(call)
        try:
            await self._handler(upstream)
            if stream is not None:
                await stream.end()
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if stream is not None and stream.head_answered and task is not None and not uncancel_task(task):
                return
            if call.take_expiry():
                raise Unavailable(refusals.STOPPING) from None
            call.status = CLIENT_CLOSED_REQUEST  # whoever cancels the call, no client waits for the response
            raise
        except Exception as caught:
            error = refusals.translate_oversize(call, caught) if isinstance(caught, StatusError) else caught
            if stream is None or not stream.started:
                response.forward_headers(call, upstream)
                if error is caught:
                    raise
                raise error from caught
            if not isinstance(error, StatusError):
                log.exception("%s failed", upstream.method.path)
            raise status_of(error) from None
        finally:
            current.reset(token)
            watcher.stop()

    async def _source(
        self, call: HttpCall, transcoder: Transcoder, values: tuple[str, ...], watcher: DisconnectWatcher
    ) -> Source:
        if transcoder.has_body and transcoder.method.client_streaming:
            return request_body.RequestMessages(call, transcoder, values, self._max_message, watcher.start).receive
        request = await request_body.read_request(call, transcoder, values, self._max_message, self._timeout)
        watcher.start()
        return _SingleRequest(request).receive


class _SingleRequest:
    """Request stream of one message."""

    def __init__(self, message: bytes) -> None:
        self._messages = [message]

    async def receive(self) -> bytes | None:
        return self._messages.pop() if self._messages else None


class _SingleResponse:
    """Sink for the one response of a method that streams only its requests."""

    def __init__(self) -> None:
        self._messages: list[bytes] = []

    async def send(self, message: bytes) -> None:
        if self._messages:
            raise Internal("the service sent two responses")
        self._messages.append(message)

    def get(self) -> bytes:
        if not self._messages:
            raise Internal("the service sent no response message")
        return self._messages[0]


class MessageStream:
    """Response whose body is a stream of messages.

    Args:
        call: The request.
        upstream: The gRPC call. Its headers are sent with the first message.
        transcoder: The transcoder of the route.
        response_format: The negotiated format.

    Attributes:
        started: Whether the head was sent.
        head_answered: Whether a HEAD request was answered. The task of the call was then cancelled, because no client
            reads the messages.
    """

    def __init__(
        self, call: HttpCall, upstream: StreamCall, transcoder: Transcoder, response_format: ResponseFormat
    ) -> None:
        self.started = False
        self.head_answered = False
        self._call = call
        self._upstream = upstream
        self._transcoder = transcoder
        self._format = response_format
        self._task = asyncio.current_task()
        self._lock = asyncio.Lock()
        self._compressor: stream_coding.Compressor | None = None
        self._separator = b"["  # of an array: what its next element needs before it
        self._silent = True
        self._keepalive: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start the keepalive. A stream of ``HttpBody`` has none: only its first message names the media type."""
        if self._format.form is not Form.MEDIA:
            self._keepalive = asyncio.get_running_loop().create_task(self._keep_alive())

    async def stop(self) -> None:
        """End the keepalive."""
        if self._keepalive is not None:
            self._keepalive.cancel()
            with suppress(asyncio.CancelledError):
                await asyncio.wait([self._keepalive])

    async def send(self, message: bytes) -> None:
        """Send a message. Waits while the client does not read."""
        wanted = self._format
        if wanted.form is Form.MEDIA:
            media_type, data = self._transcoder.media(message)
            async with self._lock:
                if not self.started:
                    await self._start_response(response.content_type_of(media_type))
                if data:
                    await self._write(data)
            return
        text = self._transcoder.response(
            message, numbers=wanted.numbers, pretty=wanted.pretty and wanted.form is not Form.LINES
        )
        async with self._lock:
            if not self.started:
                await self._start_response(wanted.media_type)
            self._silent = False
            await self._write(self._framed(text))

    async def end(self) -> None:
        """End a stream that succeeded."""
        async with self._lock:
            if not self.started:
                await self._start_response(self._format.media_type or OCTET_STREAM)
            tail = b"[]" if self._separator == b"[" else b"]"
            await self._finish(tail if self._format.form is Form.JSON else b"")

    async def fail(self, error: StatusError) -> None:
        """End a stream that has started with a failure, in its own form.

        Raw bytes have no such form: the response stays incomplete, which every HTTP client notices. It stays so too if
        the client does not read.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(ERROR_FLUSH_TIMEOUT), self._lock:
                await self._fail(status_json(error, self._call.method))

    async def _fail(self, status: dict[str, Any]) -> None:
        match self._format.form:
            case Form.JSON:
                await self._finish(self._framed(orjson.dumps({"error": status})) + b"]")
            case Form.LINES:
                await self._finish(orjson.dumps({"error": status}) + b"\n")
            case Form.EVENTS:
                await self._finish(b"event: error\ndata: " + orjson.dumps(status) + b"\n\n")

    def _framed(self, text: bytes) -> bytes:
        match self._format.form:
            case Form.LINES:
                return text + b"\n"
            case Form.EVENTS:
                return b"data: " + text.replace(b"\n", b"\ndata: ") + b"\n\n"
        separator, self._separator = self._separator, b",\n"
        return separator + text

    async def _start_response(self, media_type: str) -> None:
        call = self._call
        self.started = True
        response.forward_headers(call, self._upstream)
        headers, coding = response.head(call, media_type, self._format.form)
        if coding:
            self._compressor = stream_coding.compressor(coding)
        if self._format.form is Form.EVENTS:
            headers.append((b"x-accel-buffering", b"no"))
            if not any(name == b"cache-control" for name, _ in call.headers):
                headers.append((b"cache-control", b"no-cache"))
        await call.begin(call.method.success_status, [*headers, *call.headers])
        if call.verb == "HEAD":
            self.head_answered = True
            if self._task is not None:
                cancel_task(self._task)
            await asyncio.get_running_loop().create_future()

    async def _write(self, data: bytes) -> None:
        await self._call.write(data if self._compressor is None else self._compressor.put(data))

    async def _finish(self, data: bytes) -> None:
        if self._compressor is not None:
            data = (self._compressor.put(data) if data else b"") + self._compressor.end()
        await self._call.write(data, end=True)

    async def _keep_alive(self) -> None:
        await asyncio.sleep(START_DELAY)
        async with self._lock:
            if not self.started:
                await self._start_response(self._format.media_type)
        # HTTP/2 reports the disconnect of a client, and blank lines can disturb a reader of NDJSON.
        blank = {Form.EVENTS: b": alive\n\n", Form.LINES: b"" if self._call.http_version == "2" else b"\n"}
        sign = blank.get(self._format.form, b"\n")  # white space between the elements of an array
        while sign:
            self._silent = True
            await asyncio.sleep(KEEPALIVE_INTERVAL)
            if self._silent:
                async with self._lock:
                    await self._write(sign)
