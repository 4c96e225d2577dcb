"""The two calls of one HTTP request: the one that came in, and the gRPC call that answers it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any, NoReturn

from mesh.call import Call, Metadata
from mesh.errors import Internal

if TYPE_CHECKING:
    from mesh.contract import Method
    from mesh.edge.forwarded import Origin

__all__ = ["GONE", "HttpCall", "Receive", "Send", "UpstreamCall"]

GONE = 499
"""The status of a call whose client went away before the answer; it is on no wire."""

LINGER_BYTES = 64 * 2**20
LINGER_SECONDS = 2.0
"""How much of a refused body is read and thrown away: an HTTP/1.1 client that is still sending would meet a reset
connection instead of the answer (RFC 9112, section 9.6)."""

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


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
    """

    __slots__ = (
        "_receive", "_scope", "_send", "_unread", "answered", "origin", "path", "query", "route", "status", "verb",
    )  # fmt: skip

    def __init__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        super().__init__(None, Metadata.from_wire(scope["headers"]))
        self._scope = scope
        self._receive = receive
        self._send = send
        self.verb: str = scope["method"]
        self.path = scope["raw_path"].decode("latin-1")
        self.query: bytes = scope["query_string"]
        self.origin: Origin | None = None
        self.route: str | None = None
        self.status = 0
        self.answered = False
        sends = self.metadata.wire(b"content-length") not in (None, b"0") or self.metadata.wire(b"transfer-encoding")
        self._unread = bool(sends) and scope["http_version"] == "1.1"

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
        """The client's address, ``host:port``, without a port behind a proxy; ``""`` if it is not known."""
        if self.origin is not None:
            return self.origin.client
        client = self._scope.get("client")
        if not client:
            return ""
        return f"[{client[0]}]:{client[1]}" if ":" in client[0] else f"{client[0]}:{client[1]}"

    @property
    def peer(self) -> str:
        """The address of the connection's other end, without the port; ``""`` if it is not known."""
        client = self._scope.get("client")
        return str(client[0]) if client else ""

    @property
    def address(self) -> str:
        """The client's address without the port; ``""`` if it is not known."""
        return self.origin.client if self.origin is not None else self.peer

    async def read(self, limit: int, seconds: float) -> bytes | None:
        """Return the whole request body, or None if it is larger than ``limit`` bytes.

        Args:
            limit: Bytes.
            seconds: How long a body may take that does not come at once.

        Raises:
            TimeoutError: It took longer.
            asyncio.CancelledError: The client went away before it was complete.
        """
        message = await self._next()
        body: bytes = message.get("body", b"")
        if not message.get("more_body", False):
            return body if len(body) <= limit else None
        parts = [body]
        size = len(body)
        async with asyncio.timeout(seconds):
            while size <= limit:
                message = await self._next()
                body = message.get("body", b"")
                parts.append(body)
                size += len(body)
                if not message.get("more_body", False):
                    return b"".join(parts) if size <= limit else None
        return None

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
        """End the call, whose client has gone.

        Raises:
            asyncio.CancelledError: Always.
        """
        self.status = GONE
        raise asyncio.CancelledError("the client went away")

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


class UpstreamCall(Call):
    """A unary gRPC call with one request; keeps the one response.

    Attributes:
        response: The response message, or None.
    """

    __slots__ = ("_request", "response")

    def __init__(self, method: Method, request: bytes, deadline: float) -> None:
        super().__init__(method, Metadata(), deadline)
        self._request: bytes | None = request
        self.response: bytes | None = None

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
