"""One HTTP/2 stream for one gRPC call: the response received so far, and the task that waits for more.

It does no I/O and uses no HTTP/2 library. The connection feeds it; ``mesh.rpc.client.transport`` reads it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from mesh.errors import (
    Code,
    DeadlineExceeded,
    Internal,
    ResourceExhausted,
    StatusError,
    Unavailable,
    Unimplemented,
    Unknown,
)
from mesh.message_size import Side
from mesh.rpc import framing
from mesh.rpc.status import code_of_http, code_of_reset, metadata_of

if TYPE_CHECKING:
    from mesh.rpc.client.http2_connection import Connection

__all__ = ["Stream", "wrong_response_count"]


def _accept(_: int) -> None:
    """Accept a message of any size."""


class Stream:
    """One stream.

    Args:
        limit: Largest message in bytes.
        expect: Called with the size of a message that comes in several pieces, at the first of them; raises a
            ``StatusError`` to refuse it.
        streaming: Wake the waiting task for headers and each message, not only at the end.
        movable: As the attribute.

    Attributes:
        id: The stream id.
        connection: The connection that opened it.
        headers: Response headers, or None before they arrive.
        trailers: Trailers, or None before they arrive. Of a trailers-only response: its headers.
        messages: Messages that were received and not taken.
        has_plain_headers: The headers hold no metadata and only standard values.
        movable: The call declares retry safety: it may be given up here and sent to another server.
        ended: Nothing more will arrive.
        failure: The reason why it ended without trailers.
        unprocessed: The server has certainly not processed the call.
    """

    __slots__ = (
        "_announced", "_deframer", "_expect", "_expects_messages", "_streaming", "_unacknowledged_bytes", "_waiter",
        "_writer", "connection", "ended", "failure", "has_plain_headers", "headers", "id", "limit", "messages",
        "movable", "trailers", "unprocessed",
    )  # fmt: skip

    connection: Connection

    def __init__(
        self, limit: int, expect: Callable[[int], None] = _accept, *, streaming: bool, movable: bool = False
    ) -> None:
        self.id = 0
        self.movable = movable
        self.limit = limit
        self.headers: Sequence[tuple[bytes, bytes]] | None = None
        self.trailers: Sequence[tuple[bytes, bytes]] | None = None
        self.messages: deque[bytes] = deque()
        self.has_plain_headers = False
        self.ended = False
        self.failure: StatusError | None = None
        self.unprocessed = False
        self._expect = expect
        self._announced = False  # whether ``expect`` was called for the message that comes in
        self._streaming = streaming
        self._expects_messages = False  # after response headers that are not the end
        self._deframer: framing.Deframer | None = None  # made when data are not exactly one message
        self._unacknowledged_bytes = 0
        self._waiter: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None

    # -- for the transport --

    def wait(self) -> asyncio.Future[None]:
        """Return a future that is done at the next headers or message (streaming) or at the end; for one task only."""
        self._waiter = self.connection.loop.create_future()
        return self._waiter

    def take(self) -> bytes:
        """Return the oldest message. When none is left, the server may send more."""
        message = self.messages.popleft()
        if self._unacknowledged_bytes and not self.messages:
            self.connection.acknowledge(self.id, self._unacknowledged_bytes)
            self._unacknowledged_bytes = 0
        return message

    def write(self, data: bytes, *, end: bool = False) -> None:
        """Queue request bytes; after the end they are dropped."""
        if not self.ended:
            self.connection.write(self, data, end=end)

    async def writable(self) -> None:
        """Return when the queue of request bytes is short, or the stream has ended."""
        if self.ended or not self.connection.is_queue_full(self):
            return
        self._writer = self.connection.loop.create_future()
        try:
            await self._writer
        finally:
            self._writer = None

    def expire(self) -> None:
        """End the stream because its deadline has passed (``mesh.layers.timer_wheel.Expirable``)."""
        self.fail(DeadlineExceeded("the service did not answer within the deadline").at(self.connection.address))

    def cancel(self) -> None:
        """End the stream from this side (RST_STREAM CANCEL); no effect after the end."""
        if not self.ended:
            self.connection.reset(self)
            self.fail(None)

    def close(self) -> None:
        """Release the stream: reset it if neither side has ended it, and give back the window of untaken messages."""
        if self.id in self.connection.streams:
            self.connection.reset(self)
        if not self.ended:
            self.fail(None)
        if self._unacknowledged_bytes:
            self.connection.acknowledge(self.id, self._unacknowledged_bytes)
            self._unacknowledged_bytes = 0

    # -- for the connection --

    def on_headers(self, headers: Sequence[tuple[bytes, bytes]], end: bool) -> None:  # noqa: FBT001 - an event's field
        """Handle response headers."""
        if self.ended:
            return
        self.headers = headers
        if not end and headers == self.connection.plain_headers:
            self.has_plain_headers = True
            self._expects_messages = True
            if self._streaming:
                self._wake()
            return
        fields = dict(headers)
        status = fields.get(b":status", b"")
        content_type = fields.get(b"content-type", b"")
        if end:
            self.trailers = headers
            if b"grpc-status" not in fields:
                self.failure = _not_grpc(status, content_type, self.connection.address)
            self._end()
            return
        encoding = fields.get(b"grpc-encoding", b"identity")
        if status != b"200" or not framing.is_grpc(content_type):
            self._refuse(_not_grpc(status, content_type, self.connection.address))
            return
        if encoding not in framing.ENCODINGS:  # a server fails with UNIMPLEMENTED, a client INTERNAL (compression.md)
            self._refuse(Internal(framing.unknown_encoding(encoding)).at(self.connection.address))
            return
        self._expects_messages = True
        if encoding == b"identity" and not metadata_of(headers):
            self.connection.plain_headers = headers
        if self._streaming:
            self._wake()

    def on_data(self, data: bytes, end: bool) -> None:  # noqa: FBT001 - an event's field
        """Handle bytes of the response's body."""
        if data:
            if not self._expects_messages or self.ended:
                self.connection.acknowledge(self.id, len(data))
            else:
                try:
                    added = self._add_messages(data)
                except StatusError as error:
                    self.connection.acknowledge(self.id, len(data))
                    self._refuse(error)
                    return
                if added:
                    if self._streaming:
                        self._wake()
                    elif len(self.messages) > 1:
                        self.connection.acknowledge(self.id, len(data))
                        self._refuse(wrong_response_count(len(self.messages)).at(self.connection.address))
                        return
                # Bytes of an incomplete message must not hold the window: the message may be larger than the window.
                if self._streaming and self.messages:
                    self._unacknowledged_bytes += len(data)
                else:
                    self.connection.acknowledge(self.id, len(data))
        if end and not self.ended:
            self.failure = Internal("the service ended its response without a status").at(self.connection.address)
            self._end()

    def on_trailers(self, trailers: Sequence[tuple[bytes, bytes]]) -> None:
        """Handle trailers: the response has ended."""
        if self.ended:
            return
        self.trailers = trailers
        if self._deframer is not None and self._deframer.pending:
            self.failure = Internal("the service ended its response within a message").at(self.connection.address)
        self._end()

    def on_closed(self, error_code: int, local_error: Any, *, never_sent: bool) -> None:
        """Handle the end of the stream; without a status before, this is its failure."""
        if self.ended:
            return
        where = self.connection.address
        if local_error is not None:
            self.failure = ResourceExhausted("the request cannot be sent").at(f"{where}: {local_error}")
        elif never_sent or self.unprocessed or error_code == 0x07:  # noqa: PLR2004 - REFUSED_STREAM
            self.unprocessed = True
            self.failure = Unavailable("the service did not take the call").at(where)
        else:
            text = f"the service ended the call with RST_STREAM, error code {error_code}"
            self.failure = StatusError.of(code_of_reset(error_code), text).at(where)
        self._end()

    def fail(self, failure: StatusError | None, *, unprocessed: bool = False) -> None:
        """End the stream because the connection, or this side, ends it."""
        if not self.ended:
            self.failure = failure
            self.unprocessed = self.unprocessed or unprocessed
            self._end()

    def wake_writer(self) -> None:
        """Let the task that writes continue."""
        if self._writer is not None and not self._writer.done():
            self._writer.set_result(None)

    # -- internal --

    def _add_messages(self, data: bytes) -> bool:
        """Add the messages that these bytes complete; return whether there are any.

        Raises:
            StatusError: The bytes are malformed, or a message is too large.
        """
        deframer = self._deframer
        if deframer is None or not deframer.pending:
            message = framing.single_message(data, self.limit)
            if message is not None:
                self.messages.append(message)
                return True
            if deframer is None:
                encoding = dict(self.headers or ()).get(b"grpc-encoding")
                deframer = self._deframer = framing.Deframer(self.limit, encoding, Side.RESPONSE)
        deframer.feed(data)
        before = len(self.messages)
        while (message := deframer.next()) is not None:
            self.messages.append(message)
            self._announced = False
        if not self._announced and deframer.expected:
            self._announced = True
            self._expect(deframer.expected)
        return len(self.messages) > before

    def _refuse(self, failure: StatusError) -> None:
        self.connection.reset(self)
        self.fail(failure)

    def _end(self) -> None:
        self.ended = True
        self._wake()
        self.wake_writer()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def wrong_response_count(messages: int) -> StatusError:
    """Return the status of a response that has not exactly one message where its method has one (statuscodes.md)."""
    return Unimplemented(f"the service answered with {messages or 'no'} messages, and the method has one response")


def _not_grpc(status: bytes, content_type: bytes, address: str) -> StatusError:
    """Return the status of a response that is not gRPC with protobuf messages (http-grpc-status-mapping.md)."""
    if status == b"200":
        kind = content_type.decode("latin-1")[:100]
        if framing.is_grpc(content_type):
            return Unknown("the service ended its response without a status").at(address)
        text = f"the service answered with content-type {kind!r}, not application/grpc"
        code = Code.INTERNAL if content_type.startswith(b"application/grpc+") else Code.UNKNOWN
        return StatusError.of(code, text).at(address)
    number = int(status) if status.isdigit() else 0
    text = f"the service answered with HTTP status {number}, not with gRPC"
    return StatusError.of(code_of_http(number), text).at(address)
