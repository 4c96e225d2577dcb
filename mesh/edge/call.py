"""The two calls of one HTTP request: the one that came in, and the gRPC call that answers it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from time import monotonic  # what the loops' own clocks are
from typing import TYPE_CHECKING, Any, NoReturn

from mesh.boundary import cancel_task, record_cancellation, uncancel_task
from mesh.call import Call, Metadata
from mesh.errors import Internal
from mesh.layers.timer_wheel import TaskTimeout, timer_wheel

if TYPE_CHECKING:
    from mesh.contract.model import Method

__all__ = ["GONE", "HttpCall", "Origin", "Receive", "Send", "StreamCall", "UpstreamCall"]

GONE = 499
"""The status of a call whose client went away before the answer; it is on no wire."""

LINGER_BYTES = 64 * 2**20
LINGER_SECONDS = 2.0
"""How much of a refused body is read and thrown away: an HTTP/1.1 client that is still sending would meet a reset
connection instead of the answer (RFC 9112, section 9.6); some HTTP/2 clients (curl 7.88) lose the answer to the
RST_STREAM(NO_ERROR) behind it (RFC 9113, 8.1)."""

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a request came from.

    Attributes:
        client: The client's address without a port.
        scheme: ``http`` or ``https``, or ``""`` if nobody said.
        host: The authority that the client named, or ``""`` if nobody said.
    """

    client: str
    scheme: str = ""
    host: str = ""


class HttpCall(Call):
    """An HTTP request, as the layers of the edge see it.

    ``metadata`` are the request headers, ``headers`` the response headers that layers add; they go with a refusal too.

    Attributes:
        verb: The request method, in upper case.
        path: The raw path: percent escapes and all, without the query.
        query: The raw query.
        method: The method that it leads to; None until it is routed.
        route: The template of the route; None until it is routed.
        origin: Where it came from, as a trusted proxy says it; None without one. Set by the forwarded layer.
        status: The HTTP status of the answer; 0 while there is none. Set before a refusal is raised whose HTTP status
            does not follow from its code.
        answered: Whether the response has begun.
        expired: It was cancelled because the edge stops.
    """

    __slots__ = (
        "_complete", "_receive", "_scope", "_send", "_unread", "answered", "expired", "origin", "path",
        "query", "route", "status", "verb",
    )  # fmt: skip

    def __init__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        super().__init__(None, Metadata.from_wire(scope["headers"]))
        self._scope = scope
        self._receive = receive
        self._send = send
        self.task = asyncio.current_task()
        self.verb: str = scope.get("method", "GET")  # a WebSocket has none; over HTTP/1.1 it begins with GET
        self.path = scope["raw_path"].decode("latin-1")
        self.query: bytes = scope["query_string"]
        self.origin: Origin | None = None
        self.route: str | None = None
        self.status = 0
        self.answered = False
        self.expired = False
        self._complete = False
        sends = self.metadata.wire(b"content-length") not in (None, b"0") or self.metadata.wire(b"transfer-encoding")
        # By HTTP/2 a stream without a length may be open on purpose: its client waits for the answer.
        self._unread = bool(sends)

    @property
    def http_version(self) -> str:
        """``1.1`` or ``2``."""
        return str(self._scope["http_version"])

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
        """The client's address, ``host:port`` or ``[IPv6]:port``, without a port behind a proxy; ``""`` if unknown."""
        if self.origin is not None:
            return self.origin.client
        client = self._scope.get("client")
        if not client:
            return ""
        host, port = client
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    @property
    def connected(self) -> str:
        """The address of the connection's other end, without the port; ``""`` if it is not known."""
        client = self._scope.get("client")
        return str(client[0]) if client else ""

    @property
    def address(self) -> str:
        """The client's address without the port; ``""`` if it is not known."""
        return self.origin.client if self.origin is not None else self.connected

    async def read(self, limit: int, seconds: float | None) -> bytes | None:
        """Return the whole request body, or None if it is larger than ``limit`` bytes.

        Args:
            limit: Bytes.
            seconds: How long it may take; None: as long as it likes.

        Raises:
            TimeoutError: It took longer.
            asyncio.CancelledError: The client went away before it was complete.
        """
        parts: list[bytes] = []
        size = 0
        assert self.task is not None  # noqa: S101 - a request is answered in a task
        late = TaskTimeout(self.task)
        slot = None if seconds is None else timer_wheel(self.task).add(monotonic() + seconds, late)
        try:
            while size <= limit:
                message = await self._next()
                body = message.get("body", b"")
                parts.append(body)
                size += len(body)
                if not message.get("more_body", False):
                    return b"".join(parts) if size <= limit else None
        except asyncio.CancelledError:
            if late.sole_cause:
                raise TimeoutError from None
            raise
        finally:
            if slot is not None:
                slot.discard(late)
            late.uncancel()
        return None

    async def chunk(self) -> bytes | None:
        """Return the next piece of the request body, or None after the last.

        Raises:
            asyncio.CancelledError: The client went away before the body was complete.
        """
        if self._complete:
            return None
        message = await self._next()
        self._complete = not message.get("more_body", False)
        body: bytes = message.get("body", b"")
        return body

    async def _next(self) -> MutableMapping[str, Any]:
        message = await self._receive()
        if message["type"] != "http.request":
            self.leave()
        if not message.get("more_body", False):
            self._unread = False
        return message

    async def _linger(self) -> None:
        """Throw away what the client still sends of a body that nobody reads."""
        size = 0
        try:
            async with asyncio.timeout(LINGER_SECONDS):
                while self._unread and size < LINGER_BYTES:
                    size += len((await self._next()).get("body", b""))
        except TimeoutError:
            pass  # it gets the answer, and perhaps a reset with it

    def leave(self) -> NoReturn:
        """End the call, whose client has gone; whichever task noticed it, the one that answers is cancelled.

        Raises:
            asyncio.CancelledError: Always.
        """
        self.status = GONE
        if self.task is not None:
            (record_cancellation if self.task is asyncio.current_task() else cancel_task)(self.task)
        raise asyncio.CancelledError("the client went away")

    async def caller_disconnected(self) -> bool:
        """Return True: no user code runs here that could have cancelled the task; so the server has, or the edge."""
        return True

    def expire(self) -> None:
        """Cancel what answers the call, because the edge stops."""
        if self.task is not None:
            self.expired = True
            cancel_task(self.task)

    def lapsed(self) -> bool:
        """Whether it is only cancelled because the edge stops; then it no longer is, and can be answered."""
        return self.expired and self.task is not None and uncancel_task(self.task) == 0

    async def gone(self) -> None:
        """Return when the client has gone; what it still sends is thrown away.

        h2corn says so for HTTP/2 only: an HTTP/1.1 client that goes is noticed when there is an answer to write.
        """
        while (await self._receive())["type"] == "http.request":
            pass

    async def answer(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        """Send the whole response; the body of an answer to HEAD stays here."""
        self.status = status
        self.answered = True
        if self._unread:
            await self._linger()
        try:
            await self._send({"type": "http.response.start", "status": status, "headers": headers})
            await self._send({"type": "http.response.body", "body": b"" if self.verb == "HEAD" else body})
        except OSError:  # ASGI: the client has gone
            self.leave()

    async def begin(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        """Begin a response whose body comes in pieces; that of an answer to HEAD is complete with this."""
        self.status = status
        self.answered = True
        head = self.verb == "HEAD"
        await self._put({"type": "http.response.start", "status": status, "headers": headers})
        await self._put({"type": "http.response.body", "body": b"", "more_body": not head})

    async def write(self, data: bytes, *, end: bool = False) -> None:
        """Send a piece of the body; waits while the client does not read."""
        await self._put({"type": "http.response.body", "body": data, "more_body": not end})

    async def _put(self, event: MutableMapping[str, Any]) -> None:
        try:
            await self._send(event)
        except OSError:  # ASGI: the client has gone
            self.leave()


class _Onward(Call):
    """What the calls that the edge makes share."""

    __slots__ = ()

    async def caller_disconnected(self) -> bool:
        """Return True, as for the request: they are made in its task."""
        return True


class UpstreamCall(_Onward):
    """A unary gRPC call with one request; keeps the one response.

    Attributes:
        response: The response message, or None.
    """

    __slots__ = ("_request", "response")

    def __init__(self, method: Method, request: bytes, deadline: float | None) -> None:
        super().__init__(method, Metadata(), deadline)
        self._request: bytes | None = request
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
            Internal: There was one already.
        """
        if self.response is not None:
            raise Internal("a unary method answered twice")
        self.response = message

    async def send_headers(self) -> None:
        """Do nothing: the headers go with the response."""
        self.headers_sent = True


class StreamCall(_Onward):
    """A gRPC call whose requests and responses are passed on one by one, as fast as both sides take them.

    Args:
        method: The method.
        deadline: In the loop's time; None: it may take as long as it likes.
        source: Gives the next request message, or None after the last.

    Attributes:
        sink: Takes a response message; returns when there is room for another. Set before the call is made.
    """

    __slots__ = ("_source", "sink")

    sink: Callable[[bytes], Awaitable[None]]

    def __init__(self, method: Method, deadline: float | None, source: Callable[[], Awaitable[bytes | None]]) -> None:
        super().__init__(method, Metadata(), deadline)
        self._source = source

    async def receive(self) -> bytes | None:
        """Return the next request message, or None after the last."""
        return await self._source()

    async def send(self, message: bytes) -> None:
        """Pass a response message on."""
        self.headers_sent = True
        await self.sink(message)

    async def send_headers(self) -> None:
        """Do nothing: they go with the first message, because a failure before it is an HTTP status."""
        self.headers_sent = True
