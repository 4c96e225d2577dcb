"""One HTTP/2 stream that carries one gRPC call: what came in so far, and who waits for more.

No I/O and no HTTP/2 library: the connection feeds it, the exchange (``mesh.rpc.client.transport``) reads it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
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
    from mesh.rpc.client.connection import Connection

__all__ = ["Stream", "wrong_count"]


class Stream:
    """One stream.

    Args:
        limit: Largest message, bytes.
        streaming: Wake the waiter for headers and each message, not only at the end.

    Attributes:
        headers: Response headers, or None before they came.
        trailers: Trailers (of a trailers-only response: its headers), or None.
        messages: Messages that came and were not taken.
        plain: The headers hold no metadata and nothing out of the ordinary.
        ended: Nothing more will come.
        failure: Why it ended without trailers.
        unprocessed: The server has certainly done nothing with it.
    """

    __slots__ = (
        "_begun", "_frames", "_held", "_streaming", "_waiter", "_writer", "connection", "ended", "failure",
        "headers", "id", "limit", "messages", "plain", "trailers", "unprocessed",
    )  # fmt: skip

    connection: Connection

    def __init__(self, limit: int, *, streaming: bool) -> None:
        self.id = 0
        self.limit = limit
        self.headers: Sequence[tuple[bytes, bytes]] | None = None
        self.trailers: Sequence[tuple[bytes, bytes]] | None = None
        self.messages: deque[bytes] = deque()
        self.plain = False
        self.ended = False
        self.failure: StatusError | None = None
        self.unprocessed = False
        self._streaming = streaming
        self._begun = False  # headers said that there will be messages
        self._frames: framing.Deframer | None = None  # made for what does not arrive in one piece
        self._held = 0
        self._waiter: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None

    # -- for the exchange --

    def wait(self) -> asyncio.Future[None]:
        """Return what is done when something has come (streaming), or the end. For one waiter at a time."""
        self._waiter = self.connection.loop.create_future()
        return self._waiter

    def take(self) -> bytes:
        """Return the oldest message; when none is left the server may send more."""
        message = self.messages.popleft()
        if self._held and not self.messages:
            self.connection.acknowledge(self.id, self._held)
            self._held = 0
        return message

    def write(self, data: bytes, *, end: bool = False) -> None:
        """Queue request bytes; after the end they are dropped."""
        if not self.ended:
            self.connection.write(self, data, end=end)

    async def writable(self) -> None:
        """Return when the queue of request bytes is short, or the stream has ended."""
        if self.ended or not self.connection.crowded(self):
            return
        self._writer = self.connection.loop.create_future()
        try:
            await self._writer
        finally:
            self._writer = None

    def expire(self) -> None:
        """End it because its deadline has passed (``mesh.layers.timer_wheel.Expirable``)."""
        self.fail(DeadlineExceeded("the service did not answer within the deadline").at(self.connection.address))

    def cancel(self, failure: StatusError | None = None) -> None:
        """End it from this side (RST_STREAM CANCEL); nothing happens after the end."""
        if not self.ended:
            self.connection.reset(self)
            self.fail(failure)

    def close(self) -> None:
        """Leave nothing behind: end the stream if either side has not, give back the window of what was not taken."""
        self.connection.reset(self)
        self.fail(None)
        if self._held:
            self.connection.acknowledge(self.id, self._held)
            self._held = 0

    # -- for the connection --

    def on_headers(self, headers: Sequence[tuple[bytes, bytes]], end: bool) -> None:  # noqa: FBT001 - an event's field
        """Response headers came."""
        if self.ended:
            return
        self.headers = headers
        if not end and headers == self.connection.usual:
            self.plain = True
            self._begun = True
            if self._streaming:
                self._wake()
            return
        fields = dict(headers)
        status = fields.get(b":status", b"")
        content = fields.get(b"content-type", b"")
        if end:
            self.trailers = headers
            if b"grpc-status" not in fields:
                self.failure = _not_grpc(status, content, self.connection.address)
            self._end()
            return
        encoding = fields.get(b"grpc-encoding", b"identity")
        if status != b"200" or not framing.is_grpc(content):
            self._refuse(_not_grpc(status, content, self.connection.address))
            return
        if encoding not in framing.ENCODINGS:  # a server's is UNIMPLEMENTED, a client's INTERNAL (compression.md)
            self._refuse(Internal(framing.unknown_encoding(encoding)).at(self.connection.address))
            return
        self._begun = True
        if encoding == b"identity" and not metadata_of(headers):
            self.connection.usual = headers
        if self._streaming:
            self._wake()

    def on_data(self, data: bytes, end: bool) -> None:  # noqa: FBT001 - an event's field
        """Bytes of the response's body came."""
        if data:
            if not self._begun or self.ended:
                self.connection.acknowledge(self.id, len(data))
            else:
                try:
                    found = self._cut(data)
                except StatusError as error:
                    self.connection.acknowledge(self.id, len(data))
                    self._refuse(error)
                    return
                if found:
                    if self._streaming:
                        self._wake()
                    elif len(self.messages) > 1:
                        self.connection.acknowledge(self.id, len(data))
                        self._refuse(wrong_count(len(self.messages)).at(self.connection.address))
                        return
                # Bytes of a message that is not whole yet must not hold the window: it may be larger than the window.
                if self._streaming and self.messages:
                    self._held += len(data)
                else:
                    self.connection.acknowledge(self.id, len(data))
        if end and not self.ended:
            self.failure = Internal("the service ended its answer without a status").at(self.connection.address)
            self._end()

    def on_trailers(self, trailers: Sequence[tuple[bytes, bytes]]) -> None:
        """Trailers came: the end."""
        if self.ended:
            return
        self.trailers = trailers
        if self._frames is not None and self._frames.pending:
            self.failure = Internal("the service ended its answer within a message").at(self.connection.address)
        self._end()

    def on_closed(self, error_code: int, local_error: Any, *, never_sent: bool) -> None:
        """The stream is closed; if nothing said so before, this is how it failed."""
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
        """End it because the connection, or this side, does."""
        if not self.ended:
            self.failure = failure
            self.unprocessed = self.unprocessed or unprocessed
            self._end()

    def wake_writer(self) -> None:
        """Let the writer go on."""
        if self._writer is not None and not self._writer.done():
            self._writer.set_result(None)

    # -- inside --

    def _cut(self, data: bytes) -> bool:
        """Keep the messages that these bytes complete; return whether there are any.

        Raises:
            StatusError: The bytes are no messages that this side takes.
        """
        frames = self._frames
        if frames is None or not frames.pending:
            message = framing.single_message(data, self.limit)
            if message is not None:
                self.messages.append(message)
                return True
            if frames is None:
                encoding = dict(self.headers or ()).get(b"grpc-encoding")
                frames = self._frames = framing.Deframer(self.limit, encoding, Side.RESPONSE)
        frames.feed(data)
        before = len(self.messages)
        while (message := frames.next()) is not None:
            self.messages.append(message)
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


def wrong_count(messages: int) -> StatusError:
    """Return the status of an answer that has not the one message of its method (statuscodes.md)."""
    return Unimplemented(f"the service answered with {messages or 'no'} messages, and the method has one response")


def _not_grpc(status: bytes, content: bytes, address: str) -> StatusError:
    """Return the status of an answer that is not gRPC's, or in another form (http-grpc-status-mapping.md)."""
    if status == b"200":
        kind = content.decode("latin-1")[:100]
        if framing.is_grpc(content):
            return Unknown("the service ended its answer without a status").at(address)
        text = f"the service answered with content-type {kind!r}, not application/grpc"
        code = Code.INTERNAL if content.startswith(b"application/grpc+") else Code.UNKNOWN
        return StatusError.of(code, text).at(address)
    number = int(status) if status.isdigit() else 0
    text = f"the service answered with HTTP status {number}, not with gRPC"
    return StatusError.of(code_of_http(number), text).at(address)
