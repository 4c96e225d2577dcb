"""What functions measure in a worker is recorded by the sidecar as if they had measured it there."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from mesh.telemetry.worker_metrics import MeasurementRecorder, WorkerMeterProvider


def recorded(reader: InMemoryMetricReader) -> dict[str, Any]:
    """Name → scope, unit, and attributes → value (or count, sum and bounds of a histogram)."""
    found = {}
    data = reader.get_metrics_data()
    for scope in data.resource_metrics[0].scope_metrics if data is not None else ():
        for metric in scope.metrics:
            points = {
                tuple(point.attributes.items()): getattr(point, "value", None)
                if hasattr(point, "value")
                else (point.count, point.sum, point.explicit_bounds)
                for point in metric.data.data_points
            }
            found[metric.name] = (scope.scope.name, scope.scope.version, metric.unit, points)
    return found


@pytest.fixture
def reader() -> InMemoryMetricReader:
    return InMemoryMetricReader()


@pytest.fixture
def worker(reader: InMemoryMetricReader) -> WorkerMeterProvider:
    """The provider of a worker whose measurements come here."""
    return WorkerMeterProvider(MeasurementRecorder(MeterProvider([reader], shutdown_on_exit=False)))


def test_every_instrument(worker: WorkerMeterProvider, reader: InMemoryMetricReader) -> None:
    meter = worker.get_meter("mine", "2")
    counter = meter.create_counter("sold", "1", "Things")
    counter.add(2, {"what": "tea"})
    counter.add(3, {"what": "tea"})
    counter.add(1)
    in_flight = meter.create_up_down_counter("in_flight")
    in_flight.add(5)
    in_flight.add(-2)
    meter.create_histogram("took", "s", explicit_bucket_boundaries_advisory=[0.1, 1.0]).record(0.5)
    meter.create_gauge("level").set(0.25)
    assert recorded(reader) == {
        "sold": ("mine", "2", "1", {(("what", "tea"),): 5, (): 1}),
        "in_flight": ("mine", "2", "", {(): 3}),
        "took": ("mine", "2", "s", {(): (1, 0.5, (0.1, 1.0))}),
        "level": ("mine", "2", "", {(): 0.25}),
    }


def test_two_workers_make_one_series(reader: InMemoryMetricReader) -> None:
    recording = MeasurementRecorder(MeterProvider([reader], shutdown_on_exit=False))
    for _ in range(2):
        WorkerMeterProvider(recording).get_meter("mine").create_counter("sold").add(1)
    assert recorded(reader)["sold"][-1] == {(): 2}


def test_odd_values_break_no_function(
    worker: WorkerMeterProvider, reader: InMemoryMetricReader, caplog: pytest.LogCaptureFixture
) -> None:
    meter = worker.get_meter("mine")
    meter.create_counter("sold").add(2**70, {"half": "\ud800", "large": 2**70})
    meter.create_counter("beyond all").add(10**400)
    assert "a measurement of the instrument beyond all cannot be recorded" in caplog.text
    assert recorded(reader) == {"sold": ("mine", None, "", {(("half", "?"), ("large", str(2**70))): float(2**70)})}


@pytest.mark.parametrize("kind", ["counter", "up_down_counter", "gauge"])
def test_what_is_observed_is_refused_and_said(
    worker: WorkerMeterProvider, reader: InMemoryMetricReader, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    getattr(worker.get_meter("mine"), f"create_observable_{kind}")("watched", [lambda _: []])
    assert "the observable instrument watched is not recorded" in caplog.text
    assert recorded(reader) == {}


def test_what_cannot_be_recorded_is_said_and_no_more(
    worker: WorkerMeterProvider, reader: InMemoryMetricReader, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR, "mesh.telemetry"):
        worker.get_meter("mine").create_counter("no name!").add(1)
    assert "a measurement of the instrument no name! in a worker cannot be recorded" in caplog.text
    assert recorded(reader) == {}
