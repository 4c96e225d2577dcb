"""gRPC through the edge's port: the call that came in goes on to its sidecar, its messages untouched.

The request passes the same chain as every other (trace, gate, authentication, limits); behind it, this asks whether the
caller may, and calls. It speaks no wire of its own: ``mesh.rpc`` does, on both sides. What a client may not say to the
inside (who calls, which trace, where the request came from) is taken out of its metadata here.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Coroutine, Mapping, MutableMapping
from time import monotonic  # what the loops' own clocks are
from typing import Any

from google.protobuf.empty_pb2 import Empty
from opentelemetry import propagate

from mesh.auth import authorize
from mesh.call import Call, Handler, Layer, Metadata, chain, current
from mesh.contract.model import Access, Contract, Method, Route
from mesh.edge import refusals
from mesh.edge.call import HttpCall
from mesh.edge.grpc import exposed
from mesh.errors import Code, Internal, InvalidArgument, StatusError, Unimplemented
from mesh.headers import CLIENT_CLAIMS, REQUEST_PREFIXES, without_owned
from mesh.layers.deadline import deadline
from mesh.layers.recover import recover
from mesh.rpc import framing
from mesh.rpc.server import grpc_web
from mesh.rpc.server.grpc_app import GrpcApp
from mesh.rpc.server.health_service import Health
from mesh.rpc.server.inbound_call import InboundCall, Receive, Send
from mesh.rpc.server.reflection_service import Reflection

__all__ = ["GrpcCall", "Passthrough", "outward", "tracing"]

MEDIA = b"application/grpc"

_NATIVE = frozenset({b"application/grpc", b"application/grpc+proto"})
_HTTP_2 = "2"

_OTHER = Method(name="_OTHER", service="", path="/_OTHER", input=Empty, output=Empty)
"""What a call of an unknown method is counted as (OpenTelemetry's name for it); callers must not make up names."""

_JUDGED = frozenset({b"grpc-timeout", b"grpc-encoding"})
"""What makes an ``InboundCall`` impossible if it is malformed."""

_TRANSPORT = frozenset(
    {Code.CANCELLED, Code.UNKNOWN, Code.DEADLINE_EXCEEDED, Code.RESOURCE_EXHAUSTED, Code.INTERNAL, Code.UNAVAILABLE}
)
"""Codes that our own channel ends a call with; its messages name the address."""
_ADDRESS = re.compile(r"[\w.\-]+:\d{3,5}\b|\[[0-9a-fA-F:]+\]")
_SAID = {
    Code.DEADLINE_EXCEEDED: "the service did not answer in time",
    Code.INTERNAL: "internal error",
    Code.UNAVAILABLE: "the service cannot be reached now; try again later",
}


class GrpcCall(HttpCall):
    """A gRPC or gRPC-Web request, as the layers of the edge see it: an HTTP request that is a call already.

    Attributes:
        inbound: The call, as the gRPC server has it.
        refused: Why it cannot be made, if that was known before it began.
    """

    __slots__ = ("inbound", "refused")

    def __init__(
        self,
        scope: MutableMapping[str, Any],
        receive: Receive,
        send: Send,
        inbound: InboundCall,
        refused: StatusError | None,
    ) -> None:
        super().__init__(scope, receive, send)
        self.inbound = inbound
        self.refused = refused
        self.method = inbound.method
        self.deadline = inbound.deadline
        self.headers = inbound.headers
        self.trailers = inbound.trailers


class Passthrough:
    """Answers the gRPC and gRPC-Web requests of the edge.

    Args:
        contract: What is reachable.
        handler: The chain that every request passes; it ends in ``answer``.
        onward: The outbound chain that reaches the sidecars.
        max_message: Largest request message, bytes.
        timeout: Seconds that a call without streams may take when neither its method nor its caller says; None: as long
            as it likes.

    Attributes:
        app: The gRPC server.
        health: What the edge reports of itself and of the services that it exposes.
    """

    def __init__(
        self, contract: Contract, *, handler: Handler, onward: Handler, max_message: int, timeout: float | None
    ) -> None:
        services = exposed.services(contract)
        self.health = Health(services)
        reflection = Reflection(exposed.files(contract), [*services, "grpc.health.v1.Health"])
        # As in the sidecar: a probe comes without a token, and is answered when the gate is full.
        builtin = {
            path: (method, chain(recover, deadline, answer))
            for path, (method, answer) in {**self.health.handlers(), **reflection.handlers()}.items()
        }
        self.app = _App(contract, builtin, handler, max_message)
        self._paths: dict[str, tuple[Route, ...]] = dict.fromkeys(builtin, ())
        for path, method in contract.methods.items():
            if method.access is not Access.INTERNAL:
                self._paths[path] = method.routes
        self._timeout = timeout
        self._onward = onward
        self._answer = chain(authorize(contract, {}), self._bound, deadline, self._pass)
        self._dropped = CLIENT_CLAIMS | {field.lower().encode() for field in propagate.get_global_textmap().fields}

    def takes(self, scope: MutableMapping[str, Any]) -> bool:
        """Whether a request is a gRPC or gRPC-Web call."""
        for name, value in scope["headers"]:
            if name == b"content-type":
                media = value
                break
        else:
            return False
        if media[: len(MEDIA)].lower() != MEDIA or scope["method"] != "POST":
            return False
        kind = grpc_web.essence(media)
        return kind in grpc_web.MEDIA or (kind in _NATIVE and scope["http_version"] == _HTTP_2)

    def check(self, call: HttpCall) -> None:
        """Refuse what would be gRPC and is not right: for the end of the chain of an HTTP request.

        Raises:
            StatusError: 405 or 415.
        """
        media = call.metadata.wire(b"content-type")
        if media is None or media[: len(MEDIA)].lower() != MEDIA or call.verb == "OPTIONS":
            return
        kind = grpc_web.essence(media)
        if kind not in _NATIVE and kind not in grpc_web.MEDIA:
            raise _unsupported(call, "gRPC is spoken with protobuf messages only: application/grpc+proto")
        if call.verb != "POST":
            raise refusals.wrong_verb(call, ["POST"])
        raise _unsupported(call, "gRPC needs HTTP/2; by HTTP/1.1 send application/grpc-web+proto")

    def allowed(self, call: HttpCall) -> frozenset[str]:
        """Return the HTTP methods of a path that no route has: POST for that of a gRPC method, else nothing.

        Raises:
            StatusError: The path is that of a gRPC method. A POST, whose media type is not gRPC's, is 415; what is
                neither POST nor OPTIONS is 405.
        """
        routes = self._paths.get(call.path)
        if routes is None:
            return frozenset()
        if call.verb == "POST":
            media = (call.metadata.wire(b"content-type") or b"no content-type").decode("latin-1")[:100]
            over_http = f"; over HTTP it is {routes[0]}" if routes else ""
            raise _unsupported(call, f"{call.path} takes gRPC and gRPC-Web, not {media}{over_http}")
        if call.verb != "OPTIONS":
            raise refusals.wrong_verb(call, ["POST"])
        return frozenset({"POST"})

    def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> Awaitable[None]:
        """Answer a request that ``takes`` takes."""
        if grpc_web.GRPC in scope["headers"]:  # as nearly every client of gRPC says it
            return self.app(scope, receive, send)
        return grpc_web.serve(self.app, scope, receive, send)

    def answer(self, call: GrpcCall) -> Awaitable[None]:
        """Answer a call that has passed the chain of the edge.

        Raises:
            StatusError: The sidecar's status, or why the call was not made.
        """
        if call.refused is not None:
            raise call.refused
        return self._answer(call)

    def _bound(self, call: Call, next: Handler) -> Awaitable[None]:
        """Give a call its deadline that nobody else has given one: a stream may go on, one answer may not take long."""
        method = call.method
        if call.deadline is None and not (method.client_streaming or method.server_streaming):
            limit = method.time_limit(self._timeout)
            if limit is not None:
                call.deadline = monotonic() + limit
        return next(call)

    async def _pass(self, call: Call) -> None:
        assert isinstance(call, GrpcCall)  # noqa: S101 - ``answer`` takes no others
        dropped = self._dropped
        pairs = call.inbound.metadata.pairs
        metadata = [pair for pair in pairs if pair[0] not in dropped and not pair[0].startswith(REQUEST_PREFIXES)]
        onward = _Onward(call, Metadata.from_wire(metadata))
        token = current.set(call)
        try:
            await self._onward(onward)
        except StatusError as error:
            said = outward(error)
            if said is error:
                raise
            raise said from error
        finally:
            current.reset(token)
            onward.end()


class _App(GrpcApp):
    """The gRPC server of the edge: what it cannot admit passes the chain too, so that refusals are traced."""

    malformed = InvalidArgument  # here it is the client's fault, and none of ours

    __slots__ = ("_chain",)

    def __init__(
        self, contract: Contract, builtin: Mapping[str, tuple[Method, Handler]], handler: Handler, max_message: int
    ) -> None:
        methods = {path: (method, handler) for path, method in contract.methods.items()}
        super().__init__({**methods, **builtin}, max_message=max_message)
        self._chain = handler

    def admit(
        self, scope: MutableMapping[str, Any], metadata: Metadata, receive: Receive, send: Send
    ) -> tuple[InboundCall, Handler]:
        """Return the call and what answers it; that may be a refusal."""
        path = scope["raw_path"].decode("latin-1")  # gRPC knows no escapes
        method, handler = self._methods.get(path, (_OTHER, self._chain))
        refused: StatusError | None = None
        if method is _OTHER:
            refused = Unimplemented(f"{path[:200]} is not served here")
        try:
            inbound = InboundCall(method, metadata, receive, send, self._max_message)
        except StatusError as error:
            refused = InvalidArgument(error.message) if isinstance(error, Internal) else error
            pairs = [pair for pair in metadata.pairs if pair[0] not in _JUDGED]
            inbound = InboundCall(method, Metadata.from_wire(pairs), receive, send, self._max_message)
        if isinstance(refused, Unimplemented):
            inbound.trailers.append((b"grpc-accept-encoding", framing.ACCEPTED))
        if refused is None and handler is not self._chain:
            return inbound, handler
        call = GrpcCall(grpc_web.original(scope), receive, send, inbound, refused)

        def enter(_: Call) -> Awaitable[None]:
            return self._chain(call)

        return inbound, enter


class _Onward(Call):
    """The call to the sidecar: all of the inbound call but its metadata.

    The sidecar's response metadata reaches the client without what only the mesh may write.
    """

    __slots__ = ("_call", "_inbound")

    def __init__(self, call: GrpcCall, metadata: Metadata) -> None:
        super().__init__(call.method, metadata, call.deadline)
        self._call = call
        self._inbound = call.inbound

    async def receive(self) -> bytes | None:
        try:
            return await self._inbound.receive()
        except Internal as error:  # malformed: not our fault but the client's
            raise InvalidArgument(error.message) from None

    async def receive_one(self) -> bytes:
        try:
            return await self._inbound.receive_one()
        except Internal as error:
            raise InvalidArgument(error.message) from None

    def send(self, message: bytes) -> Coroutine[Any, Any, None]:
        if not self.headers_sent:
            self._forward_headers()
        return self._inbound.send(message)

    def send_headers(self) -> Coroutine[Any, Any, None]:
        if not self.headers_sent:
            self._forward_headers()
        return self._inbound.send_headers()

    def end(self) -> None:
        """Give the client what the sidecar has set and no message has taken along."""
        if not self.headers_sent:
            self._forward_headers()
        if self.trailers:
            self._call.trailers += without_owned(self.trailers)

    def _forward_headers(self) -> None:
        self.headers_sent = True
        if self.headers:
            self._call.headers += without_owned(self.headers)


def _unsupported(call: HttpCall, text: str) -> StatusError:
    """415 with what would be right (RFC 9110, 15.5.16; Accept-Post is of the W3C's Linked Data Platform, 7.1)."""
    kinds = grpc_web.MEDIA | _NATIVE if call.http_version == _HTTP_2 else grpc_web.MEDIA
    call.headers.append((b"accept-post", b", ".join(sorted(kinds))))
    return refusals.unsupported_media(call, text)


def outward(error: StatusError) -> StatusError:
    """Return the status as the client may see it: addresses of the inside are for the log."""
    if error.code not in _TRANSPORT or not _ADDRESS.search(error.message):
        return error
    return StatusError.of(error.code, _SAID.get(error.code, "the service ended the call"), error.details)


def tracing(http: Layer, rpc: Layer) -> Layer:
    """Return the trace layer for an edge: ``rpc`` for gRPC calls, ``http`` for all other requests."""

    def layer(call: Call, next: Handler) -> Awaitable[None]:
        return (rpc if isinstance(call, GrpcCall) else http)(call, next)

    return layer
