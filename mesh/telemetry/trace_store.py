"""In-memory trace store: keeps the last traces for ``mesh up`` when no collector is configured.

It is bounded by spans and by bytes. The trace that got a span least recently is evicted first.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

__all__ = ["Store"]

_KINDS = {1: "internal", 2: "server", 3: "client", 4: "producer", 5: "consumer"}
_SPAN_OVERHEAD_BYTES = 600
"""Approximate memory of a span beyond its size on the wire."""
COMPLETE_AFTER_NS = 5 * 10**9
"""Nanoseconds after the end of its last span from which a trace counts as complete."""


class _StoredTrace:
    __slots__ = ("size", "spans")

    def __init__(self) -> None:
        self.spans: dict[str, dict[str, Any]] = {}
        self.size = 0


class Store:
    """Traces by id.

    Args:
        max_spans: Largest number of spans, of all traces together.
        max_bytes: Largest memory of all spans, approximately.

    Attributes:
        spans: Number of spans in the store.
        size: Their memory, approximately, bytes.
    """

    def __init__(self, max_spans: int = 20_000, max_bytes: int = 64 * 2**20) -> None:
        self.max_spans = max_spans
        self.max_bytes = max_bytes
        self.spans = 0
        self.size = 0
        self._traces: dict[str, _StoredTrace] = {}

    def add(self, request: ExportTraceServiceRequest) -> int:
        """Store the request's spans. Return the number of those that were refused because their ids are not valid."""
        refused = 0
        for resource_spans in request.resource_spans:
            resource = _attributes(resource_spans.resource.attributes)
            service = str(resource.get("service.name", ""))
            for scope_spans in resource_spans.scope_spans:
                for span in scope_spans.spans:
                    if len(span.trace_id) == 16 and len(span.span_id) == 8:  # noqa: PLR2004 - bytes (W3C)
                        self._add(span, service, scope_spans.scope.name)
                    else:
                        refused += 1
        self._evict()
        return refused

    def traces(self, limit: int = 50) -> list[dict[str, Any]]:
        """Return summaries, the latest start first: id, name, service, start, duration (ns), number of spans, error."""
        summaries = (_summary(trace_id, list(trace.spans.values())) for trace_id, trace in self._traces.items())
        return sorted(summaries, key=lambda summary: summary["start"], reverse=True)[:limit]

    def find(self, prefix: str) -> list[str]:
        """Return the ids that begin with ``prefix``."""
        prefix = prefix.lower()
        return [prefix] if prefix in self._traces else [one for one in self._traces if one.startswith(prefix)]

    def trace(self, trace_id: str) -> dict[str, Any] | None:
        """Return a trace as JSON values (see ``mesh.telemetry.trace_tree``), its spans sorted by start, or None.

        ``from`` has summaries of the traces that it links to, such as that of the call that published an event. ``to``
        has summaries of the traces that link to it, such as those of the event's deliveries.
        """
        trace = self._traces.get(trace_id)
        if trace is None:
            return None
        sources = _linked(trace)
        return {
            "trace_id": trace_id,
            "spans": sorted(trace.spans.values(), key=lambda span: span["start"]),
            "from": self._summaries(other for other in self._traces if other in sources and other != trace_id),
            "to": self._summaries(
                other for other, one in self._traces.items() if other != trace_id and trace_id in _linked(one)
            ),
        }

    def is_complete(self, prefix: str, now: int) -> bool:
        """Whether the only trace whose id begins with ``prefix`` has all spans that can be expected.

        Components export independently of each other. A trace is complete when it has the parent of every span and a
        child of every client span that did not fail. It also counts as complete ``COMPLETE_AFTER_NS`` after its end:
        the caller of its first span, or the callee of its last, exports elsewhere or nowhere.

        Args:
            prefix: Beginning of its id.
            now: Unix time, nanoseconds.
        """
        found = self.find(prefix)
        if len(found) != 1:
            return False
        spans = self._traces[found[0]].spans
        if now - max(span["end"] for span in spans.values()) > COMPLETE_AFTER_NS:
            return True
        parents = {span["parent_id"] for span in spans.values()}
        return parents - {None} <= spans.keys() and all(
            span["error"] or span["kind"] != "client" or span_id in parents for span_id, span in spans.items()
        )

    def _summaries(self, traces: Iterable[str]) -> list[dict[str, Any]]:
        found = (_summary(trace_id, list(self._traces[trace_id].spans.values())) for trace_id in traces)
        return sorted(found, key=lambda summary: summary["start"])

    def _add(self, span: Span, service: str, scope: str) -> None:
        trace_id, span_id = span.trace_id.hex(), span.span_id.hex()
        # Removed and inserted, so that the dict is in the order of the last new span.
        trace = self._traces.pop(trace_id, None) or _StoredTrace()
        self._traces[trace_id] = trace
        if span_id not in trace.spans:  # a retried export has the same spans
            self.spans += 1
            size = span.ByteSize() + _SPAN_OVERHEAD_BYTES
            trace.size += size
            self.size += size
        trace.spans[span_id] = _span(span, service, scope)

    def _evict(self) -> None:
        while self._traces and (self.spans > self.max_spans or self.size > self.max_bytes):
            oldest = self._traces.pop(next(iter(self._traces)))
            self.spans -= len(oldest.spans)
            self.size -= oldest.size


def _span(span: Span, service: str, scope: str) -> dict[str, Any]:
    return {
        "span_id": span.span_id.hex(),
        "parent_id": span.parent_span_id.hex() or None,
        "name": span.name,
        "kind": _KINDS.get(span.kind, "internal"),
        "service": service,
        "scope": scope,
        "start": span.start_time_unix_nano,
        "end": span.end_time_unix_nano,
        "error": span.status.code == Status.STATUS_CODE_ERROR,
        "message": span.status.message,
        "attributes": _attributes(span.attributes),
        "events": [
            {"name": event.name, "time": event.time_unix_nano, "attributes": _attributes(event.attributes)}
            for event in span.events
        ],
        "links": [{"trace_id": link.trace_id.hex(), "span_id": link.span_id.hex()} for link in span.links],
    }


def _linked(trace: _StoredTrace) -> set[str]:
    return {link["trace_id"] for span in trace.spans.values() for link in span["links"]}


def _summary(trace_id: str, spans: list[dict[str, Any]]) -> dict[str, Any]:
    known = {span["span_id"] for span in spans}
    first = min(spans, key=lambda span: (span["parent_id"] in known, span["parent_id"] is not None, span["start"]))
    start = min(span["start"] for span in spans)
    return {
        "trace_id": trace_id,
        "name": first["name"],
        "service": first["service"],
        "start": start,
        "duration": max(span["end"] for span in spans) - start,
        "spans": len(spans),
        "error": any(span["error"] for span in spans),
    }


def _attributes(pairs: Iterable[KeyValue]) -> dict[str, Any]:
    return dict(_values(pairs))


def _values(pairs: Iterable[KeyValue]) -> Iterator[tuple[str, Any]]:
    for pair in pairs:
        yield pair.key, _value(pair.value)


def _value(value: AnyValue) -> Any:
    match value.WhichOneof("value"):
        case None:
            return None
        case "array_value":
            return [_value(item) for item in value.array_value.values]
        case "kvlist_value":
            return _attributes(value.kvlist_value.values)
        case "bytes_value":
            return value.bytes_value.hex()
        case kind:
            return getattr(value, kind)
