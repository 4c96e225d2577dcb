"""``configure``: the standard ``OTEL_*`` variables → the parts of this room, put together once for a component.

What is exported where:

- Spans: if ``OTEL_TRACES_EXPORTER`` names exporters, to those. Else, if an OTLP endpoint is set, there. Else to
  ``default_endpoint``. Else nowhere: they still carry ids, for logs, responses and other services.
- Metrics: if ``OTEL_METRICS_EXPORTER`` names exporters, to those. Else, if an OTLP endpoint is set, there.
  Else nowhere.
- ``otlp`` speaks ``http/protobuf`` unless ``OTEL_EXPORTER_OTLP_[TRACES_|METRICS_]PROTOCOL`` says ``grpc``; that is the
  specification's default, and it keeps gRPC's core out of the process.
- ``OTEL_EXPORTER_OTLP_TIMEOUT`` bounds an export; ``OTEL_BSP_EXPORT_TIMEOUT`` is not used, as in OpenTelemetry's SDK.
- Values that cannot be used are warned of and ignored (``mesh.telemetry.otel_environment``), and so is an exporter that
cannot
  be made: telemetry keeps no component from starting.
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
from mesh.telemetry.exporter_queue import ABSENT, Batch, Quiet, run_bounded
from mesh.telemetry.metrics import Exporting, Metrics, feed
from mesh.telemetry.otlp_exporter import Repeating, made
from mesh.telemetry.propagation import Propagation
from mesh.telemetry.recorder import Recorder
from mesh.telemetry.worker_metrics import Recording

__all__ = ["Telemetry", "configure"]

log = logging.getLogger("mesh.telemetry")

LOCAL_DELAY = 500
"""Milliseconds between exports to ``default_endpoint``: someone at a terminal waits for the trace."""
STANDARD_DELAY = 5000
"""Milliseconds between exports elsewhere; the specification's default."""
_PROTOCOLS = {"http/protobuf": "otlp_proto_http", "grpc": "otlp_proto_grpc"}
_OTLP = "opentelemetry.exporter.otlp.proto."
"""Modules of the exporters that take their time-out as a value, in seconds."""
METRIC_INTERVAL, METRIC_TIMEOUT = 60_000, 30_000
"""Milliseconds between exports of metrics, and that one may take; the specification's defaults."""


class Telemetry:
    """A component's telemetry.

    Attributes:
        inbound: The trace layer of the sidecar's chain.
        outbound: The trace layer of the chain of onward calls.
        http: The trace layer of the edge's chain.
        tracer_provider: Makes the spans that functions start through the API.
        meter_provider: Makes their instruments.
        enabled: False with ``OTEL_SDK_DISABLED=true``.
    """

    def __init__(
        self,
        tracer_provider: TracerProvider,
        meter_provider: MeterProvider,
        batches: Sequence[Batch],
        metrics: Metrics,
        *,
        enabled: bool,
        version: str,
    ) -> None:
        self.tracer_provider = tracer_provider
        self.meter_provider = meter_provider
        self.enabled = enabled
        self._batches = batches
        self._metrics = metrics
        self._closed = False
        self.measured = Recording(meter_provider)
        propagation = Propagation()
        self.inbound: Layer
        self.outbound: Layer
        self.http: Layer
        if enabled:
            recorder = Recorder(tracer_provider, batches, version)
            self.inbound = call_spans.inbound(recorder, propagation, metrics.server)
            self.outbound = call_spans.outbound(recorder, propagation, metrics.client)
            self.http = call_spans.http(recorder, propagation, metrics.http)
        else:
            self.inbound = self.http = call_spans.untraced_inbound(propagation)
            self.outbound = call_spans.untraced_outbound(propagation)

    @property
    def exported(self) -> int:
        """Spans that exporters have taken."""
        return sum(batch.exports[""] for batch in self._batches)

    @property
    def dropped(self) -> Mapping[str, int]:
        """Reason (see ``mesh.telemetry.exporter_queue.Batch``) → spans that could not be exported."""
        return _sum(batch.dropped for batch in self._batches)

    def relayed(self, body: bytes) -> None:
        """Export a span that another process of this component has recorded (see ``mesh.telemetry.worker_spans``)."""
        if self._batches:
            try:
                span = worker_spans.unpack(body, self.tracer_provider.resource)
            except Exception:  # noqa: BLE001 - what a function made of it must not end its worker
                for batch in self._batches:
                    batch.refuse()
                return
            for batch in self._batches:
                batch.put(span)

    def flush(self, timeout: float = 5.0) -> bool:
        """Export what has ended until now; blocks for at most ``timeout`` seconds. Return whether all went out."""
        end = monotonic() + timeout
        return all(batch.force_flush(int(max(0.0, end - monotonic()) * 1000)) for batch in self._batches)

    async def shutdown(self, timeout: float = 5.0) -> None:  # noqa: ASYNC109 - it bounds threads, which no cancel reaches
        """Export what is left and stop, within ``timeout`` seconds whatever the collector does. Idempotent.

        A collector that does not answer (or has not yet) holds it up for a second.
        """
        await asyncio.to_thread(self.close, timeout)

    def close(self, timeout: float = 5.0) -> None:
        """Do as ``shutdown`` does, blocking."""
        if self._closed:
            return
        self._closed = True
        providers.uninstall(self.tracer_provider)
        end = monotonic() + timeout
        share = timeout * 0.8  # the rest is for exporters to close
        closing = [threading.Thread(target=batch.close, args=(share,), daemon=True) for batch in self._batches]
        for thread in closing:
            thread.start()
        wait = timeout if self._metrics.answered else min(timeout, ABSENT)
        run_bounded(lambda: self.meter_provider.shutdown(timeout_millis=wait * 800), wait)
        for thread in closing:
            thread.join(max(0.0, end - monotonic()))
        self.tracer_provider.shutdown()


def configure(
    component: str,
    *,
    version: str,
    default_endpoint: str | None = None,
    resource: Mapping[str, Any] | None = None,
) -> Telemetry:
    """Configure OpenTelemetry for this process from the standard ``OTEL_*`` variables.

    Args:
        component: The service's name in mesh.toml, or ``edge``: ``service.name`` unless ``OTEL_SERVICE_NAME`` or
            ``OTEL_RESOURCE_ATTRIBUTES`` says another.
        version: Version of the mesh: ``service.version`` and the version of the instrumentation scope.
        default_endpoint: Base URL of an OTLP/HTTP receiver (``http://127.0.0.1:4318``) that takes the spans when the
            environment names no collector.
        resource: Further resource attributes.
    """
    environ = os.environ
    otel_environment.settle(environ)
    for text in otel_environment.said():
        log.warning("%s", text)
    disabled = environ.get("OTEL_SDK_DISABLED") == "true"
    level = environ.get("OTEL_LOG_LEVEL")
    if level is not None:
        logging.getLogger("opentelemetry").setLevel(otel_environment.LEVELS[level])
    told = _resource(component, version, resource or {}, environ)
    quiet = _hush()
    metrics = Metrics(version)
    batches: list[Batch] = []
    tracers = TracerProvider(resource=told, shutdown_on_exit=False)
    if not disabled:
        local = default_endpoint if otel_environment.exporters(environ, "traces") is None else None
        for exporter in _span_exporters(environ, local):
            batch = Batch(exporter, quiet, environ, LOCAL_DELAY if local else STANDARD_DELAY)
            batches.append(batch)
            tracers.add_span_processor(batch)
    readers = [] if disabled else _readers(environ, metrics, quiet)
    meters = MeterProvider(metric_readers=readers, resource=told, shutdown_on_exit=False)
    metrics.register(
        meters.get_meter("mesh", version),
        lambda: _sum(batch.processed for batch in batches),
        lambda: _sum(batch.exports for batch in batches),
    )
    providers.install(tracers, meters)
    return Telemetry(tracers, meters, batches, metrics, enabled=not disabled, version=version)


def _sum(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Return reason → spans, over all batches."""
    found: Counter[str] = Counter()
    for one in counts:
        found.update(one)
    return dict(found)


def _resource(component: str, version: str, more: Mapping[str, Any], environ: Mapping[str, str]) -> Resource:
    own = {SERVICE_NAME: component, "service.version": version, **more}
    # The environment wins over what we say; Resource.create alone would let ours win.
    said = {pair.partition("=")[0].strip() for pair in environ.get("OTEL_RESOURCE_ATTRIBUTES", "").split(",")}
    if environ.get("OTEL_SERVICE_NAME"):
        said.add(SERVICE_NAME)
    return Resource.create({key: value for key, value in own.items() if key not in said})


def _exporters(signal: str, environ: Mapping[str, str]) -> Iterator[Any]:
    """Yield the exporters (of metrics also readers) that the environment names for a signal."""
    for name in otel_environment.exporters(environ, signal) or ():
        known = _PROTOCOLS[otel_environment.protocol(environ, signal)] if name == "otlp" else name
        try:
            yield _exporter(signal, known, environ)
        except Exception as error:  # noqa: BLE001 - whatever a package does, the component starts
            log.warning("the exporter %s of %s is left out: %s: %s", known, signal, type(error).__name__, error)


def _exporter(signal: str, name: str, environ: Mapping[str, str]) -> Any:
    """Return a new exporter.

    Raises:
        Exception: It is not installed, or cannot be made.
    """
    found = next(iter(entry_points(group=f"opentelemetry_{signal}_exporter", name=name)), None)
    if found is None:
        raise LookupError(f"no package that is installed has it; pip install opentelemetry-exporter-{name}")
    cls = found.load()
    values = {"timeout": otel_environment.timeout(environ, signal)} if cls.__module__.startswith(_OTLP) else {}
    return made(cls, environ, values)


def _span_exporters(environ: Mapping[str, str], local: str | None) -> Iterator[SpanExporter]:
    if local is None:
        yield from _exporters("traces", environ)
        return
    [found] = entry_points(group="opentelemetry_traces_exporter", name=_PROTOCOLS[otel_environment.HTTP])
    session = Repeating()
    session.trust_env = False  # it is on this machine: no proxy of the environment in between
    timeout = otel_environment.timeout(environ, "traces")
    yield found.load()(endpoint=f"{local.rstrip('/')}/v1/traces", session=session, timeout=timeout)


def _readers(environ: Mapping[str, str], metrics: Metrics, quiet: Quiet) -> list[MetricReader]:
    interval = otel_environment.number(environ, "OTEL_METRIC_EXPORT_INTERVAL", METRIC_INTERVAL)
    timeout = (
        otel_environment.number(environ, "OTEL_METRIC_EXPORT_TIMEOUT", METRIC_TIMEOUT)
        or otel_environment.NO_LIMIT * 1000
    )
    readers: list[MetricReader] = []
    for part in _exporters("metrics", environ):
        if isinstance(part, MetricExporter):
            readers.append(PeriodicExportingMetricReader(Exporting(part, metrics, quiet), interval, timeout))
        else:
            feed(part, metrics)
            readers.append(part)
    return readers


def _hush() -> Quiet:
    """Replace the exporters' own log lines, one for every failing batch, by our one line a minute."""
    exporters = logging.getLogger("opentelemetry.exporter")
    quiet = Quiet()
    exporters.handlers = [quiet]
    exporters.propagate = False
    exporters.setLevel(logging.WARNING)  # its own, whatever OTEL_LOG_LEVEL says: one line tells why an export failed
    return quiet
