"""gRPC server as an ASGI application: routes gRPC and Connect calls to handlers and rejects other requests.

It runs under any ASGI server with HTTP/2 trailers (h2corn, pyvoy). Requests of no protocol get an HTTP status, calls
that cannot be routed the status of their protocol. Authentication, deadlines and concurrency limits are layers around
the handlers.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from typing import Any

from mesh.asgi import Receive, Scope, Send, discard_body, is_body_expected
from mesh.boundary import as_exception, uncancel_task
from mesh.call import Handler, Layer, Metadata
from mesh.contract.model import Method
from mesh.errors import Internal, StatusError, Unavailable, Unimplemented
from mesh.headers import Headers
from mesh.layers.recover import status_of
from mesh.rpc import framing
from mesh.rpc.server.clients.client_stream import CLIENT_STREAM, ClientStream
from mesh.rpc.server.clients.limited_call import CallerWatch, LimitedCall
from mesh.rpc.server.clients.limits import ClientLimits
from mesh.rpc.server.connect import request as connect_request
from mesh.rpc.server.connect.dispatch import ConnectDispatch
from mesh.rpc.server.inbound_call import CONTENT_TYPE, UNREAD, InboundCall
from mesh.rpc.server.unserved import UNKNOWN_METHOD, refusing, unimplemented
from mesh.rpc.status import write_status

__all__ = ["TRAILERS_EXTENSION", "GrpcApp"]

log = logging.getLogger("mesh.rpc.server")

TRAILERS_EXTENSION = "http.response.trailers"
"""ASGI extension. A server offers it for requests with ``te: trailers``, which gRPC requires (PROTOCOL-HTTP2.md)."""
_DEFAULT_EXTENSIONS: dict[str, Any] = {TRAILERS_EXTENSION: {}}
"""Extensions that are assumed of a server whose scope names none."""
_TE_TRAILERS_MISSING = (
    "malformed request: the header `te: trailers` is missing, so the response cannot carry a status; "
    "a proxy on the way may have removed it"
)
_BODY_END: dict[str, Any] = {"type": "http.response.body", "body": b"", "more_body": False}


class GrpcApp:
    """ASGI application that serves gRPC and Connect calls.

    Args:
        methods: Path (``/package.Service/Method``) → the method and its handler.
        max_message: Largest request message, bytes. The receiver of a response limits its size.
        trace: Layer that records the calls of unknown methods. None: they are not recorded.
        clients: Limits on the callers; None: an application before this one has them.
        connect: Dispatch of Connect calls; None: they have the handlers and the trace layer of gRPC calls.

    Attributes:
        calls: The calls in progress.
    """

    malformed: type[StatusError] = Internal
    """Status of a request that no gRPC client makes."""

    __slots__ = ("_clients", "_closing", "_connect", "_max_message", "_methods", "_trace", "_watch", "calls")

    def __init__(
        self,
        methods: Mapping[str, tuple[Method, Handler]],
        *,
        max_message: int = 4 * 2**20,
        trace: Layer | None = None,
        clients: ClientLimits | None = None,
        connect: ConnectDispatch | None = None,
    ) -> None:
        self._methods = dict(methods)
        self._connect = connect or ConnectDispatch(self._methods, trace=trace)
        self._max_message = max_message
        self._trace = trace
        self._closing = False
        self.calls: set[InboundCall] = set()
        self._clients = clients
        self._watch = None if clients is None else CallerWatch(clients, self.calls)

    async def __call__(  # noqa: C901, PLR0912 - another coroutine would cost each call
        self, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Serve one ASGI connection scope."""
        if scope["type"] != "http":
            await _reject_scope(scope, receive, send)
            return
        pairs = scope["headers"]
        metadata = Metadata.from_wire(pairs if isinstance(pairs, list) else list(pairs))
        content_type = metadata.wire(b"content-type")
        try:
            if (
                content_type == framing.TYPE
                and scope["method"] == "POST"
                and TRAILERS_EXTENSION in scope.get("extensions", _DEFAULT_EXTENSIONS)
            ):
                call, handler = self.admit(scope, metadata, receive, send)
            else:
                call, handler = self._admit_other(scope, metadata, receive, send)
        except _Rejected as rejection:
            await rejection.send(scope, receive, send)
            return
        except StatusError as status:
            pairs = [CONTENT_TYPE, *write_status(status)]
            if isinstance(status, Unimplemented):  # the encoding is unknown: name those that are accepted
                pairs.append((b"grpc-accept-encoding", framing.ACCEPTED))
            await _send_headers_only(send, 200, pairs)
            return
        method = call.method
        self.calls.add(call)
        if self._watch is not None and not self._watch.running:
            self._watch.start()
        try:
            failure: StatusError | None = None
            try:
                await handler(call)
                if call.response_missing:
                    raise RuntimeError(f"{method.path} has one response, and none was sent")  # noqa: TRY301
            except StatusError as error:
                failure = error
                if self._clients is not None:
                    _forget(call, error)
            except BaseException as error:  # noqa: BLE001 - of a layer outside of ``recover``
                failure = await self._failed(call, error)
            if failure is not UNREAD:
                await call.finish(failure)
        except asyncio.CancelledError:
            if call.dropped is None or self._closing:
                raise
            # The caller does not read the end. The server resets the stream of a response that is not complete.
        except Exception:  # the ASGI server refused headers or trailers that the function set
            log.exception("%s failed: its response could not be sent", method.path)
            await call.abort()
        finally:
            self.calls.discard(call)
            if isinstance(call, LimitedCall):
                call.close()

    def _admit_other(
        self, scope: Scope, metadata: Metadata, receive: Receive, send: Send
    ) -> tuple[InboundCall, Handler]:
        """Return the call of a request that is Connect, or gRPC in an unusual spelling, and its handler.

        Raises:
            _Rejected: The request is neither.
            StatusError: As for ``admit``.
        """
        content_type = metadata.wire(b"content-type") or b""
        if not framing.is_grpc(content_type):
            admitted = self._connect.admit(scope, metadata, receive, send, self._max_message, self._clients)
            if admitted is None:
                raise _Rejected.other(scope["method"], self._methods.get(scope["path"], (None,))[0])
            return admitted
        if scope["method"] != "POST":
            raise _Rejected.other(scope["method"], None)
        if TRAILERS_EXTENSION not in scope.get("extensions", _DEFAULT_EXTENSIONS):
            # Rejected before the function runs, because its response could not be sent.
            raise _Rejected(200, [CONTENT_TYPE, *write_status(self.malformed(_TE_TRAILERS_MISSING))])
        return self.admit(scope, metadata, receive, send)

    def admit(self, scope: Scope, metadata: Metadata, receive: Receive, send: Send) -> tuple[InboundCall, Handler]:
        """Return the call of a request, and its handler.

        Raises:
            StatusError: The timeout or the encoding of the request is malformed or unknown, there are too many header
                fields, or the connection has an old version of TLS.
        """
        path = scope["path"]
        method, handler = self._methods.get(path) or self._unknown(path)
        clients = self._clients
        if clients is None:
            call = InboundCall(method, metadata, receive, send, self._max_message)
        else:
            call = LimitedCall(clients, scope, method, metadata, receive, send, self._max_message)
        tls = scope.get("extensions", _DEFAULT_EXTENSIONS).get("tls")
        if tls is not None:
            call.set_certificate(tls)
        return call, handler

    def _unknown(self, path: str) -> tuple[Method, Handler]:
        """Return ``UNKNOWN_METHOD`` and a handler that refuses the call; the trace layer records the refusal."""
        return UNKNOWN_METHOD, refusing(unimplemented(path, self._methods), self._trace)

    async def _failed(self, call: InboundCall, error: BaseException) -> StatusError:
        """Return the status of a call whose handler raised no ``StatusError``.

        Raises:
            asyncio.CancelledError: The caller has gone and waits for no status.
        """
        try:
            status = status_of(await as_exception(error, call))
        except asyncio.CancelledError:
            _forget(call, error)
            if call.dropped is not None and call.task is not None and not uncancel_task(call.task):
                return call.dropped
            if not self._closing:
                raise
            return Unavailable("the server is shutting down")  # ``expire``: the stream is still open
        log.error("%s failed: %s", call.method.path, status.code.name, exc_info=error)
        return status

    def expire(self) -> None:
        """Cancel every call that is still in progress at the end of the drain; each ends as UNAVAILABLE."""
        self._closing = True
        for call in self.calls:
            call.cancel()


class _Rejected(Exception):
    """A request is no call. It gets a response of headers only.

    Attributes:
        status: The HTTP status.
        headers: The headers.
    """

    def __init__(self, status: int, headers: Headers) -> None:
        super().__init__(status)
        self.status = status
        self.headers = headers

    async def send(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response."""
        if is_body_expected(scope):
            stream: ClientStream | None = scope.get(CLIENT_STREAM)
            if stream is not None:
                stream.discard()
            await discard_body(receive)
        await _send_headers_only(send, self.status, self.headers)

    @classmethod
    def other(cls, verb: str, method: Method | None) -> _Rejected:
        """Return the rejection of another protocol: 405, or 415 with the media types of the path."""
        if verb != "POST":
            verbs = ("POST",) if method is None else connect_request.verbs(method)
            return cls(405, [(b"allow", ", ".join(verbs).encode())])
        types = (framing.TYPE.decode(), *(() if method is None else connect_request.media_types(method)))
        return cls(415, [(b"accept-post", ", ".join(types).encode())])


def _forget(call: InboundCall, error: BaseException) -> None:
    """Release what a large call that has failed holds, while the status is sent and the exception exists."""
    if isinstance(call, LimitedCall):
        call.forget(error)


async def _send_headers_only(send: Send, status: int, pairs: Headers) -> None:
    """Send a response of headers without a body."""
    with contextlib.suppress(OSError):  # the caller has gone
        await send({"type": "http.response.start", "status": status, "headers": pairs})
        await send(_BODY_END)


async def _reject_scope(scope: Scope, receive: Receive, send: Send) -> None:
    """Close a WebSocket; refuse the lifespan protocol, because the host of the application starts and stops it."""
    if scope["type"] != "websocket":
        raise ValueError(f"a gRPC server has no ASGI {scope['type']!r} scope")
    await receive()
    await send({"type": "websocket.close"})
