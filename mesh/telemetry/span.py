"""Our own spans: what a call leaves behind while it runs, as cheap as it can be. Nothing here encodes or sends.

A ``Span`` is a full span of the OpenTelemetry API, so a function's ``trace.get_current_span().set_attribute(…)`` works
on it, and spans that it starts become its children. What is the same for every call of a method is shared and never
copied (``constant``); everything else is left for the thread that exports.
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

from mesh.telemetry.exceptions import event_of
from mesh.trace_context import span_context

if TYPE_CHECKING:
    from mesh.telemetry.recorder import Recorder
    from mesh.trace_context import ParentSpan

__all__ = ["Constant", "Happening", "Span"]

_USUAL_ATTRIBUTES = 64
"""Attributes of its own that a span may have beside the constant ones, for the default limit (128) to be far away."""


class Constant(dict[str, Any]):
    """Attributes that many spans share, never changed: ``mesh.telemetry.otlp_encoder`` encodes them once."""

    __slots__ = ()


class Happening(NamedTuple):
    """An event of a span."""

    name: str
    attributes: Mapping[str, Any]
    time: int
    """Unix time, nanoseconds."""


class Span(ApiSpan):
    """One span, recorded or merely carried.

    Attributes:
        trace_id: 128 bits.
        span_id: 64 bits.
        flags: W3C trace-flags.
        state: The trace state, or None.
        parent: What it is a child of; None for a root.
        name: Its name.
        kind: SERVER or CLIENT.
        constant: Attributes that it shares with every span of its kind; never changed.
        attributes: Its own attributes, or None.
        outcome: Attributes of how it ended, which it shares with every span that ends so; never changed. None until it
            has ended.
        events: What happened, or None.
        links: Links added to it, or None.
        start: Unix time, nanoseconds.
        finish: Unix time, nanoseconds; 0 while it runs.
        status: UNSET, OK or ERROR.
        message: Description of status ERROR.
        dropped: How many attributes, events and links the span limits refused.
    """

    __slots__ = (
        "_context", "_recorder", "_recording", "_tick", "attributes", "constant", "dropped", "events", "finish",
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
        recording: bool,  # noqa: FBT001 - by position: this is the hot path
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
        self.events: list[Happening] | None = None
        self.links: list[tuple[SpanContext, Mapping[str, Any]]] | None = None
        self.status = StatusCode.UNSET
        self.message: str | None = None
        self.dropped = (0, 0, 0)
        self.finish = 0
        self.start = time_ns()
        self._tick = perf_counter_ns()

    # -- for our layers --

    def stop(self) -> float:
        """End the span and return how long it took, seconds; the clock is monotonic, whatever the wall clock did."""
        elapsed = perf_counter_ns() - self._tick
        if not self.finish:
            self.finish = self.start + elapsed
            if self._recording:
                self._recording = False
                self._recorder.finished(self)
        return elapsed / 1e9

    def fail(self, message: str | None) -> None:
        """Set status ERROR, unless the function has set a status of its own."""
        if self.status is StatusCode.UNSET:
            self.status = StatusCode.ERROR
            self.message = message

    def readable(self) -> ReadableSpan:
        """Return it as the SDK's exporters take it; for the thread that exports."""
        return self._recorder.readable(self)

    def within_usual_limits(self) -> bool:
        """Return whether no span limit can cut any of its attributes."""
        return self._recorder.usual_limits and (self.attributes is None or len(self.attributes) <= _USUAL_ATTRIBUTES)

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
        """Return the context that children and links name; made when someone asks."""
        if self._context is None:
            self._context = span_context(self.trace_id, self.span_id, self.flags, self.state, remote=False)
        return self._context

    def is_recording(self) -> bool:
        """Return whether what is set on it will be kept."""
        return self._recording

    def set_attributes(self, attributes: Mapping[str, Any]) -> None:
        """Set several attributes."""
        for key, value in attributes.items():
            self.set_attribute(key, value)

    def set_attribute(self, key: str, value: Any) -> None:
        """Set an attribute; beyond the span limits it is counted and left out."""
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
        """Add an event; beyond the span limits it is counted and left out."""
        if not self._recording:
            return
        if self.events is None:
            self.events = []
        limit = self._recorder.limits.max_events
        if limit is None or len(self.events) < limit:
            self.events.append(Happening(name, dict(attributes or {}), time_ns() if timestamp is None else timestamp))
        else:
            self._drop(events=1)

    def add_link(self, context: SpanContext, attributes: Mapping[str, Any] | None = None) -> None:
        """Link another span; beyond the span limits it is counted and left out."""
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
        """Set the status; as the specification says, OK is final and UNSET changes nothing."""
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
        """Add an event that tells the exception: type, message and traceback."""
        if self._recording:
            self.add_event("exception", event_of(exception) | dict(attributes or {}), timestamp)

    def _drop(self, attributes: int = 0, events: int = 0, links: int = 0) -> None:
        before = self.dropped
        self.dropped = (before[0] + attributes, before[1] + events, before[2] + links)
