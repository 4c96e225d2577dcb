"""W3C context in and out of a call's metadata.

The usual case (a ``traceparent`` and nothing else, propagators as they are by default) is read and written here without
an object in between; everything else (``tracestate``, ``baggage``, other ``OTEL_PROPAGATORS``) goes through the
propagators that OpenTelemetry's API has configured, so their rules are theirs.

Source: W3C Trace Context (https://www.w3.org/TR/trace-context/), W3C Baggage.
"""

from __future__ import annotations

import re

from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.propagators.textmap import Getter, Setter

from mesh.call import Metadata
from mesh.telemetry.span import Parent, Span

__all__ = ["Propagation", "parse_traceparent"]

_TRACEPARENT = re.compile(rb"[ \t]*([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?:(-.*)|[ \t]*)\Z")
_LONGEST = 512
"""Bytes of a traceparent header beyond which it is not looked at; OpenTelemetry's own limit."""
_EMPTY = Context()
_SAMPLED_AND_RANDOM = 0x03


def parse_traceparent(header: bytes) -> Parent | None:
    """Return what a ``traceparent`` names, or None if it is not valid (section 3.2.2 of the recommendation)."""
    match = _TRACEPARENT.match(header) if len(header) <= _LONGEST else None
    if match is None:
        return None
    version, trace_id, span_id, flags, more = match.groups()
    if version == b"ff" or (version == b"00" and more):
        return None
    parent = Parent(int(trace_id, 16), int(span_id, 16), int(flags, 16), None, remote=True)
    return parent if parent.trace_id and parent.span_id else None


def parent_of(context: Context | None) -> Parent | None:
    """Return the span of an OpenTelemetry context (None: the current one) as a parent, or None if it has none."""
    span = trace.get_current_span(context)
    if isinstance(span, Span):
        return Parent(span.trace_id, span.span_id, span.flags, span.state, remote=False)
    found = span.get_span_context()
    if not found.is_valid:
        return None
    return Parent(found.trace_id, found.span_id, int(found.trace_flags), found.trace_state or None, found.is_remote)


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


class Propagation:
    """Reads and writes the context of calls as ``OTEL_PROPAGATORS`` says."""

    __slots__ = ("_propagator", "_usual")

    def __init__(self) -> None:
        self._propagator = propagate.get_global_textmap()
        fields = self._propagator.fields
        self._usual = {"traceparent", "tracestate"} <= fields <= {"traceparent", "tracestate", "baggage"}

    def extract(self, metadata: Metadata) -> tuple[Parent | None, Context]:
        """Return the caller's span, if it names a valid one, and the context (baggage) that comes with it."""
        wire = metadata.wire
        if self._usual and wire(b"tracestate") is None and wire(b"baggage") is None:
            header = wire(b"traceparent")
            return (None if header is None else parse_traceparent(header)), _EMPTY
        context = self.context(metadata)
        return parent_of(context), context

    def context(self, metadata: Metadata) -> Context:
        """Return the caller's context in the API's terms."""
        return self._propagator.extract(metadata, context=Context(), getter=_GETTER)

    def inject(self, span: Span, context: Context, metadata: Metadata) -> None:
        """Write the span, and the baggage of ``context`` (in which the span is current), into the metadata."""
        if self._usual and span.state is None and len(context) == 1:
            metadata.append(b"traceparent", traceparent(span))
        else:
            self._propagator.inject(metadata, context=context, setter=_SETTER)

    def forward(self, metadata: Metadata) -> None:
        """Write the current context into the metadata, without a span of our own."""
        self._propagator.inject(metadata, setter=_SETTER)


def traceparent(span: Span) -> bytes:
    """Return the ``traceparent`` that names the span."""
    return b"00-%032x-%016x-%02x" % (span.trace_id, span.span_id, span.flags & _SAMPLED_AND_RANDOM)
