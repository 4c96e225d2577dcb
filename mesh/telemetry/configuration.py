"""Telemetry of one component, configured from the standard ``OTEL_*`` variables.

Destinations:

- Spans go to the exporters that ``OTEL_TRACES_EXPORTER`` names, else to the OTLP endpoint if one is set, else to
  ``default_endpoint``. Without any of them nothing is exported. Spans still have ids for logs, responses and other
  services.
- Metrics go to the exporters that ``OTEL_METRICS_EXPORTER`` names, else to the OTLP endpoint if one is set, else
  nowhere.
- ``otlp`` is ``http/protobuf`` unless ``OTEL_EXPORTER_OTLP_[TRACES_|METRICS_]PROTOCOL`` is ``grpc``. That is the
  specification's default, and it keeps gRPC's core out of the process.
- ``OTEL_EXPORTER_OTLP_TIMEOUT`` bounds an export. ``OTEL_BSP_EXPORT_TIMEOUT`` is not used, as in OpenTelemetry's SDK.
- Unusable values are ignored with a warning (``mesh.telemetry.otel_environment``), and so is an exporter that cannot be
  created. Telemetry never keeps a component from starting.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import entry_points
from time import monotonic
from typing import Any

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricExporter, MetricReader, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter

from mesh.call import Layer
from mesh.telemetry import call_spans, otel_environment, providers, worker_spans
from mesh.telemetry.exporter_queue import UNREACHABLE_TIMEOUT, ExporterLog, ExporterQueue, run_bounded
from mesh.telemetry.metrics import CombinedExporter, Metrics, add_to_reader
from mesh.telemetry.otlp_exporter import RepeatingSession, create_exporter
from mesh.telemetry.propagation import CallerTrace, Propagation
from mesh.telemetry.recorder import Recorder
from mesh.telemetry.worker_metrics import MeasurementRecorder

__all__ = ["Telemetry", "configure"]

log = logging.getLogger("mesh.telemetry")

LOCAL_DELAY_MS = 500
"""Milliseconds between exports to ``default_endpoint``. Short, since someone at a terminal waits for the trace."""
STANDARD_DELAY_MS = 5000
"""Milliseconds between exports elsewhere: the specification's default."""
_PROTOCOLS = {"http/protobuf": "otlp_proto_http", "grpc": "otlp_proto_grpc"}
_OTLP = "opentelemetry.exporter.otlp.proto."
"""Modules of the exporters whose constructor takes the timeout, in seconds."""
METRIC_INTERVAL_MS, METRIC_TIMEOUT_MS = 60_000, 30_000
"""Milliseconds between exports of metrics, and for one export: the specification's defaults."""


class Telemetry:
    """A component's telemetry.

    Attributes:
        inbound: The trace layer of the sidecar's chain.
        connect: The same for Connect calls.
        outbound: The trace layer of the chain of outbound calls.
        http: The trace layer of the edge's chain.
        tracer_provider: Creates the spans that functions start through the API.
        meter_provider: Creates the instruments of functions.
        record_measurement: Records a measurement of another process of this component
            (``mesh.telemetry.worker_metrics``).
    """

    def __init__(
        self,
        tracer_provider: TracerProvider,
        meter_provider: MeterProvider,
        queues: Sequence[ExporterQueue],
        metrics: Metrics,
        *,
        enabled: bool,
        version: str,
        callers: CallerTrace,
    ) -> None:
        self.tracer_provider = tracer_provider
        self.meter_provider = meter_provider
        self._queues = queues
        self._metrics = metrics
        self._closed = False
        self.record_measurement = MeasurementRecorder(meter_provider)
        propagation = Propagation(callers)
        self.inbound: Layer
        self.connect: Layer
        self.outbound: Layer
        self.http: Layer
        if enabled:
            recorder = Recorder(tracer_provider, queues, version)
            self.inbound = call_spans.inbound(recorder, propagation, metrics.server)
            self.connect = call_spans.inbound(recorder, propagation, metrics.server, call_spans.CONNECT)
            self.outbound = call_spans.outbound(recorder, propagation, metrics.client)
            self.http = call_spans.http(recorder, propagation, metrics.http)
        else:
            self.inbound = self.connect = self.http = call_spans.untraced_inbound(propagation)
            self.outbound = call_spans.untraced_outbound(propagation)

    @property
    def exported(self) -> int:
        """Number of spans that exporters have taken."""
        return sum(queue.exports[""] for queue in self._queues)

    @property
    def dropped(self) -> Mapping[str, int]:
        """Reason (see ``mesh.telemetry.exporter_queue.ExporterQueue``) → number of spans that were not exported."""
        return _sum(queue.dropped for queue in self._queues)

    def export_worker_span(self, body: bytes) -> None:
        """Export a span of another process of this component (``mesh.telemetry.worker_spans``)."""
        if self._queues:
            try:
                span = worker_spans.unpack(body, self.tracer_provider.resource)
            except Exception:  # noqa: BLE001 - a span that a function broke must not end its worker
                for queue in self._queues:
                    queue.refuse()
                return
            for queue in self._queues:
                queue.put(span)

    def flush(self, timeout: float = 5.0) -> bool:
        """Export the spans that have ended. Block for at most ``timeout`` seconds. Return whether all were exported."""
        end = monotonic() + timeout
        return all(queue.force_flush(int(max(0.0, end - monotonic()) * 1000)) for queue in self._queues)

    async def shutdown(self, timeout: float = 5.0) -> None:  # noqa: ASYNC109 - it bounds threads, which no cancel reaches
        """Export the rest and stop within ``timeout`` seconds, whatever the collector does. Idempotent.

        A collector that did not take the last export, or has had none yet, gets ``UNREACHABLE_TIMEOUT`` seconds.
        """
        await asyncio.to_thread(self.close, timeout)

    def close(self, timeout: float = 5.0) -> None:
        """Do the same as ``shutdown``, but block."""
        if self._closed:
            return
        self._closed = True
        providers.uninstall(self.tracer_provider)
        end = monotonic() + timeout
        share = timeout * 0.8  # the rest is for closing the exporters
        closing = [threading.Thread(target=queue.close, args=(share,), daemon=True) for queue in self._queues]
        for thread in closing:
            thread.start()
        wait = timeout if self._metrics.last_export_succeeded else min(timeout, UNREACHABLE_TIMEOUT)
        run_bounded(lambda: self.meter_provider.shutdown(timeout_millis=wait * 800), wait)
        for thread in closing:
            thread.join(max(0.0, end - monotonic()))
        self.tracer_provider.shutdown()


def configure(
    component: str,
    *,
    version: str,
    default_endpoint: str | None = None,
    default_secret: str = "",
    callers: CallerTrace = CallerTrace.TRUST,
) -> Telemetry:
    """Configure OpenTelemetry for this process from the standard ``OTEL_*`` variables.

    Args:
        component: The service's name in mesh.toml, or ``edge``. It becomes ``service.name`` unless
            ``OTEL_SERVICE_NAME`` or ``OTEL_RESOURCE_ATTRIBUTES`` sets another.
        version: Version of the mesh. It becomes ``service.version`` and the version of the instrumentation scope.
        default_endpoint: Base URL of an OTLP/HTTP receiver (``http://127.0.0.1:4318``). It gets the spans if the
            environment names no collector.
        default_secret: Bearer token of that receiver.
        callers: Meaning of the trace context of callers.
    """
    environ = os.environ
    otel_environment.normalize(environ)
    for text in otel_environment.take_warnings():
        log.warning("%s", text)
    disabled = environ.get("OTEL_SDK_DISABLED") == "true"
    level = environ.get("OTEL_LOG_LEVEL")
    if level is not None:
        logging.getLogger("opentelemetry").setLevel(otel_environment.LEVELS[level])
    merged = _resource(component, version, environ)
    exporter_log = _capture_exporter_logs()
    metrics = Metrics(version)
    queues: list[ExporterQueue] = []
    tracers = TracerProvider(resource=merged, shutdown_on_exit=False)
    if not disabled:
        local = default_endpoint if otel_environment.exporters(environ, "traces") is None else None
        for exporter in _span_exporters(environ, local, default_secret):
            queue = ExporterQueue(exporter, exporter_log, environ, LOCAL_DELAY_MS if local else STANDARD_DELAY_MS)
            queues.append(queue)
            tracers.add_span_processor(queue)
    readers = [] if disabled else _readers(environ, metrics, exporter_log)
    meters = MeterProvider(metric_readers=readers, resource=merged, shutdown_on_exit=False)
    metrics.register(
        meters.get_meter("mesh", version),
        lambda: _sum(queue.processed for queue in queues),
        lambda: _sum(queue.exports for queue in queues),
    )
    providers.install(tracers, meters)
    return Telemetry(tracers, meters, queues, metrics, enabled=not disabled, version=version, callers=callers)


def _sum(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Return the sum of the counts, by reason."""
    found: Counter[str] = Counter()
    for one in counts:
        found.update(one)
    return dict(found)


def _resource(component: str, version: str, environ: Mapping[str, str]) -> Resource:
    own = {SERVICE_NAME: component, "service.version": version}
    # The environment wins over the values of the mesh. Resource.create alone would do the opposite.
    set_names = {pair.partition("=")[0].strip() for pair in environ.get("OTEL_RESOURCE_ATTRIBUTES", "").split(",")}
    if environ.get("OTEL_SERVICE_NAME"):
        set_names.add(SERVICE_NAME)
    return Resource.create({key: value for key, value in own.items() if key not in set_names})


def _exporters(signal: str, environ: Mapping[str, str]) -> Iterator[Any]:
    """Yield the exporters (of metrics also readers) that the environment names for a signal."""
    for name in otel_environment.exporters(environ, signal) or ():
        known = _PROTOCOLS[otel_environment.protocol(environ, signal)] if name == "otlp" else name
        try:
            yield _exporter(signal, known, environ)
        except Exception as error:  # noqa: BLE001 - the component starts, whatever a package does
            log.warning("the exporter %s of %s is left out: %s: %s", known, signal, type(error).__name__, error)


def _exporter(signal: str, name: str, environ: Mapping[str, str]) -> Any:
    """Return a new exporter.

    Raises:
        Exception: It is not installed, or cannot be created.
    """
    found = next(iter(entry_points(group=f"opentelemetry_{signal}_exporter", name=name)), None)
    if found is None:
        raise LookupError(f"no package that is installed has it; pip install opentelemetry-exporter-{name}")
    cls = found.load()
    values = {"timeout": otel_environment.timeout(environ, signal)} if cls.__module__.startswith(_OTLP) else {}
    return create_exporter(cls, environ, values)


def _span_exporters(environ: Mapping[str, str], local: str | None, secret: str) -> Iterator[SpanExporter]:
    if local is None:
        yield from _exporters("traces", environ)
        return
    [found] = entry_points(group="opentelemetry_traces_exporter", name=_PROTOCOLS[otel_environment.HTTP])
    session = RepeatingSession()
    session.trust_env = False  # the receiver is on this machine: no proxy of the environment
    timeout = otel_environment.timeout(environ, "traces")
    headers = {"authorization": f"Bearer {secret}"}
    yield found.load()(endpoint=f"{local.rstrip('/')}/v1/traces", headers=headers, session=session, timeout=timeout)


def _readers(environ: Mapping[str, str], metrics: Metrics, exporter_log: ExporterLog) -> list[MetricReader]:
    interval = otel_environment.number(environ, "OTEL_METRIC_EXPORT_INTERVAL", METRIC_INTERVAL_MS)
    timeout = (
        otel_environment.number(environ, "OTEL_METRIC_EXPORT_TIMEOUT", METRIC_TIMEOUT_MS)
        or otel_environment.NO_LIMIT_TIMEOUT * 1000
    )
    readers: list[MetricReader] = []
    for part in _exporters("metrics", environ):
        if isinstance(part, MetricExporter):
            readers.append(
                PeriodicExportingMetricReader(CombinedExporter(part, metrics, exporter_log), interval, timeout)
            )
        else:
            add_to_reader(part, metrics)
            readers.append(part)
    return readers


def _capture_exporter_logs() -> ExporterLog:
    """Replace the exporters' own log messages, several for every failing batch, by one message a minute."""
    exporters = logging.getLogger("opentelemetry.exporter")
    exporter_log = ExporterLog()
    exporters.handlers = [exporter_log]
    exporters.propagate = False
    exporters.setLevel(logging.WARNING)  # whatever OTEL_LOG_LEVEL says: the reason of a failed export is logged
    return exporter_log
