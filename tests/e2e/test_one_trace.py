"""One registration over HTTP is one trace, received by a real OTLP collector; without the collector, calls go on."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from mesh_process import ROOT, Mesh, http, sample
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from telemetry_parts import GrpcCollector, HttpCollector, Spans

USER = {"name": "traced", "email": "traced@example.com", "password": "correct horse battery"}


def spans_of(collector: Spans, trace: str, enough: Callable[[list[Span]], bool]) -> list[tuple[str, Span]]:
    """Wait until what a trace should hold has been exported; gives (service.name, span)."""
    until = time.monotonic() + 30
    while True:
        found = [
            (service.value.string_value, span)
            for request in list(collector.requests)
            for resource in request.resource_spans
            for service in resource.resource.attributes
            if service.key == "service.name"
            for scope in resource.scope_spans
            for span in scope.spans
            if span.trace_id.hex() == trace
        ]
        if enough([span for _, span in found]) or time.monotonic() > until:
            return found
        time.sleep(0.05)  # exports come when a batch is due


@pytest.mark.parametrize(("kind", "protocol"), [(HttpCollector, "http/protobuf"), (GrpcCollector, "grpc")])
def test_one_registration_is_one_trace(tmp_path: Path, kind: type[GrpcCollector], protocol: str) -> None:
    collector = kind()
    mesh = sample(
        tmp_path / "state",
        OTEL_EXPORTER_OTLP_ENDPOINT=collector.url,
        OTEL_EXPORTER_OTLP_PROTOCOL=protocol,
        OTEL_BSP_SCHEDULE_DELAY="200",
        OTEL_METRICS_EXPORTER="none",
    )
    try:
        mesh.ready()
        answer = http(f"{mesh.edge}/v1/users", "POST", USER)
        assert answer.status == 200, answer
        trace = answer.headers["x-trace-id"]
        found = spans_of(
            collector,
            trace,
            lambda spans: (
                {span.kind for span in spans} >= {Span.SPAN_KIND_SERVER, Span.SPAN_KIND_CLIENT}
                and sum(not span.parent_span_id for span in spans) == 1
            ),
        )
        by_id = {span.span_id: (service, span) for service, span in found}
        [root] = [span for _, span in found if not span.parent_span_id]
        assert (by_id[root.span_id][0], root.name, root.kind) == ("edge", "POST /v1/users", Span.SPAN_KIND_SERVER)

        def one(service: str, name: str, kind: int) -> Span:
            [match] = [s for owner, s in found if (owner, s.name, s.kind) == (service, name, kind)]
            return match

        register = "registration.v1.Registration/Register"
        set_credential = "login.v1.Login/SetCredential"
        call = one("edge", register, Span.SPAN_KIND_CLIENT)
        server = one("registration", register, Span.SPAN_KIND_SERVER)
        onward = one("registration", set_credential, Span.SPAN_KIND_CLIENT)
        inner = one("login", set_credential, Span.SPAN_KIND_SERVER)
        assert call.parent_span_id == root.span_id
        assert server.parent_span_id == call.span_id
        assert onward.parent_span_id == server.span_id
        assert inner.parent_span_id == onward.span_id
        for owner, parent in (("registration", server), ("login", inner)):
            statements = [
                span
                for service, span in found
                if service == owner and any(pair.key == "db.system.name" for pair in span.attributes)
            ]
            assert statements, f"{owner} shows no database"
            for statement in statements:
                at = statement
                while at.span_id != parent.span_id:
                    assert at.parent_span_id in by_id, f"{statement.name} has no parent in the trace"
                    at = by_id[at.parent_span_id][1]
        assert all(span.parent_span_id in by_id for _, span in found if span.parent_span_id)

        collector.stop()
        for index in range(5):
            user = {**USER, "name": f"untraced{index}", "email": f"untraced{index}@example.com"}
            assert http(f"{mesh.edge}/v1/users", "POST", user).status == 200
    finally:
        assert mesh.stop() == 0, mesh.output()


def test_variables_that_cannot_be_used_keep_no_mesh_from_starting(tmp_path: Path) -> None:
    environ = {
        "OTEL_TRACES_EXPORTER": "jaeger", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/json", "OTEL_PROPAGATORS": "b4",
        "OTEL_SPAN_EVENT_COUNT_LIMIT": "many", "OTEL_METRIC_EXPORT_INTERVAL": "0", "OTEL_EXPORTER_OTLP_TIMEOUT": "1s",
    }  # fmt: skip
    mesh = sample(tmp_path / "state", **environ)
    try:
        mesh.ready()
        assert http(f"{mesh.edge}/v1/users", "POST", USER).status == 200
    finally:
        mesh.stop()
    said = mesh.output()
    assert {name: said.count(name) for name in environ} == dict.fromkeys(environ, 1), said
    assert "Traceback" not in said


def test_mesh_trace_prints_it_as_a_tree(mesh: Mesh) -> None:
    user = {**USER, "name": "shown", "email": "shown@example.com"}
    trace = http(f"{mesh.edge}/v1/users", "POST", user).headers["x-trace-id"]
    until = time.monotonic() + 30
    while True:
        shown = subprocess.run(
            [sys.executable, "-m", "mesh", "trace", trace, "--file", "mesh.toml"],
            capture_output=True, text=True, check=False, cwd=ROOT,
            env={"PATH": "/usr/bin:/bin", "MESH_STATE": str(mesh.state)},
        )  # fmt: skip
        lines = shown.stdout.splitlines()
        if "SetCredential" in shown.stdout and "POST /v1/users" in shown.stdout:
            break
        assert time.monotonic() < until, shown
    assert trace in lines[0]
    order = [next(i for i, line in enumerate(lines) if text in line) for text in ("POST /v1/users", "SetCredential")]
    assert order == sorted(order)
