"""Trace layers: one span and one measured duration for every call, also for refused and cancelled ones.

``inbound`` and ``http`` are the outermost layers of their chains. ``outbound`` is the outermost layer of calls that
this component makes. All of them reraise every exception unchanged.

Names and attributes follow the OpenTelemetry semantic conventions for RPC (gRPC) and HTTP, in the installed version of
opentelemetry-semantic-conventions. Headers, queries and messages are never recorded, since they hold secrets.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from functools import lru_cache
from typing import Any, Protocol, cast

from opentelemetry import context as otel_context
from opentelemetry.context import Context
from opentelemetry.trace import SpanContext, SpanKind, set_span_in_context

from mesh.call import Call, Handler, Layer, Metadata
from mesh.errors import Code, RemoteError, StatusError, http_status
from mesh.headers import TRACE_ID, TRACERESPONSE
from mesh.telemetry.exceptions import SERVER_FAULTS, bug_behind, summary_of
from mesh.telemetry.metrics import MAX_SERIES, DurationSeries, Instrument
from mesh.telemetry.propagation import Propagation, parent_of
from mesh.telemetry.recorder import Recorder
from mesh.telemetry.span import Constant, Span
from mesh.trace_context import format_traceparent

__all__ = ["CONNECT", "GRPC", "TracedRequest", "http", "inbound", "outbound", "untraced_inbound", "untraced_outbound"]

GRPC = "grpc"
CONNECT = "connectrpc"
"""Values of ``rpc.system.name``."""

_CLIENT_FAULTS = frozenset(Code) - {Code.OK}
_OTHER = "_OTHER"
"""The conventions' name for an unknown method."""
_VERBS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "QUERY"})
_SERVER_ERROR = 500
_PORTS = {"http": 80, "https": 443}


class TracedRequest(Protocol):
    """The part of the edge's call that the ``http`` layer reads. It is final when the layer's ``next`` has ended.

    Attributes:
        verb: The request method.
        path: The path, without the query.
        scheme: ``http`` or ``https``.
        authority: ``host`` or ``host:port``, as sent by the client.
        client: The client's address, ``host`` or ``host:port`` (IPv6 in brackets before a port);
            ``""`` if it is unknown.
        status: The HTTP status of the response, or 0 while there is none. A layer that refuses with a status that does
            not follow from its code (405, 413, 415) sets it before it raises.
        route: The template of the route, or None.
        http_version: ``1.1`` or ``2``.
        metadata: The request headers.
        headers: The response headers. An error response has them too.
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


class _MethodSeries:
    """Names, attributes and series of the calls of one method."""

    __slots__ = ("_instrument", "_system", "attributes", "ends", "faults", "in_flight", "name")

    def __init__(self, name: str, instrument: Instrument, faults: frozenset[Code], system: str) -> None:
        self.name = name
        self.attributes = Constant({"rpc.system.name": system, "rpc.method": name})
        self.faults = faults
        self.in_flight = instrument.gauge((system, name), self.attributes)
        self.ends: dict[tuple[Code, str], tuple[Constant, DurationSeries]] = {}
        self._instrument = instrument
        self._system = system

    def end(self, code: Code, peer: str) -> tuple[Constant, DurationSeries]:
        """Return the constant attributes and the series of the calls that end with ``code`` at ``peer``.

        Peers are the addresses of the manifest, so there are few.
        """
        found = self.ends.get((code, peer))
        if found is None:
            attributes: dict[str, Any] = {}
            name = code.name if self._system == GRPC else code.connect_name
            if self._system == GRPC or code is not Code.OK:  # Connect has no code of success
                attributes["rpc.response.status_code"] = name
            if code in self.faults:
                attributes["error.type"] = name
            key = (self._system, self.name, code)
            series = self._instrument.series(key, lambda: {**self.attributes, **attributes})
            if peer:
                host, port = _host_and_port(peer)
                attributes = {**attributes, "server.address": host, "server.port": port}
            found = self.ends[code, peer] = (Constant(attributes), series)
        return found


class _MethodSeriesByPath(dict[str, _MethodSeries]):
    """Path of a method → its names, attributes and series, created at its first call."""

    def __init__(self, instrument: Instrument, faults: frozenset[Code], system: str = GRPC) -> None:
        super().__init__()
        self._instrument = instrument
        self._faults = faults
        self._system = system

    def __missing__(self, path: str) -> _MethodSeries:
        # Paths come from contracts. The bound matters only if a server passes paths that callers made up.
        if len(self) >= MAX_SERIES:
            path = _OTHER
        known = self.get(path)
        if known is None:
            known = self[path] = _MethodSeries(path.lstrip("/"), self._instrument, self._faults, self._system)
        return known


def inbound(recorder: Recorder, propagation: Propagation, instrument: Instrument, system: str = GRPC) -> Layer:
    """Return the layer for calls that a sidecar answers. It starts a SERVER span, a child of the caller's span.

    Args:
        recorder: Starts the spans.
        propagation: Reads the caller's span.
        instrument: Measures the durations.
        system: Protocol of the calls: ``GRPC`` or ``CONNECT``.
    """
    methods = _MethodSeriesByPath(instrument, SERVER_FAULTS, system)

    def layer(call: Call, next: Handler) -> Awaitable[None]:
        known = methods[call.method.path]
        parent, context = propagation.extract(call.metadata)
        span = recorder.start(known.name, SpanKind.SERVER, known.attributes, parent, context)
        if propagation.links:
            _link(span, propagation.caller_span(call.metadata))
        return _traced(call, next, known, span, set_span_in_context(span, context))

    return layer


def outbound(recorder: Recorder, propagation: Propagation, instrument: Instrument) -> Layer:
    """Return the layer for calls that a component makes.

    It starts a CLIENT span, a child of the current span, and writes it into the metadata.
    """
    methods = _MethodSeriesByPath(instrument, _CLIENT_FAULTS)

    def layer(call: Call, next: Handler) -> Awaitable[None]:
        known = methods[call.method.path]
        context = otel_context.get_current()
        span = recorder.start(known.name, SpanKind.CLIENT, known.attributes, parent_of(context), context)
        context = set_span_in_context(span, context)
        propagation.inject(span, context, call.metadata)
        return _traced(call, next, known, span, context)

    return layer


def _link(span: Span, caller: SpanContext | None) -> None:
    if caller is not None:
        span.add_link(caller)


async def _traced(call: Call, next: Handler, known: _MethodSeries, span: Span, context: Context) -> None:
    token = otel_context.attach(context)
    in_flight = known.in_flight
    in_flight.value += 1
    code = Code.OK
    try:
        await next(call)
    except BaseException as error:
        code = _record(span, error, known.faults)
        raise
    finally:
        otel_context.detach(token)
        in_flight.value -= 1
        span.outcome, series = known.end(code, call.peer)
        series.record(span.stop())


def http(recorder: Recorder, propagation: Propagation, instrument: Instrument) -> Layer:
    """Return the layer for requests of the edge. It starts a SERVER span and adds two response headers.

    ``x-trace-id`` has the trace id alone. ``traceresponse`` is that of a W3C draft (Trace Context Level 2).
    """
    requests = _RequestSeriesByKey(instrument)

    async def layer(call: Call, next: Handler) -> None:
        request = cast("TracedRequest", call)
        verb = request.verb if request.verb in _VERBS else _OTHER
        parent, context = propagation.extract(call.metadata)
        scheme = request.scheme if request.scheme in _PORTS else _OTHER  # an HTTP/2 client may send any text
        known = requests[verb, scheme]
        span = recorder.start(known.name, SpanKind.SERVER, known.attributes, parent, context)
        if propagation.links:
            _link(span, propagation.caller_span(call.metadata))
        request.headers.append((TRACE_ID, b"%032x" % span.trace_id))
        request.headers.append((TRACERESPONSE, format_traceparent(span.trace_id, span.span_id, span.flags)))
        in_flight = known.in_flight
        token = otel_context.attach(set_span_in_context(span, context))
        in_flight.value += 1
        code: Code | None = None
        try:
            await next(call)
        except BaseException as error:
            code = _record(span, error, frozenset())
            raise
        finally:
            otel_context.detach(token)
            in_flight.value -= 1
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


class _RequestSeries:
    """Name, attributes and series of the requests of one HTTP method and scheme."""

    __slots__ = ("_ends", "_instrument", "attributes", "in_flight", "key", "name")

    def __init__(self, verb: str, scheme: str, instrument: Instrument) -> None:
        self.name = "HTTP" if verb == _OTHER else verb
        self.key = (verb, scheme)
        self.attributes = Constant({"http.request.method": verb, "url.scheme": scheme})
        self.in_flight = instrument.gauge(self.key, self.attributes)
        self._ends: dict[tuple[str | None, int], tuple[Constant, DurationSeries]] = {}
        self._instrument = instrument

    def end(self, route: str | None, status: int) -> tuple[Constant, DurationSeries]:
        """Return the constant attributes and the series of the requests of a route that end with ``status``.

        Routes are the contract's, so there are few.
        """
        found = self._ends.get((route, status))
        if found is None:
            attributes: dict[str, Any] = {"http.response.status_code": status}
            if route is not None:
                attributes["http.route"] = route
            if status >= _SERVER_ERROR:
                attributes["error.type"] = str(status)
            series = self._instrument.series((*self.key, route, status), lambda: {**self.attributes, **attributes})
            found = self._ends[route, status] = (Constant(attributes), series)
        return found


class _RequestSeriesByKey(dict[tuple[str, str], _RequestSeries]):
    """HTTP method and scheme, both of a known set → name, attributes and series."""

    def __init__(self, instrument: Instrument) -> None:
        super().__init__()
        self._instrument = instrument

    def __missing__(self, key: tuple[str, str]) -> _RequestSeries:
        found = self[key] = _RequestSeries(*key, self._instrument)
        return found


def _http_attributes(request: TracedRequest, verb: str) -> dict[str, Any]:
    attributes: dict[str, Any] = {"url.path": request.path}
    if verb == _OTHER:
        attributes["http.request.method_original"] = request.verb
    host, port = _host_and_port(request.authority)
    if host:
        attributes["server.address"] = host
        attributes["server.port"] = port or _PORTS.get(request.scheme, 0)
    client, port = _host_and_port(request.client)
    if client:
        attributes["client.address"] = client
        if port:
            attributes["client.port"] = port
    attributes["network.protocol.version"] = request.http_version
    agent = request.metadata.wire(b"user-agent")
    if agent:
        attributes["user_agent.original"] = agent.decode("latin-1")
    return attributes


@lru_cache(MAX_SERIES)
def _host_and_port(text: str) -> tuple[str, int]:
    """Return host and port of ``host``, ``host:port``, ``[v6]:port`` or bare IPv6. The port is 0 if there is none."""
    host, colon, port = text.rpartition(":")
    if colon and port.isascii() and port.isdigit() and (":" not in host or host.endswith("]")):
        return host.strip("[]"), int(port)
    return text.strip("[]"), 0


def _message_of(error: StatusError) -> str:
    return f"{error.message} ({error.where})" if error.where else error.message


def _record(span: Span, error: BaseException, faults: frozenset[Code]) -> Code:
    """Record the exception in the span, and return the code of the call."""
    bug: BaseException | None = None
    message: str | None
    if isinstance(error, RemoteError):
        code, message = error.status.code, _message_of(error.status)
    elif isinstance(error, StatusError):
        code, message, bug = error.code, _message_of(error), bug_behind(error)
    elif isinstance(error, asyncio.CancelledError):
        code, message = Code.CANCELLED, "the caller went away"
    else:
        code, message, bug = Code.UNKNOWN, None, error
    if bug is not None:
        span.record_exception(bug)
        # Operators need the reason. Only the caller must not see it.
        message = summary_of(bug)
    if code in faults or bug is not None:
        span.fail(message or code.name)
    return code


def untraced_inbound(propagation: Propagation) -> Layer:
    """Return the layer for ``OTEL_SDK_DISABLED``. It records nothing and makes the caller's context current."""

    async def layer(call: Call, next: Handler) -> None:
        token = otel_context.attach(propagation.context(call.metadata))
        try:
            await next(call)
        finally:
            otel_context.detach(token)

    return layer


def untraced_outbound(propagation: Propagation) -> Layer:
    """Return the layer for ``OTEL_SDK_DISABLED``. It writes the current context into the metadata."""

    async def layer(call: Call, next: Handler) -> None:
        propagation.forward(call.metadata)
        await next(call)

    return layer
