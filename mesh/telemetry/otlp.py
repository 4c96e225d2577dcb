"""How bytes that are already OTLP get into the standard exporters, which keep their connections, retries and settings.

The exporters have no public way in for encoded spans. This module is the only one that knows their inside, and it knows
it for the versions that the tests ran with: for any other exporter or version ``sender`` returns None, and spans go in
by the public way, slower and no different.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

__all__ = ["sender"]

_HTTP = "opentelemetry.exporter.otlp.proto.http.trace_exporter"
_GRPC = "opentelemetry.exporter.otlp.proto.grpc.trace_exporter"


def sender(exporter: SpanExporter) -> Callable[[bytes], bool] | None:
    """Return what sends a serialized ``ExportTraceServiceRequest`` and says whether it arrived; or None."""
    inside: Any = exporter
    module = type(exporter).__module__
    client = getattr(exporter, "_client", None)
    if module == _HTTP and callable(getattr(client, "export", None)):

        def over_http(body: bytes) -> bool:
            return bool(inside._client.export(body).success)  # noqa: SLF001 - see above

        return over_http
    if module == _GRPC and callable(getattr(exporter, "_translate_data", None)):
        inside._translate_data = ExportTraceServiceRequest.FromString  # noqa: SLF001 - see above

        def over_grpc(body: bytes) -> bool:
            return inside.export(body) is SpanExportResult.SUCCESS

        return over_grpc
    return None
