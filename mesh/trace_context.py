"""W3C trace context: names, limits, parser and writer of ``traceparent``; the span that a header names.

Requests carry ``traceparent``, ``tracestate`` and ``baggage``. Responses carry ``traceresponse``, whose value has the
form of a ``traceparent`` (``mesh.headers``). An event carries the first two as attributes. Everything here is pure.
``mesh.telemetry.propagation`` moves the context of a call between headers and OpenTelemetry.

OpenTelemetry's API is imported by the functions that need it: the checks of the manifest need the names only, and the
import takes about 15 ms.

Source: W3C Trace Context Level 2 (https://www.w3.org/TR/trace-context-2/), W3C Baggage (https://www.w3.org/TR/baggage/).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from opentelemetry.trace import SpanContext
    from opentelemetry.trace.span import TraceState

__all__ = [
    "BAGGAGE", "RANDOM", "REQUEST_HEADERS", "SAMPLED", "TRACEPARENT", "TRACESTATE", "ParentSpan",
    "format_traceparent", "parse_span_context", "parse_traceparent", "span_context",
]  # fmt: skip

TRACEPARENT = b"traceparent"
TRACESTATE = b"tracestate"
BAGGAGE = b"baggage"
REQUEST_HEADERS = frozenset({TRACEPARENT, TRACESTATE, BAGGAGE})

SAMPLED = 0x01
"""Bit of trace-flags: the caller records the trace."""
RANDOM = 0x02
"""Bit of trace-flags: the trace id is random."""

_KNOWN_FLAGS = SAMPLED | RANDOM
_MAX_TRACEPARENT_SIZE = 512
"""Bytes. A longer header is ignored; OpenTelemetry has the same limit."""
_TRACEPARENT = re.compile(rb"[ \t]*([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?:(-.*)|[ \t]*)\Z")


class ParentSpan(NamedTuple):
    """The span of which another span is a child."""

    trace_id: int
    span_id: int
    flags: int
    """W3C trace-flags: ``SAMPLED``, ``RANDOM``."""
    state: TraceState | None
    remote: bool
    """Whether it came from another component."""

    def context(self) -> SpanContext:
        """Return it as OpenTelemetry's API has it."""
        return span_context(self.trace_id, self.span_id, self.flags, self.state, remote=self.remote)


def parse_traceparent(header: bytes) -> ParentSpan | None:
    """Return the span that a ``traceparent`` names, or None if the header is not valid (section 3.2.2)."""
    match = _TRACEPARENT.match(header) if len(header) <= _MAX_TRACEPARENT_SIZE else None
    if match is None:
        return None
    version, trace_id, span_id, flags, more = match.groups()
    if version == b"ff" or (version == b"00" and more):
        return None
    parent = ParentSpan(int(trace_id, 16), int(span_id, 16), int(flags, 16), None, remote=True)
    return parent if parent.trace_id and parent.span_id else None


def format_traceparent(trace_id: int, span_id: int, flags: int) -> bytes:
    """Return the ``traceparent`` of a span. Flags that Level 2 does not define are written as 0 (section 3.2.2.5)."""
    return b"00-%032x-%016x-%02x" % (trace_id, span_id, flags & _KNOWN_FLAGS)


def parse_span_context(traceparent: str, tracestate: str) -> SpanContext | None:
    """Return the span that the two values name, or None if ``traceparent`` is not valid. ``tracestate`` may be ""."""
    parent = parse_traceparent(traceparent.encode("utf-8", "replace"))
    if parent is None:
        return None
    return span_context(parent.trace_id, parent.span_id, parent.flags, tracestate, remote=True)


def span_context(
    trace_id: int, span_id: int, flags: int, state: TraceState | str | None, *, remote: bool
) -> SpanContext:
    """Return a span's context as OpenTelemetry's API has it.

    Args:
        trace_id: 128 bits.
        span_id: 64 bits.
        flags: W3C trace-flags.
        state: The trace state, parsed or as a ``tracestate`` header; None or "" if there is none.
        remote: Whether the span belongs to another component.
    """
    from opentelemetry.trace import SpanContext, TraceFlags, TraceState  # noqa: PLC0415 - see the module's docstring

    if isinstance(state, str):
        state = TraceState.from_header([state]) if state else None
    return SpanContext(trace_id, span_id, remote, TraceFlags(flags), state)
