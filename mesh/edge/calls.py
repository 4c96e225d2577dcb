"""Calls of one HTTP request: the inbound ``HttpCall`` and the outbound gRPC call to a sidecar."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv6Address, IPv6Network
from typing import NoReturn

from mesh.asgi import AsgiEvent, Receive, Scope, Send, discard_body
from mesh.boundary import cancel_task, record_cancellation, uncancel_task
from mesh.call import Call, Metadata, current
from mesh.errors import Code, Internal, ResourceExhausted, StatusError
from mesh.rpc.server.clients.client_stream import CLIENT_STREAM, CONNECTION_CLOSE, ClientStream, SlowBodyError
from mesh.rpc.server.clients.limits import LARGE_SIZE

__all__ = ["BULKHEADS", "CLIENT_CLOSED_REQUEST", "HttpCall", "Origin", "StreamCall", "UpstreamCall", "share_keys"]

CLIENT_CLOSED_REQUEST = 499
"""Status of a call whose client disconnected before the response. It is recorded in traces and never sent."""

_SAFE_VERBS = frozenset({"GET", "HEAD", "OPTIONS"})
"""HTTP methods that are safe to be sent again (RFC 9110, 9.2.1)."""

_SITE_PREFIX = 64
"""Bits of an IPv6 address that identify a client."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Origin of a request, as trusted proxies report it.

    Attributes:
        client: The client's address without a port.
        scheme: ``http`` or ``https``, or ``""`` if no proxy reports it.
        host: The authority that the client named, or ``""`` if no proxy reports it.
    """

    client: str
    scheme: str = ""
    host: str = ""


class HttpCall(Call):
    """An HTTP request, as the layers of the edge see it.

    ``metadata`` are the request headers. ``headers`` are the response headers that layers and functions add; an error
    response has them too.

    Args:
        scope: The request.
        receive: As in ASGI.
        send: As in ASGI.
        server_send: The same without limits on the client, for a small response: the server takes it without a wait.
            None: there is none.

    Attributes:
        verb: The request method, in upper case.
        path: The raw path with its percent escapes, without the query.
        query: The raw query.
        method: The contract's method; None until the request is routed.
        route: The template of the route; None until the request is routed.
        connection: Address and port of the connection's other end, which identify the connection; None if unknown.
        http_version: ``1.1`` or ``2``.
        origin: Origin of the request if it came through a trusted proxy, else None. Set by the forwarded layer.
        status: The HTTP status of the response; 0 while there is none. Set before an error is raised whose HTTP status
            does not follow from its code.
        response_started: Whether the head of the response was sent.
        stream: Its events, with the limits on the client; None: without limits.
        expired: Whether the call was cancelled because the edge stops.
    """

    __slots__ = (
        "_complete", "_receive", "_scope", "_send", "_server_send", "_unread", "connection", "expired",
        "http_version", "origin", "path", "query", "response_started", "route", "status", "stream", "verb",
    )  # fmt: skip

    def __init__(self, scope: Scope, receive: Receive, send: Send, server_send: Send | None = None) -> None:
        Call.__init__(self, None, Metadata.from_wire(scope["headers"]))
        self._scope = scope
        self._receive = receive
        self._send = send
        self._server_send = server_send
        self.connection: tuple[str, int] | None = scope.get("client")
        self.http_version: str = scope.get("http_version", "1.1")
        self.stream: ClientStream | None = scope.get(CLIENT_STREAM)
        if self.stream is not None:
            self.stream.request = self
        self.task = asyncio.current_task()
        self.verb: str = scope.get("method", "GET")  # a WebSocket has none; over HTTP/1.1 its request is GET
        self.path = scope["raw_path"].decode("latin-1")
        self.query: bytes = scope["query_string"]
        self.origin: Origin | None = None
        self.route: str | None = None
        self.status = 0
        self.response_started = False
        self.expired = False
        self._complete = False
        fields = self.metadata.fields
        has_body = fields.get(b"content-length", b"0") != b"0" or fields.get(b"transfer-encoding")
        # An HTTP/2 request without a length is not discarded: its client may keep the stream open for the response.
        self._unread = bool(has_body)

    @property
    def scheme(self) -> str:
        """``http`` or ``https``, as the client used it."""
        return (self.origin.scheme if self.origin is not None else "") or str(self._scope["scheme"])

    @property
    def authority(self) -> str:
        """``host`` or ``host:port``, as the client named it."""
        if self.origin is not None and self.origin.host:
            return self.origin.host
        return (self.metadata.wire(b"host") or self.metadata.wire(b":authority") or b"").decode("latin-1")

    @property
    def client(self) -> str:
        """The client's address: ``host:port``, ``[IPv6]:port``, without a port behind a proxy, or ``""`` if unknown."""
        if self.origin is not None:
            return self.origin.client
        if not self.connection:
            return ""
        host, port = self.connection
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    @property
    def peer_address(self) -> str:
        """The address of the connection's other end, without the port; ``""`` if unknown."""
        return self.connection[0] if self.connection else ""

    @property
    def address(self) -> str:
        """The client's address without the port; ``""`` if unknown."""
        if self.origin is not None:
            return self.origin.client
        return self.connection[0] if self.connection else ""

    @property
    def client_address(self) -> str | None:
        """The client's address, which functions see; None if unknown.

        A listener of all interfaces maps IPv4 addresses into IPv6, as in ``::ffff:192.0.2.1``. Functions see IPv4.
        """
        origin, connection = self.origin, self.connection
        address = origin.client if origin is not None else connection[0] if connection else ""
        return (address if ":" not in address else _unmapped(address)) or None

    @property
    def network(self) -> str:
        """The client's address as limits count it: IPv4 as it is, of IPv6 the /64 network; ``""`` if unknown.

        A site gets an IPv6 network of this size and uses any address in it (RFC 6177).
        """
        origin, connection = self.origin, self.connection  # not by properties, for the sake of each call
        address = origin.client if origin is not None else connection[0] if connection else ""
        return address if ":" not in address else _network_of(address)

    def http_error(self, status: int, code: Code, message: str) -> StatusError:
        """Return an error to raise whose HTTP status does not follow from its code."""
        self.status = status
        return StatusError.of(code, message)

    # -- request body --

    def check_content_length(self, limit: int) -> None:
        """Refuse a request that declares a body larger than ``limit`` bytes, before the body is read.

        Raises:
            StatusError: 413.
        """
        length = self.metadata.wire(b"content-length")
        if length is not None and length.isdigit() and int(length) > limit:
            raise self.body_too_large(limit)

    async def read_body(self, limit: int, body_timeout: float | None) -> bytes:
        """Return the complete request body.

        Args:
            limit: Largest body, bytes.
            body_timeout: Seconds that reading may take; None: no limit.

        Raises:
            StatusError: 408 after the timeout, 413 for a larger body.
            asyncio.CancelledError: The client disconnected before the body was complete.
        """
        if self.stream is not None:
            self.stream.body_timeout = body_timeout
        parts: list[bytes] = []
        size = 0
        while size <= limit:
            message = await self._receive_body()
            body: bytes = message.get("body", b"")
            size += len(body)
            if not message.get("more_body", False):
                if size > limit:
                    break
                return b"".join([*parts, body]) if parts else body
            parts.append(body)
        raise self.body_too_large(limit)

    def body_too_large(self, limit: int) -> StatusError:
        """Return 413."""
        return self.http_error(413, Code.OUT_OF_RANGE, f"the request body is larger than {limit} bytes")

    async def read_chunk(self) -> bytes | None:
        """Return the next piece of the request body, or None after the last.

        Raises:
            asyncio.CancelledError: The client disconnected before the body was complete.
        """
        if self._complete:
            return None
        message = await self._receive_body()
        self._complete = not message.get("more_body", False)
        body: bytes = message.get("body", b"")
        return body

    async def _receive_body(self) -> AsgiEvent:
        try:
            message = await self._receive()
        except SlowBodyError:
            self.status = 408
            raise
        if message["type"] != "http.request":
            self.abandon()
        if not message.get("more_body", False):
            self._unread = False
        return message

    def expect_messages(self) -> None:
        """Take the request for a stream of messages, between which its client may be silent."""
        if self.stream is not None:
            self.stream.streaming = True

    def hold_request(self, size: int) -> None:
        """Count bytes of the request that are held besides those that came in.

        Raises:
            ResourceExhausted: The edge holds too much.
        """
        if self.stream is not None and size > LARGE_SIZE:
            self.stream.hold_request(size)

    def release_request(self, *, incomplete: bool = False) -> None:
        """Release the request, or the message of its stream that was passed on.

        Args:
            incomplete: Whether a part of the next message has come in already.
        """
        if self.stream is not None:
            self.stream.release_request(incomplete=incomplete)

    # -- end of the client or of the edge --

    def abandon(self) -> NoReturn:
        """End the call of a client that has disconnected. The task that answers it is cancelled from any task.

        Raises:
            asyncio.CancelledError: Always.
        """
        self.status = CLIENT_CLOSED_REQUEST
        if self.task is not None:
            (record_cancellation if self.task is asyncio.current_task() else cancel_task)(self.task)
        raise asyncio.CancelledError("the client went away")

    async def caller_disconnected(self) -> bool:
        """Return True: no user code runs in the edge, so the server or the edge itself has cancelled the task."""
        return True

    def expire(self) -> None:
        """Cancel the task that answers the call, because the edge stops."""
        if self.task is not None:
            self.expired = True
            cancel_task(self.task)

    def take_expiry(self) -> bool:
        """Undo a cancellation by ``expire``. Return whether the call can now be answered."""
        return self.expired and self.task is not None and uncancel_task(self.task) == 0

    async def wait_for_disconnect(self) -> None:
        """Return when the client has disconnected. The rest of the request is discarded.

        h2corn reports it for HTTP/2 only. An HTTP/1.1 client that disconnects is noticed when a response is written.
        """
        while (await self._receive())["type"] == "http.request":
            pass

    # -- response --

    def hold_response(self, size: int) -> None:
        """Count a large response, or message of a response stream, until the client has read it.

        Raises:
            ResourceExhausted: The edge holds too much for clients that do not read.
            Internal: The same, where the function has had its effect and is not safe to be called again.
        """
        if self.stream is None or size <= LARGE_SIZE:
            return
        try:
            self.stream.hold_response(size)
        except ResourceExhausted:
            if self.method is None or self.method.idempotent or self.verb in _SAFE_VERBS:
                raise
            raise Internal("the function has run, but the edge could not hold its response") from None

    def expect_response(self, size: int) -> None:
        """Count a large response message of a service while it comes in.

        Raises:
            ResourceExhausted: The edge holds too much for clients that do not read.
            Internal: The same, as with ``hold_response``.
        """
        self.hold_response(size)

    def release_response(self) -> None:
        """Release what ``hold_response`` counted."""
        if self.stream is not None:
            self.stream.release_response()

    async def answer(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        """Send a complete response; for HEAD without the body.

        Raises:
            StatusError: The edge cannot hold a response of this size.
        """
        if len(body) > LARGE_SIZE:
            self.release_request()
            self.release_response()  # the message of the service, of which the body is made
            self.hold_response(len(body))
        self.status = status
        self.response_started = True
        if self._unread:
            if self.stream is not None:
                self.stream.discard()
            await discard_body(self._receive_body)
        send = self._send
        if len(body) <= LARGE_SIZE and self._server_send is not None:
            send = self._server_send
            # HTTP/2 has no such header (RFC 9113, 8.2.2).
            if self.http_version == "1.1" and self.stream is not None and self.stream.server.retiring:
                headers = [*headers, CONNECTION_CLOSE]
        try:
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": b"" if self.verb == "HEAD" else body})
        except OSError:  # ASGI: the client has disconnected
            self.abandon()

    async def begin(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        """Send the head of a response whose body follows in pieces; for HEAD it is the complete response."""
        self.status = status
        self.response_started = True
        head = self.verb == "HEAD"
        await self._put({"type": "http.response.start", "status": status, "headers": headers})
        await self._put({"type": "http.response.body", "body": b"", "more_body": not head})

    async def write(self, data: bytes, *, end: bool = False) -> None:
        """Send a piece of the body. Waits while the client does not read.

        Raises:
            StatusError: The edge cannot hold a piece of this size.
        """
        self.hold_response(len(data))
        await self._put({"type": "http.response.body", "body": data, "more_body": not end})
        self.release_response()

    async def _put(self, event: AsgiEvent) -> None:
        try:
            await self._send(event)
        except OSError:  # ASGI: the client has disconnected
            self.abandon()


def share_keys(call: Call) -> tuple[Hashable | None, ...]:
    """Return the keys of the shares of an outbound call: connection, client, user, target service.

    Args:
        call: The outbound call. The request that it is made for is the current call.
    """
    request = current.get()
    assert isinstance(request, HttpCall)  # noqa: S101 - set by everything that makes outbound calls
    identity = request.identity
    return request.connection, request.network, None if identity is None else identity.subject, call.method.service


BULKHEADS = (3,)
"""Dimensions of ``share_keys`` that are bulkheads: a service that hangs takes half of the permits at most."""


@lru_cache(maxsize=4096)
def _network_of(address: str) -> str:
    try:
        parsed = IPv6Address(address)
    except ValueError:  # of a proxy; it counts as it is
        return address
    return str(parsed.ipv4_mapped or IPv6Network((int(parsed), _SITE_PREFIX), strict=False))


@lru_cache(maxsize=4096)
def _unmapped(address: str) -> str:
    try:
        mapped = IPv6Address(address).ipv4_mapped
    except ValueError:  # of a proxy
        return address
    return address if mapped is None else str(mapped)


class _SidecarCall(Call):
    """Base of the outbound calls that the edge makes in the task of the request.

    Args:
        request: The request; its user is that of the call.
        deadline: Absolute deadline in loop time, seconds; None: no deadline.
    """

    __slots__ = ("_http_call",)

    def __init__(self, request: HttpCall, deadline: float | None) -> None:
        Call.__init__(self, request.method, Metadata.from_wire([]), deadline)
        self.identity = request.identity
        self._http_call = request

    def expect_response(self, size: int) -> None:
        """Count a large response message while it comes in (``HttpCall.expect_response``)."""
        self._http_call.expect_response(size)

    async def caller_disconnected(self) -> bool:
        """Return True, as for the request in whose task the call is made."""
        return True


class UpstreamCall(_SidecarCall):
    """A unary gRPC call: holds the request, keeps the response.

    Attributes:
        response: The response message, or None.
    """

    __slots__ = ("_request", "response")

    def __init__(self, request: HttpCall, message: bytes, deadline: float | None) -> None:
        super().__init__(request, deadline)
        self.task = request.task
        self._request: bytes | None = message
        self.response: bytes | None = None

    async def receive_one(self) -> bytes:
        """Return the request."""
        return self._request or b""

    async def receive(self) -> bytes | None:
        """Return the request once, then None."""
        request, self._request = self._request, None
        return request

    async def send(self, message: bytes) -> None:
        """Keep the response.

        Raises:
            Internal: The method has already sent one.
        """
        if self.response is not None:
            raise Internal("a unary method sent two responses")
        self.response = message

    async def send_headers(self) -> None:
        """Do nothing: the headers are sent with the response."""
        self.headers_sent = True


class StreamCall(_SidecarCall):
    """A streaming gRPC call. Each message is passed on as fast as both sides take it.

    Args:
        request: The request.
        deadline: Absolute deadline in loop time, seconds; None: no deadline.
        source: Returns the next request message, or None after the last.

    Attributes:
        sink: Takes a response message and returns when it can take the next. Set before the call is made.
    """

    __slots__ = ("_source", "sink")

    sink: Callable[[bytes], Awaitable[None]]

    def __init__(
        self, request: HttpCall, deadline: float | None, source: Callable[[], Awaitable[bytes | None]]
    ) -> None:
        super().__init__(request, deadline)
        self._source = source

    async def receive(self) -> bytes | None:
        """Return the next request message, or None after the last."""
        return await self._source()

    async def send(self, message: bytes) -> None:
        """Pass a response message on."""
        self.headers_sent = True
        await self.sink(message)

    async def send_headers(self) -> None:
        """Do nothing: the headers are sent with the first message, because a failure before it is an HTTP status."""
        self.headers_sent = True
