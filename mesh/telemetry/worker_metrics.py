"""Metrics of worker processes: measured in the worker, recorded by the sidecar.

A worker exports nothing. Each measurement of its functions (``counter.add``, ``histogram.record``, …) is sent at once,
so it is not lost when the worker dies. The sidecar records it with an instrument of the same name. So there is one
series, however many workers there are. Observable instruments are refused with a log message. Each worker would observe
a value of its own, and neither the sum nor the last of them is right.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from opentelemetry import metrics
from opentelemetry.context import Context
from opentelemetry.metrics import Meter, MeterProvider, NoOpMeter
from opentelemetry.metrics import _Gauge as Gauge  # the API exports it by this name only

from mesh.telemetry.attribute_values import plain_attributes

__all__ = ["MeasurementRecorder", "WorkerMeterProvider"]

log = logging.getLogger("mesh.telemetry")

Send = Callable[[bytes], None]

_encode = msgspec.msgpack.Encoder(enc_hook=str).encode
_decode = msgspec.msgpack.Decoder().decode


class WorkerMeterProvider(MeterProvider):
    """Meter provider of a worker process.

    Args:
        send: Gets each measurement, in the thread that measured it.
    """

    def __init__(self, send: Send) -> None:
        self._send = send

    def get_meter(
        self,
        name: str,
        version: str | None = None,
        schema_url: str | None = None,
        attributes: Mapping[str, Any] | None = None,
    ) -> Meter:
        """Return a meter whose instruments send their measurements."""
        return _Meter(self._send, name, version, schema_url, dict(attributes or {}))


class _Meter(NoOpMeter):
    def __init__(self, send: Send, *scope: Any) -> None:
        super().__init__(scope[0], scope[1], scope[2])
        self._send = send
        self._scope = scope

    def create_counter(self, name: str, unit: str = "", description: str = "") -> metrics.Counter:
        return _Counter(self._send, self._scope, name, unit, description)

    def create_up_down_counter(self, name: str, unit: str = "", description: str = "") -> metrics.UpDownCounter:
        return _UpDownCounter(self._send, self._scope, name, unit, description)

    def create_histogram(self, name: str, unit: str = "", description: str = "", **more: Any) -> metrics.Histogram:
        bounds = more.get("explicit_bucket_boundaries_advisory")
        return _Histogram(self._send, self._scope, name, unit, description, None if bounds is None else list(bounds))

    def create_gauge(self, name: str, unit: str = "", description: str = "") -> Gauge:
        return _Gauge(self._send, self._scope, name, unit, description)

    def create_observable_counter(self, name: str, *args: Any, **more: Any) -> metrics.ObservableCounter:
        _refuse(name)
        return super().create_observable_counter(name, *args, **more)

    def create_observable_up_down_counter(self, name: str, *args: Any, **more: Any) -> metrics.ObservableUpDownCounter:
        _refuse(name)
        return super().create_observable_up_down_counter(name, *args, **more)

    def create_observable_gauge(self, name: str, *args: Any, **more: Any) -> metrics.ObservableGauge:
        _refuse(name)
        return super().create_observable_gauge(name, *args, **more)


def _refuse(name: str) -> None:
    log.warning("the observable instrument %s is not recorded: its functions run in workers, each with its own", name)


class _SendingInstrument:
    """Base of the instruments: sends measurements."""

    _kind = ""

    def __init__(self, send: Send, scope: tuple[Any, ...], name: str, unit: str, description: str, *more: Any) -> None:
        self._send = send
        self._instrument = [list(scope), self._kind, name, unit, description, *(more or [None])]

    def measured(
        self,
        amount: float,
        attributes: Mapping[str, Any] | None = None,
        context: Context | None = None,  # noqa: ARG002 - the API's signature; exemplars are not sent
    ) -> None:
        """Send the measurement."""
        try:
            body = _encode([self._instrument, amount, dict(attributes or {})])
        except BaseException:  # noqa: BLE001 - an odd value must not end the function; a value near it is sent
            body = self._odd(amount, attributes)
        if body:
            self._send(body)

    def _odd(self, amount: float, attributes: Mapping[str, Any] | None) -> bytes:
        try:
            return _encode([self._instrument, float(amount), plain_attributes(attributes)])
        except BaseException:
            log.exception("a measurement of the instrument %s cannot be recorded", self._instrument[2])
            return b""


class _Counter(_SendingInstrument, metrics.Counter):
    _kind = "counter"
    add = _SendingInstrument.measured


class _UpDownCounter(_SendingInstrument, metrics.UpDownCounter):
    _kind = "up_down_counter"
    add = _SendingInstrument.measured


class _Histogram(_SendingInstrument, metrics.Histogram):
    _kind = "histogram"
    record = _SendingInstrument.measured


class _Gauge(_SendingInstrument, Gauge):
    _kind = "gauge"
    set = _SendingInstrument.measured


class MeasurementRecorder:
    """Records the measurements of worker processes.

    Args:
        meters: Meter provider of this component.
    """

    def __init__(self, meters: MeterProvider) -> None:
        self._meters = meters
        self._records: dict[str, Callable[..., None]] = {}

    def __call__(self, body: bytes) -> None:
        """Record a measurement that a worker has sent."""
        instrument, amount, attributes = _decode(body)
        key = repr(instrument)
        try:
            record = self._records.get(key)
            if record is None:
                record = self._records[key] = self._make(*instrument)
            record(amount, attributes)
        except Exception:  # a wrong measurement must not end the worker
            log.exception("a measurement of the instrument %s in a worker cannot be recorded", instrument[2])

    def _make(
        self, scope: list[Any], kind: str, name: str, unit: str, description: str, bounds: list[float] | None
    ) -> Callable[..., None]:
        meter = self._meters.get_meter(*scope)
        if kind == "histogram":
            return meter.create_histogram(name, unit, description, explicit_bucket_boundaries_advisory=bounds).record
        created: Any = getattr(meter, f"create_{kind}")(name, unit, description)
        record: Callable[..., None] = created.set if kind == "gauge" else created.add
        return record
