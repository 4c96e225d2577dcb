"""gRPC-Web as a translation around the gRPC server, for clients that cannot read HTTP trailers.

The trailers are the last frame of the response body. The translation works over HTTP/1.1 and HTTP/2. It turns a
gRPC-Web request, binary or in base64, into a gRPC request and translates each piece of the response as soon as the gRPC
server sends it. It refuses malformed base64; frames are checked by the gRPC server.

Source: https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-WEB.md.
"""

from __future__ import annotations

import binascii
from base64 import b64encode
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

from mesh.asgi import AsgiEvent, Receive, Scope, Send, discard_body, is_body_expected
from mesh.errors import InvalidArgument
from mesh.headers import BROWSER, Headers
from mesh.media_types import media_type
from mesh.rpc.framing import PREFIX
from mesh.rpc.server.grpc_app import TRAILERS_EXTENSION
from mesh.rpc.server.inbound_call import CONTENT_TYPE

__all__ = ["TYPES", "Base64Decoder", "is_grpc_web", "original_scope", "serve", "trailer_frame"]

_TEXT = "application/grpc-web-text"
_BINARY = "application/grpc-web"
TYPES = frozenset({_BINARY, f"{_BINARY}+proto", _TEXT, f"{_TEXT}+proto"})
"""Media types of gRPC-Web with protobuf messages; those of native gRPC: ``mesh.rpc.framing.TYPES``."""

TRAILERS_FLAG = 0x80
"""Flag byte of the frame that holds the trailers."""

_ORIGINAL_SCOPE = "mesh.original"
"""Key of the translated scope under which the scope of the gRPC-Web request stands."""
_EXTENSIONS: Mapping[str, Any] = MappingProxyType({TRAILERS_EXTENSION: {}})
"""Extensions of the translated scope. Trailers are in the body, so the ASGI server need not support them."""


def is_grpc_web(content_type: bytes) -> bool:
    """Whether a ``content-type`` is gRPC-Web's with protobuf messages, with or without parameters."""
    return media_type(content_type) in TYPES


def trailer_frame(pairs: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return the last frame of the body: the trailers as an HTTP/1 header block without the empty line."""
    block = b"".join(b"%b: %b\r\n" % pair for pair in pairs)
    return PREFIX.pack(TRAILERS_FLAG, len(block)) + block


class Base64Decoder:
    """Incremental base64 decoder.

    The pieces may be cut anywhere. A run of base64 may end in padding, and the next run follows it directly.
    """

    __slots__ = ("_rest",)

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes, *, end: bool = False) -> bytes:
        """Return the bytes that ``data`` completes.

        Raises:
            InvalidArgument: The text is not base64, or it ends within a group of four characters.
        """
        data = self._rest + data
        stop = len(data) - len(data) % 4
        self._rest = data[stop:]
        if end and self._rest:
            raise InvalidArgument("malformed request: the base64 ends within a group of four characters")
        decoded = []
        start = 0
        try:
            while start < stop:
                padding = data.find(b"=", start, stop)
                end_of_run = stop if padding < 0 else padding - padding % 4 + 4
                decoded.append(binascii.a2b_base64(data[start:end_of_run], strict_mode=True))
                start = end_of_run
        except binascii.Error:
            raise InvalidArgument("malformed request: the body is not base64") from None
        return decoded[0] if len(decoded) == 1 else b"".join(decoded)


async def serve(app: Any, scope: Scope, receive: Receive, send: Send) -> None:
    """Serve a request by a gRPC application; translate it if its media type is gRPC-Web's.

    Args:
        app: The ASGI application that serves gRPC.
        scope: Scope of the request; its ``content-type`` is one of gRPC's or of ``TYPES``.
        receive: As in ASGI.
        send: As in ASGI.
    """
    request_media = accepted_media = ""
    for name, value in scope["headers"]:
        if name == b"content-type":
            request_media = media_type(value)
        elif name == b"accept":
            accepted_media = media_type(value)
    if request_media not in TYPES:
        await app(scope, receive, send)
        return
    response_media = accepted_media if accepted_media in TYPES else request_media
    translation = _Translation(scope, receive, send, request_media, response_media)
    pairs = [pair for pair in scope["headers"] if pair[0] not in BROWSER and not pair[0].startswith(b"sec-")]
    translated = {**scope, "headers": [CONTENT_TYPE, *pairs], "extensions": _EXTENSIONS, _ORIGINAL_SCOPE: scope}
    await app(translated, translation.receive, translation.send)


def original_scope(scope: Scope) -> AsgiEvent:
    """Return the scope of the request as the client sent it, given the scope that ``serve`` passed on."""
    original: AsgiEvent = scope.get(_ORIGINAL_SCOPE, scope)
    return original


class _Translation:
    """ASGI ``receive`` and ``send`` of one gRPC-Web request, as the gRPC application sees them."""

    __slots__ = (
        "_decoder", "_http_version", "_last_message", "_receive", "_response_media", "_send", "_text", "_trailers",
        "_unread",
    )  # fmt: skip

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        request_media: str,
        response_media: str,
    ) -> None:
        self._receive = receive
        self._send = send
        self._response_media = response_media.encode()
        self._text = response_media.startswith(_TEXT)
        self._decoder = Base64Decoder() if request_media.startswith(_TEXT) else None
        self._unread = is_body_expected(scope)
        self._http_version = scope["http_version"]
        self._trailers = False
        self._last_message = b""

    async def receive(self) -> AsgiEvent:
        """Return the next piece of the request in gRPC's binary form."""
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

    async def send(self, event: AsgiEvent) -> None:
        """Send a piece of the response. Trailers become the last frame; the headers of Trailers-Only stay headers."""
        match event["type"]:
            case "http.response.start":
                self._trailers = event.get("trailers", False)
                # Over HTTP/2 only the end of the response has to wait for the rest of the request.
                if not (self._trailers and self._http_version == "2"):
                    await self._discard_request()
                pairs: Headers = [(b"content-type", self._response_media)]
                pairs += [pair for pair in event["headers"] if pair[0] != b"content-type"]
                if not self._trailers:
                    pairs.append((b"content-length", b"0"))
                await self._send({"type": "http.response.start", "status": event["status"], "headers": pairs})
            case "http.response.body" if not self._trailers:
                await self._send({"type": "http.response.body", "body": b""})
            case "http.response.body":
                if not event.get("more_body", False):
                    self._last_message = event["body"]  # sent with the trailers
                elif event["body"]:
                    await self._send_body(event["body"], more=True)
            case "http.response.trailers":
                await self._discard_request()
                await self._send_body(self._last_message + trailer_frame(event["headers"]), more=False)

    async def _send_body(self, body: bytes, *, more: bool) -> None:
        if self._text:
            body = b64encode(body)
        await self._send({"type": "http.response.body", "body": body, "more_body": more})

    async def _discard_request(self) -> None:
        """Read and discard the rest of the request before the end of the response is sent."""
        if self._unread:
            self._unread = False
            await discard_body(self._receive)
