"""Span recorder: starts the spans of calls, and passes finished ones to the export queues.

Sampling, ids, limits and the resource are those of the SDK's ``TracerProvider``, which also creates the spans of
functions. So a backend sees no difference. The default sampler (``parentbased_always_on``) is computed inline, which is
cheaper. Every other sampler is called as the SDK calls it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import getrandbits
from typing import Any

from opentelemetry import trace
from opentelemetry.attributes import BoundedAttributes
from opentelemetry.context import Context
from opentelemetry.sdk.trace import Event, ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import DEFAULT_ON, Decision
from opentelemetry.sdk.util import BoundedList
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, NonRecordingSpan, SpanKind
from opentelemetry.trace.status import Status

from mesh.telemetry.attribute_values import plain_attributes
from mesh.telemetry.exporter_queue import ExporterQueue
from mesh.telemetry.span import Span
from mesh.text import text_of
from mesh.trace_context import RANDOM, SAMPLED, ParentSpan

__all__ = ["Recorder"]

_DEFAULT_ATTRIBUTE_COUNT = 128
"""Default limit of the attributes of a span."""


class Recorder:
    """Starts spans, and converts finished ones to the SDK's.

    Args:
        provider: The provider whose sampler, ids, limits and resource apply.
        queues: The queues that get each finished, sampled span.
        version: Version of the instrumentation scope ``mesh``.

    Attributes:
        limits: The span limits (``OTEL_SPAN_*_LIMIT``).
        default_limits: Whether the limits are no tighter than the defaults.
    """

    __slots__ = (
        "_ids",
        "_provider",
        "_queues",
        "_random_ids",
        "_sampler",
        "_scope",
        "_simple",
        "default_limits",
        "limits",
    )

    def __init__(self, provider: TracerProvider, queues: Sequence[ExporterQueue], version: str) -> None:
        self._provider = provider
        self._sampler = provider.sampler
        self._simple = self._sampler is DEFAULT_ON
        self._ids = provider.id_generator
        self._random_ids = type(self._ids) is RandomIdGenerator
        self._queues = tuple(queues)
        self._scope = InstrumentationScope("mesh", version)
        self.limits = limits = SpanLimits()
        most = limits.max_span_attributes
        self.default_limits = limits.max_span_attribute_length is None and (
            most is None or most >= _DEFAULT_ATTRIBUTE_COUNT
        )

    def start(
        self, name: str, kind: SpanKind, constant: Mapping[str, Any], parent: ParentSpan | None, context: Context
    ) -> Span:
        """Start a span.

        Args:
            name: Its name.
            kind: SERVER or CLIENT.
            constant: Attributes that every span of its kind has. They are not copied.
            parent: The parent span, or None for a root.
            context: The rest of the parent's context, for samplers that read it.
        """
        ids = self._ids
        if parent is None:
            trace_id, flags, state = ids.generate_trace_id(), 0, None
        else:
            # Trace Context Level 2: the creator of the trace id says whether it is random, and the flag is passed on.
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
        span_id = (getrandbits(64) or 1) if self._random_ids else ids.generate_span_id()
        span = Span(self, name, kind, constant, trace_id, span_id, flags, state, parent, recording)
        if own and len(own) != len(constant):
            span.attributes = {key: value for key, value in own.items() if key not in constant}
        return span

    def finished(self, span: Span) -> None:
        """Put a finished span into the queues, if it is sampled."""
        if span.flags & SAMPLED:
            for queue in self._queues:
                queue.put(span)

    def readable(self, span: Span) -> ReadableSpan:
        """Return the span in the SDK's form, for the export thread."""
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
            for name, event_attributes, time in span.events or ():
                events.append(Event(text_of(name), self._bounded(event_attributes, limits.max_event_attributes), time))
            events.dropped += dropped_events
        links: Any = ()
        if span.links or dropped_links:
            links = BoundedList(limits.max_links)
            for to, link_attributes in span.links or ():
                links.append(Link(to, self._bounded(link_attributes, limits.max_link_attributes)))
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
