"""HTTP/2 transport: a handler that sends each call over a connection of the pool and receives its response.

It works with any ``Call``, through its interface only. A call that no server has processed is sent again, whatever its
method: once at once, then after a few milliseconds. Every other retry is made by the retry layer
(``mesh.rpc.client.retry``).
"""

from __future__ import annotations

import asyncio
from random import random
from time import monotonic  # the clock of asyncio's and uvloop's event loops
from typing import TYPE_CHECKING

from mesh.address import authority
from mesh.boundary import cancel_task
from mesh.errors import Code, DeadlineExceeded, StatusError, Unavailable, is_own
from mesh.headers import Headers
from mesh.layers.timer_wheel import timer_wheel
from mesh.message_size import Side, too_large
from mesh.rpc import framing, status
from mesh.rpc.client.http2_stream import Stream, wrong_response_count

if TYPE_CHECKING:
    from mesh.call import Call
    from mesh.rpc.client.circuit_breaker import CircuitBreaker
    from mesh.rpc.client.connection_pool import ConnectionPool
    from mesh.rpc.client.endpoint_health import EndpointHealth
    from mesh.rpc.client.http2_connection import Connection
    from mesh.rpc.client.stream_connections import StreamConnections

__all__ = ["Http2Transport"]

MAX_ATTEMPTS = 5
"""Attempts to send a call that no server processes (REFUSED_STREAM, GOAWAY, a connection that is lost before)."""
REFUSED_RETRY_DELAY = 0.002
"""Longest delay before the third attempt in seconds, doubled for each further one. A server can count a stream for a
moment after it has ended it (grpcio's server does), while many calls wait for the same few streams."""
REPLAY_BUFFER_BYTES = 256 * 2**10
"""Bytes of a request stream that are kept for such another attempt until the server responds."""


_OK = tuple(status.OK)
"""Trailers of a call that succeeded and has no trailing metadata, as libnghttp2 returns them."""


class Http2Transport:
    """Handler that answers a call by calling a server.

    Args:
        pool: The connections of unary calls.
        stream_connections: The connections of streaming calls.
        breaker: The target's circuit breaker.
        max_message: Largest message in bytes, for requests and responses.
        secure: Whether the connections use TLS.
        agent: ``user-agent``.
    """

    def __init__(
        self,
        pool: ConnectionPool,
        stream_connections: StreamConnections,
        breaker: CircuitBreaker,
        *,
        max_message: int,
        secure: bool,
        agent: bytes,
    ) -> None:
        self.pool = pool
        self.stream_connections = stream_connections
        self._breaker = breaker
        self.max_message = max_message
        self._scheme = b"https" if secure else b"http"
        self._authority = authority(pool.addresses[0]).encode() if pool.addresses else b""
        self._agent = agent
        self._base_headers: dict[str, Headers] = {}

    async def __call__(self, call: Call) -> None:  # noqa: C901 - each branch is a step of one attempt
        """Answer the call.

        Raises:
            StatusError: The server's status, or the failure to reach it.
        """
        method = call.method
        if method.client_streaming or method.server_streaming:
            await self._stream(call)
            return
        message = await call.receive_one()
        if len(message) > self.max_message:
            raise too_large(Side.REQUEST, self.max_message, len(message))
        body = framing.compressed_frame(message) if call.compression == "gzip" else framing.frame(message)
        pool = self.pool
        for attempt in range(MAX_ATTEMPTS):
            if attempt:
                await _before_next_attempt(call, attempt)
            connection = pool.pick(call.tried) or await pool.acquire(call)
            stream = Stream(self.max_message, call.expect_response, streaming=False, movable=method.idempotent)
            call.peer = connection.peer
            if call.tried is not None:
                call.tried.add(connection.health)
            if not connection.open(self.headers(call), stream, body):
                stream.failure = _refused(pool)
                continue
            slot = None
            if call.deadline is not None and not call.deadline_enforced:
                slot = timer_wheel(call.task).add(call.deadline, stream)
            sent_at = monotonic()
            try:
                await stream.wait()
            finally:
                if slot is not None:
                    slot.discard(stream)
                if not stream.ended and _deadline_passed(call):  # a layer has cancelled the call at its deadline
                    self.record(call, connection, sent_at, DeadlineExceeded())
                _close_stream(call, stream)
            if not stream.unprocessed:
                break
        await call.send(self._conclude(call, stream, sent_at))

    def _conclude(self, call: Call, stream: Stream, sent_at: float) -> bytes:
        """Return the response message of a unary call, and count its outcome.

        Raises:
            StatusError: The call has failed.
        """
        try:
            _finish_call(call, stream)
        except StatusError as error:
            if not stream.unprocessed:
                self.record(call, stream.connection, sent_at, error)
            raise
        if self._breaker.has_failures:
            self._breaker.answered()
        if self.pool.ejection.comparing:
            self._count_answer(call.method.path, stream.connection.health, sent_at)
        return _single_response(stream)

    def record(self, call: Call, connection: Connection, sent_at: float, error: StatusError | None) -> None:
        """Count the outcome of a call, for its target and for the endpoint that it was sent to.

        Args:
            call: The call.
            connection: The connection that it was sent over.
            sent_at: Time at which it was sent.
            error: Its status; None: OK.
        """
        if error is not None and (
            error.code is Code.UNAVAILABLE or (error.code is Code.DEADLINE_EXCEEDED and _deadline_passed(call))
        ):
            self._breaker.failed(call, error)
            self.pool.ejection.failed(connection.health, call.method.path, monotonic() - sent_at)
            return
        if self._breaker.has_failures:
            self._breaker.answered()
        self._count_answer(call.method.path, connection.health, sent_at)

    def _count_answer(self, path: str, health: EndpointHealth, sent_at: float) -> None:
        now = monotonic()
        health.answered(path, now - sent_at, now)
        if health.trial_began and sent_at >= health.trial_began:
            self.pool.ejection.trial_passed(health)

    async def close(self) -> None:
        """Close the connections; calls in progress fail with UNAVAILABLE."""
        await asyncio.gather(self.stream_connections.close(), self.pool.close())

    def headers(self, call: Call) -> Headers:
        """Return the request headers of a call.

        Raises:
            DeadlineExceeded: The deadline has passed.
        """
        path = call.method.path
        base = self._base_headers.get(path)
        if base is None:
            base = self._base_headers[path] = self._make_base_headers(path)
        headers = base.copy()
        if call.deadline is not None:
            remaining = call.deadline - monotonic()
            if remaining <= 0:
                raise DeadlineExceeded("the deadline passed before the call was sent")
            headers.append((b"grpc-timeout", framing.format_timeout(remaining)))
        if call.compression:
            headers.append((b"grpc-encoding", call.compression.encode()))
        pairs = call.metadata.pairs
        if pairs:
            headers += status.metadata_of(pairs)
        return headers

    def _make_base_headers(self, path: str) -> Headers:
        return [
            (b":method", b"POST"),
            (b":scheme", self._scheme),
            (b":path", path.encode()),
            (b":authority", self._authority),
            (b"te", b"trailers"),
            (b"content-type", b"application/grpc"),
            (b"user-agent", self._agent),
            (b"grpc-accept-encoding", framing.ACCEPTED),
        ]

    async def _stream(self, call: Call) -> None:
        streaming = _StreamingExchange(self, call)
        try:
            async with asyncio.timeout_at(call.deadline) as limit:
                await streaming.run()
        except TimeoutError:
            if not limit.expired():
                raise
            raise DeadlineExceeded("the deadline passed before the response was complete") from None


async def _before_next_attempt(call: Call, attempt: int) -> None:
    call.peer = ""  # until the call has a connection again
    if attempt > 1:
        await asyncio.sleep(REFUSED_RETRY_DELAY * 2 ** (attempt - 2) * random())  # noqa: S311 - no secret


def _deadline_passed(call: Call) -> bool:
    return call.deadline is not None and monotonic() >= call.deadline - status.DEADLINE_TOLERANCE_SECONDS


def _close_stream(call: Call, stream: Stream) -> None:
    """Release the stream, whether or not it has ended."""
    if _deadline_passed(call):
        stream.connection.reset_later(stream)
    stream.close()


def _finish_call(call: Call, stream: Stream) -> None:
    """Give the call its response metadata.

    Raises:
        StatusError: The call has failed.
    """
    has_headers = stream.headers is not None and stream.headers is not stream.trailers and not stream.has_plain_headers
    if has_headers and not call.headers_sent:
        call.headers += status.metadata_of(stream.headers or ())
    if stream.failure is not None:
        raise status.deadline_exceeded(stream.failure, call.deadline, monotonic())
    if stream.trailers == _OK:
        return
    error, metadata = status.read_status(stream.trailers or ())
    call.trailers += metadata
    if error is not None:
        raise error


def _refused(pool: ConnectionPool) -> StatusError:
    return Unavailable("the service did not take the call").at(str(pool))


def _single_response(stream: Stream) -> bytes:
    if len(stream.messages) != 1:
        raise wrong_response_count(len(stream.messages)).at(stream.connection.address)
    return stream.messages[0]


class _StreamingExchange:
    """One call of a streaming method, over one stream after another until a server processes it.

    Attributes:
        stream: The stream of the current attempt.
        connection: Its connection, to be released.
        replay_buffer: The frames sent so far, for another attempt; None once there can be none.
        replay_bytes: Their size.
        requests_ended: The caller has sent its last request.
        sent_at: Time at which the current attempt was sent.
        recorded: Its outcome has been counted: the server has begun to respond.
        sender: The task that sends the requests of a method that streams them.
    """

    def __init__(self, transport: Http2Transport, call: Call) -> None:
        self.transport = transport
        self.call = call
        self.gzip = call.compression == "gzip"
        self.stream: Stream | None = None
        self.connection: Connection | None = None
        self.replay_buffer: list[bytes] | None = []
        self.replay_bytes = 0
        self.requests_ended = False
        self.sent_at = 0.0
        self.recorded = False
        self.sender: asyncio.Task[None] | None = None

    async def run(self) -> None:
        stream = Stream(0, self.call.expect_response, streaming=True)
        stream.failure = _refused(self.transport.pool)
        try:
            for _ in range(MAX_ATTEMPTS):
                if not await self._open():
                    continue
                stream = self.stream or stream
                await self._receive_response(stream)
                if not stream.unprocessed or self.replay_buffer is None:
                    break
        except asyncio.CancelledError:
            # A deadline that passed while the caller was still sending is the caller's own.
            if self.stream is not None and self.requests_ended and not self.recorded and _deadline_passed(self.call):
                self._record(self.stream, DeadlineExceeded())
            raise
        finally:
            if self.stream is not None:
                _close_stream(self.call, self.stream)
            if self.sender is not None and not self.sender.done():
                cancel_task(self.sender)
                await asyncio.wait([self.sender])  # awaiting the task itself would hide a cancellation of this one
            self._release()
        self._conclude(stream)
        if not self.call.method.server_streaming:
            await self.call.send(_single_response(stream))

    async def _open(self) -> bool:
        """Open a stream and send it the frames of the attempt before; return whether a connection took it."""
        transport, call = self.transport, self.call
        self._release()
        call.peer = ""
        connection = self.connection = await transport.stream_connections.acquire(call)
        if self.sender is None and not self.requests_ended and not call.method.client_streaming:
            await self._send_request(await call.receive_one())
            self.requests_ended = True
        stream = Stream(transport.max_message, call.expect_response, streaming=True, movable=call.method.idempotent)
        call.peer = connection.peer
        if call.tried is not None:
            call.tried.add(connection.health)
        if not connection.open(transport.headers(call), stream):
            return False
        for data in self.replay_buffer or ():
            stream.write(data)
        if self.requests_ended:
            stream.write(b"", end=True)
        self.stream = stream
        self.sent_at = monotonic()
        if call.method.client_streaming and self.sender is None:
            loop = asyncio.get_running_loop()
            self.sender = loop.create_task(self._send_requests(), name=f"requests of {call.method.path}")
            self.sender.add_done_callback(self._sender_done)
        return True

    def _release(self) -> None:
        if self.connection is not None:
            self.transport.stream_connections.release(self.connection)
            self.connection = None

    async def _send_requests(self) -> None:
        while (message := await self.call.receive()) is not None:
            await self._send_request(message)
        self.requests_ended = True
        if self.stream is not None:
            self.stream.write(b"", end=True)

    async def _send_request(self, message: bytes) -> None:
        limit = self.transport.max_message
        if len(message) > limit:
            raise too_large(Side.REQUEST, limit, len(message))
        data = framing.compressed_frame(message) if self.gzip else framing.frame(message)
        if self.replay_buffer is not None:
            self.replay_buffer.append(data)
            self.replay_bytes += len(data)
            if self.replay_bytes > REPLAY_BUFFER_BYTES and self.stream is not None:
                self.replay_buffer = None
        if self.stream is not None:
            self.stream.write(data)
            await self.stream.writable()

    def _sender_done(self, sender: asyncio.Task[None]) -> None:
        if not sender.cancelled() and sender.exception() is not None and self.stream is not None:
            self.stream.cancel()

    async def _receive_response(self, stream: Stream) -> None:
        call = self.call
        single = not call.method.server_streaming
        while True:
            if stream.headers is not None and stream.headers is not stream.trailers:
                self.replay_buffer = None
                if not self.recorded:
                    self._record(stream, None)
                if not call.headers_sent:
                    call.headers += status.metadata_of(stream.headers)
                    await call.send_headers()
            while stream.messages and not single:
                await call.send(stream.take())
            if stream.ended or (single and len(stream.messages) > 1):
                return
            await stream.wait()

    def _conclude(self, stream: Stream) -> None:
        sender = self.sender
        if sender is not None and sender.done() and not sender.cancelled():
            error = sender.exception()
            if error is not None and (stream.trailers is None or is_own(error)):
                raise error
        try:
            _finish_call(self.call, stream)
        except StatusError as failure:
            if self.stream is stream and not stream.unprocessed and not self.recorded:
                self._record(stream, failure)
            raise

    def _record(self, stream: Stream, error: StatusError | None) -> None:
        self.recorded = True
        self.transport.record(self.call, stream.connection, self.sent_at, error)
