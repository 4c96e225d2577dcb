"""Spans of another process of the same component: recorded there, exported here.

A worker process has no exporter, no thread and no queue of its own. What its functions trace leaves it with the frames
of the call, so it is not lost when the worker dies. The server span of a call lives in the sidecar; a function gets a
stand-in for it that notes what is done to it, and the notes are followed when the call has ended.
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
from mesh.telemetry.exceptions import event_of, summary_of
from mesh.telemetry.span import Span
from mesh.telemetry.worker_metrics import Measuring
from mesh.text import text_of
from mesh.trace_context import span_context

__all__ = [
    "Note", "Remote", "context", "current_baggage", "current_span", "follow", "install", "pack", "parent", "unpack",
]  # fmt: skip

Note = tuple[str, list[Any]]

_encode = msgspec.msgpack.Encoder(enc_hook=str).encode
_decode = msgspec.msgpack.Decoder().decode
_KINDS = list(SpanKind)
_SPAN = 26
"""Bytes of a span's context between processes: trace id, span id, W3C flags, the flags below."""
_RECORDING = 1
_REMOTE = 2
"""It came from another component."""
_ALONE = trace.set_span_in_context(trace.INVALID_SPAN, Context()).keys()


# -- the context of a span, as it goes between processes --


def current_span() -> tuple[bytes, str]:
    """Return the current span: trace id (16 bytes), span id (8), flags (1), more flags (1), and its trace state.

    ``b""`` if there is none.
    """
    span = trace.get_current_span()
    if isinstance(span, Span):
        more = _RECORDING if span.is_recording() else 0
        return _packed(span.trace_id, span.span_id, span.flags, more, span.state)
    if isinstance(span, Remote):
        return span.told
    found = span.get_span_context()
    return _of(found, _RECORDING if span.is_recording() else 0) if found.is_valid else (b"", "")


def _of(found: SpanContext, more: int = 0) -> tuple[bytes, str]:
    if found.is_remote:
        more |= _REMOTE
    return _packed(found.trace_id, found.span_id, found.trace_flags, more, found.trace_state)


def _packed(trace_id: int, span_id: int, flags: int, more: int, state: TraceState | None) -> tuple[bytes, str]:
    packed = (trace_id << 80 | span_id << 16 | (flags & 0xFF) << 8 | more).to_bytes(_SPAN, "big")
    return packed, state.to_header() if state else ""


def parent(packed: bytes, state: str) -> SpanContext:
    """Return the context of a span of another process."""
    whole = int.from_bytes(packed, "big")
    return span_context(whole >> 80, whole >> 16 & (1 << 64) - 1, whole >> 8 & 0xFF, state, remote=whole & _REMOTE != 0)


def current_baggage() -> dict[str, str] | None:
    """Return the baggage of the current context (W3C Baggage), or None."""
    context = otel.get_current()
    if context.keys() <= _ALONE:  # what nearly every call has: its span
        return None
    return {text_of(name): text_of(value) for name, value in baggage.get_all(context).items()} or None


def context(packed: bytes, state: str, carried: Mapping[str, str] | None) -> Context:
    """Return the context that another process was in: its span (``b""``: none) and its baggage."""
    made = Context()
    if packed:
        made = trace.set_span_in_context(NonRecordingSpan(parent(packed, state)), made)
    for name, value in (carried or {}).items():
        made = baggage.set_baggage(name, value, made)
    return made


class Remote(ApiSpan):
    """The server span of a call, as its function sees it in another process: notes what is done to it.

    Attributes:
        told: As ``current_span`` returns it.
        notes: What was done: name of the method, arguments; None while it is nothing.
    """

    __slots__ = ("_context", "notes", "told")

    def __init__(self, packed: bytes, state: str) -> None:
        self.told = (packed, state)
        self._context: SpanContext | None = None
        self.notes: list[Note] | None = None

    def get_span_context(self) -> SpanContext:
        """Return its context; made when someone asks."""
        if self._context is None:
            self._context = parent(*self.told)
        return self._context

    def is_recording(self) -> bool:
        """Return whether what is done to it will be kept."""
        return bool(self.told[0][-1] & _RECORDING)

    def _note(self, name: str, *arguments: Any) -> None:
        if self.is_recording():
            if self.notes is None:
                self.notes = []
            self.notes.append((name, list(arguments)))

    def end(self, end_time: int | None = None) -> None:
        """Do nothing: it ends with its call."""

    def set_attribute(self, key: str, value: Any) -> None:
        """Set an attribute."""
        self._note("set_attribute", key, plain(value))

    def set_attributes(self, attributes: Mapping[str, Any]) -> None:
        """Set several attributes."""
        for key, value in attributes.items():
            self.set_attribute(key, value)

    def add_event(self, name: str, attributes: Mapping[str, Any] | None = None, timestamp: int | None = None) -> None:
        """Add an event."""
        told = plain_attributes(attributes)
        self._note("add_event", name, told, time_ns() if timestamp is None else timestamp)

    def add_link(self, context: SpanContext, attributes: Mapping[str, Any] | None = None) -> None:
        """Link another span."""
        told = plain_attributes(attributes)
        if context.is_valid:
            self._note("add_link", *_of(context), told)

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
        """Add an event that tells the exception: type, message and traceback."""
        if self.is_recording():
            self.add_event("exception", event_of(exception) | dict(attributes or {}), timestamp)

    def fail(self, bug: BaseException) -> None:
        """Tell a bug, as the trace layer does of one that it sees itself."""
        self.record_exception(bug)
        self.set_status(StatusCode.ERROR, summary_of(bug))


def follow(notes: Sequence[Note]) -> None:
    """Do to the current span what was done to its stand-in."""
    span = trace.get_current_span()
    for name, arguments in notes:
        if name == "set_status":
            code = StatusCode(arguments[0])
            span.set_status(code, arguments[1] if code is StatusCode.ERROR else None)
        elif name == "add_link":
            packed, state, attributes = arguments
            span.add_link(parent(packed, state), attributes)
        else:
            getattr(span, name)(*arguments)


# -- whole spans --


class _Relay(SpanProcessor):
    def __init__(self, send: Callable[[bytes], None]) -> None:
        self._send = send

    def on_end(self, span: ReadableSpan) -> None:
        if span.context is not None and span.context.trace_flags.sampled:
            self._send(pack(span))


def install(send: Callable[[bytes], None], measured: Callable[[bytes], None]) -> None:
    """Have every span that this process records given to ``send`` when it ends, in whatever thread that is.

    What functions measure is given to ``measured`` (``mesh.telemetry.worker_metrics``).
    """
    tracers = TracerProvider(resource=Resource({}), shutdown_on_exit=False)
    tracers.add_span_processor(_Relay(send))
    providers.install(tracers, Measuring(measured))


def pack(span: ReadableSpan) -> bytes:
    """Return a span for ``unpack``, odd values replaced; ``b""`` if it cannot be told at all."""
    try:
        return _encode(_told(span))
    except BaseException:  # noqa: BLE001 - telemetry breaks no function: who unpacks it counts it
        return b""


def _told(span: ReadableSpan) -> list[Any]:
    assert span.context is not None  # noqa: S101 - on_end has looked
    scope = span.instrumentation_scope
    return [
        text_of(span.name),
        _KINDS.index(span.kind),
        _of(span.context),
        None if span.parent is None else _of(span.parent),
        span.start_time,
        span.end_time,
        [span.status.status_code.value, span.status.description and text_of(span.status.description)],
        plain_attributes(span.attributes),
        [[text_of(event.name), plain_attributes(event.attributes), event.timestamp] for event in span.events],
        [[_of(link.context), plain_attributes(link.attributes)] for link in span.links],
        None if scope is None else [scope.name, scope.version, scope.schema_url],
    ]


def unpack(body: bytes, resource: Resource) -> ReadableSpan:
    """Return a span that another process sent.

    Args:
        body: What it gave to ``send``.
        resource: This component's.

    Raises:
        Exception: It could not tell the span.
    """
    name, kind, own, above, start, end, status, attributes, events, links, scope = _decode(body)
    return ReadableSpan(
        name=name,
        context=parent(*own),
        parent=None if above is None else parent(*above),
        resource=resource,
        attributes=attributes,
        events=[Event(event, told, time) for event, told, time in events],
        links=[Link(parent(*to), told) for to, told in links],
        kind=_KINDS[kind],
        status=Status(StatusCode(status[0]), status[1]),
        start_time=start,
        end_time=end,
        instrumentation_scope=None if scope is None else InstrumentationScope(*scope),
    )
