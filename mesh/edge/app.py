"""The edge as an ASGI application: an HTTP request in, a gRPC call out, for unary methods with a route."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import MutableMapping
from typing import TYPE_CHECKING, Any

from mesh.call import Call, Handler, Layer, chain, current
from mesh.contract import Access, Contract
from mesh.deadline import deadline
from mesh.edge import refusal, respond
from mesh.edge.call import GONE, HttpCall, Receive, Send, UpstreamCall
from mesh.edge.docs_page import BuiltinPages
from mesh.edge.router import BadPath, Router
from mesh.edge.transcode import Transcoder
from mesh.errors import Internal, InvalidArgument, PermissionDenied, StatusError, Unauthenticated, Unimplemented
from mesh.jsoncodec import Codecs
from mesh.recover import recover

if TYPE_CHECKING:
    from mesh.gate import Gate

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
        gate: Bounds the requests in flight.
        max_body: Largest request body, bytes.
        timeout: Seconds that a request may take when its method says nothing.

    Attributes:
        draining: Whether ``/healthz`` says that the edge is going away.
    """

    def __init__(
        self,
        contract: Contract,
        *,
        handler: Handler,
        trace: Layer,
        authenticate: Layer,
        gate: Gate,
        max_body: int,
        timeout: float,
    ) -> None:
        self.draining = False
        self._handler = chain(deadline, handler)
        self._pages = BuiltinPages(contract)
        self._max_body = max_body
        self._timeout = timeout
        codecs = Codecs()
        self._router = Router(
            (route.verb, route.template, Transcoder(method, route, codecs))
            for method in contract.methods.values()
            if method.access is not Access.INTERNAL
            for route in method.routes
        )
        self._chain = chain(
            trace,
            recover,
            gate,
            authenticate,
            self._dispatch,
        )

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer one request (ASGI 3).

        What stands before the chain (no trace, no gate, no authentication) answers here.
        """
        if scope["type"] == "http":
            call = HttpCall(scope, receive, send)
            if call.path == HEALTH:
                await self._health(call)
                return
            if (page := self._pages.get(call.path)) is not None:
                await page(call)
                return
            await self._answer(call)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008})

    async def _dispatch(self, call: Call) -> None:
        """Answer a request that has passed the chain: whoever takes it first, else it is a route of the contract."""
        assert isinstance(call, HttpCall)  # noqa: S101 - every call of this chain is one
        await self._transcode(call)

    async def _answer(self, call: HttpCall) -> None:
        try:
            await self._chain(call)
        except StatusError as error:
            failed = error
        except asyncio.CancelledError:
            if call.status == GONE:
                return
            raise
        except Exception:  # a bug of a layer outside ``recover``
            log.exception("the edge failed")
            failed = Internal("internal error")
            call.status = 0
        else:
            return
        if not call.answered:
            await _send(call, *respond.failure(call, failed))

    async def _health(self, call: HttpCall) -> None:
        status, body = (503, b'{"status":"draining"}') if self.draining else (200, b'{"status":"serving"}')
        headers = [*respond.JSON, (b"content-length", b"%d" % len(body)), (b"cache-control", b"no-store")]
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
        if method.client_streaming or method.server_streaming:
            raise Unimplemented(f"{method.service}.{method.name} is a streaming method; call it by gRPC")
        body = await self._body(call) if transcoder.has_body else b""
        request = transcoder.request(values, call.query, body)
        upstream = await self._call(call, request)
        if upstream.response is None:
            raise Internal("the service answered without a message")
        text = transcoder.response(upstream.response)
        await call.answer(200, [*respond.JSON, (b"content-length", b"%d" % len(text)), *call.headers], text)
        return None

    def _route(self, call: HttpCall) -> tuple[Transcoder, tuple[str, ...]] | None:
        """Return where the request leads; None if it only asks what is allowed (OPTIONS).

        Raises:
            StatusError: Nowhere: 400, 404 or 405.
        """
        verb, path = call.verb, call.path
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
        if not found:
            raise refusal.not_found(call)
        allowed = sorted({*found, "OPTIONS", *(("HEAD",) if "GET" in found else ())})
        if verb == "OPTIONS":
            call.headers.append((b"allow", ", ".join(allowed).encode()))
            return None
        raise refusal.wrong_verb(call, allowed)

    async def _body(self, call: HttpCall) -> bytes:
        """Return the JSON body; empty if there is none.

        Raises:
            StatusError: 408, 413 or 415.
        """
        wire = call.metadata.wire
        length = wire(b"content-length")
        if length is not None and length.isdigit() and int(length) > self._max_body:
            raise refusal.too_large(call, self._max_body)
        media = wire(b"content-type")
        if media is not None and media != b"application/json" and length != b"0" and not _is_json(media):
            raise refusal.unsupported_media(call, "the body must be JSON: send `content-type: application/json`")
        encoding = wire(b"content-encoding")
        if encoding is not None and encoding.lower() != b"identity":
            raise refusal.unsupported_media(call, "the body must not be compressed: send no `content-encoding`")
        try:
            body = await call.read(self._max_body, self._timeout)
        except TimeoutError:
            raise refusal.too_slow(call) from None
        if body is None:
            raise refusal.too_large(call, self._max_body)
        if body and media is None:
            raise refusal.unsupported_media(call, "the body has no media type: send `content-type: application/json`")
        return body

    async def _call(self, call: HttpCall, request: bytes) -> UpstreamCall:
        """Make the gRPC call; a client that goes away meanwhile cancels it."""
        loop = asyncio.get_running_loop()
        upstream = UpstreamCall(call.method, request, loop.time() + (call.method.timeout or self._timeout))
        upstream.identity = call.identity
        watch = _Watch(call)
        timer = loop.call_later(WATCH_AFTER, watch.start)
        token = current.set(call)
        try:
            await self._handler(upstream)
        except asyncio.CancelledError:
            call.status = GONE  # whoever cancels it, nobody waits for the answer any more
            raise
        finally:
            current.reset(token)
            timer.cancel()
            watch.stop()
            if upstream.headers:
                call.headers += respond.forwarded(upstream.headers)
        return upstream


class _Watch:
    """Cancels the task that answers a call when its client goes away.

    As ASGI tells it; h2corn also cancels the task by itself, for HTTP/2.
    """

    __slots__ = ("_answering", "_call", "_task")

    def __init__(self, call: HttpCall) -> None:
        self._call = call
        self._answering = asyncio.current_task()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._watch())

    def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _watch(self) -> None:
        await self._call.gone()
        if self._answering is not None:
            self._answering.cancel()


def _check_access(call: HttpCall) -> None:
    method = call.method
    if method.access is Access.PUBLIC:
        return
    identity = call.identity
    if identity is None:
        raise Unauthenticated("this needs a user: send `authorization: Bearer TOKEN`")
    if method.roles and method.roles.isdisjoint(identity.roles):
        raise PermissionDenied(f"this is only for users with the role {' or '.join(sorted(method.roles))}")


def _is_json(media: bytes) -> bool:
    """Whether it is application/json, in UTF-8 if it says so."""
    kind, _, rest = media.lower().partition(b";")
    if kind.strip() != b"application/json":
        return False
    for parameter in rest.split(b";"):
        name, _, value = parameter.partition(b"=")
        if name.strip() == b"charset" and value.strip().strip(b'"') not in (b"utf-8", b"utf8"):
            return False
    return True


async def _send(call: HttpCall, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
    try:
        await call.answer(status, headers, body)
    except asyncio.CancelledError:
        if call.status != GONE:
            raise
