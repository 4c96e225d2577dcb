"""One call over the connections of a pool: what a ``Call`` says, as HTTP/2, and back.

It works with any ``Call`` and uses nothing but its interface. A call that the server certainly never processed is tried
again, at once and then after milliseconds, whatever its method; every other retry is the retry layer's
(``mesh.rpc.client.retry``).
"""

from __future__ import annotations

import asyncio
from random import random
from time import monotonic  # what the loops' own clocks are
from typing import TYPE_CHECKING

from mesh.address import authority
from mesh.boundary import cancel_task
from mesh.errors import DeadlineExceeded, StatusError, Unavailable
from mesh.layers.timer_wheel import timer_wheel
from mesh.message_size import Side, too_large
from mesh.rpc import framing, status
from mesh.rpc.client.http2_stream import Stream, wrong_count

if TYPE_CHECKING:
    from mesh.call import Call
    from mesh.rpc.client.connection import Connection
    from mesh.rpc.client.connection_pool import Pool
    from mesh.rpc.client.stream_connections import Lanes

__all__ = ["Exchange"]

TRIES = 5
"""How often a call is sent that no server takes (REFUSED_STREAM, GOAWAY, a connection that ends before it)."""
AGAIN = 0.002
"""Seconds before the third try, at most, and twice as many before each further: a server can count streams among those
that run for a moment after it has ended them (grpcio's does), and many calls wait for the same few places."""
REPLAY = 256 * 2**10
"""Bytes of a request stream that are kept, until the server answers, for such another try."""

Headers = list[tuple[bytes, bytes]]

_OK = tuple(status.OK)
"""The trailers of a call that succeeded and has nothing to add, as libnghttp2 gives them."""


class Exchange:
    """A handler that answers a call by asking a server.

    Args:
        pool: The connections.
        lanes: The connections of streaming calls.
        max_message: Largest message, request and response alike, bytes.
        secure: Whether the connections use TLS.
        agent: ``user-agent``.
    """

    def __init__(self, pool: Pool, lanes: Lanes, *, max_message: int, secure: bool, agent: bytes) -> None:
        self.pool = pool
        self.lanes = lanes
        self.max_message = max_message
        self._scheme = b"https" if secure else b"http"
        self._authority = authority(pool.addresses[0]).encode() if pool.addresses else b""
        self._agent = agent
        self._heads: dict[str, Headers] = {}

    async def __call__(self, call: Call) -> None:
        """Answer the call.

        Raises:
            StatusError: The server's status, or what kept it from answering.
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
        for turn in range(TRIES):
            if turn > 1:
                await asyncio.sleep(AGAIN * 2 ** (turn - 2) * random())  # noqa: S311 - no secret
            connection = pool.pick() or await pool.acquire(call)
            stream = Stream(self.max_message, streaming=False)
            call.peer = connection.peer
            if not connection.open(self.headers(call), stream, body):
                stream.failure = _refused(pool)
                continue
            slot = None
            if call.deadline is not None and not call.deadline_enforced:
                slot = timer_wheel(call.task).add(call.deadline, stream)
            try:
                await stream.wait()
            finally:
                if slot is not None:
                    slot.discard(stream)
                _leave(call, stream)
            if not stream.unprocessed:
                break
        _outcome(call, stream)
        await call.send(_only(stream))

    async def close(self) -> None:
        """Close the connections; calls that still run fail with UNAVAILABLE."""
        await asyncio.gather(self.lanes.close(), self.pool.close())

    def headers(self, call: Call) -> Headers:
        """Return the request headers of a call.

        Raises:
            DeadlineExceeded: No time is left.
        """
        path = call.method.path
        head = self._heads.get(path)
        if head is None:
            head = self._heads[path] = self._head(path)
        headers = head.copy()
        if call.deadline is not None:
            left = call.deadline - monotonic()
            if left <= 0:
                raise DeadlineExceeded("the deadline passed before the call was sent")
            headers.append((b"grpc-timeout", framing.format_timeout(left)))
        if call.compression:
            headers.append((b"grpc-encoding", call.compression.encode()))
        pairs = call.metadata.pairs
        if pairs:
            headers += status.metadata_of(pairs)
        return headers

    def _head(self, path: str) -> Headers:
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
        run = _Streaming(self, call)
        try:
            async with asyncio.timeout_at(call.deadline) as limit:
                await run.run()
        except TimeoutError:
            if not limit.expired():
                raise
            raise DeadlineExceeded("the deadline passed before the answer was complete") from None


def _leave(call: Call, stream: Stream) -> None:
    """Leave nothing of the stream behind, whether or not it has ended."""
    if call.deadline is not None and monotonic() >= call.deadline - status.DEADLINE_TOLERANCE_SECONDS:
        stream.connection.reset_later(stream)
    stream.close()


def _outcome(call: Call, stream: Stream) -> None:
    """Give the call what came beside the messages.

    Raises:
        StatusError: The call has failed.
    """
    headed = stream.headers is not None and stream.headers is not stream.trailers and not stream.plain
    if headed and not call.headers_sent:
        call.headers += status.metadata_of(stream.headers or ())
    if stream.failure is not None:
        raise status.deadline_exceeded(stream.failure, call.deadline, monotonic())
    if stream.trailers == _OK:
        return
    error, trailers = status.read_status(stream.trailers or ())
    call.trailers += trailers
    if error is not None:
        raise error


def _refused(pool: Pool) -> StatusError:
    return Unavailable("the service did not take the call").at(str(pool))


def _only(stream: Stream) -> bytes:
    if len(stream.messages) != 1:
        raise wrong_count(len(stream.messages)).at(stream.connection.address)
    return stream.messages[0]


class _Streaming:
    """A call of a method that streams."""

    def __init__(self, exchange: Exchange, call: Call) -> None:
        self.exchange = exchange
        self.call = call
        self.gzip = call.compression == "gzip"
        self.stream: Stream | None = None
        self.sent: list[bytes] | None = []
        self.kept = 0
        self.finished = False
        self.pump: asyncio.Task[None] | None = None
        self.lane: Connection | None = None

    async def run(self) -> None:
        stream = Stream(0, streaming=True)
        stream.failure = _refused(self.exchange.pool)
        try:
            for _ in range(TRIES):
                if not await self._open():
                    continue
                stream = self.stream or stream
                await self._answer(stream)
                if not stream.unprocessed or self.sent is None:
                    break
        finally:
            if self.stream is not None:
                _leave(self.call, self.stream)
            if self.pump is not None and not self.pump.done():
                cancel_task(self.pump)
                await asyncio.wait([self.pump])  # unlike awaiting it, this hides no cancellation of ours
            self._leave()
        self._conclude(stream)
        if not self.call.method.server_streaming:
            await self.call.send(_only(stream))

    async def _open(self) -> bool:
        """Open a stream and send what the one before it was given."""
        exchange, call = self.exchange, self.call
        self._leave()
        connection = self.lane = await exchange.lanes.acquire(call)
        if self.pump is None and not self.finished and not call.method.client_streaming:
            await self._forward(await call.receive_one())
            self.finished = True
        stream = Stream(exchange.max_message, streaming=True)
        call.peer = connection.peer
        if not connection.open(exchange.headers(call), stream):
            return False
        for data in self.sent or ():
            stream.write(data)
        if self.finished:
            stream.write(b"", end=True)
        self.stream = stream
        if call.method.client_streaming and self.pump is None:
            self.pump = asyncio.get_running_loop().create_task(self._pumping(), name=f"requests of {call.method.path}")
            self.pump.add_done_callback(self._pumped)
        return True

    def _leave(self) -> None:
        """Give the lane back."""
        if self.lane is not None:
            self.exchange.lanes.release(self.lane)
            self.lane = None

    async def _pumping(self) -> None:
        while (message := await self.call.receive()) is not None:
            await self._forward(message)
        self.finished = True
        if self.stream is not None:
            self.stream.write(b"", end=True)

    async def _forward(self, message: bytes) -> None:
        limit = self.exchange.max_message
        if len(message) > limit:
            raise too_large(Side.REQUEST, limit, len(message))
        data = framing.compressed_frame(message) if self.gzip else framing.frame(message)
        if self.sent is not None:
            self.sent.append(data)
            self.kept += len(data)
            if self.kept > REPLAY and self.stream is not None:
                self.sent = None
        if self.stream is not None:
            self.stream.write(data)
            await self.stream.writable()

    def _pumped(self, pump: asyncio.Task[None]) -> None:
        if not pump.cancelled() and pump.exception() is not None and self.stream is not None:
            self.stream.cancel()

    async def _answer(self, stream: Stream) -> None:
        call = self.call
        whole = not call.method.server_streaming
        while True:
            if stream.headers is not None and stream.headers is not stream.trailers:
                self.sent = None
                if not call.headers_sent:
                    call.headers += status.metadata_of(stream.headers)
                    await call.send_headers()
            while stream.messages and not whole:
                await call.send(stream.take())
            if stream.ended or (whole and len(stream.messages) > 1):
                return
            await stream.wait()

    def _conclude(self, stream: Stream) -> None:
        pump = self.pump
        if pump is not None and pump.done() and not pump.cancelled():
            error = pump.exception()
            if error is not None and (stream.trailers is None or isinstance(error, StatusError)):
                raise error
        _outcome(self.call, stream)
