"""Inbound Connect call over ASGI: an ``InboundCall`` with Connect's form of messages, metadata and status.

Source: https://connectrpc.com/docs/protocol/ (Unary-Response, Streaming-Response).
"""

from __future__ import annotations

import asyncio
import contextlib
from hashlib import blake2b
from time import monotonic  # the clock of the event loops
from typing import TYPE_CHECKING, Any

from mesh.asgi import discard_body, is_body_expected
from mesh.content_coding import MIN_SIZE, THREAD_SIZE, compress
from mesh.errors import Internal, ResourceExhausted, StatusError, http_status
from mesh.headers import UNTRAILED, Headers, etag_matches
from mesh.rpc.server.clients.client_stream import CLIENT_STREAM, ClientStream
from mesh.rpc.server.clients.limited_call import LimitedCall
from mesh.rpc.server.clients.limits import LARGE_SIZE, ClientLimits
from mesh.rpc.server.connect.error_json import end_of_stream, error_body, error_headers
from mesh.rpc.server.connect.messages import (
    COMPRESSED,
    END_STREAM,
    BareReader,
    EnvelopeReader,
    JsonCodec,
    QueryReader,
    Source,
    envelope,
)
from mesh.rpc.server.inbound_call import InboundCall

if TYPE_CHECKING:
    from mesh.asgi import Receive, Scope, Send
    from mesh.rpc.server.connect.request import ConnectRequest

__all__ = ["ConnectCall", "LimitedConnectCall"]

_JSON_TYPE = (b"content-type", b"application/json")
_PROTO_TYPE = (b"content-type", b"application/proto")
_JSON_STREAM_TYPE = (b"content-type", b"application/connect+json")
_PROTO_STREAM_TYPE = (b"content-type", b"application/connect+proto")
_NOSNIFF = (b"x-content-type-options", b"nosniff")
_VARY = (b"vary", b"accept-encoding")
_NOT_MODIFIED, _UNSUPPORTED_MEDIA = 304, 415
_ETAG_SIZE = 16
"""Bytes of the hash in an entity tag."""


class Exchange:
    """State of a Connect call besides that of an ``InboundCall``.

    Args:
        request: The parsed request.
        codec: JSON codec of the method; None: messages are serialized.
        scope: The request.
        receive: As in ASGI.

    Attributes:
        request: As given.
        codec: As given.
        source: The events of the request.
        connection: Address and port of the connection's other end, or None.
        stream: The request with the limits of the edge on its client, or None.
        discards: Whether the rest of the request is discarded before the end of the response.
        headers: Headers that describe the response message.
    """

    __slots__ = ("codec", "connection", "discards", "headers", "request", "source", "stream")

    def __init__(self, request: ConnectRequest, codec: JsonCodec | None, scope: Scope, receive: Receive) -> None:
        self.request = request
        self.codec = codec
        self.source = Source(receive)
        self.connection: tuple[str, int] | None = scope.get("client")
        self.stream: ClientStream | None = scope.get(CLIENT_STREAM)
        self.discards = is_body_expected(scope)
        self.headers: Headers = []

    def reader(self, limit: int) -> Any:
        """Return the reader of the request messages, which has the interface of a ``Deframer``.

        Args:
            limit: Bytes of the largest message.
        """
        request = self.request
        decode = None if self.codec is None else self.codec.decode
        if request.enveloped:
            return EnvelopeReader(self.source, limit, request.coding, decode)
        if request.message is not None:
            return QueryReader(request.message, self.source, limit, request.coding, decode)
        return BareReader(self.source, limit, request.coding, decode)


class _ConnectCall(InboundCall):
    """Base of the two Connect calls.

    Attributes:
        exchange: What it has besides an ``InboundCall``.
    """

    __slots__ = ()

    exchange: Exchange

    def _open(self, exchange: Exchange) -> Exchange:
        """Read the request by the protocol's rules from now on."""
        if exchange.request.timeout is not None:
            self.deadline = monotonic() + exchange.request.timeout
        self._receive = exchange.source
        self._deframer = exchange.reader(self._max_message)
        return exchange

    # -- response --

    async def send(self, message: bytes) -> None:
        """Send a response message; keep that of a unary method until the call ends (see ``Call.send``).

        Raises:
            Internal: The message has no JSON form.
        """
        if not self.method.server_streaming and self._response is not None:
            raise RuntimeError(f"{self.method.path} has one response, and a second was sent")
        request = self.exchange.request
        data = message if self.exchange.codec is None else self.exchange.codec.encode(message)
        flags = 0
        if request.message is not None:
            self._tag(data)
        if request.response_coding and len(data) >= MIN_SIZE:
            flags = COMPRESSED
            if len(data) >= THREAD_SIZE:
                data = await asyncio.to_thread(compress, request.response_coding, data)
            else:
                data = compress(request.response_coding, data)
        if request.enveloped:
            data = envelope(flags, data)
        elif flags:
            self.exchange.headers.append((b"content-encoding", request.response_coding.encode()))
        if len(data) > LARGE_SIZE:
            self._hold_response(len(data))
            data = self._piece(data)
        if not self.method.server_streaming:
            self._response = data
            return
        await self.send_headers()
        await self._send_event({"type": "http.response.body", "body": data, "more_body": True})
        if len(data) > LARGE_SIZE:
            self._release_response()

    async def send_headers(self) -> None:
        """Send ``headers`` now. Those of a unary call are sent with its response, whose status is not known yet."""
        if self.exchange.request.enveloped and not self.headers_sent:
            self.headers_sent = True
            await self._send_event(self._start_event())

    async def finish(self, status: StatusError | None) -> None:
        """End the call: send the headers and the message that are still to be sent, and the status (None: OK)."""
        response, self._response = self._response, None
        request = self.exchange.request
        if request.enveloped and not request.refusal_status:
            await self.send_headers()
            end = envelope(END_STREAM, end_of_stream(status, self._own_trailers(), self._pool))
            if status is None and response is not None:
                await self._send_event({"type": "http.response.body", "body": response, "more_body": True})
            await self._end(end)
        elif status is not None:
            code = request.refusal_status or http_status(status.code)
            body = b"" if code == _UNSUPPORTED_MEDIA else error_body(status, self._pool)
            headers = [*request.refusal_headers, *error_headers(status, code)]
            await self._respond(code, [_JSON_TYPE, *headers] if body else headers, body)
        else:
            await self._respond_with(response or b"")

    async def abort(self) -> None:
        """End a call whose response could not be sent, as INTERNAL if the headers have not been sent."""
        failure = Internal("internal error")
        status, body = 500, error_body(failure, None)
        if self.exchange.request.enveloped:
            status, body = 200, envelope(END_STREAM, end_of_stream(failure, [], None))
        with contextlib.suppress(Exception):  # the server then resets the stream
            await self._send({"type": "http.response.start", "status": status, "headers": [self._content_type()]})
            await self._send({"type": "http.response.body", "body": body, "more_body": False})

    @property
    def _pool(self) -> Any:
        return self.method.input.DESCRIPTOR.file.pool

    def _content_type(self) -> tuple[bytes, bytes]:
        request = self.exchange.request
        if request.enveloped:
            return _JSON_STREAM_TYPE if request.json else _PROTO_STREAM_TYPE
        return _JSON_TYPE if request.json else _PROTO_TYPE

    def _start_event(self) -> dict[str, Any]:
        """Return the head of a response stream."""
        pairs = [self._content_type(), *self.exchange.request.refusal_headers]
        if self.exchange.request.response_coding:
            pairs.append((b"connect-content-encoding", self.exchange.request.response_coding.encode()))
        return {"type": "http.response.start", "status": 200, "headers": [*pairs, *self.headers]}

    def _own_trailers(self) -> Headers:
        """Return the trailing metadata without gRPC's own, which another server behind the edge may send."""
        return [pair for pair in self.trailers if pair[0] not in UNTRAILED and not pair[0].startswith(b"grpc-")]

    def _tag(self, data: bytes) -> None:
        """Add the entity tag of the response to a GET, unless the function has set one.

        It is weak, because it is the same for every content coding.
        """
        if not any(name == b"etag" for name, _ in self.headers):
            digest = blake2b(data, digest_size=_ETAG_SIZE, person=self._content_type()[1][-16:]).hexdigest()
            self.headers.append((b"etag", b'W/"%s"' % digest.encode()))

    async def _respond_with(self, body: bytes) -> None:
        """Send the response message of a unary call; 304 if the client of a GET has it."""
        if self.exchange.request.message is not None:
            etag = next((value for name, value in self.headers if name == b"etag"), b"")
            if etag_matches(self.exchange.request.if_none_match, etag):
                await self._respond(_NOT_MODIFIED, [_VARY], b"")
                return
            self.exchange.headers.append(_VARY)
            if len(self.exchange.headers) > 1 and not etag.startswith(b"W/"):  # other bytes (RFC 9110, 8.8.3.3)
                self.headers = [(name, b"W/" + value if name == b"etag" else value) for name, value in self.headers]
        await self._respond(200, [self._content_type(), *self.exchange.headers], body)

    async def _respond(self, status: int, headers: Headers, body: bytes) -> None:
        """Send a whole response: the headers, the leading metadata, the trailing metadata with its prefix, the body."""
        self.headers_sent = True
        pairs = [*headers, _NOSNIFF, *self.headers]
        pairs += [(b"trailer-" + name, value) for name, value in self._own_trailers()]
        if status != _NOT_MODIFIED:
            pairs.append((b"content-length", b"%d" % len(body)))
        await self._discard_request()
        await self._send_event({"type": "http.response.start", "status": status, "headers": pairs})
        await self._send_event({"type": "http.response.body", "body": body, "more_body": False})

    async def _end(self, data: bytes) -> None:
        """Send the end of a response stream. Its client gets it before the rest of the request is discarded."""
        if self.exchange.source.ended or not self.exchange.discards:
            await self._send_event({"type": "http.response.body", "body": data, "more_body": False})
            return
        await self._send_event({"type": "http.response.body", "body": data, "more_body": True})
        await self._discard_request()
        await self._send_event({"type": "http.response.body", "body": b"", "more_body": False})

    async def _discard_request(self) -> None:
        if self.exchange.discards and not self.exchange.source.ended:
            if self.exchange.stream is not None:
                self.exchange.stream.discard()
            await discard_body(self._receive)


class ConnectCall(_ConnectCall):
    """Connect call without limits on its caller: of the edge, which has its own before it.

    Args:
        request: The parsed request.
        codec: JSON codec of the method; None: messages are serialized.
        scope: The request.
        receive: As in ASGI.
        send: As in ASGI.
        max_message: Bytes of the largest request message.
    """

    __slots__ = ("exchange",)

    def __init__(
        self,
        request: ConnectRequest,
        codec: JsonCodec | None,
        scope: Scope,
        receive: Receive,
        send: Send,
        max_message: int,
    ) -> None:
        super().__init__(request.method, request.metadata, receive, send, max_message)
        self.exchange = self._open(Exchange(request, codec, scope, receive))

    def _hold_response(self, size: int) -> None:
        """Count a large response, or message of a response stream: JSON may be many times larger than the message."""
        if self.exchange.stream is None:
            return
        try:
            self.exchange.stream.hold_response(size)
        except ResourceExhausted:
            if self.method.idempotent or self.method.server_streaming:
                raise
            raise Internal("the function has run, but the edge could not hold its response") from None

    def _release_response(self) -> None:
        if self.exchange.stream is not None:
            self.exchange.stream.release_response()


class LimitedConnectCall(_ConnectCall, LimitedCall):
    """Connect call with limits on its caller.

    Args:
        limits: The limits of the server.
        request: As for ``ConnectCall``, like the rest.
    """

    __slots__ = ("exchange",)

    def __init__(
        self,
        limits: ClientLimits,
        request: ConnectRequest,
        codec: JsonCodec | None,
        scope: Scope,
        receive: Receive,
        send: Send,
        max_message: int,
    ) -> None:
        LimitedCall.__init__(self, limits, scope, request.method, request.metadata, receive, send, max_message)
        self.exchange = self._open(Exchange(request, codec, scope, receive))
