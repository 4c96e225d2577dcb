"""gRPC, gRPC-Web and Connect at the edge: forwards calls to the sidecars, those with protobuf messages undecoded.

A call passes the chain of every request (trace, rate limits, authentication). Behind the chain it is authorized and
forwarded. The one request of a call is read before the call takes a permit, and the response of a unary call is sent
after the permit was released. ``mesh.rpc`` reads and writes the wire on both sides. Metadata in which a client would
name the caller, the trace or the origin of the request is removed here.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Coroutine, Hashable, Iterable, Mapping
from functools import partial
from time import monotonic  # the clock of the event loops
from typing import Any

from mesh.asgi import Receive, Scope, Send
from mesh.auth import authorize
from mesh.call import Call, Handler, Layer, Metadata, chain, current
from mesh.contract.model import Access, Contract, Method, Route
from mesh.edge import refusals
from mesh.edge.calls import HttpCall
from mesh.edge.grpc import exposed
from mesh.errors import Internal, InvalidArgument, StatusError, Unimplemented
from mesh.headers import CLIENT_CLAIMS, REQUEST_PREFIXES, without_owned
from mesh.layers.concurrency import ConcurrencyLimit
from mesh.layers.deadline import deadline
from mesh.media_types import JSON
from mesh.protojson.codec import Codecs
from mesh.rpc import framing
from mesh.rpc.server import grpc_web
from mesh.rpc.server.builtin_services import builtin_handlers
from mesh.rpc.server.clients.client_stream import CLIENT_STREAM, ClientStream
from mesh.rpc.server.clients.exception_frames import release_frames
from mesh.rpc.server.clients.limits import LARGE_SIZE, ClientLimits
from mesh.rpc.server.connect import request as connect_request
from mesh.rpc.server.connect.connect_call import ConnectCall
from mesh.rpc.server.connect.dispatch import ConnectDispatch
from mesh.rpc.server.grpc_app import GrpcApp
from mesh.rpc.server.health_service import Health
from mesh.rpc.server.inbound_call import CONTENT_TYPE, InboundCall
from mesh.rpc.server.reflection_service import Reflection
from mesh.rpc.server.unserved import UNKNOWN_METHOD
from mesh.telemetry import propagation

__all__ = ["GrpcCall", "Passthrough", "tracing"]

_HTTP_2 = "2"
_JSON = JSON.encode()
"""The media type of nearly every request that is not gRPC."""

BUILTIN = frozenset({"health", "reflection"})
"""Built-in services."""
MAX_CHECKS = 64
"""Health checks in progress."""
MAX_BUILTIN_STREAMS = 128
"""Health watches and reflection streams that are open."""
REFLECTION_TIMEOUT = 60.0
"""Seconds that a reflection stream may be open."""

_PARSED_HEADERS = frozenset({b"grpc-timeout", b"grpc-encoding"})
"""Headers that ``InboundCall`` parses when it is made. A refused call is made without them, because they may be
malformed."""


class GrpcCall(HttpCall):
    """A gRPC or gRPC-Web request as the layers of the edge see it: an HTTP request with its gRPC call.

    Args:
        scope: The request.
        receive: As in ASGI.
        send: As in ASGI.
        inbound: The call as the gRPC server received it.
        refusal: Status that refuses the call before it starts, or None.
        handler: The chain of the edge.

    Attributes:
        inbound: The call as the gRPC server received it.
        refusal: Status that refuses the call before it starts, or None.
    """

    __slots__ = ("_handler", "inbound", "refusal")

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        inbound: InboundCall,
        refusal: StatusError | None,
        handler: Handler,
    ) -> None:
        super().__init__(scope, receive, send)
        self._handler = handler
        if inbound.method.client_streaming:
            self.expect_messages()
        self.inbound = inbound
        self.refusal = refusal
        self.method = inbound.method
        self.deadline = inbound.deadline
        self.headers = inbound.headers
        self.trailers = inbound.trailers

    async def enter(self, inbound: Call) -> None:  # noqa: ARG002 - a handler
        """Pass the chain of the edge: the handler of ``inbound``."""
        try:
            await self._handler(self)
        except BaseException as error:
            if self.stream is not None and self.stream.counted:
                self.inbound.forget_request()
                release_frames(error)
            raise


class ConnectHttpCall(GrpcCall):
    """A Connect request as the layers of the edge see it."""

    __slots__ = ()


class Passthrough:
    """ASGI application for the gRPC, gRPC-Web and Connect requests of the edge.

    A contract may have an HTTP route whose path is that of a method. A request that could be either is then the
    route's: a POST without ``connect-protocol-version`` and not of a media type for streams, a GET without ``connect``.

    Args:
        contract: The contract whose services are exposed.
        handler: The chain that every request passes; it ends in ``answer``.
        unary: The outbound chain of unary calls to the sidecars.
        streams: That of streaming calls.
        max_message: Largest request message, bytes.
        timeout: Seconds that a unary call may take when its method sets no limit; None: no limit.
        builtin: Names of the built-in services that are served: ``health``, ``reflection``.
        codecs: JSON codecs of Connect calls.
        has_route: Whether the contract has an HTTP route for a path and an HTTP method.

    Attributes:
        app: The gRPC server.
        health: Health service of the edge and of the services that it exposes.
    """

    def __init__(
        self,
        contract: Contract,
        *,
        handler: Handler,
        unary: Handler,
        streams: Handler,
        max_message: int,
        timeout: float | None,
        builtin: Collection[str] = BUILTIN,
        codecs: Codecs,
        has_route: Callable[[str, str], bool],
    ) -> None:
        services = exposed.services(contract)
        self.health = Health(services)
        served: list[Health | Reflection] = [self.health] if "health" in builtin else []
        if "reflection" in builtin:
            served.append(Reflection(exposed.files(contract), services))
        builtin_methods = builtin_handlers(*served, reserve=BuiltinReserve())
        self.app = _EdgeGrpcApp(contract, builtin_methods, handler, max_message, codecs)
        self._routes: dict[str, tuple[Route, ...]] = dict.fromkeys(builtin_methods, ())
        for path, method in contract.methods.items():
            if method.access is not Access.INTERNAL:
                self._routes[path] = method.routes
        methods = {**contract.methods, **{path: method for path, (method, _) in builtin_methods.items()}}
        self._has_route = has_route
        self._internal = methods.keys() - self._routes.keys()
        self._services = {path.rpartition("/")[0] for path in self._routes}
        self._connect: dict[bytes, Method] = {path.encode(): methods[path] for path in self._routes}
        self._routed = {(path, verb) for path in self._routes for verb in ("GET", "POST") if has_route(path, verb)}
        self._timeout = timeout
        self._unary = unary
        self._streams = streams
        self._authorize_and_forward = chain(authorize(contract, {}), self._cap_deadline, deadline, self._forward)
        self._dropped = CLIENT_CLAIMS | propagation.header_names()

    def takes(self, scope: Scope) -> bool:
        """Whether a request is a gRPC, gRPC-Web or Connect call."""
        content_type = b""
        for name, value in scope["headers"]:
            if name == b"content-type":
                content_type = value
                break
        if content_type == _JSON or not _names_grpc(content_type):
            method = self._connect.get(scope["raw_path"])
            # The path of a method has a dot, unless its .proto file has no package.
            if method is None and b"." not in scope["raw_path"]:
                return False
            return self._takes_connect(scope, content_type, method)
        if scope["method"] != "POST":
            return False
        if scope["http_version"] == _HTTP_2 and framing.is_grpc(content_type):
            return True
        return grpc_web.is_grpc_web(content_type)

    def _takes_connect(self, scope: Scope, content_type: bytes, method: Method | None) -> bool:
        verb = scope["method"]
        path = scope["raw_path"].decode("latin-1")
        if method is None:  # no method, which is an error of Connect if the client means a method
            by_type = verb == "POST" and connect_request.is_connect_type(content_type) and path not in self._internal
            meant = (by_type and path.rpartition("/")[0] in self._services) or connect_request.is_marked(scope)
            return meant and not self._has_route(path, verb)
        if not connect_request.takes(method, verb, content_type):
            return False
        return (path, verb) not in self._routed or connect_request.is_marked(scope)

    def check(self, call: HttpCall) -> None:
        """Refuse an HTTP request whose content type names gRPC, but which is not a gRPC call.

        Raises:
            StatusError: 415 for another message format than protobuf and for native gRPC over HTTP/1.1; 405 for another
                HTTP method than POST.
        """
        content_type = call.metadata.wire(b"content-type")
        if content_type in (None, _JSON) or not _names_grpc(content_type) or call.verb == "OPTIONS":
            return
        if not framing.is_grpc(content_type) and not grpc_web.is_grpc_web(content_type):
            raise _unsupported(call, "gRPC is served with protobuf messages only: send application/grpc+proto")
        if call.verb != "POST":
            raise refusals.wrong_verb(call, ["POST"])
        raise _unsupported(call, "gRPC needs HTTP/2; over HTTP/1.1 send application/grpc-web+proto")

    def allowed(self, call: HttpCall) -> frozenset[str]:
        """Return the HTTP methods that gRPC and Connect allow at a path: none if it is not that of a method.

        Raises:
            StatusError: The path is that of a gRPC method. 415 for a POST, because its media type is neither gRPC's nor
                Connect's; 405 for other HTTP methods than theirs and OPTIONS.
        """
        routes = self._routes.get(call.path)
        if routes is None:
            return frozenset()
        method = self._connect[call.path.encode()]
        verbs = connect_request.verbs(method)
        if call.verb == "POST":
            found = (call.metadata.wire(b"content-type") or b"no content-type").decode("latin-1")[:100]
            over_http = f"; over HTTP it is {routes[0]}" if routes else ""
            types = connect_request.media_types(method)
            takes = f"{call.path} takes gRPC, gRPC-Web and Connect ({' or '.join(types)})"
            raise _unsupported(call, f"{takes}, not {found}{over_http}", types)
        if call.verb != "OPTIONS":
            raise refusals.wrong_verb(call, verbs)
        return frozenset(verbs)

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Serve a request for which ``takes`` is true."""
        if CONTENT_TYPE in scope["headers"]:  # fast path: the spelling of nearly every gRPC client
            return self.app(scope, receive, send)
        return grpc_web.serve(self.app, scope, receive, send)

    def answer(self, call: GrpcCall) -> Awaitable[None]:
        """Authorize and forward a call that has passed the chain of the edge.

        Raises:
            StatusError: The refusal of the call, or the status of the sidecar.
        """
        if call.refusal is not None:
            raise call.refusal
        return self._authorize_and_forward(call)

    def _cap_deadline(self, call: Call, next: Handler) -> Awaitable[None]:
        """Cap the deadline of a unary call, also of one that its caller has set; a stream may stay open."""
        method = call.method
        if not (method.client_streaming or method.server_streaming):
            limit = method.time_limit(self._timeout)
            if limit is not None:
                latest = monotonic() + limit
                if call.deadline is None or call.deadline > latest:
                    call.deadline = latest
        return next(call)

    async def _forward(self, call: Call) -> None:
        assert isinstance(call, GrpcCall)  # noqa: S101 - ``answer`` takes no other
        dropped = self._dropped
        pairs = call.inbound.metadata.pairs
        metadata = [pair for pair in pairs if pair[0] not in dropped and not pair[0].startswith(REQUEST_PREFIXES)]
        forwarded = _ForwardedCall(call, Metadata.from_wire(metadata))
        method = call.method
        if not method.client_streaming:
            await forwarded.read_request()
            if call.stream is not None and not method.server_streaming:
                call.stream.expect_known_response(method.path)
        token = current.set(call)
        try:
            await (self._streams if method.client_streaming or method.server_streaming else self._unary)(forwarded)
        finally:
            current.reset(token)
            forwarded.end()


class _EdgeGrpcApp(GrpcApp):
    """gRPC server of the edge. Calls that it refuses pass the chain too, so that refusals are traced."""

    malformed = InvalidArgument  # at the edge a malformed request is the client's fault

    __slots__ = ("_chain",)

    def __init__(
        self,
        contract: Contract,
        builtin: Mapping[str, tuple[Method, Handler]],
        handler: Handler,
        max_message: int,
        codecs: Codecs,
    ) -> None:
        methods = {path: (method, handler) for path, method in contract.methods.items()}
        methods |= builtin
        super().__init__(methods, max_message=max_message, connect=_EdgeConnectDispatch(methods, handler, codecs))
        self._chain = handler

    def admit(self, scope: Scope, metadata: Metadata, receive: Receive, send: Send) -> tuple[InboundCall, Handler]:
        """Return the call of a request, and its handler; that of a refused call raises the refusal."""
        path = scope["raw_path"].decode("latin-1")  # gRPC paths have no percent escapes
        method, handler = self._methods.get(path, (UNKNOWN_METHOD, self._chain))
        refusal: StatusError | None = None
        if method is UNKNOWN_METHOD:
            refusal = Unimplemented(f"{path[:200]} is not served here")
        try:
            inbound = InboundCall(method, metadata, receive, send, self._max_message)
        except StatusError as error:
            refusal = InvalidArgument(error.message) if isinstance(error, Internal) else error
            pairs = [pair for pair in metadata.pairs if pair[0] not in _PARSED_HEADERS]
            inbound = InboundCall(method, Metadata.from_wire(pairs), receive, send, self._max_message)
        if isinstance(refusal, Unimplemented):
            inbound.trailers.append((b"grpc-accept-encoding", framing.ACCEPTED))
        if refusal is None and handler is not self._chain:
            return _BuiltinCall(scope, method, metadata, receive, send, self._max_message), handler
        return inbound, GrpcCall(grpc_web.original_scope(scope), receive, send, inbound, refusal, self._chain).enter


class _EdgeConnectDispatch(ConnectDispatch):
    """Dispatch of Connect calls at the edge. Calls that it refuses pass the chain too."""

    __slots__ = ("_chain",)

    def __init__(self, methods: Mapping[str, tuple[Method, Handler]], handler: Handler, codecs: Codecs) -> None:
        super().__init__(methods, codecs=codecs)
        self._chain = handler

    def admit(
        self,
        scope: Scope,
        metadata: Metadata,
        receive: Receive,
        send: Send,
        max_message: int,
        clients: ClientLimits | None,  # noqa: ARG002 - the edge has its own limits on clients before this
    ) -> tuple[InboundCall, Handler] | None:
        """Return the call of a request, and its handler; None for another request."""
        path = scope["raw_path"].decode("latin-1")  # the paths of methods have no percent escapes
        request = self.read(scope, path, metadata)
        if request is None:
            return None
        inbound = ConnectCall(request, self.codec(request), scope, receive, send, max_message)
        _, handler = self._methods.get(path, (None, self._chain))
        if request.refusal is None and handler is not self._chain:
            if request.method.client_streaming and inbound.exchange.stream is not None:
                inbound.exchange.stream.streaming = True
            return inbound, handler
        return inbound, ConnectHttpCall(scope, receive, send, inbound, request.refusal, self._chain).enter


class _BuiltinCall(InboundCall):
    """A call of a built-in service.

    Attributes:
        connection: Address and port of the connection's other end, or None.
    """

    __slots__ = ("connection",)

    def __init__(self, scope: Scope, method: Method, *others: Any) -> None:
        super().__init__(method, *others)
        stream: ClientStream | None = scope.get(CLIENT_STREAM)
        if method.client_streaming and stream is not None:
            stream.streaming = True
        self.connection: tuple[str, int] | None = scope.get("client")


def _builtin_shares(call: Call) -> tuple[Hashable | None, ...]:
    if isinstance(call, ConnectCall):
        connection = call.exchange.connection
    else:
        assert isinstance(call, _BuiltinCall)  # noqa: S101 - ``admit`` makes no other
        connection = call.connection
    return connection, connection[0] if connection else None


class BuiltinReserve:
    """Layer that limits the calls of built-in services, apart from the limits of other calls.

    A health check is answered when the edge is full. Watches and reflection are streams that clients may keep open.
    """

    def __init__(self) -> None:
        self._checks = ConcurrencyLimit(MAX_CHECKS, 0, _builtin_shares)
        self._streams = ConcurrencyLimit(MAX_BUILTIN_STREAMS, 0, _builtin_shares)

    def __call__(self, call: Call, next: Handler) -> Awaitable[None]:
        """Run the rest of the chain within the limit."""
        method = call.method
        if not method.server_streaming:
            return self._checks(call, next)
        if method.client_streaming:  # reflection: a client asks all that it wants at once
            latest = monotonic() + REFLECTION_TIMEOUT
            if call.deadline is None or call.deadline > latest:
                call.deadline = latest
                return deadline(call, partial(self._streams, next=next))
        return self._streams(call, next)


class _ForwardedCall(Call):
    """The outbound call: the inbound call with other metadata.

    The client gets the sidecar's response metadata without the headers that only the mesh may write.
    """

    __slots__ = ("_call", "_inbound", "_request")

    def __init__(self, call: GrpcCall, metadata: Metadata) -> None:
        super().__init__(call.method, metadata, call.deadline)
        self._call = call
        self._inbound = call.inbound
        self._request: bytes | None = None

    async def read_request(self) -> None:
        """Read the one request of a method that does not stream its requests.

        Raises:
            StatusError: It is malformed, too large or missing, or the client sends several.
        """
        self._request = await super().receive_one()

    async def receive_one(self) -> bytes:
        request, self._request = self._request, None
        assert request is not None  # noqa: S101 - read before the call is forwarded, and asked for once
        return request

    async def receive(self) -> bytes | None:
        request, self._request = self._request, None
        if request is not None:
            return request
        try:
            message = await self._inbound.receive()
        except Internal as error:  # malformed, which is the client's fault at the edge
            if isinstance(self._inbound, ConnectCall):  # its reader has decided
                raise
            raise InvalidArgument(error.message) from None
        if self.method.client_streaming:
            self._call.release_request(incomplete=self._inbound.incomplete)
        return message

    def expect_response(self, size: int) -> None:
        self._call.expect_response(size)

    def send(self, message: bytes) -> Coroutine[Any, Any, None]:
        if not self.headers_sent:
            self._forward_headers()
        stream = self._call.stream
        if stream is not None and not self.method.server_streaming:
            stream.learn_size(self.method.path, len(message))
        return self._inbound.send(message) if len(message) <= LARGE_SIZE else self._send_large(message)

    async def _send_large(self, message: bytes) -> None:
        """Send a large message, counted until the client has read it; that of a unary call until the call ends."""
        if self.method.server_streaming:
            self._call.hold_response(len(message))
            await self._inbound.send(message)
            self._call.release_response()
        else:
            self._call.release_request()
            self._call.hold_response(len(message))
            await self._inbound.send(message)

    def send_headers(self) -> Coroutine[Any, Any, None]:
        if not self.headers_sent:
            self._forward_headers()
        return self._inbound.send_headers()

    def end(self) -> None:
        """Pass on the trailers, and the headers if no message has taken them along."""
        if not self.headers_sent:
            self._forward_headers()
        if self.trailers:
            self._call.trailers += without_owned(self.trailers)

    def _forward_headers(self) -> None:
        self.headers_sent = True
        if self.headers:
            self._call.headers += without_owned(self.headers)


def _names_grpc(content_type: bytes) -> bool:
    """Whether a ``content-type`` names gRPC or gRPC-Web in any message format."""
    return content_type[: len(framing.TYPE)].lower() == framing.TYPE


def _unsupported(call: HttpCall, text: str, connect: Iterable[str] = ()) -> StatusError:
    """Return 415 with ``Accept-Post`` (RFC 9110, 15.5.16; W3C Linked Data Platform, 7.1).

    Args:
        call: The request.
        text: Text of the error.
        connect: Media types of Connect for its path.
    """
    types = grpc_web.TYPES | framing.TYPES if call.http_version == _HTTP_2 else grpc_web.TYPES
    call.headers.append((b"accept-post", ", ".join(sorted({*types, *connect})).encode()))
    return refusals.unsupported_media(call, text)


def tracing(http: Layer, grpc: Layer, connect: Layer) -> Layer:
    """Return the trace layer of an edge: ``grpc`` and ``connect`` for such calls, ``http`` for all other requests."""
    layers: dict[type[Call], Layer] = {GrpcCall: grpc, ConnectHttpCall: connect}

    def layer(call: Call, next: Handler) -> Awaitable[None]:
        return layers.get(type(call), http)(call, next)

    return layer
