"""Counts, durations and what is in flight, as a collector gets them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import metrics
from opentelemetry.sdk.metrics import Histogram as SdkHistogram
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import AggregationTemporality, InMemoryMetricReader
from telemetry_parts import FakeMethod, HttpCollector, Request, attributes, call_of

from mesh.call import Call
from mesh.errors import NotFound, Unavailable
from mesh.telemetry import Telemetry, configuration, otel_environment
from mesh.telemetry.metrics import BOUNDS, MAX_SERIES, DurationSeries, Instrument

Start = Callable[..., Telemetry]


async def nothing(call: Call) -> None:
    """Answer OK."""


def points(collector: HttpCollector, name: str) -> list[Any]:
    """The data points of the last export that has the metric."""
    found: list[Any] = []
    for request in collector.metrics:
        for resource in request.resource_metrics:
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    if metric.name == name:
                        found = list(getattr(metric, metric.WhichOneof("data")).data_points)
    return found


async def test_durations_counts_and_flights(start: Start, collector: HttpCollector) -> None:
    telemetry = start(OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, OTEL_METRICS_EXPORTER="otlp")
    begun, release = asyncio.Event(), asyncio.Event()

    async def wait(call: Call) -> None:
        begun.set()
        await release.wait()

    async def fail(call: Call) -> None:
        raise Unavailable("not now")

    async def route(call: Call) -> None:
        request: Any = call
        request.route, request.status = "/v1/users/{id}", 200

    for _ in range(3):
        await telemetry.inbound(call_of(), nothing)
        await telemetry.http(Request(), route)
    for layer in (telemetry.inbound, telemetry.outbound):
        with pytest.raises(Unavailable):
            await layer(call_of(), fail)
    in_flight = asyncio.create_task(telemetry.inbound(call_of(method=FakeMethod("/a.B/Slow")), wait))  # type: ignore[arg-type]
    await begun.wait()
    telemetry.meter_provider.force_flush()
    release.set()
    await in_flight

    told = {
        attributes(point)["rpc.response.status_code"]: point for point in points(collector, "rpc.server.call.duration")
    }
    assert {code: point.count for code, point in told.items()} == {"OK": 3, "UNAVAILABLE": 1}
    assert attributes(told["UNAVAILABLE"]) == {
        "rpc.system.name": "grpc",
        "rpc.method": "registration.v1.Registration/Register",
        "rpc.response.status_code": "UNAVAILABLE",
        "error.type": "UNAVAILABLE",
    }
    assert tuple(told["OK"].explicit_bounds) == BOUNDS
    assert sum(told["OK"].bucket_counts) == 3
    assert 0 < told["OK"].min <= told["OK"].max <= told["OK"].sum < 1
    [client] = points(collector, "rpc.client.call.duration")
    assert client.count == 1
    [http] = points(collector, "http.server.request.duration")
    assert attributes(http) == {
        "http.request.method": "GET",
        "url.scheme": "http",
        "http.route": "/v1/users/{id}",
        "http.response.status_code": 200,
    }
    gauges = {attributes(point)["rpc.method"]: point.as_int for point in points(collector, "rpc.server.active_calls")}
    assert gauges == {"registration.v1.Registration/Register": 0, "a.B/Slow": 1}
    assert [point.as_int for point in points(collector, "http.server.active_requests")] == [0]


def spans(collector: HttpCollector, what: str) -> dict[str, int]:
    """Reason ("": none) → spans."""
    return {attributes(point).get("error.type", ""): point.as_int for point in points(collector, f"otel.sdk.{what}")}


async def test_what_became_of_spans_is_a_metric(start: Start, collector: HttpCollector) -> None:
    """By the conventions: what the export comes to is told by the exporter's metric, not by the processor's."""
    telemetry = start(
        OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, OTEL_METRICS_EXPORTER="otlp", OTEL_BSP_MAX_QUEUE_SIZE="4"
    )
    for _ in range(3):
        await telemetry.inbound(call_of(), nothing)
    assert telemetry.flush()
    collector.answer = 400
    for _ in range(200):
        await telemetry.inbound(call_of(), nothing)
    assert telemetry.flush()
    telemetry.export_worker_span(b"no span")
    collector.answer = 200
    telemetry.meter_provider.force_flush()
    processed, exported = spans(collector, "processor.span.processed"), spans(collector, "exporter.span.exported")
    assert processed["queue_full"] > 0
    assert processed["queue_full"] + processed[""] == 203
    assert exported == {"": 3, "export_failed": processed[""] - 3}
    assert (processed["already_shutdown"], processed["unreadable"]) == (0, 1)
    assert telemetry.dropped == {
        "queue_full": processed["queue_full"],
        "export_failed": exported["export_failed"],
        "already_shutdown": 0,
        "unreadable": 1,
    }


async def test_a_collector_that_refuses_is_told_once(
    start: Start, collector: HttpCollector, caplog: pytest.LogCaptureFixture
) -> None:
    collector.answer = 400
    telemetry = start(OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, OTEL_METRICS_EXPORTER="otlp")
    for _ in range(3):
        await telemetry.inbound(call_of(), nothing)
        telemetry.meter_provider.force_flush()
    told = [record.getMessage() for record in caplog.records if record.name == "mesh.telemetry"]
    assert len([line for line in told if line.startswith("metrics could not be exported") and "400" in line]) == 1


async def test_a_collector_that_is_gone_does_not_hold_up_the_stop(start: Start, collector: HttpCollector) -> None:
    collector.stop()
    telemetry = start(OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, OTEL_METRICS_EXPORTER="otlp")
    await telemetry.inbound(call_of(), nothing)
    async with asyncio.timeout(3):
        await telemetry.shutdown(0.3)


async def test_nothing_is_measured_for_nobody(start: Start) -> None:
    telemetry = start()
    await telemetry.inbound(call_of(), nothing)
    assert telemetry.meter_provider.force_flush()


async def test_a_reader_that_is_asked_has_the_durations_too(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Prometheus' is."""
    reader = InMemoryMetricReader()
    pulled = SimpleNamespace(name="pulled", load=lambda: lambda: reader)
    for module in (configuration, otel_environment):
        monkeypatch.setattr(module, "entry_points", lambda **_: [pulled])
    telemetry = start(OTEL_METRICS_EXPORTER="pulled", OTEL_TRACES_EXPORTER="none")
    counts = []
    for _ in range(2):
        await telemetry.inbound(call_of(), nothing)
        data = reader.get_metrics_data()
        assert data is not None
        [scope] = data.resource_metrics[0].scope_metrics
        assert scope.scope.name == "mesh"
        told: dict[str, Any] = {metric.name: metric.data.data_points for metric in scope.metrics}
        assert "rpc.server.active_calls" in told
        counts += [point.count for point in told["rpc.server.call.duration"]]
    assert counts == [1, 2]


async def test_delta_temporality(start: Start, collector: HttpCollector) -> None:
    telemetry = start(
        OTEL_EXPORTER_OTLP_ENDPOINT=collector.url,
        OTEL_METRICS_EXPORTER="otlp",
        OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE="delta",
    )
    counts = []
    for calls in (3, 2):
        for _ in range(calls):
            await telemetry.outbound(call_of(), nothing)
        telemetry.meter_provider.force_flush()
        counts.append([point.count for point in points(collector, "rpc.client.call.duration")])
    assert counts == [[3], [2]]


@given(st.lists(st.one_of(st.sampled_from(BOUNDS), st.floats(0, 100, allow_nan=False)), min_size=1))
def test_a_series_counts_as_the_sdk_does(durations: list[float]) -> None:
    reader = InMemoryMetricReader({SdkHistogram: AggregationTemporality.CUMULATIVE})
    meters = MeterProvider([reader], shutdown_on_exit=False)
    histogram = meters.get_meter("theirs").create_histogram(
        "theirs", "s", explicit_bucket_boundaries_advisory=list(BOUNDS)
    )
    instrument = Instrument("ours", "")
    for seconds in durations:
        histogram.record(seconds, {"a": 1})
        instrument.series("a", lambda: {"a": 1}).record(seconds)
    data = reader.get_metrics_data()
    assert data is not None
    [theirs] = data.resource_metrics[0].scope_metrics[0].metrics[0].data.data_points
    metric = instrument.collect(AggregationTemporality.CUMULATIVE)
    assert metric is not None
    [ours] = metric.data.data_points
    for name in ("attributes", "count", "min", "max", "bucket_counts", "explicit_bounds"):
        assert list_of(getattr(ours, name)) == list_of(getattr(theirs, name)), name
    assert ours.sum == pytest.approx(theirs.sum)


def list_of(item: Any) -> Any:
    return list(item) if isinstance(item, tuple) else dict(item) if hasattr(item, "items") else item


def test_series_are_bounded() -> None:
    instrument = Instrument("ours", "")
    for at in range(MAX_SERIES + 10):
        instrument.series(at, lambda at=at: {"at": at}).record(1)  # type: ignore[misc]
    metric = instrument.collect(AggregationTemporality.CUMULATIVE)
    assert metric is not None
    assert len(metric.data.data_points) == MAX_SERIES + 1
    [overflow] = [point for point in metric.data.data_points if "otel.metric.overflow" in (point.attributes or {})]
    assert overflow.count == 10


def test_a_new_series_is_empty() -> None:
    assert sum(DurationSeries({}).buckets) == 0


async def test_a_functions_own_metrics_are_welcome(start: Start) -> None:
    start()
    metrics.get_meter("function").create_counter("own").add(1)


async def test_a_missing_user_is_not_a_servers_error(start: Start, collector: HttpCollector) -> None:
    telemetry = start(OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, OTEL_METRICS_EXPORTER="otlp")

    async def missing(call: Call) -> None:
        raise NotFound("no user 7")

    with pytest.raises(NotFound):
        await telemetry.inbound(call_of(), missing)
    telemetry.meter_provider.force_flush()
    [point] = points(collector, "rpc.server.call.duration")
    assert "error.type" not in attributes(point)


async def test_a_client_makes_up_no_series(start: Start, collector: HttpCollector) -> None:
    """HTTP/2's ``:scheme`` and the method are whatever the client writes."""
    telemetry = start(OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, OTEL_METRICS_EXPORTER="otlp")

    async def answer(call: Call) -> None:
        call.status = 404  # type: ignore[attr-defined]

    for at in range(20):
        request = Request(verb=f"VERB{at}", path=f"/{at}")
        request.scheme = f"scheme{at}"
        await telemetry.http(request, answer)
    telemetry.meter_provider.force_flush()
    [point] = points(collector, "http.server.request.duration")
    assert point.count == 20
    assert attributes(point)["url.scheme"] == "_OTHER"
