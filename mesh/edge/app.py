"""The edge as an ASGI application: an HTTP request in, a gRPC call out, for methods with a route."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Iterator, MutableMapping
from time import monotonic  # what the loops' own clocks are
from typing import TYPE_CHECKING, Any

from mesh.call import Call, Handler, Layer, chain, current
from mesh.contract.model import Access, Contract, Method, Route
from mesh.contract.path_template import Template
from mesh.edge import refusals
from mesh.edge.call import GONE, HttpCall, Receive, Send, UpstreamCall
from mesh.edge.field_behavior import Behaviors
from mesh.edge.grpc.passthrough import GrpcCall, Passthrough
from mesh.edge.http import request_body, response, status_response
from mesh.edge.http.disconnect import Watch
from mesh.edge.http.negotiation import Form
from mesh.edge.http.router import BadPath, Router
from mesh.edge.http.streaming import Streams
from mesh.edge.http.transcoder import Transcoder
from mesh.edge.http.websocket import SocketCall, Sockets
from mesh.edge.lambda_http.gateway import Gateway
from mesh.edge.layers.stack import OPEN, Door
from mesh.edge.openapi.pages import BuiltinPages
from mesh.errors import Internal, InvalidArgument, PermissionDenied, StatusError, Unauthenticated, Unavailable
from mesh.layers.deadline import deadline
from mesh.layers.recover import recover
from mesh.layers.timer_wheel import timer_wheel
from mesh.protojson.codec import Codecs

if TYPE_CHECKING:
    from mesh.layers.concurrency import ConcurrencyLimit

__all__ = ["EdgeApp"]

log = logging.getLogger("mesh.edge")

HEALTH = "/healthz"
"""Answered before the chain: 200 while the edge serves, 503 once it drains."""

WATCH_AFTER = 0.02
"""Seconds that a call takes before the edge starts to watch for its client going away."""


class EdgeApp:
    """Translates HTTP/JSON to calls of the contract's methods.

    Args:
        contract: What is reachable: the methods with HTTP routes.
        handler: Makes the gRPC call: the outbound chain that ends at the sidecars.
        trace: The outermost layer.
        authenticate: Sets ``call.identity``.
        concurrency_limit: Bounds the requests in flight.
        max_body: Largest request body, bytes; of a stream: largest message in it.
        timeout: Seconds that a request may take when its method says nothing, and that a body may take; None: no limit.
            A stream has none in either case.
        door: The layers that the deployment asks for.

    Attributes:
        draining: Whether ``/healthz`` says that the edge is going away.
        grpc: What answers gRPC and gRPC-Web.
    """

    def __init__(
        self,
        contract: Contract,
        *,
        handler: Handler,
        trace: Layer,
        authenticate: Layer,
        concurrency_limit: ConcurrencyLimit,
        max_body: int,
        timeout: float | None,
        door: Door = OPEN,
    ) -> None:
        self.draining = False
        self._handler = chain(*_present(deadline, door.passing, handler))
        self._pages = BuiltinPages(contract)
        self._max_body = max_body
        self._timeout = timeout
        self._open: set[HttpCall] = set()
        self._streams = Streams(self._handler, max_message=max_body, timeout=timeout)
        self._sockets = Sockets(self._handler, self._find, _check_access, max_message=max_body)
        codecs = Codecs(
            ignore_unknown_fields=door.ignore_unknown_fields, always_print=Behaviors(contract.pool).required
        )
        self._router = Router(
            [
                entry
                for method in contract.methods.values()
                if method.access is not Access.INTERNAL
                for route in method.routes
                for entry in _entries(method, route, codecs, cors=door.cors is not None)
            ],
            full_first=lambda target: isinstance(target, Gateway) and target.full_first,
        )
        self._chain = chain(
            *_present(
                door.forwarded,
                trace,
                recover,
                door.cors,
                door.bounds,
                door.per_client,
                concurrency_limit,
                authenticate,
                door.per_identity,
                self._dispatch,
            )
        )
        self.grpc = Passthrough(contract, handler=self._chain, outbound=handler, max_message=max_body, timeout=timeout)

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request (ASGI 3).

        What stands before the chain (no trace, no concurrency limit, no authentication) answers here.
        """
        if scope["type"] == "http" and self.grpc.takes(scope):
            await self.grpc(scope, receive, send)
        elif scope["type"] == "http":
            call = HttpCall(scope, receive, send)
            if call.path == HEALTH:
                await self._health(call)
                return
            await self._answer(call)
        elif scope["type"] == "websocket":
            await self._answer(SocketCall(scope, receive, send))

    def _dispatch(self, call: Call) -> Awaitable[None]:
        """Answer a request that has passed the chain: whoever takes it first, else it is a route of the contract."""
        if isinstance(call, GrpcCall):
            return self.grpc.answer(call)
        assert isinstance(call, HttpCall)  # noqa: S101 - every call of this chain is one
        if isinstance(call, SocketCall):
            return self._sockets(call)
        page = self._pages.get(call.path)
        if page is not None:
            return page(call)
        self.grpc.check(call)
        return self._transcode(call)

    def expire(self) -> None:
        """End what is still in flight when the drain time is over: as UNAVAILABLE, streams in their own form."""
        for call in self._open:
            call.expire()
        self.grpc.app.expire()

    async def _answer(self, call: HttpCall) -> None:
        self._open.add(call)
        try:
            await self._chain(call)
        except StatusError as error:
            failed = error
        except asyncio.CancelledError:
            if call.lapsed():
                failed = Unavailable(refusals.STOPPING)
                call.status = 0
            elif call.status == GONE:
                return
            else:
                raise
        except Exception:  # a bug of a layer outside ``recover``
            log.exception("the edge failed")
            failed = Internal("internal error")
            call.status = 0
        else:
            return
        finally:
            self._open.discard(call)
        if not call.answered:
            await _send(call, *status_response.failure(call, failed))

    async def _health(self, call: HttpCall) -> None:
        status, body = (503, b'{"status":"draining"}') if self.draining else (200, b'{"status":"serving"}')
        headers = [*status_response.JSON, (b"content-length", b"%d" % len(body)), (b"cache-control", b"no-store")]
        await _send(call, status, headers, body)

    async def _transcode(self, call: HttpCall) -> None:
        """Route the request, check that the caller may, and translate it there and back."""
        found = self._route(call)
        if found is None:
            return await call.answer(204, [*call.headers], b"")
        transcoder, values = found
        method = transcoder.method
        call.method = method
        call.route = transcoder.template
        _check_access(call)
        if isinstance(transcoder, Gateway):
            return await transcoder.answer(call, values, self._call, limit=self._max_body, seconds=self._timeout)
        wanted = response.style(call, transcoder)
        if method.client_streaming or method.server_streaming:
            return await self._streams(call, transcoder, values, wanted)
        data, form, kind = b"", Form.JSON, b""
        if transcoder.has_body:
            data, form = await request_body.read(call, transcoder, self._max_body, self._timeout)
            kind = call.metadata.wire(b"content-type") or b""
        request = transcoder.request(values, call.query, data, form, kind)
        upstream = await self._call(call, request)
        if upstream.response is None:
            raise Internal("the service answered without a message")
        if method.success_status in status_response.EMPTY:
            await call.answer(*status_response.success(call, method.success_status, b""))
        else:
            await response.reply(call, transcoder, wanted, upstream.response, status=method.success_status)
        return None

    def _find(self, call: HttpCall, verb: str) -> tuple[Transcoder, tuple[str, ...]] | None:
        """Return where the path leads under an HTTP method; None if nowhere.

        Raises:
            InvalidArgument: The path is malformed.
        """
        try:
            found = self._router.find(call.path, verb)
        except BadPath as error:
            raise InvalidArgument(str(error)) from None
        return found if isinstance(found, tuple) and not isinstance(found[0], Gateway) else None  # type: ignore[return-value]

    def _route(self, call: HttpCall) -> tuple[Transcoder | Gateway, tuple[str, ...]] | None:
        """Return where the request leads; None if it only asks what is allowed (OPTIONS).

        Raises:
            StatusError: Nowhere: 400, 404 or 405.
        """
        verb, path = call.verb, call.path
        if path == "*":  # of the whole server (RFC 9110, 9.3.7); the listener passes it with OPTIONS only
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

    async def _call(self, call: HttpCall, request: bytes, *metadata: tuple[bytes, bytes]) -> UpstreamCall:
        """Make the gRPC call; a client that goes away meanwhile cancels it."""
        now = monotonic()
        limit = call.method.time_limit(self._timeout)
        upstream = UpstreamCall(call.method, request, None if limit is None else now + limit)
        upstream.identity = call.identity
        upstream.task = call.task
        for pair in metadata:
            upstream.metadata.append(*pair)
        watch = Watch(call)
        # Of HTTP/1.1 the server does not say that a client has gone: there would be nothing to see (``HttpCall.gone``).
        slot = timer_wheel(call.task).add(now + WATCH_AFTER, watch) if call.http_version != "1.1" else None
        token = current.set(call)
        try:
            await self._handler(upstream)
        except StatusError as error:
            said = refusals.sized(call, error)
            if said is error:
                raise
            raise said from error
        except asyncio.CancelledError:
            call.status = GONE  # whoever cancels it, nobody waits for the answer any more
            raise
        finally:
            current.reset(token)
            if slot is not None:
                slot.discard(watch)
                watch.stop()
            if upstream.headers:
                call.headers += status_response.forwarded(upstream.headers)
        return upstream


def _entries(
    method: Method, route: Route, codecs: Codecs, *, cors: bool
) -> Iterator[tuple[str, Template, Transcoder | Gateway]]:
    """Yield what the router knows of a route: HTTP method, path template, and what answers."""
    if method.gateway is None:
        yield route.verb, route.template, Transcoder(method, route, codecs)
        return
    gateway = Gateway(method, route, cors=cors)
    for template in gateway.templates:
        yield route.verb, template, gateway


def _present(*parts: Any) -> Iterator[Any]:
    """Leave out the layers that the deployment does not ask for."""
    return (part for part in parts if part is not None)


def _check_access(call: HttpCall) -> None:
    method = call.method
    if method.access is Access.PUBLIC:
        return
    identity = call.identity
    if identity is None:
        raise call.auth_error or Unauthenticated("this needs a user: send `authorization: Bearer TOKEN`")
    if method.roles and method.roles.isdisjoint(identity.roles):
        raise PermissionDenied(f"this is only for users with the role {' or '.join(sorted(method.roles))}")


async def _send(call: HttpCall, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
    try:
        await call.answer(status, headers, body)
    except asyncio.CancelledError:
        if call.status != GONE:
            raise
