"""How bytes that are already OTLP get into the standard exporters, which keep their connections, retries and settings.

The exporters have no public way in for encoded spans. This module is the only one that knows their inside, and it knows
it for the versions that the tests ran with: for any other exporter or version ``sender`` returns None, and spans go in
by the public way, slower and no different. The session that they send with is given to them, by the public way too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from requests import PreparedRequest, Request, Response, Session

__all__ = ["Repeating", "made", "sender"]

_HTTP = "opentelemetry.exporter.otlp.proto.http.trace_exporter"
_GRPC = "opentelemetry.exporter.otlp.proto.grpc.trace_exporter"
_CREDENTIALS = "OTEL_PYTHON_EXPORTER_OTLP_HTTP_{}CREDENTIAL_PROVIDER"
"""Names what makes the session instead."""
_EXPECTED = {"headers", "data", "timeout", "allow_redirects"}
"""What exporters give to a session with each request."""


def made(cls: Any, environ: Mapping[str, str], values: Mapping[str, Any]) -> Any:
    """Return an exporter as the environment says, with a ``Repeating`` session if it takes one and none is named.

    Args:
        cls: Its class.
        environ: The environment.
        values: What the class would read from the environment in another way than the specification says.
    """
    own_session = any(environ.get(_CREDENTIALS.format(signal)) for signal in ("", "TRACES_"))
    if cls.__module__ == _HTTP and not own_session:
        return cls(session=Repeating(), **values)
    return cls(**values)


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


class Repeating(Session):
    """A session that sends one request again and again, with another body: as exporters do.

    Method, URL, headers, proxies and certificates are settled the first time. Other sessions settle them each time,
    from the environment too, which is half of what it takes to send a batch of spans.
    """

    def __init__(self) -> None:
        super().__init__()
        self._first: tuple[PreparedRequest, Mapping[str, Any]] | None = None

    def request(self, method: Any, url: Any, *args: Any, **options: Any) -> Response:
        """Send the request; only ``data``, ``timeout`` and ``allow_redirects`` may differ from the first."""
        body, timeout = options.get("data"), options.get("timeout")
        if args or not isinstance(body, bytes) or not options.keys() <= _EXPECTED or self.cookies:
            return super().request(method, url, *args, **options)
        if self._first is None:
            request = self.prepare_request(Request(method, url, headers=options.get("headers"), data=body))
            self._first = request, self.merge_environment_settings(url, {}, None, None, None)
        request, settings = self._first
        request = request.copy()
        request.prepare_body(body, None)
        return self.send(request, timeout=timeout, allow_redirects=options.get("allow_redirects", True), **settings)
