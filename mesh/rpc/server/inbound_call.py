"""Inbound gRPC call over ASGI: receives request messages, sends response messages and the status.

A unary response is kept until the call has ended. Headers, message and trailers then go out together, and a failure
after ``send`` is still an error status without a message. When the caller has gone, the handler gets
``asyncio.CancelledError``.
"""

from __future__ import annotations

import asyncio
import contextlib
from time import monotonic  # the clock of the event loops
from typing import TYPE_CHECKING, Any, NoReturn

from mesh.asgi import AsgiEvent, Receive, Send
from mesh.boundary import cancel_task, record_cancellation
from mesh.call import Call, Metadata, field_bytes
from mesh.errors import Internal, ResourceExhausted, StatusError, Unauthenticated
from mesh.headers import UNTRAILED
from mesh.rpc import framing
from mesh.rpc.server.clients.limits import LARGE_SIZE
from mesh.rpc.status import OK, write_status

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mesh.contract.model import Method

__all__ = ["CONTENT_TYPE", "MAX_HEADER_FIELDS", "RECEIVING", "UNREAD", "InboundCall", "too_many_fields"]

RECEIVING = object()
"""Value of ``waits_for`` while a call waits for its request."""
UNREAD = ResourceExhausted("the response was not read")
"""Status of a call whose caller does not read its response. Nothing can be sent any more."""
CONTENT_TYPE = (b"content-type", framing.TYPE)
_GZIP = (b"grpc-encoding", b"gzip")
_START: dict[str, Any] = {"type": "http.response.start", "status": 200, "headers": [CONTENT_TYPE], "trailers": True}
_END: dict[str, Any] = {"type": "http.response.body", "body": b"", "more_body": False}
_OK: dict[str, Any] = {"type": "http.response.trailers", "headers": OK}

_TLS_1_3 = 0x0304
"""Version of TLS between services; clients of the edge may have 1.2."""
MAX_HEADER_FIELDS = 1000
"""Header fields of one call; a call with more is RESOURCE_EXHAUSTED."""
MAX_UNREAD_EVENTS = 100
"""Events of a request that are read in search of the disconnect behind them."""
COMPRESSION_MIN_SIZE = 1024
"""Bytes of the smallest message that is compressed."""


def too_many_fields() -> ResourceExhausted:
    """Return the status of a call with more than ``MAX_HEADER_FIELDS``."""
    text = f"the call has more than {MAX_HEADER_FIELDS} header fields; send their content in the request message"
    return ResourceExhausted(text)


class InboundCall(Call):
    """A gRPC call as an ASGI server received it.

    Attributes:
        waits_for: What it waits for: ``RECEIVING``, the event that the server does not take, or None.
        dropped: The status of a call that was ended because of its caller, or None.

    Raises (from the constructor):
        StatusError: The timeout or the encoding of the caller is malformed or unknown, or there are too many header
            fields.
    """

    __slots__ = (
        "_deframer", "_disconnected", "_gzip", "_max_message", "_receive", "_requests_ended", "_response", "_send",
        "certificate", "dropped", "waits_for",
    )  # fmt: skip

    def __init__(self, method: Method, metadata: Metadata, receive: Receive, send: Send, max_message: int) -> None:
        fields = metadata.fields
        timeout = fields.get(b"grpc-timeout")
        deadline = None
        if timeout is not None:
            deadline = monotonic() + framing.parse_timeout(timeout)
        Call.__init__(self, method, metadata, deadline)
        if len(metadata.pairs) > MAX_HEADER_FIELDS:
            raise too_many_fields()
        encoding = fields.get(b"grpc-encoding")
        if encoding is not None:
            framing.check_encoding(encoding)
        self._max_message = max_message
        self._deframer: framing.Deframer | None = None  # made when a message does not arrive in one piece
        # Responses are compressed only for a caller that compresses its requests: it costs CPU time on both sides.
        self._gzip = encoding == b"gzip" and b"gzip" in fields.get(b"grpc-accept-encoding", b"")
        self._receive = receive
        self._send = send
        self.task = asyncio.current_task()
        self._response: bytes | None = None
        self._requests_ended = False
        self._disconnected = False
        self.certificate: str | None = None
        self.waits_for: object = None
        self.dropped: StatusError | None = None

    def set_certificate(self, tls: Mapping[str, Any]) -> None:
        """Set ``certificate`` to the client's leaf certificate from ASGI's ``tls`` extension.

        Raises:
            Unauthenticated: The version of TLS is below 1.3.
        """
        if tls["tls_version"] < _TLS_1_3:
            raise Unauthenticated("services of the mesh speak TLS 1.3; allow it in the client")
        certificates = tls["client_cert_chain"]
        self.certificate = certificates[0] if certificates else None

    @property
    def response_missing(self) -> bool:
        """Whether the one response of a method without a response stream has not been sent yet."""
        return self._response is None and not self.method.server_streaming

    @property
    def incomplete(self) -> bool:
        """Whether a part of the next request message has come in."""
        return self._deframer is not None and bool(self._deframer.pending)

    def forget_request(self) -> None:
        """Release what has come in of the request. It is not read any more."""
        self._deframer = None

    def cancel(self) -> None:
        """Cancel the handler."""
        if self.task is not None:
            cancel_task(self.task)

    def drop(self, status: StatusError) -> None:
        """End the call because its caller is too slow, or holds too much."""
        self.dropped = status
        self.cancel()

    async def caller_disconnected(self) -> bool:
        """Whether the caller has gone.

        h2corn then cancels the task, and so may the function itself; the next event of ``receive`` tells the two apart.
        """
        for _ in range(MAX_UNREAD_EVENTS):  # request messages that the function has not read may come first
            if self._disconnected:
                return True
            reading = asyncio.get_running_loop().create_task(self._read())
            await asyncio.wait([reading], timeout=0)
            if not reading.done():
                reading.cancel()
                await asyncio.wait([reading])
                return False
            if reading.cancelled() or reading.exception() is not None:  # another task reads
                return False
            event = reading.result()
            if event["type"] == "http.request" and not event.get("body") and not event.get("more_body", False):
                return False  # the end of the request, which pyvoy repeats
            self._disconnected = event["type"] != "http.request"
        return self._disconnected

    async def _read(self) -> AsgiEvent:
        return await self._receive()

    async def receive(self) -> bytes | None:  # noqa: C901 - one loop over the events
        """Return the next request message, or None after the last (see ``Call.receive``)."""
        deframer = self._deframer
        if deframer is not None and self.method.client_streaming:
            self._keep_request(deframer.pending)
        while True:
            if deframer is not None and deframer.pending:
                message = deframer.next()
                if message is not None:
                    return message
                if self._requests_ended:
                    raise Internal("malformed request: the stream ended inside a message")
            if self._requests_ended:
                return None
            self.waits_for = RECEIVING
            try:
                event = await self._receive()
            finally:
                self.waits_for = None
            if event["type"] != "http.request":
                self._end_disconnected()
            self._requests_ended = not event.get("more_body", False)
            data = event.get("body", b"")
            if data:
                if deframer is None:
                    message = framing.single_message(data, self._max_message)
                    if message is not None:
                        return message
                    encoding = self.metadata.wire(b"grpc-encoding")
                    deframer = self._deframer = framing.Deframer(self._max_message, encoding)
                self._hold_request(len(data))
                deframer.feed(data)

    async def send(self, message: bytes) -> None:
        """Send a response message; keep that of a unary method until the call ends (see ``Call.send``)."""
        if not self.method.server_streaming:
            if self._response is not None:
                raise RuntimeError(f"{self.method.path} has one response, and a second was sent")
            if len(message) > LARGE_SIZE:
                self._hold_response(len(message))
                message = message if self._gzip else self._piece(message)
            self._response = message
            return
        if not self.headers_sent:
            await self.send_headers()
        if len(message) <= LARGE_SIZE:
            await self._send_event({"type": "http.response.body", "body": self._frame(message), "more_body": True})
            return
        self._hold_response(len(message))
        await self._send_large(message if self._gzip else self._piece(message), more=True)
        self._release_response()

    async def send_headers(self) -> None:
        """Send ``headers`` now (see ``Call.send_headers``)."""
        if not self.headers_sent:
            self.headers_sent = True
            await self._send_event(self._start_event())

    async def finish(self, status: StatusError | None) -> None:
        """End the call: send the headers and the message that are still to be sent, then the status (None: OK)."""
        response, self._response = self._response, None
        large = response is not None and len(response) > LARGE_SIZE
        if status is None and response is not None and not (large or self.headers_sent or self.trailers):
            # Fast path of nearly every unary call.
            self.headers_sent = True
            self.waits_for = response
            plain = not self._gzip
            frame = framing.frame(response) if plain else self._frame(response)
            try:
                await self._send(_START if plain and not self.headers else self._start_event())
                await self._send({"type": "http.response.body", "body": frame})
                await self._send(_OK)
            except OSError:
                self._end_disconnected()
            return
        if status is not None and not self.headers_sent and not self.headers:
            # Trailers-Only: one HEADERS frame.
            pairs = [CONTENT_TYPE, *self._trailers(status)]
            await self._send_event({"type": "http.response.start", "status": 200, "headers": pairs})
            await self._send_event(_END)
            return
        if not self.headers_sent:
            self.headers_sent = True
            await self._send_event(self._start_event())
        if status is None and response is not None:
            if large:
                await self._send_large(response, more=False)
            else:
                await self._send_event({"type": "http.response.body", "body": self._frame(response)})
        else:
            await self._send_event(_END)
        if status is None and not self.trailers:
            await self._send_event(_OK)
        else:
            await self._send_event({"type": "http.response.trailers", "headers": self._trailers(status)})

    async def abort(self) -> None:
        """End a call whose response could not be sent, as INTERNAL if the headers have not been sent."""
        status = write_status(Internal("internal error"))
        with contextlib.suppress(Exception):  # the server then resets the stream
            await self._send({"type": "http.response.start", "status": 200, "headers": [CONTENT_TYPE, *status]})
            await self._send(_END)

    def _start_event(self) -> dict[str, Any]:
        if not self.headers and not self._gzip:
            return _START
        pairs = [CONTENT_TYPE, _GZIP, *self.headers] if self._gzip else [CONTENT_TYPE, *self.headers]
        return {"type": "http.response.start", "status": 200, "headers": pairs, "trailers": True}

    def _trailers(self, status: StatusError | None) -> list[tuple[bytes, bytes]]:
        """Return the status and the trailing metadata, without fields that may not be trailers.

        Such fields come from another server behind the edge.
        """
        own = [pair for pair in self.trailers if pair[0] not in UNTRAILED]
        return [*(OK if status is None else write_status(status, field_bytes(own))), *own]

    def _frame(self, message: bytes) -> bytes:
        if self._gzip and len(message) >= COMPRESSION_MIN_SIZE:
            return framing.compressed_frame(message)
        return framing.frame(message)

    async def _send_large(self, message: bytes, *, more: bool) -> None:
        if self._gzip:
            message = self._piece(framing.compressed_frame(message))
        else:
            await self._send_event({"type": "http.response.body", "body": framing.prefix(message), "more_body": True})
        await self._send_event({"type": "http.response.body", "body": message, "more_body": more})

    async def _send_event(self, event: dict[str, Any]) -> None:
        self.waits_for = event
        try:
            await self._send(event)
        except OSError:  # ASGI: send() after the stream has closed
            self._end_disconnected()
        finally:
            self.waits_for = None

    # -- limits on the caller: mesh.rpc.server.clients.limited_call has them, the edge has its own before this class --

    def _hold_request(self, size: int) -> None:
        """Count bytes of a request message that comes in several pieces."""

    def _keep_request(self, size: int) -> None:
        """Count ``size`` bytes of the request stream from now on: the messages before were taken."""

    def _hold_response(self, size: int) -> None:
        """Count a large response message."""

    def _piece(self, message: bytes) -> bytes:
        """Return a large message as the server gets it."""
        return message

    def _release_response(self) -> None:
        """Count a message of a response stream no longer: the server has taken it."""

    def _end_disconnected(self) -> NoReturn:
        """End the call because its caller has gone.

        Raises:
            asyncio.CancelledError: Always.
        """
        if not self._disconnected:
            self._disconnected = True
            if self.task is not None:
                (record_cancellation if self.task is asyncio.current_task() else cancel_task)(self.task)
        raise asyncio.CancelledError("the caller went away")
