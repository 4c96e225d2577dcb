"""How batches are sent: as any other session would, only with less work."""

from __future__ import annotations

import pytest
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from requests import ConnectionError as Unreachable
from requests import Session
from telemetry_parts import HttpCollector

from mesh.telemetry.otlp_exporter import RepeatingSession, create_exporter

HEADERS = {"content-type": "application/x-protobuf", "x-key": "k"}


def body(spans: int) -> bytes:
    request = ExportTraceServiceRequest()
    for _ in range(spans):
        request.resource_spans.add().scope_spans.add().spans.add(name="x")
    return request.SerializeToString()


def test_each_request_is_as_another_session_sends_it(collector: HttpCollector) -> None:
    for session in (Session(), RepeatingSession()):
        for spans in (1, 30, 2):
            url = f"{collector.url}/v1/traces"
            answer = session.request("POST", url, headers=HEADERS, data=body(spans), timeout=5, allow_redirects=False)
            assert answer.status_code == 200
        session.close()
    assert [len(request.resource_spans) for request in collector.requests] == [1, 30, 2] * 2
    assert collector.headers[:3] == collector.headers[3:]
    assert collector.headers[0]["x-key"] == "k"


def test_a_proxy_of_the_environment_is_used(collector: HttpCollector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", collector.url)
    monkeypatch.delenv("NO_PROXY", raising=False)
    session = RepeatingSession()
    for spans in (1, 2):
        session.request("POST", "http://collector.invalid/v1/traces", headers=HEADERS, data=body(spans), timeout=5)
    session.close()
    assert [len(request.resource_spans) for request in collector.requests] == [1, 2]


def test_a_collector_that_comes_back_is_reached_again(collector: HttpCollector) -> None:
    session = RepeatingSession()
    url = f"{collector.url}/v1/traces"
    collector.stop()
    with pytest.raises(Unreachable):
        session.request("POST", url, headers=HEADERS, data=body(1), timeout=5)
    again = HttpCollector(collector.server.server_port)
    try:
        session.request("POST", url, headers=HEADERS, data=body(2), timeout=5)
        assert [len(request.resource_spans) for request in again.requests] == [2]
    finally:
        session.close()
        again.stop()


def test_a_provider_of_sessions_comes_first() -> None:
    """The exporter looks for what the variable names, and says that there is no such thing."""
    name = "OTEL_PYTHON_EXPORTER_OTLP_HTTP_TRACES_CREDENTIAL_PROVIDER"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(RuntimeError, match="nowhere"):
        patch.setenv(name, "nowhere")
        create_exporter(OTLPSpanExporter, {name: "nowhere"}, {})
