"""Functions in the sidecar's process and in a worker, where each test has telemetry of its own."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import grpc
import pytest
from conformance.v1 import conformance_pb2 as pb
from conformance.v1 import conformance_pb2_grpc
from hosting import pool_of, working
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, NumberDataPoint
from test_inside import PLACES, running

from mesh.contract.model import Contract
from mesh.telemetry.logs import JsonFormatter
from mesh.telemetry.worker_metrics import MeasurementRecorder


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "none")
    return str(request.param)


@pytest.mark.parametrize("disabled", ["false", "true"])
async def test_a_stub_carries_the_caller_s_baggage(
    place: str, contract: Contract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, disabled: str
) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", disabled)
    async with running(place, contract, tmp_path) as inside:
        for method in ("Idempotent", "Slow", "ServerStream"):
            carried = []
            for metadata in ([("baggage", "tenant=blue,plan=a%20b")], []):
                call = getattr(inside.stub, method)(pb.EchoRequest(text="hello"), timeout=5, metadata=metadata)
                if method == "ServerStream":  # calls on without a span of its own
                    await call.read()
                    call.cancel()
                else:
                    await call
                carried.append(inside.onward[-1].metadata.wire(b"baggage"))
            assert carried == [b"tenant=blue,plan=a+b", None], method


async def test_a_log_line_says_its_trace(
    place: str, contract: Contract, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    handler = logging.StreamHandler()  # a worker has its own, on the stderr that its fork server was started with
    handler.setFormatter(JsonFormatter("echo"))
    logging.getLogger("services.echo").addHandler(handler)
    try:
        async with running(place, contract, tmp_path) as inside:
            await inside.stub.Idempotent(pb.EchoRequest(text="hello"))
            own = (await inside.spans())["own"]
    finally:
        logging.getLogger("services.echo").removeHandler(handler)
    [line] = [json.loads(line) for line in capfd.readouterr().err.splitlines() if "said inside" in line]
    assert (line["trace_id"], line["span_id"]) == (own.trace_id.hex(), own.span_id.hex())
    assert (line["service"], line["level"]) == ("echo", "WARNING")


async def test_what_a_worker_measures_is_recorded_here(contract: Contract) -> None:
    reader = InMemoryMetricReader()
    measured = MeasurementRecorder(MeterProvider([reader], shutdown_on_exit=False))
    pool = pool_of(contract, "apps.inside", min=1, max=1, metrics=measured)
    async with working(contract, pool) as address, grpc.aio.insecure_channel(address) as client:
        stub = conformance_pb2_grpc.EchoStub(client)
        for _ in range(3):
            await stub.Unary(pb.EchoRequest(), metadata=[("x-key", "value")])
        data = reader.get_metrics_data()  # it came before the response
    assert data is not None
    [metric] = data.resource_metrics[0].scope_metrics[0].metrics
    [point] = metric.data.data_points
    assert isinstance(point, NumberDataPoint)
    assert (metric.name, dict(point.attributes or {}), point.value) == ("inside.asked", {"key": "value"}, 3)
