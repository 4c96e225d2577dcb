"""ASGI application of the edge: one gRPC call for each HTTP request to a method with a route."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Iterator
from time import monotonic  # the clock of the event loops
from typing import TYPE_CHECKING, Any

from mesh.asgi import Receive, Scope, Send
from mesh.call import Call, Handler, Layer, chain, current
from mesh.contract.access import check_identity
from mesh.contract.model import Access, Contract, Method, Route
from mesh.contract.path_template import Template
from mesh.edge import refusals
from mesh.edge.calls import CLIENT_CLOSED_REQUEST, HttpCall, UpstreamCall
from mesh.edge.grpc.passthrough import GrpcCall, Passthrough
from mesh.edge.http import request_body, response
from mesh.edge.http.disconnect import DisconnectWatcher
from mesh.edge.http.router import BadPath, Router
from mesh.edge.http.streaming import Streams
from mesh.edge.http.transcoder import Transcoder
from mesh.edge.http.websocket import WebSocketCall, WebSockets
from mesh.edge.lambda_http.gateway import Gateway
from mesh.edge.layers.stack import NO_LAYERS, OptionalLayers
from mesh.edge.openapi.pages import BuiltinPages
from mesh.edge.openapi.schemas import Schemas
from mesh.errors import Internal, InvalidArgument, StatusError, Unavailable
from mesh.layers.deadline import deadline
from mesh.layers.recover import recover
from mesh.layers.timer_wheel import timer_wheel
from mesh.protojson.codec import Codecs
from mesh.rpc.server.clients.client_stream import CLIENT_STREAM, ClientStream
from mesh.rpc.server.clients.exception_frames import release_frames
from mesh.rpc.server.clients.limits import ClientLimits

if TYPE_CHECKING:
    from mesh.layers.concurrency import ConcurrencyLimit

__all__ = ["EdgeApp"]

log = logging.getLogger("mesh.edge")

READINESS = "/healthz"
"""Path of the readiness check: 200 while the edge takes work, else 503 with the reason. No layer sees the request."""
LIVENESS = "/livez"
"""Path of the liveness check: 200 while the event loop turns, also under overload and during the drain. No layer sees
the request."""

OVERLOAD_DELAY = 5.0
"""Seconds without a granted permit, while calls wait for one, after which the edge counts as overloaded."""

DISCONNECT_WATCH_DELAY = 0.02
"""Seconds after which the edge starts to watch for a disconnect of the client. Most calls end earlier."""


class EdgeApp:
    """ASGI application that translates HTTP/JSON to calls of the contract's methods.

    Args:
        contract: The contract. Methods with HTTP routes are reachable.
        handler: Makes the gRPC call: the outbound chain that ends at the sidecars.
        trace: The outermost layer.
        authenticate: Sets ``call.identity``.
        concurrency_limit: Limits the unary calls to the sidecars. Its permit is held for the call only: neither while
            the request is read nor while the response is written.
        stream_limit: Limits the open streams, which are no such calls: streaming methods over HTTP, WebSocket and gRPC.
        max_body: Largest request body, bytes; of a stream: largest message in it.
        timeout: Seconds that a request may take if its method has no timeout, and that a body may take; None: no limit.
            Streams have no such limit.
        clients: Limits on what clients make the edge wait for; None: the defaults.
        layers: Optional layers of the deployment.

    Attributes:
        draining: Whether ``/healthz`` reports that the edge is shutting down.
        grpc: The application for gRPC, gRPC-Web and Connect.
    """

    def __init__(
        self,
        contract: Contract,
        *,
        handler: Handler,
        trace: Layer,
        authenticate: Layer,
        concurrency_limit: ConcurrencyLimit,
        stream_limit: Layer,
        max_body: int,
        timeout: float | None,
        clients: ClientLimits | None = None,
        layers: OptionalLayers = NO_LAYERS,
    ) -> None:
        self.draining = False
        self._clients = clients or ClientLimits()
        self._health = {READINESS: self._readiness, LIVENESS: _liveness}
        self._concurrency_limit = concurrency_limit
        self._blocked_since = 0.0

        def granted(call: Call) -> Awaitable[None]:
            self._blocked_since = 0.0
            return handler(call)

        unary = chain(self._note_offer, concurrency_limit, granted)
        self._handler = chain(*_present(deadline, layers.header_forwarding, unary))
        open_stream = chain(*_present(deadline, layers.header_forwarding, handler))
        self._pages = BuiltinPages(contract).handlers if layers.docs else {}
        self._max_body = max_body
        self._timeout = timeout
        self._in_progress: set[HttpCall] = set()
        self._streams = Streams(chain(stream_limit, open_stream), max_message=max_body, timeout=timeout)
        self._web_sockets = WebSockets(stream_limit, open_stream, self._find, _check_access, max_message=max_body)
        codecs = Codecs(
            ignore_unknown_fields=layers.ignore_unknown_fields, always_print=Schemas(contract.pool, {}).required
        )
        self._router = Router(
            [
                entry
                for method in contract.methods.values()
                if method.access is not Access.INTERNAL
                for route in method.routes
                for entry in _entries(method, route, codecs, cors=layers.cors is not None)
            ],
            full_first=lambda target: isinstance(target, Gateway) and target.full_first,
        )
        self._chain = chain(
            *_present(
                layers.forwarded,
                trace,
                recover,
                layers.cors,
                layers.size_limits,
                layers.client_rate_limit,
                authenticate,
                layers.identity_rate_limit,
                self._dispatch,
            )
        )
        self.grpc = Passthrough(
            contract,
            handler=self._chain,
            unary=unary,
            streams=chain(stream_limit, handler),
            max_message=max_body,
            timeout=timeout,
            builtin=layers.builtin,
            codecs=codecs,
            has_route=self._has_route,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request (ASGI 3)."""
        stream = scope[CLIENT_STREAM] = ClientStream(self._clients, scope, receive, send)
        try:
            if scope["type"] == "http" and self.grpc.takes(scope):
                await self.grpc(scope, stream.receive, stream.send)
            elif scope["type"] == "http":
                call = HttpCall(scope, stream.receive, stream.send)
                if call.path in self._health:
                    await _unless_disconnected(call, self._health[call.path](call))
                else:
                    await self._answer(call)
            elif scope["type"] == "websocket":
                await self._answer(WebSocketCall(scope, stream.receive, stream.send))
        finally:
            stream.close()

    def expire(self) -> None:
        """End the requests in progress when the drain time is over: as UNAVAILABLE, streams in their own form."""
        for call in self._in_progress:
            call.expire()
        self.grpc.app.expire()

    def _note_offer(self, call: Call, next: Handler) -> Awaitable[None]:
        """Note since when calls ask for a permit and none has got one."""
        if not self._blocked_since:
            self._blocked_since = monotonic()
        return next(call)

    @property
    def overloaded(self) -> bool:
        """Whether the edge can serve nobody: all permits are held, and none was granted for ``OVERLOAD_DELAY``."""
        limit, since = self._concurrency_limit, self._blocked_since
        return bool(since) and limit.in_flight >= limit.limit and monotonic() - since >= OVERLOAD_DELAY

    def _readiness(self, call: HttpCall) -> Awaitable[None]:
        if self.draining:
            return _report(call, 503, b"draining")
        return _report(call, 503, b"overloaded") if self.overloaded else _report(call, 200, b"serving")

    async def _answer(self, call: HttpCall) -> None:
        """Answer a request through the chain; an error of the chain is the response."""
        self._in_progress.add(call)
        try:
            await self._chain(call)
        except StatusError as error:
            failure = error
            _forget(call, error)
        except asyncio.CancelledError as error:
            _forget(call, error)
            if call.take_expiry():
                failure = Unavailable(refusals.STOPPING)
                call.status = 0
            elif call.status == CLIENT_CLOSED_REQUEST:
                return
            else:
                raise
        except Exception:  # a bug of a layer outside ``recover``
            log.exception("the edge failed")
            failure = Internal("internal error")
            call.status = 0
        else:
            return
        finally:
            self._in_progress.discard(call)
        if not call.response_started:
            await _unless_disconnected(call, response.send_error(call, failure))

    def _dispatch(self, call: Call) -> Awaitable[None]:
        """Answer a request that has passed the layers: gRPC, WebSocket, a page of the edge, else a route."""
        if isinstance(call, GrpcCall):
            return self.grpc.answer(call)
        assert isinstance(call, HttpCall)  # noqa: S101 - every call of this chain is one
        if isinstance(call, WebSocketCall):
            return self._web_sockets(call)
        page = self._pages.get(call.path)
        if page is not None:
            return page(call)
        self.grpc.check(call)
        return self._answer_route(call)

    async def _answer_route(self, call: HttpCall) -> None:
        """Route the request, check the caller's access, and answer by the kind of the route."""
        found = self._route(call)
        if found is None:
            await response.send(call, 204, [], b"")
            return
        target, values = found
        method = call.method = target.method
        call.route = target.template
        _check_access(call)
        if isinstance(target, Gateway):
            result = await target.answer(call, values, self._invoke, limit=self._max_body, body_timeout=self._timeout)
            await response.send(call, *result)
        elif method.client_streaming or method.server_streaming:
            await self._streams(call, target, values)
        else:
            response_format = response.negotiate(call, target)
            # Neither message stays in a variable here: each may be large, and its client slow.
            message = self._invoke(
                call, await request_body.read_request(call, target, values, self._max_body, self._timeout)
            )
            await response.send_message(call, target, response_format, await message, method.success_status)

    def _has_route(self, path: str, verb: str) -> bool:
        """Whether the contract has a route for a path and an HTTP method."""
        try:
            return isinstance(self._router.find(path, verb), tuple)
        except BadPath:
            return False

    def _find(self, call: HttpCall, verb: str) -> tuple[Transcoder, tuple[str, ...]] | None:
        """Return the transcoder for a path and an HTTP method; None if there is none, or a Lambda function instead.

        Raises:
            InvalidArgument: The path is malformed.
        """
        try:
            found = self._router.find(call.path, verb)
        except BadPath as error:
            raise InvalidArgument(str(error)) from None
        return found if isinstance(found, tuple) and not isinstance(found[0], Gateway) else None  # type: ignore[return-value]

    def _route(self, call: HttpCall) -> tuple[Transcoder | Gateway, tuple[str, ...]] | None:
        """Return the route of the request; None for OPTIONS without a route of its own, whose ``allow`` is set.

        Raises:
            StatusError: There is none: 400, 404 or 405.
        """
        verb, path = call.verb, call.path
        if path == "*":  # the server itself (RFC 9110, 9.3.7); the listener accepts it with OPTIONS only
            return None
        try:
            found = self._router.find(path, verb)
            if isinstance(found, tuple):
                return found
            if verb == "HEAD" and "GET" in found:
                as_get = self._router.find(path, "GET")
                if isinstance(as_get, tuple):
                    return as_get
        except BadPath as error:
            raise InvalidArgument(str(error)) from None
        found = found or self.grpc.allowed(call)
        if not found:
            raise refusals.not_found(call)
        allowed = sorted({*found, "OPTIONS", *(("HEAD",) if "GET" in found else ())})
        if verb == "OPTIONS":
            call.headers.append((b"allow", ", ".join(allowed).encode()))
            return None
        raise refusals.wrong_verb(call, allowed)

    async def _invoke(self, call: HttpCall, request: bytes, *metadata: tuple[bytes, bytes]) -> bytes:
        """Make the gRPC call and return the response message. A disconnect of the client cancels the call.

        Raises:
            StatusError: The call has failed.
            Internal: The service sent no response message.
        """
        if call.stream is not None:
            call.stream.expect_known_response(call.method.path)
        now = monotonic()
        limit = call.method.time_limit(self._timeout)
        upstream = UpstreamCall(call, request, None if limit is None else now + limit)
        for pair in metadata:
            upstream.metadata.append(*pair)
        watcher = slot = None
        if call.http_version != "1.1":  # over HTTP/1.1 the server reports no disconnect (``wait_for_disconnect``)
            watcher = DisconnectWatcher(call)
            slot = timer_wheel(call.task).add(now + DISCONNECT_WATCH_DELAY, watcher)
        token = current.set(call)
        try:
            await self._handler(upstream)
        except StatusError as error:
            translated = refusals.translate_oversize(call, error)
            if translated is error:
                raise
            raise translated from error
        except asyncio.CancelledError:
            call.status = CLIENT_CLOSED_REQUEST  # whoever cancels the call, no client waits for the response
            raise
        finally:
            current.reset(token)
            if slot is not None and watcher is not None:
                slot.discard(watcher)
                watcher.stop()
            if upstream.headers:
                response.forward_headers(call, upstream)
        return _settled(call, upstream)


def _entries(
    method: Method, route: Route, codecs: Codecs, *, cors: bool
) -> Iterator[tuple[str, Template, Transcoder | Gateway]]:
    """Yield the router's entries for a route: HTTP method, path template, target."""
    if method.gateway is None:
        yield route.verb, route.template, Transcoder(method, route, codecs)
        return
    gateway = Gateway(method, route, cors=cors)
    for template in gateway.templates:
        yield route.verb, template, gateway


def _present(*parts: Any) -> Iterator[Any]:
    """Leave out the layers that the deployment does not have."""
    return (part for part in parts if part is not None)


def _check_access(call: HttpCall) -> None:
    if call.method.access is not Access.PUBLIC:
        check_identity(call.method, call.identity, "this", call.auth_error)


def _liveness(call: HttpCall) -> Awaitable[None]:
    return _report(call, 200, b"alive")


def _report(call: HttpCall, status: int, word: bytes) -> Awaitable[None]:
    """Send the response of a health check."""
    headers = [*response.JSON_HEADERS, (b"cache-control", b"no-store")]
    return response.send(call, status, headers, b'{"status":"%s"}' % word)


def _settled(call: HttpCall, upstream: UpstreamCall) -> bytes:
    """Return the response of a unary call.

    Raises:
        Internal: The service sent no response message.
    """
    response = upstream.response
    if response is None:
        raise Internal("the service sent no response message")
    if call.stream is not None:
        call.stream.learn_size(call.method.path, len(response))
    return response


def _forget(call: HttpCall, error: BaseException) -> None:
    """Release a large request or response of a call that has failed."""
    if call.stream is not None and call.stream.counted:
        release_frames(error)


async def _unless_disconnected(call: HttpCall, sending: Awaitable[None]) -> None:
    """Await the sending of a response outside of the chain. A disconnect of the client is no error there."""
    try:
        await sending
    except asyncio.CancelledError:
        if call.status != CLIENT_CLOSED_REQUEST:
            raise
