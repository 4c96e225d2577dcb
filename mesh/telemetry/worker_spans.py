"""Spans of worker processes: recorded in the worker, exported by the sidecar.

A worker has no exporter, no export thread and no queue. Its spans leave with the frames of the call, so they are not
lost when the worker dies. The server span of a call lives in the sidecar. The function gets a ``RemoteServerSpan`` in
its place, which records the operations on it. The sidecar replays them when the call has ended.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from time import time_ns
from typing import Any

import msgspec
from opentelemetry import baggage, trace
from opentelemetry import context as otel
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, SpanKind, StatusCode
from opentelemetry.trace import Span as ApiSpan
from opentelemetry.trace.span import TraceState
from opentelemetry.trace.status import Status

from mesh.telemetry import providers
from mesh.telemetry.attribute_values import plain, plain_attributes
from mesh.telemetry.exceptions import exception_attributes, summary_of
from mesh.telemetry.span import Span
from mesh.telemetry.worker_metrics import WorkerMeterProvider
from mesh.text import text_of
from mesh.trace_context import span_context

__all__ = [
    "Note", "RemoteServerSpan", "context", "current_baggage", "current_span", "install", "pack", "replay", "unpack",
    "unpack_context",
]  # fmt: skip

Note = tuple[str, list[Any]]
"""An operation on a span: name of the method, arguments."""

_encode = msgspec.msgpack.Encoder(enc_hook=str).encode
_decode = msgspec.msgpack.Decoder().decode
_KINDS = list(SpanKind)
_CONTEXT_SIZE = 26
"""Bytes of a span's context between processes: trace id (16), span id (8), W3C flags (1), the flags below (1)."""
_RECORDING = 1
_REMOTE = 2
"""The span belongs to another component."""
_SPAN_ONLY = trace.set_span_in_context(trace.INVALID_SPAN, Context()).keys()


# -- the context of a span between processes --


def current_span() -> tuple[bytes, str]:
    """Return the packed context of the current span (``b""``: no span) and its ``tracestate``."""
    span = trace.get_current_span()
    if isinstance(span, Span):
        more = _RECORDING if span.is_recording() else 0
        return _pack_fields(span.trace_id, span.span_id, span.flags, more, span.state)
    if isinstance(span, RemoteServerSpan):
        return span.packed
    found = span.get_span_context()
    return _pack_context(found, _RECORDING if span.is_recording() else 0) if found.is_valid else (b"", "")


def _pack_context(found: SpanContext, more: int = 0) -> tuple[bytes, str]:
    if found.is_remote:
        more |= _REMOTE
    return _pack_fields(found.trace_id, found.span_id, found.trace_flags, more, found.trace_state)


def _pack_fields(trace_id: int, span_id: int, flags: int, more: int, state: TraceState | None) -> tuple[bytes, str]:
    packed = (trace_id << 80 | span_id << 16 | (flags & 0xFF) << 8 | more).to_bytes(_CONTEXT_SIZE, "big")
    return packed, state.to_header() if state else ""


def unpack_context(packed: bytes, state: str) -> SpanContext:
    """Return the context of a span of another process, from the two values of ``current_span``."""
    value = int.from_bytes(packed, "big")
    return span_context(value >> 80, value >> 16 & (1 << 64) - 1, value >> 8 & 0xFF, state, remote=value & _REMOTE != 0)


def current_baggage() -> dict[str, str] | None:
    """Return the baggage of the current context (W3C Baggage), or None."""
    context = otel.get_current()
    if context.keys() <= _SPAN_ONLY:  # nearly every call: no more than its span
        return None
    return {text_of(name): text_of(value) for name, value in baggage.get_all(context).items()} or None


def context(packed: bytes, state: str, carried: Mapping[str, str] | None) -> Context:
    """Return the context of another process, from its span (``b""``: none) and its baggage."""
    found = Context()
    if packed:
        found = trace.set_span_in_context(NonRecordingSpan(unpack_context(packed, state)), found)
    for name, value in (carried or {}).items():
        found = baggage.set_baggage(name, value, found)
    return found


class RemoteServerSpan(ApiSpan):
    """Stand-in for the server span of a call in the worker: records the operations of the function.

    Attributes:
        packed: The span's context, as ``current_span`` returns it.
        notes: The operations, or None if there are none.
    """

    __slots__ = ("_context", "notes", "packed")

    def __init__(self, packed: bytes, state: str) -> None:
        self.packed = (packed, state)
        self._context: SpanContext | None = None
        self.notes: list[Note] | None = None

    def get_span_context(self) -> SpanContext:
        """Return its context, which is created at the first call."""
        if self._context is None:
            self._context = unpack_context(*self.packed)
        return self._context

    def is_recording(self) -> bool:
        """Whether the sidecar records the span."""
        return bool(self.packed[0][-1] & _RECORDING)

    def _note(self, name: str, *arguments: Any) -> None:
        if self.is_recording():
            if self.notes is None:
                self.notes = []
            self.notes.append((name, list(arguments)))

    def end(self, end_time: int | None = None) -> None:
        """Do nothing. The span ends with its call."""

    def set_attribute(self, key: str, value: Any) -> None:
        """Set an attribute."""
        self._note("set_attribute", key, plain(value))

    def set_attributes(self, attributes: Mapping[str, Any]) -> None:
        """Set several attributes."""
        for key, value in attributes.items():
            self.set_attribute(key, value)

    def add_event(self, name: str, attributes: Mapping[str, Any] | None = None, timestamp: int | None = None) -> None:
        """Add an event."""
        values = plain_attributes(attributes)
        self._note("add_event", name, values, time_ns() if timestamp is None else timestamp)

    def add_link(self, context: SpanContext, attributes: Mapping[str, Any] | None = None) -> None:
        """Link another span."""
        values = plain_attributes(attributes)
        if context.is_valid:
            self._note("add_link", *_pack_context(context), values)

    def update_name(self, name: str) -> None:
        """Give the span another name."""
        self._note("update_name", name)

    def set_status(self, status: Status | StatusCode, description: str | None = None) -> None:
        """Set the status."""
        code = status.status_code if isinstance(status, Status) else status
        self._note("set_status", code.value, status.description if isinstance(status, Status) else description)

    def record_exception(
        self,
        exception: BaseException,
        attributes: Mapping[str, Any] | None = None,
        timestamp: int | None = None,
        escaped: bool = False,  # noqa: ARG002, FBT001, FBT002 - the API's signature; deprecated there
    ) -> None:
        """Add an event with the exception's type, message and traceback."""
        if self.is_recording():
            self.add_event("exception", exception_attributes(exception) | dict(attributes or {}), timestamp)

    def fail(self, bug: BaseException) -> None:
        """Record a bug of the function, as the trace layer does in the sidecar."""
        self.record_exception(bug)
        self.set_status(StatusCode.ERROR, summary_of(bug))


def replay(notes: Sequence[Note]) -> None:
    """Apply the operations on a ``RemoteServerSpan`` to the current span."""
    span = trace.get_current_span()
    for name, arguments in notes:
        if name == "set_status":
            code = StatusCode(arguments[0])
            span.set_status(code, arguments[1] if code is StatusCode.ERROR else None)
        elif name == "add_link":
            packed, state, attributes = arguments
            span.add_link(unpack_context(packed, state), attributes)
        else:
            getattr(span, name)(*arguments)


# -- spans that the functions start --


class _SendingProcessor(SpanProcessor):
    def __init__(self, send: Callable[[bytes], None]) -> None:
        self._send = send

    def on_end(self, span: ReadableSpan) -> None:
        if span.context is not None and span.context.trace_flags.sampled:
            self._send(pack(span))


def install(send: Callable[[bytes], None], send_measurement: Callable[[bytes], None]) -> None:
    """Install the providers of a worker process.

    Args:
        send: Gets every finished span, packed, in the thread in which it ended.
        send_measurement: Gets every measurement (``mesh.telemetry.worker_metrics``).
    """
    tracers = TracerProvider(resource=Resource({}), shutdown_on_exit=False)
    tracers.add_span_processor(_SendingProcessor(send))
    providers.install(tracers, WorkerMeterProvider(send_measurement))


def pack(span: ReadableSpan) -> bytes:
    """Return a span for ``unpack``, with odd values replaced, or ``b""`` if it cannot be packed."""
    try:
        return _encode(_fields(span))
    except BaseException:  # noqa: BLE001 - telemetry breaks no function; the sidecar counts it
        return b""


def _fields(span: ReadableSpan) -> list[Any]:
    assert span.context is not None  # noqa: S101 - ``on_end`` has checked it
    scope = span.instrumentation_scope
    return [
        text_of(span.name),
        _KINDS.index(span.kind),
        _pack_context(span.context),
        None if span.parent is None else _pack_context(span.parent),
        span.start_time,
        span.end_time,
        [span.status.status_code.value, span.status.description and text_of(span.status.description)],
        plain_attributes(span.attributes),
        [[text_of(event.name), plain_attributes(event.attributes), event.timestamp] for event in span.events],
        [[_pack_context(link.context), plain_attributes(link.attributes)] for link in span.links],
        None if scope is None else [scope.name, scope.version, scope.schema_url],
    ]


def unpack(body: bytes, resource: Resource) -> ReadableSpan:
    """Return a span that another process sent.

    Args:
        body: The packed span.
        resource: Resource of this component.

    Raises:
        Exception: The span could not be packed.
    """
    name, kind, own, above, start, end, status, attributes, events, links, scope = _decode(body)
    return ReadableSpan(
        name=name,
        context=unpack_context(*own),
        parent=None if above is None else unpack_context(*above),
        resource=resource,
        attributes=attributes,
        events=[Event(event, fields, time) for event, fields, time in events],
        links=[Link(unpack_context(*to), fields) for to, fields in links],
        kind=_KINDS[kind],
        status=Status(StatusCode(status[0]), status[1]),
        start_time=start,
        end_time=end,
        instrumentation_scope=None if scope is None else InstrumentationScope(*scope),
    )
