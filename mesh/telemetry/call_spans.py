"""The trace layers: one span for every call, refused and cancelled ones too, with its duration counted.

``inbound`` and ``http`` are the outermost layers of their chains, ``outbound`` that of every onward call. They hand on
whatever is raised, unchanged.

Names and attributes: OpenTelemetry semantic conventions for RPC (gRPC) and HTTP, as in the installed
opentelemetry-semantic-conventions. No header, query or message is ever recorded: they hold secrets.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from functools import lru_cache
from typing import Any, Protocol, cast

from opentelemetry import context as otel_context
from opentelemetry.context import Context
from opentelemetry.trace import SpanKind, set_span_in_context

from mesh.call import Call, Handler, Layer, Metadata
from mesh.errors import Code, RemoteError, StatusError, http_status
from mesh.headers import TRACE_ID, TRACERESPONSE
from mesh.telemetry.exceptions import SERVER_FAULTS, bug_behind, summary_of
from mesh.telemetry.metrics import MOST_SERIES, Durations, Instrument
from mesh.telemetry.propagation import Propagation, parent_of
from mesh.telemetry.recorder import Recorder
from mesh.telemetry.span import Constant, Span
from mesh.trace_context import format_traceparent

__all__ = ["HttpCall", "http", "inbound", "outbound", "untraced_inbound", "untraced_outbound"]

_CLIENT_FAULTS = frozenset(Code) - {Code.OK}
_OTHER = "_OTHER"
"""What the conventions call a method that is not known."""
_VERBS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "QUERY"})
_SERVER_ERROR = 500
_PORTS = {"http": 80, "https": 443}


class HttpCall(Protocol):
    """What the ``http`` layer reads of the edge's call; all of it is final when the layer's ``next`` returns or raises.

    Attributes:
        verb: The request method.
        path: The path, without the query.
        scheme: ``http`` or ``https``.
        authority: ``host`` or ``host:port``, as the client named it.
        client: The client's address, ``host`` or ``host:port`` (IPv6 in brackets before a port);
            ``""`` if it is not known.
        status: The HTTP status of the answer; 0 while there is none. A layer that refuses with a status that does not
            follow from its code (405, 413, 415) sets it before it raises.
        route: The template of the route, once it is known.
        http_version: ``1.1`` or ``2``.
        metadata: The request headers.
        headers: The response headers; they must go with a refusal too.
    """

    verb: str
    path: str
    scheme: str
    authority: str
    client: str
    status: int
    route: str | None
    http_version: str
    metadata: Metadata
    headers: list[tuple[bytes, bytes]]


class _Known:
    """What every call of one method shares: names, attributes, counters."""

    __slots__ = ("_instrument", "attributes", "ends", "faults", "flying", "name")

    def __init__(self, name: str, instrument: Instrument, faults: frozenset[Code]) -> None:
        self.name = name
        self.attributes = Constant({"rpc.system.name": "grpc", "rpc.method": name})
        self.faults = faults
        self.flying = instrument.gauge(name, self.attributes)
        self.ends: dict[tuple[Code, str], tuple[Constant, Durations]] = {}
        self._instrument = instrument

    def end(self, code: Code, peer: str) -> tuple[Constant, Durations]:
        """Return the attributes (never to be changed) and the series of the calls that end with ``code`` at ``peer``.

        Peers are the addresses of the manifest, so there are few.
        """
        found = self.ends.get((code, peer))
        if found is None:
            told: dict[str, Any] = {"rpc.response.status_code": code.name}
            if code in self.faults:
                told["error.type"] = code.name
            series = self._instrument.series((self.name, code), lambda: {**self.attributes, **told})
            if peer:
                host, port = _host_and_port(peer)
                told = {**told, "server.address": host, "server.port": port}
            found = self.ends[code, peer] = (Constant(told), series)
        return found


class _Methods(dict[str, _Known]):
    """Path of a method → what its calls share, made at its first call."""

    def __init__(self, instrument: Instrument, faults: frozenset[Code]) -> None:
        super().__init__()
        self._instrument = instrument
        self._faults = faults

    def __missing__(self, path: str) -> _Known:
        # Paths come from contracts, so this bound is met only if a rim lets callers invent them.
        if len(self) >= MOST_SERIES:
            path = _OTHER
        known = self.get(path)
        if known is None:
            known = self[path] = _Known(path.lstrip("/"), self._instrument, self._faults)
        return known


def inbound(recorder: Recorder, propagation: Propagation, instrument: Instrument) -> Layer:
    """Return the layer that traces the calls that a sidecar answers: a SERVER span, child of what the caller names."""
    methods = _Methods(instrument, SERVER_FAULTS)

    def layer(call: Call, next: Handler) -> Awaitable[None]:
        known = methods[call.method.path]
        parent, context = propagation.extract(call.metadata)
        span = recorder.start(known.name, SpanKind.SERVER, known.attributes, parent, context)
        return _traced(call, next, known, span, set_span_in_context(span, context))

    return layer


def outbound(recorder: Recorder, propagation: Propagation, instrument: Instrument) -> Layer:
    """Return the layer that traces onward calls: a CLIENT span, child of the current one, named in the metadata."""
    methods = _Methods(instrument, _CLIENT_FAULTS)

    def layer(call: Call, next: Handler) -> Awaitable[None]:
        known = methods[call.method.path]
        context = otel_context.get_current()
        span = recorder.start(known.name, SpanKind.CLIENT, known.attributes, parent_of(context), context)
        context = set_span_in_context(span, context)
        propagation.inject(span, context, call.metadata)
        return _traced(call, next, known, span, context)

    return layer


async def _traced(call: Call, next: Handler, known: _Known, span: Span, context: Context) -> None:
    token = otel_context.attach(context)
    flying = known.flying
    flying.value += 1
    code = Code.OK
    try:
        await next(call)
    except BaseException as error:
        code = _record(span, error, known.faults)
        raise
    finally:
        otel_context.detach(token)
        flying.value -= 1
        span.outcome, series = known.end(code, call.peer)
        series.record(span.stop())


def http(recorder: Recorder, propagation: Propagation, instrument: Instrument) -> Layer:
    """Return the layer that traces the edge's requests: a SERVER span, named to the client in two response headers.

    ``x-trace-id`` holds the trace id alone, ``traceresponse`` is that of the W3C's draft (Trace Context Level 2).
    """
    requests = _Requests(instrument)

    async def layer(call: Call, next: Handler) -> None:
        request = cast("HttpCall", call)
        verb = request.verb if request.verb in _VERBS else _OTHER
        parent, context = propagation.extract(call.metadata)
        scheme = request.scheme if request.scheme in _PORTS else _OTHER  # an HTTP/2 client may write what it likes
        known = requests[verb, scheme]
        span = recorder.start(known.name, SpanKind.SERVER, known.attributes, parent, context)
        request.headers.append((TRACE_ID, b"%032x" % span.trace_id))
        request.headers.append((TRACERESPONSE, format_traceparent(span.trace_id, span.span_id, span.flags)))
        flying = known.flying
        token = otel_context.attach(set_span_in_context(span, context))
        flying.value += 1
        code: Code | None = None
        try:
            await next(call)
        except BaseException as error:
            code = _record(span, error, frozenset())
            raise
        finally:
            otel_context.detach(token)
            flying.value -= 1
            status = request.status or http_status(Code.OK if code is None else code)
            route = request.route
            if route is not None:
                span.name = f"{known.name} {route}"
            if status >= _SERVER_ERROR:
                span.fail(None)
            if span.is_recording():
                own = _http_attributes(request, verb)
                span.attributes = own if span.attributes is None else {**own, **span.attributes}
            span.outcome, series = known.end(route, status)
            series.record(span.stop())

    return layer


class _Request:
    """What every request of one HTTP method and scheme shares."""

    __slots__ = ("_ends", "_instrument", "attributes", "flying", "key", "name")

    def __init__(self, verb: str, scheme: str, instrument: Instrument) -> None:
        self.name = "HTTP" if verb == _OTHER else verb
        self.key = (verb, scheme)
        self.attributes = Constant({"http.request.method": verb, "url.scheme": scheme})
        self.flying = instrument.gauge(self.key, self.attributes)
        self._ends: dict[tuple[str | None, int], tuple[Constant, Durations]] = {}
        self._instrument = instrument

    def end(self, route: str | None, status: int) -> tuple[Constant, Durations]:
        """Return the attributes (never to be changed) and the series of the requests of a route that end so.

        Routes are the contract's, so there are few.
        """
        found = self._ends.get((route, status))
        if found is None:
            told: dict[str, Any] = {"http.response.status_code": status}
            if route is not None:
                told["http.route"] = route
            if status >= _SERVER_ERROR:
                told["error.type"] = str(status)
            series = self._instrument.series((*self.key, route, status), lambda: {**self.attributes, **told})
            found = self._ends[route, status] = (Constant(told), series)
        return found


class _Requests(dict[tuple[str, str], _Request]):
    """HTTP method and scheme, of the few that are known → what such requests share."""

    def __init__(self, instrument: Instrument) -> None:
        super().__init__()
        self._instrument = instrument

    def __missing__(self, key: tuple[str, str]) -> _Request:
        found = self[key] = _Request(*key, self._instrument)
        return found


def _http_attributes(request: HttpCall, verb: str) -> dict[str, Any]:
    told: dict[str, Any] = {"url.path": request.path}
    if verb == _OTHER:
        told["http.request.method_original"] = request.verb
    host, port = _host_and_port(request.authority)
    if host:
        told["server.address"] = host
        told["server.port"] = port or _PORTS.get(request.scheme, 0)
    client, port = _host_and_port(request.client)
    if client:
        told["client.address"] = client
        if port:
            told["client.port"] = port
    told["network.protocol.version"] = request.http_version
    agent = request.metadata.wire(b"user-agent")
    if agent:
        told["user_agent.original"] = agent.decode("latin-1")
    return told


@lru_cache(MOST_SERIES)
def _host_and_port(text: str) -> tuple[str, int]:
    """Return host and port of ``host``, ``host:port``, ``[v6]:port`` or bare IPv6; port 0 if there is none."""
    host, colon, port = text.rpartition(":")
    if colon and port.isascii() and port.isdigit() and (":" not in host or host.endswith("]")):
        return host.strip("[]"), int(port)
    return text.strip("[]"), 0


def _told(error: StatusError) -> str:
    return f"{error.message} ({error.where})" if error.where else error.message


def _record(span: Span, error: BaseException, faults: frozenset[Code]) -> Code:
    """Tell the span what was raised, and return the code that the call ended with."""
    bug: BaseException | None = None
    message: str | None
    if isinstance(error, StatusError):
        code, message, bug = error.code, _told(error), bug_behind(error)
    elif isinstance(error, RemoteError):
        code, message = error.status.code, _told(error.status)
    elif isinstance(error, asyncio.CancelledError):
        code, message = Code.CANCELLED, "the caller went away"
    else:
        code, message, bug = Code.UNKNOWN, None, error
    if bug is not None:
        span.record_exception(bug)
        # Inside, the reason is what helps; only the caller must not see it.
        message = summary_of(bug)
    if code in faults or bug is not None:
        span.fail(message or code.name)
    return code


def untraced_inbound(propagation: Propagation) -> Layer:
    """Return the layer for ``OTEL_SDK_DISABLED``: nothing is recorded, and the caller's context passes on."""

    async def layer(call: Call, next: Handler) -> None:
        token = otel_context.attach(propagation.context(call.metadata))
        try:
            await next(call)
        finally:
            otel_context.detach(token)

    return layer


def untraced_outbound(propagation: Propagation) -> Layer:
    """Return the layer for ``OTEL_SDK_DISABLED``: the current context goes into the metadata."""

    async def layer(call: Call, next: Handler) -> None:
        propagation.forward(call.metadata)
        await next(call)

    return layer
