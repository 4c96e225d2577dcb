"""Span of a call: a cheap implementation of the OpenTelemetry API's span. It neither encodes nor sends.

A ``Span`` implements the whole API, so a function's ``trace.get_current_span().set_attribute(…)`` works on it, and the
spans that the function starts become its children. Attributes that all calls of a method have are shared and never
copied (``constant``). Conversion is left to the export thread.
"""

from __future__ import annotations

from collections.abc import Mapping
from time import perf_counter_ns, time_ns
from typing import TYPE_CHECKING, Any, NamedTuple

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import Span as ApiSpan
from opentelemetry.trace import SpanContext, SpanKind, StatusCode
from opentelemetry.trace.span import TraceState
from opentelemetry.trace.status import Status

from mesh.telemetry.exceptions import exception_attributes
from mesh.trace_context import span_context

if TYPE_CHECKING:
    from mesh.telemetry.recorder import Recorder
    from mesh.trace_context import ParentSpan

__all__ = ["Constant", "Span", "SpanEvent"]

_SAFE_ATTRIBUTE_COUNT = 64
"""Attributes of a span beside the constant ones up to which the default limit (128) is out of reach."""


class Constant(dict[str, Any]):
    """Immutable attributes that many spans share. ``mesh.telemetry.otlp_encoder`` encodes them once."""

    __slots__ = ()


class SpanEvent(NamedTuple):
    """An event of a span."""

    name: str
    attributes: Mapping[str, Any]
    time: int
    """Unix time, nanoseconds."""


class Span(ApiSpan):
    """One span. It is recorded, or only passes its context on.

    Attributes:
        trace_id: 128 bits.
        span_id: 64 bits.
        flags: W3C trace-flags.
        state: The trace state, or None.
        parent: The parent span, or None for a root.
        name: Its name.
        kind: SERVER or CLIENT.
        constant: Immutable attributes, shared by all spans of a method.
        attributes: Its own attributes, or None.
        outcome: Immutable attributes of the end, shared by all spans of a method with that end. None while it runs.
        events: Its events, or None.
        links: Its links, or None.
        start: Unix time of the start, nanoseconds.
        finish: Unix time of the end, nanoseconds; 0 while it runs.
        status: UNSET, OK or ERROR.
        message: Description of status ERROR.
        dropped: Numbers of attributes, events and links that the span limits refused.
    """

    __slots__ = (
        "_context", "_recorder", "_recording", "_start_tick", "attributes", "constant", "dropped", "events", "finish",
        "flags", "kind", "links", "message", "name", "outcome", "parent", "span_id", "start", "state", "status",
        "trace_id",
    )  # fmt: skip

    def __init__(
        self,
        recorder: Recorder,
        name: str,
        kind: SpanKind,
        constant: Mapping[str, Any],
        trace_id: int,
        span_id: int,
        flags: int,
        state: TraceState | None,
        parent: ParentSpan | None,
        recording: bool,  # noqa: FBT001 - positional for speed: one for each call
    ) -> None:
        self._recorder = recorder
        self._recording = recording
        self._context: SpanContext | None = None
        self.name = name
        self.kind = kind
        self.constant = constant
        self.trace_id = trace_id
        self.span_id = span_id
        self.flags = flags
        self.state = state
        self.parent = parent
        self.attributes: dict[str, Any] | None = None
        self.outcome: Constant | None = None
        self.events: list[SpanEvent] | None = None
        self.links: list[tuple[SpanContext, Mapping[str, Any]]] | None = None
        self.status = StatusCode.UNSET
        self.message: str | None = None
        self.dropped = (0, 0, 0)
        self.finish = 0
        self.start = time_ns()
        self._start_tick = perf_counter_ns()

    # -- for the trace layers --

    def stop(self) -> float:
        """End the span and return its duration, seconds, by the monotonic clock."""
        elapsed = perf_counter_ns() - self._start_tick
        if not self.finish:
            self.finish = self.start + elapsed
            if self._recording:
                self._recording = False
                self._recorder.finished(self)
        return elapsed / 1e9

    def fail(self, message: str | None) -> None:
        """Set status ERROR, unless the function has set a status."""
        if self.status is StatusCode.UNSET:
            self.status = StatusCode.ERROR
            self.message = message

    def readable(self) -> ReadableSpan:
        """Return the span in the SDK's form, for the export thread."""
        return self._recorder.readable(self)

    def within_default_limits(self) -> bool:
        """Whether no span limit can cut any of its attributes."""
        return self._recorder.default_limits and (
            self.attributes is None or len(self.attributes) <= _SAFE_ATTRIBUTE_COUNT
        )

    # -- the API's span --

    def end(self, end_time: int | None = None) -> None:
        """End the span, at ``end_time`` (Unix nanoseconds) if it is given."""
        if end_time is not None and not self.finish:
            self.finish = end_time
            if self._recording:
                self._recording = False
                self._recorder.finished(self)
        else:
            self.stop()

    def get_span_context(self) -> SpanContext:
        """Return the span's context, which is created at the first call."""
        if self._context is None:
            self._context = span_context(self.trace_id, self.span_id, self.flags, self.state, remote=False)
        return self._context

    def is_recording(self) -> bool:
        """Whether the span is recorded."""
        return self._recording

    def set_attributes(self, attributes: Mapping[str, Any]) -> None:
        """Set several attributes."""
        for key, value in attributes.items():
            self.set_attribute(key, value)

    def set_attribute(self, key: str, value: Any) -> None:
        """Set an attribute. Beyond the span limits it is dropped and counted."""
        if not self._recording:
            return
        own = self.attributes
        if own is None:
            own = self.attributes = {}
        limit = self._recorder.limits.max_span_attributes
        if limit is None or len(own) + len(self.constant) < limit or key in own or key in self.constant:
            own[key] = value
        else:
            self._drop(attributes=1)

    def add_event(self, name: str, attributes: Mapping[str, Any] | None = None, timestamp: int | None = None) -> None:
        """Add an event. Beyond the span limits it is dropped and counted."""
        if not self._recording:
            return
        if self.events is None:
            self.events = []
        limit = self._recorder.limits.max_events
        if limit is None or len(self.events) < limit:
            self.events.append(SpanEvent(name, dict(attributes or {}), time_ns() if timestamp is None else timestamp))
        else:
            self._drop(events=1)

    def add_link(self, context: SpanContext, attributes: Mapping[str, Any] | None = None) -> None:
        """Link another span. Beyond the span limits the link is dropped and counted."""
        if not self._recording or not context.is_valid:
            return
        if self.links is None:
            self.links = []
        limit = self._recorder.limits.max_links
        if limit is None or len(self.links) < limit:
            self.links.append((context, dict(attributes or {})))
        else:
            self._drop(links=1)

    def update_name(self, name: str) -> None:
        """Give the span another name."""
        if self._recording:
            self.name = name

    def set_status(self, status: Status | StatusCode, description: str | None = None) -> None:
        """Set the status. By the specification, OK is final and UNSET changes nothing."""
        code = status.status_code if isinstance(status, Status) else status
        if not self._recording or self.status is StatusCode.OK or code is StatusCode.UNSET:
            return
        text = status.description if isinstance(status, Status) else description
        self.status = code
        self.message = text if code is StatusCode.ERROR else None

    def record_exception(
        self,
        exception: BaseException,
        attributes: Mapping[str, Any] | None = None,
        timestamp: int | None = None,
        escaped: bool = False,  # noqa: ARG002, FBT001, FBT002 - the API's signature; deprecated there
    ) -> None:
        """Add an event with the exception's type, message and traceback."""
        if self._recording:
            self.add_event("exception", exception_attributes(exception) | dict(attributes or {}), timestamp)

    def _drop(self, attributes: int = 0, events: int = 0, links: int = 0) -> None:
        before = self.dropped
        self.dropped = (before[0] + attributes, before[1] + events, before[2] + links)
