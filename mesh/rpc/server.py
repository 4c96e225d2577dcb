"""The gRPC server as an ASGI application: which method a request calls, and what is no gRPC request at all.

It serves under any ASGI server with HTTP/2 trailers (h2corn, pyvoy). It routes, and refuses in gRPC's terms what it
cannot route; who may call, how long and how many at once are layers around the handlers that it is given.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, MutableMapping
from typing import TYPE_CHECKING, Any

from mesh.call import Handler, Metadata
from mesh.errors import Internal, StatusError, Unavailable, Unimplemented
from mesh.rpc import wire
from mesh.rpc.inbound import CONTENT_TYPE, InboundCall, Receive, Send

if TYPE_CHECKING:
    from mesh.contract import Method

__all__ = ["GrpcApp"]

log = logging.getLogger("mesh.rpc.server")

_TYPES = frozenset({b"application/grpc", b"application/grpc+proto"})
_BODY_END: dict[str, Any] = {"type": "http.response.body", "body": b"", "more_body": False}


class GrpcApp:
    """An ASGI application that answers gRPC calls.

    Args:
        methods: Path (``/package.Service/Method``) → the method and what answers it.
        max_message: Largest request message, bytes.

    Attributes:
        calls: The calls being answered now.
    """

    __slots__ = ("_closing", "_max_message", "_methods", "calls")

    def __init__(self, methods: Mapping[str, tuple[Method, Handler]], *, max_message: int = 4 * 2**20) -> None:
        self._methods = dict(methods)
        self._max_message = max_message
        self._closing = False
        self.calls: set[InboundCall] = set()

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer one ASGI connection scope."""
        if scope["type"] != "http":
            await _other(scope, receive, send)
            return
        pairs = scope["headers"]
        metadata = Metadata.from_wire(pairs if isinstance(pairs, list) else list(pairs))
        kind = metadata.wire(b"content-type") or b""
        if kind not in _TYPES and kind.partition(b";")[0].strip().lower() not in _TYPES:
            await _refuse(send, 415, b"accept-post", b"application/grpc")
            return
        if scope["method"] != "POST":
            await _refuse(send, 405, b"allow", b"POST")
            return
        found = self._methods.get(scope["path"])
        try:
            if found is None:
                raise _unknown(scope["path"], self._methods)
            method, handler = found
            call = InboundCall(method, metadata, receive, send, self._max_message)
        except StatusError as status:
            await _trailers_only(send, status)
            return
        self.calls.add(call)
        try:
            await self._answer(call, handler)
        finally:
            self.calls.discard(call)

    async def _answer(self, call: InboundCall, handler: Handler) -> None:
        status: StatusError | None = None
        try:
            await handler(call)
            if call.unanswered:
                raise RuntimeError(f"{call.method.path} answers once, and no response was sent")  # noqa: TRY301
        except StatusError as error:
            status = error
        except asyncio.CancelledError:
            if not self._closing:
                raise
            # Time to drain is over: say so instead of breaking the stream.
            status = Unavailable("the server is shutting down")
        except Exception:
            log.exception("%s failed", call.method.path)
            status = Internal("internal error")
        await call.finish(status)

    def expire(self) -> None:
        """Cancel every call that is still being answered; each ends as UNAVAILABLE. For the end of a drain."""
        self._closing = True
        for call in self.calls:
            call.cancel()


def _unknown(path: str, methods: Mapping[str, Any]) -> StatusError:
    service, _, method = path.strip("/").rpartition("/")
    if any(known.startswith(f"/{service}/") for known in methods):
        return Unimplemented(f"service {service} has no method {method}")
    return Unimplemented(f"service {service or path} is not served here")


async def _trailers_only(send: Send, status: StatusError) -> None:
    pairs = [CONTENT_TYPE, *wire.status_pairs(status)]
    if isinstance(status, Unimplemented):
        pairs.append((b"grpc-accept-encoding", wire.ACCEPTED))
    try:
        await send({"type": "http.response.start", "status": 200, "headers": pairs})
        await send(_BODY_END)
    except OSError:
        pass  # the caller is gone; there is nobody to tell


async def _refuse(send: Send, status: int, header: bytes, value: bytes) -> None:
    """Answer what is not gRPC in HTTP's own terms."""
    try:
        await send({"type": "http.response.start", "status": status, "headers": [(header, value)]})
        await send(_BODY_END)
    except OSError:
        pass


async def _other(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
    """Close a websocket; refuse the lifespan protocol (whoever hosts the application starts and stops it)."""
    if scope["type"] != "websocket":
        raise ValueError(f"a gRPC server has no ASGI {scope['type']!r} scope")
    await receive()
    await send({"type": "websocket.close"})
