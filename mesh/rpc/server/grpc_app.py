"""The gRPC server as an ASGI application: which method a request calls, and what is no gRPC request at all.

It serves under any ASGI server with HTTP/2 trailers (h2corn, pyvoy). It routes, and refuses in gRPC's terms what it
cannot route; who may call, how long and how many at once are layers around the handlers that it is given.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping, MutableMapping
from typing import Any

from google.protobuf.empty_pb2 import Empty

from mesh.boundary import ordinary
from mesh.call import Call, Handler, Layer, Metadata, chain
from mesh.contract.model import Method
from mesh.errors import Internal, StatusError, Unavailable, Unimplemented
from mesh.layers.recover import status_of
from mesh.rpc import framing
from mesh.rpc.server.inbound_call import CONTENT_TYPE, InboundCall, Receive, Send
from mesh.rpc.status import write_status

__all__ = ["TRAILERS_EXTENSION", "GrpcApp"]

Pairs = list[tuple[bytes, bytes]]

log = logging.getLogger("mesh.rpc.server")

_OTHER = Method("_OTHER", "", "/_OTHER", Empty, Empty, client_streaming=False, server_streaming=False)
"""Stands for every method that is not served, by the name that the semantic conventions give it: callers make up as
many paths as they like."""
TRAILERS_EXTENSION = "http.response.trailers"
"""The ASGI extension; a server offers it for requests with ``te: trailers``, which gRPC's have (PROTOCOL-HTTP2.md)."""
_OFFERED = frozenset({TRAILERS_EXTENSION})
"""Extensions of a server that names none."""
_NO_TRAILERS = (
    "malformed request: the header `te: trailers` is missing, without which the answer cannot have its status; "
    "a proxy on the way may have dropped it"
)
_BODY_END: dict[str, Any] = {"type": "http.response.body", "body": b"", "more_body": False}


class GrpcApp:
    """An ASGI application that answers gRPC calls.

    Args:
        methods: Path (``/package.Service/Method``) → the method and what answers it.
        max_message: Largest request message, bytes; a response is measured by who receives it.
        trace: The layer that records calls of methods that are not served too; None if nothing does.

    Attributes:
        calls: The calls being answered now.
    """

    malformed: type[StatusError] = Internal
    """What a request is refused with that no client of gRPC makes."""

    __slots__ = ("_closing", "_max_message", "_methods", "_trace", "calls")

    def __init__(
        self,
        methods: Mapping[str, tuple[Method, Handler]],
        *,
        max_message: int = 4 * 2**20,
        trace: Layer | None = None,
    ) -> None:
        self._methods = dict(methods)
        self._max_message = max_message
        self._trace = trace
        self._closing = False
        self.calls: set[InboundCall] = set()

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer one ASGI connection scope."""
        if scope["type"] != "http":
            await _other(scope, receive, send)
            return
        pairs = scope["headers"]
        metadata = Metadata.from_wire(pairs if isinstance(pairs, list) else list(pairs))
        kind = metadata.wire(b"content-type")
        if (
            kind != framing.TYPE
            or scope["method"] != "POST"
            or TRAILERS_EXTENSION not in scope.get("extensions", _OFFERED)
        ):
            refusal = self._no_grpc(scope, kind or b"")
            if refusal is not None:
                await _end(send, *refusal)
                return
        try:
            call, handler = self.admit(scope, metadata, receive, send)
        except StatusError as status:
            pairs = [CONTENT_TYPE, *write_status(status)]
            if isinstance(status, Unimplemented):  # the encoding is not
                pairs.append((b"grpc-accept-encoding", framing.ACCEPTED))
            await _end(send, 200, pairs)
            return
        method = call.method
        self.calls.add(call)
        try:
            ended: StatusError | None = None
            try:
                await handler(call)
                if call.unanswered:
                    raise RuntimeError(f"{method.path} answers once, and no response was sent")  # noqa: TRY301
            except StatusError as error:
                ended = error
            except BaseException as error:  # noqa: BLE001 - of a layer outside of ``recover``
                ended = await self._failed(call, error)
            await call.finish(ended)
        except Exception:  # the server refused what a function set: it is told, and so is the caller
            log.exception("%s failed: its answer could not be sent", method.path)
            await call.abort()
        finally:
            self.calls.discard(call)

    def _no_grpc(self, scope: MutableMapping[str, Any], kind: bytes) -> tuple[int, Pairs] | None:
        """Return the HTTP answer to what is not gRPC, None to what is."""
        if scope["method"] != "POST":
            return 405, [(b"allow", b"POST")]
        if not framing.is_grpc(kind):
            return 415, [(b"accept-post", framing.TYPE)]
        if TRAILERS_EXTENSION not in scope.get("extensions", _OFFERED):
            # Before the function runs: its answer could not be sent.
            return 200, [CONTENT_TYPE, *write_status(self.malformed(_NO_TRAILERS))]
        return None

    def admit(
        self, scope: MutableMapping[str, Any], metadata: Metadata, receive: Receive, send: Send
    ) -> tuple[InboundCall, Handler]:
        """Return the call that a request makes, and what answers it.

        Raises:
            StatusError: The request's timeout or encoding cannot be understood.
        """
        method, handler = self._methods.get(scope["path"]) or self._unserved(scope["path"])
        return InboundCall(method, metadata, receive, send, self._max_message), handler

    def _unserved(self, path: str) -> tuple[Method, Handler]:
        """Return what answers a call of a method that is not served: a refusal, traced under one name for all."""

        async def refuse(_: Call) -> None:
            raise _unknown(path, self._methods)

        return _OTHER, refuse if self._trace is None else chain(self._trace, refuse)

    async def _failed(self, call: InboundCall, error: BaseException) -> StatusError:
        """Return the status of a call that ended without one.

        Raises:
            asyncio.CancelledError: Nobody waits for one.
        """
        try:
            status = status_of(await ordinary(error, call))
        except asyncio.CancelledError:
            if not self._closing:
                raise
            return Unavailable("the server is shutting down")  # the time to drain is over: the stream is not broken
        log.error("%s failed: %s", call.method.path, status.code.name, exc_info=error)
        return status

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


async def _end(send: Send, status: int, pairs: Pairs) -> None:
    """Answer with headers alone."""
    with contextlib.suppress(OSError):  # the caller is gone; there is nobody to tell
        await send({"type": "http.response.start", "status": status, "headers": pairs})
        await send(_BODY_END)


async def _other(scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
    """Close a websocket; refuse the lifespan protocol (whoever hosts the application starts and stops it)."""
    if scope["type"] != "websocket":
        raise ValueError(f"a gRPC server has no ASGI {scope['type']!r} scope")
    await receive()
    await send({"type": "websocket.close"})
