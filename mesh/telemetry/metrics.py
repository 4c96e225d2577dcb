"""Metrics of calls: duration histograms and in-flight gauges, cheap enough for every call.

A histogram is a list of counts, so recording takes one bisection and three additions. The SDK collects the in-flight
gauges, the counts of exported and dropped spans (observable instruments), and everything that functions measure through
the API. The histograms are added to its data at the export. The number of requests is the count of their duration
histogram, as the conventions say.

Names, units and bucket bounds: OpenTelemetry semantic conventions for HTTP (stable) and RPC.
"""

from __future__ import annotations

import logging
import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from time import monotonic, time_ns
from typing import Any

from opentelemetry.metrics import CallbackOptions, Meter, Observation
from opentelemetry.sdk.metrics import Histogram as SdkHistogram
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    HistogramDataPoint,
    Metric,
    MetricExporter,
    MetricExportResult,
    MetricReader,
    MetricsData,
    ScopeMetrics,
)
from opentelemetry.sdk.metrics.export import Histogram as HistogramData
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from mesh.telemetry.exporter_queue import REPORT_INTERVAL, ExporterLog

__all__ = ["CombinedExporter", "DurationSeries", "Gauge", "Metrics", "add_to_reader"]

log = logging.getLogger("mesh.telemetry")

BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
"""Upper bounds of the buckets, seconds, as the conventions advise."""
MAX_SERIES = 2000
"""Attribute sets of one instrument. Further sets are counted together, as in the SDK (``otel.metric.overflow``)."""


class DurationSeries:
    """Duration histogram of the calls that share one set of attributes.

    Attributes:
        attributes: The shared attributes.
    """

    __slots__ = ("attributes", "buckets", "highest", "lowest", "total")

    def __init__(self, attributes: Mapping[str, Any]) -> None:
        self.attributes = attributes
        self.clear()

    def clear(self) -> None:
        """Set all counts to zero."""
        self.buckets = [0] * (len(BOUNDS) + 1)
        self.total = 0.0
        self.lowest = math.inf
        self.highest = 0.0

    def record(self, seconds: float) -> None:
        """Count one call."""
        self.buckets[bisect_left(BOUNDS, seconds)] += 1
        self.total += seconds
        if seconds < self.lowest:  # noqa: PLR1730 - a call of min() takes as long as all of this
            self.lowest = seconds
        if seconds > self.highest:  # noqa: PLR1730 - the same
            self.highest = seconds


class Gauge:
    """Number of calls in flight."""

    __slots__ = ("attributes", "value")

    def __init__(self, attributes: Mapping[str, Any]) -> None:
        self.attributes = attributes
        self.value = 0


class Instrument:
    """The series of one duration histogram, and the gauges of calls in flight that go with it."""

    __slots__ = ("_gauges", "_overflow", "_series", "description", "name", "since")

    def __init__(self, name: str, description: str) -> None:
        self.name = name
        self.description = description
        self.since = time_ns()
        self._series: dict[Any, DurationSeries] = {}
        self._gauges: dict[Any, Gauge] = {}
        self._overflow = {"otel.metric.overflow": True}

    def series(self, key: Any, attributes: Callable[[], Mapping[str, Any]]) -> DurationSeries:
        """Return the series of ``key``. ``attributes`` is called once, for a new series."""
        found = self._series.get(key)
        if found is None:
            if len(self._series) >= MAX_SERIES:
                key, attributes = "overflow", lambda: self._overflow
            found = self._series.setdefault(key, DurationSeries(attributes()))
        return found

    def gauge(self, key: Any, attributes: Mapping[str, Any]) -> Gauge:
        """Return the gauge of ``key``."""
        if key not in self._gauges and len(self._gauges) >= MAX_SERIES:
            key, attributes = "overflow", self._overflow
        return self._gauges.setdefault(key, Gauge(attributes))

    def observe(self, _: CallbackOptions) -> Iterator[Observation]:
        """Yield the number of calls in flight for each set of attributes."""
        for gauge in list(self._gauges.values()):
            yield Observation(gauge.value, dict(gauge.attributes))

    def collect(self, temporality: AggregationTemporality) -> Metric | None:
        """Return the histogram with the calls since the start, or (DELTA) since the last collection."""
        now = time_ns()
        delta = temporality is AggregationTemporality.DELTA
        points = []
        for series in list(self._series.values()):
            buckets, total, lowest, highest = series.buckets, series.total, series.lowest, series.highest
            if delta:
                series.clear()
            else:
                buckets = list(buckets)
            count = sum(buckets)
            if count:
                points.append(
                    HistogramDataPoint(
                        dict(series.attributes), self.since, now, count, total, buckets, BOUNDS, lowest, highest
                    )
                )
        if delta:
            self.since = now
        if not points:
            return None
        return Metric(self.name, self.description, "s", HistogramData(points, temporality))


class Metrics:
    """All instruments of a component.

    Attributes:
        last_export_succeeded: The collector took the last export.
    """

    __slots__ = ("client", "http", "last_export_succeeded", "scope", "server")

    def __init__(self, version: str) -> None:
        self.last_export_succeeded = False
        self.scope = InstrumentationScope("mesh", version)
        self.server = Instrument("rpc.server.call.duration", "Duration of calls answered")
        self.client = Instrument("rpc.client.call.duration", "Duration of calls made")
        self.http = Instrument("http.server.request.duration", "Duration of HTTP requests answered")

    def register(
        self, meter: Meter, processed: Callable[[], Mapping[str, int]], exported: Callable[[], Mapping[str, int]]
    ) -> None:
        """Register the observable instruments: gauges, and numbers of spans by error (``""``: none)."""
        make = meter.create_observable_up_down_counter
        # The conventions have no name for RPC calls in flight yet; these follow HTTP's.
        make("rpc.server.active_calls", [self.server.observe], "{call}", "Calls being answered")
        make("rpc.client.active_calls", [self.client.observe], "{call}", "Calls being made")
        make("http.server.active_requests", [self.http.observe], "{request}", "HTTP requests being answered")
        for name, counts, description in (
            ("otel.sdk.processor.span.processed", processed, "Spans handed to the exporter, or dropped before"),
            ("otel.sdk.exporter.span.exported", exported, "Spans whose export has ended, well or not"),
        ):
            meter.create_observable_counter(name, [partial(_observed, counts)], "{span}", description)

    def collect(self, temporality: AggregationTemporality) -> list[Metric]:
        """Return the histograms."""
        found = (instrument.collect(temporality) for instrument in (self.server, self.client, self.http))
        return [metric for metric in found if metric is not None]

    def added(self, data: MetricsData, temporality: AggregationTemporality) -> MetricsData:
        """Return the SDK's data with the histograms added."""
        histograms = self.collect(temporality)
        if not histograms or not data.resource_metrics:
            return data
        first, *rest = data.resource_metrics
        # One element for each scope: of several, the OTLP encoder keeps the last.
        scopes = {scope.scope: scope for scope in first.scope_metrics}
        own_scope = scopes.get(self.scope) or ScopeMetrics(self.scope, [], "")
        scopes[self.scope] = replace(own_scope, metrics=[*own_scope.metrics, *histograms])
        return MetricsData([replace(first, scope_metrics=list(scopes.values())), *rest])


def _observed(counts: Callable[[], Mapping[str, int]], _: CallbackOptions) -> Iterable[Observation]:
    return [Observation(count, {"error.type": reason} if reason else {}) for reason, count in counts().items()]


def add_to_reader(reader: MetricReader, metrics: Metrics) -> None:
    """Add the histograms to what a pull reader (such as Prometheus') receives."""
    receive = reader._receive_metrics  # noqa: SLF001 - "intended to be overridden", says the SDK; it has no producers
    known = reader._instrument_class_temporality  # noqa: SLF001 - where the SDK itself looks, by classes of its own
    temporality = next(known[kind] for kind in known if issubclass(kind, SdkHistogram))

    def received(metrics_data: MetricsData, *args: Any, **kwargs: Any) -> None:
        receive(metrics.added(metrics_data, temporality), *args, **kwargs)

    reader._receive_metrics = received  # type: ignore[method-assign]  # noqa: SLF001


class CombinedExporter(MetricExporter):
    """Metric exporter that adds the histograms to the SDK's data and passes both on.

    Args:
        exporter: The exporter behind it.
        metrics: The histograms to add.
        exporter_log: The handler of the exporter's own log messages. The last reason is logged at most once a minute.
    """

    def __init__(self, exporter: MetricExporter, metrics: Metrics, exporter_log: ExporterLog) -> None:
        temporality = exporter._preferred_temporality  # noqa: SLF001 - where the SDK's reader itself takes it from
        super().__init__(temporality, exporter._preferred_aggregation)  # noqa: SLF001 - the same
        self._exporter = exporter
        self._metrics = metrics
        self._exporter_log = exporter_log
        self._reported_at = -REPORT_INTERVAL
        self._temporality = (temporality or {}).get(SdkHistogram, AggregationTemporality.CUMULATIVE)

    def export(self, metrics_data: MetricsData, timeout_millis: float = 10_000, **kwargs: Any) -> MetricExportResult:
        """Export both together."""
        both = self._metrics.added(metrics_data, self._temporality)
        result = self._exporter.export(both, timeout_millis, **kwargs)
        self._metrics.last_export_succeeded = result is MetricExportResult.SUCCESS
        if not self._metrics.last_export_succeeded and monotonic() - self._reported_at >= REPORT_INTERVAL:
            self._reported_at = monotonic()
            log.warning("metrics could not be exported; the exporter says: %s", self._exporter_log.last)
        return result

    def force_flush(self, timeout_millis: float = 10_000) -> bool:
        """Flush the exporter."""
        return self._exporter.force_flush(timeout_millis)

    def shutdown(self, timeout_millis: float = 30_000, **kwargs: Any) -> None:
        """Stop the exporter."""
        self._exporter.shutdown(timeout_millis, **kwargs)
