"""gRPC-Web: gRPC for those who cannot read trailers. The same call, its trailers as the last frame of the body.

An ASGI translation around the gRPC server, over HTTP/1.1 and HTTP/2: what it hands in is gRPC, what comes out goes to
the client as gRPC-Web, binary or in base64, each piece as soon as it comes. It refuses what is no base64; frames are
the gRPC server's to judge.

Source: https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-WEB.md.
"""

from __future__ import annotations

import asyncio
import binascii
import contextlib
from base64 import b64encode
from collections.abc import Iterable, Mapping, MutableMapping
from types import MappingProxyType
from typing import Any

from mesh.errors import InvalidArgument
from mesh.rpc.framing import PREFIX
from mesh.rpc.server.grpc_app import TRAILERS_EXTENSION
from mesh.rpc.server.inbound_call import Receive, Send

__all__ = ["GRPC", "MEDIA", "Decoder", "essence", "original", "serve", "trailer_frame"]

Pairs = list[tuple[bytes, bytes]]

_TEXT = b"application/grpc-web-text"
_BINARY = b"application/grpc-web"
MEDIA = frozenset({_BINARY, _BINARY + b"+proto", _TEXT, _TEXT + b"+proto"})
"""The media types of gRPC-Web with protobuf messages."""

TRAILERS = 0x80
"""The flag of the frame that holds the trailers."""

_ORIGINAL = "mesh.original"
_EXTENSIONS: Mapping[str, Any] = MappingProxyType({TRAILERS_EXTENSION: {}})
"""What the exchange can do whatever its server can: trailers are the last frame of the body."""
GRPC = (b"content-type", b"application/grpc")
"""What a gRPC request says."""
_BROWSER = frozenset({
    b"content-type", b"content-length", b"accept", b"accept-language", b"cache-control", b"cookie", b"dnt", b"origin",
    b"pragma", b"priority", b"referer", b"upgrade-insecure-requests", b"x-grpc-web", b"x-requested-with",
    b"x-user-agent",
})  # fmt: skip
"""What a browser says of itself; a function is not told."""

LINGER_BYTES = 64 * 2**20
LINGER_SECONDS = 2.0
"""How much of a refused body is read and thrown away, for clients that are still sending: see ``mesh.edge.call``."""


def essence(media: bytes) -> bytes:
    """Return the media type without its parameters, in lower case (RFC 9110, 8.3.1)."""
    return media.partition(b";")[0].strip().lower()


def trailer_frame(pairs: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return the frame that ends the body: the trailers as an HTTP/1 header block without the empty line."""
    block = b"".join(b"%b: %b\r\n" % pair for pair in pairs)
    return PREFIX.pack(TRAILERS, len(block)) + block


class Decoder:
    """Base64 that comes in pieces, cut anywhere; a run of it may end in padding, and the next one follows at once."""

    __slots__ = ("_rest",)

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes, *, end: bool = False) -> bytes:
        """Return the bytes that ``data`` completes.

        Raises:
            InvalidArgument: It is no base64, or it ends within a group of four.
        """
        data = self._rest + data
        whole = len(data) - len(data) % 4
        self._rest = data[whole:]
        if end and self._rest:
            raise InvalidArgument("malformed request: the base64 ends within a group of four characters")
        found = []
        at = 0
        try:
            while at < whole:
                pad = data.find(b"=", at, whole)
                upto = whole if pad < 0 else pad - pad % 4 + 4
                found.append(binascii.a2b_base64(data[at:upto], strict_mode=True))
                at = upto
        except binascii.Error:
            raise InvalidArgument("malformed request: the body is not base64") from None
        return found[0] if len(found) == 1 else b"".join(found)


async def serve(app: Any, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
    """Have a gRPC application answer a request, which is gRPC-Web if its media type says so.

    Args:
        app: The application, gRPC over HTTP/2.
        scope: The request; its ``content-type`` is one of gRPC's or of ``MEDIA``.
        receive: As in ASGI.
        send: As in ASGI.
    """
    media = accept = b""
    for name, value in scope["headers"]:
        if name == b"content-type":
            media = essence(value)
        elif name == b"accept":
            accept = essence(value)
    if media not in MEDIA:
        await app(scope, receive, send)
        return
    exchange = _Exchange(scope, receive, send, media, accept if accept in MEDIA else media)
    pairs = [pair for pair in scope["headers"] if pair[0] not in _BROWSER and not pair[0].startswith(b"sec-")]
    made = {**scope, "headers": [GRPC, *pairs], "extensions": _EXTENSIONS, _ORIGINAL: scope}
    await app(made, exchange.receive, exchange.send)


def original(scope: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Return the request as it came in, of what ``serve`` has handed to the application."""
    found: MutableMapping[str, Any] = scope.get(_ORIGINAL, scope)
    return found


class _Exchange:
    """One request and its response."""

    __slots__ = ("_body", "_decoder", "_media", "_receive", "_send", "_text", "_trailing", "_unread", "_version")

    def __init__(
        self, scope: MutableMapping[str, Any], receive: Receive, send: Send, media: bytes, answer: bytes
    ) -> None:
        self._receive = receive
        self._send = send
        self._media = answer
        self._text = answer.startswith(_TEXT)
        self._decoder = Decoder() if media.startswith(_TEXT) else None
        self._unread = scope["http_version"].startswith("1") or any(
            name == b"content-length" and value != b"0" for name, value in scope["headers"]
        )
        self._version = scope["http_version"]
        self._trailing = False
        self._body = b""

    async def receive(self) -> MutableMapping[str, Any]:
        """Return the next piece of the request, as gRPC."""
        event = await self._receive()
        if event["type"] != "http.request":
            self._unread = False
            return event
        more = event.get("more_body", False)
        if not more:
            self._unread = False
        if self._decoder is None:
            return event
        body = self._decoder.feed(event.get("body", b""), end=not more)
        return {"type": "http.request", "body": body, "more_body": more}

    async def send(self, event: MutableMapping[str, Any]) -> None:
        """Send a piece of the response: the trailers are its last frame, unless there was nothing before them."""
        match event["type"]:
            case "http.response.start":
                self._trailing = event.get("trailers", False)
                if not (self._trailing and self._version == "2"):  # by HTTP/2 an answer waits with its end only
                    await self._linger()
                pairs: Pairs = [(b"content-type", self._media)]
                pairs += [pair for pair in event["headers"] if pair[0] != b"content-type"]
                if not self._trailing:
                    pairs.append((b"content-length", b"0"))
                await self._send({"type": "http.response.start", "status": event["status"], "headers": pairs})
            case "http.response.body" if not self._trailing:
                await self._send({"type": "http.response.body", "body": b""})
            case "http.response.body":
                if not event.get("more_body", False):
                    self._body = event["body"]  # goes with the trailers
                elif event["body"]:
                    await self._put(event["body"], more=True)
            case "http.response.trailers":
                await self._linger()
                await self._put(self._body + trailer_frame(event["headers"]), more=False)

    async def _put(self, body: bytes, *, more: bool) -> None:
        if self._text:
            body = b64encode(body)
        await self._send({"type": "http.response.body", "body": body, "more_body": more})

    async def _linger(self) -> None:
        if not self._unread:
            return
        size = 0
        with contextlib.suppress(TimeoutError):  # it gets the answer, and perhaps a reset with it
            async with asyncio.timeout(LINGER_SECONDS):
                while self._unread and size < LINGER_BYTES:
                    event = await self._receive()
                    self._unread = event["type"] == "http.request" and event.get("more_body", False)
                    size += len(event.get("body", b""))
        self._unread = False
