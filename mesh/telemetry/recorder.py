"""The recorder: starts our spans and hands finished ones to the export, so that they look like the SDK's to a backend.

Sampling, ids, limits and the resource are those of the SDK's ``TracerProvider``, which makes the spans of functions;
here they are only asked in a cheaper way. The default sampler (``parentbased_always_on``) is decided in place; every
other one is asked as the SDK asks it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from opentelemetry import trace
from opentelemetry.attributes import BoundedAttributes
from opentelemetry.context import Context
from opentelemetry.sdk.trace import Event, ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.sdk.trace.sampling import DEFAULT_ON, Decision
from opentelemetry.sdk.util import BoundedList
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, NonRecordingSpan, SpanKind
from opentelemetry.trace.status import Status

from mesh.telemetry.attribute_values import plain_attributes
from mesh.telemetry.exporter_queue import Batch
from mesh.telemetry.span import Span
from mesh.text import text_of
from mesh.trace_context import RANDOM, SAMPLED, ParentSpan

__all__ = ["Recorder"]

_DEFAULT_MOST = 128
"""Attributes that a span may have when nothing is said."""


class Recorder:
    """Starts spans and turns finished ones into the SDK's.

    Args:
        provider: Whose sampler, ids, limits and resource apply.
        batches: Take each finished, sampled span.
        version: Of the instrumentation scope ``mesh``.

    Attributes:
        limits: The span limits (``OTEL_SPAN_*_LIMIT``).
        usual_limits: They are no tighter than the defaults.
    """

    __slots__ = ("_batches", "_ids", "_provider", "_sampler", "_scope", "_simple", "limits", "usual_limits")

    def __init__(self, provider: TracerProvider, batches: Sequence[Batch], version: str) -> None:
        self._provider = provider
        self._sampler = provider.sampler
        self._simple = self._sampler is DEFAULT_ON
        self._ids = provider.id_generator
        self._batches = tuple(batches)
        self._scope = InstrumentationScope("mesh", version)
        self.limits = limits = SpanLimits()
        most = limits.max_span_attributes
        self.usual_limits = limits.max_span_attribute_length is None and (most is None or most >= _DEFAULT_MOST)

    def start(
        self, name: str, kind: SpanKind, constant: Mapping[str, Any], parent: ParentSpan | None, context: Context
    ) -> Span:
        """Start a span.

        Args:
            name: Its name.
            kind: SERVER or CLIENT.
            constant: Attributes that every span of its kind has; not copied.
            parent: What it is a child of.
            context: What came with the parent, for samplers that look at it.
        """
        ids = self._ids
        if parent is None:
            trace_id, flags, state = ids.generate_trace_id(), 0, None
        else:
            # Level 2 of the recommendation: whether the trace id is random is its maker's to say, and passes on.
            trace_id, flags, state = parent.trace_id, parent.flags & RANDOM, parent.state
        own: Mapping[str, Any] | None = None
        if self._simple:
            recording = sampled = parent is None or parent.flags & SAMPLED == SAMPLED
        else:
            if parent is not None:
                context = trace.set_span_in_context(NonRecordingSpan(parent.context()), context)
            result = self._sampler.should_sample(context, trace_id, name, kind, constant)
            sampled = result.decision is Decision.RECORD_AND_SAMPLE
            recording = result.decision is not Decision.DROP
            state = result.trace_state or None
            own = result.attributes
        if sampled:
            flags |= SAMPLED
        span = Span(self, name, kind, constant, trace_id, ids.generate_span_id(), flags, state, parent, recording)
        if own and len(own) != len(constant):
            span.attributes = {key: value for key, value in own.items() if key not in constant}
        return span

    def finished(self, span: Span) -> None:
        """Take a span that has ended."""
        if span.flags & SAMPLED:
            for batch in self._batches:
                batch.put(span)

    def readable(self, span: Span) -> ReadableSpan:
        """Return the span as the SDK's exporters take it; for the thread that exports."""
        limits = self.limits
        dropped_attributes, dropped_events, dropped_links = span.dropped
        own = plain_attributes({**span.constant, **(span.attributes or {}), **(span.outcome or {})})
        attributes = BoundedAttributes(
            limits.max_span_attributes, own, immutable=True, max_value_len=limits.max_span_attribute_length
        )
        attributes.dropped += dropped_attributes
        events: Any = ()
        if span.events or dropped_events:
            events = BoundedList(limits.max_events)
            for name, told, time in span.events or ():
                events.append(Event(text_of(name), self._bounded(told, limits.max_event_attributes), time))
            events.dropped += dropped_events
        links: Any = ()
        if span.links or dropped_links:
            links = BoundedList(limits.max_links)
            for to, told in span.links or ():
                links.append(Link(to, self._bounded(told, limits.max_link_attributes)))
            links.dropped += dropped_links
        return ReadableSpan(
            name=text_of(span.name),
            context=span.get_span_context(),
            parent=None if span.parent is None else span.parent.context(),
            resource=self._provider.resource,
            attributes=attributes,
            events=events,
            links=links,
            kind=span.kind,
            status=Status(span.status, span.message and text_of(span.message)),
            start_time=span.start,
            end_time=span.finish,
            instrumentation_scope=self._scope,
        )

    def _bounded(self, attributes: Mapping[str, Any], limit: int | None) -> BoundedAttributes:
        return BoundedAttributes(limit, plain_attributes(attributes), max_value_len=self.limits.max_attribute_length)
