"""Senders of encoded OTLP bytes through the standard exporters, which keep their connections, retries and settings.

The exporters have no public method for encoded spans, so this module uses private ones, of the versions that the tests
ran with. For any other exporter or version ``sender`` returns None. The spans then go through the public method, which
is slower and has the same result. The session of an exporter is passed to it publicly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from requests import PreparedRequest, Request, Response, Session

__all__ = ["RepeatingSession", "create_exporter", "sender"]

_HTTP = "opentelemetry.exporter.otlp.proto.http.trace_exporter"
_GRPC = "opentelemetry.exporter.otlp.proto.grpc.trace_exporter"
_CREDENTIALS = "OTEL_PYTHON_EXPORTER_OTLP_HTTP_{}CREDENTIAL_PROVIDER"
"""Variables that name another source of the session."""
_EXPECTED = {"headers", "data", "timeout", "allow_redirects"}
"""Arguments that exporters pass to a session with each request."""


def create_exporter(cls: Any, environ: Mapping[str, str], values: Mapping[str, Any]) -> Any:
    """Return a new exporter, with a ``RepeatingSession`` if it takes a session and the environment names none.

    Args:
        cls: Its class.
        environ: The environment.
        values: Arguments that the class would read from the environment otherwise than specified.
    """
    own_session = any(environ.get(_CREDENTIALS.format(signal)) for signal in ("", "TRACES_"))
    if cls.__module__ == _HTTP and not own_session:
        return cls(session=RepeatingSession(), **values)
    return cls(**values)


def sender(exporter: SpanExporter) -> Callable[[bytes], bool] | None:
    """Return the function that sends a serialized ``ExportTraceServiceRequest`` and returns its success, or None."""
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


class RepeatingSession(Session):
    """HTTP session for requests that differ in their body only, as those of exporters do.

    Method, URL, headers, proxies and certificates are determined once, with the first request. An ordinary session
    determines them each time, from the environment too. That is half of the cost of sending a batch of spans.
    """

    def __init__(self) -> None:
        super().__init__()
        self._first: tuple[PreparedRequest, Mapping[str, Any]] | None = None

    def request(self, method: Any, url: Any, *args: Any, **options: Any) -> Response:
        """Send the request. Only ``data``, ``timeout`` and ``allow_redirects`` may differ from the first one."""
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
