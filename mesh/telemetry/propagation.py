"""Context propagation: reads and writes trace context and baggage in the metadata of calls.

There is a fast path for the usual case: no ``tracestate``, no ``baggage``, and the default propagators. It makes no
object in between. Everything else goes through the propagators that OpenTelemetry's API has configured
(``OTEL_PROPAGATORS``), by their rules.
"""

from __future__ import annotations

from enum import Enum

from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.propagators.textmap import Getter, Setter
from opentelemetry.trace import SpanContext

from mesh.call import Metadata
from mesh.telemetry.span import Span
from mesh.trace_context import (
    BAGGAGE,
    REQUEST_HEADERS,
    TRACEPARENT,
    TRACESTATE,
    ParentSpan,
    format_traceparent,
    parse_traceparent,
)

__all__ = ["CallerTrace", "Propagation", "header_names", "parent_of", "with_span"]

_EMPTY = Context()
_SPAN_KEY = next(iter(trace.set_span_in_context(trace.INVALID_SPAN, _EMPTY)))
"""Key of the span in a context. The API has it in a private name only."""


def header_names() -> frozenset[bytes]:
    """Return the lower-case names of the headers that the configured propagators read and write."""
    return frozenset(field.lower().encode() for field in propagate.get_global_textmap().fields)


def parent_of(context: Context | None) -> ParentSpan | None:
    """Return the span of a context (None: the current context) as a parent, or None if there is no span."""
    span = None if context is None else context.get(_SPAN_KEY)
    if not isinstance(span, Span):
        span = trace.get_current_span(context)
    if isinstance(span, Span):
        return ParentSpan(span.trace_id, span.span_id, span.flags, span.state, remote=False)
    found = span.get_span_context()
    if not found.is_valid:
        return None
    return ParentSpan(found.trace_id, found.span_id, int(found.trace_flags), found.trace_state or None, found.is_remote)


def with_span(span: Span, context: Context) -> Context:
    """Return a context with the span in place of its own (``opentelemetry.trace.set_span_in_context``, faster)."""
    return Context({**context, _SPAN_KEY: span})


class _WireGetter(Getter[Metadata]):
    def get(self, carrier: Metadata, key: str) -> list[str] | None:
        wanted = key.lower().encode()
        found = [value.decode("latin-1") for name, value in carrier.pairs if name == wanted]
        return found or None

    def keys(self, carrier: Metadata) -> list[str]:
        return [name.decode("latin-1") for name, _ in carrier.pairs]


class _WireSetter(Setter[Metadata]):
    def set(self, carrier: Metadata, key: str, value: str) -> None:
        carrier.append(key.lower().encode("latin-1"), value.encode("latin-1", "replace"))


_GETTER = _WireGetter()
_SETTER = _WireSetter()


class CallerTrace(Enum):
    """Meaning of the trace context of a caller.

    The sampled flag of a caller who is not trusted must not decide which calls are traced, and its trace id must not
    put spans into traces of others (W3C Trace Context, 4.3 and 6: restarting a trace at a trust boundary).
    """

    TRUST = "trust"
    """The call continues the caller's trace, with its sampled flag and baggage."""
    LINK = "link"
    """The call begins a trace of its own, which has a link to the caller's span."""
    RESTART = "restart"
    """The call begins a trace of its own. The caller's context is ignored."""


class Propagation:
    """Propagates the context of calls with the propagators that ``OTEL_PROPAGATORS`` names.

    Args:
        callers: Meaning of the trace context of callers.

    Attributes:
        links: Whether ``caller_span`` is to be linked.
    """

    __slots__ = ("_propagator", "_trusts", "_w3c_only", "links")

    def __init__(self, callers: CallerTrace = CallerTrace.TRUST) -> None:
        self._propagator = propagate.get_global_textmap()
        self._w3c_only = {TRACEPARENT, TRACESTATE} <= header_names() <= REQUEST_HEADERS
        self._trusts = callers is CallerTrace.TRUST
        self.links = callers is CallerTrace.LINK

    def extract(self, metadata: Metadata) -> tuple[ParentSpan | None, Context]:
        """Return the caller's span, or None if it names no valid one, and the rest of its context (baggage).

        Of callers who are not trusted nothing is returned.
        """
        if not self._trusts:
            return None, _EMPTY
        fields = metadata.fields
        if self._w3c_only and TRACESTATE not in fields and BAGGAGE not in fields:
            header = fields.get(TRACEPARENT)
            return (None if header is None else parse_traceparent(header)), _EMPTY
        context = self.context(metadata)
        return parent_of(context), context

    def caller_span(self, metadata: Metadata) -> SpanContext | None:
        """Return the span that a caller names, whether it is trusted or not; None if it names no valid one."""
        fields = metadata.fields
        if self._w3c_only and TRACESTATE not in fields:  # baggage says nothing of the span
            header = fields.get(TRACEPARENT)
            parent = None if header is None else parse_traceparent(header)
            return None if parent is None else parent.context()
        found = trace.get_current_span(self._read(metadata)).get_span_context()
        return found if found.is_valid else None

    def context(self, metadata: Metadata) -> Context:
        """Return the caller's context as OpenTelemetry's API has it; an empty one of callers who are not trusted."""
        return self._read(metadata) if self._trusts else _EMPTY

    def _read(self, metadata: Metadata) -> Context:
        return self._propagator.extract(metadata, context=Context(), getter=_GETTER)

    def inject(self, span: Span, context: Context, metadata: Metadata) -> None:
        """Write the span, and the baggage of ``context`` (in which the span is current), into the metadata."""
        if self._w3c_only and span.state is None and len(context) == 1:
            metadata.append(TRACEPARENT, format_traceparent(span.trace_id, span.span_id, span.flags))
        else:
            self._propagator.inject(metadata, context=context, setter=_SETTER)

    def forward(self, metadata: Metadata) -> None:
        """Write the current context into the metadata, without a new span."""
        self._propagator.inject(metadata, setter=_SETTER)
