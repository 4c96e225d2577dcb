"""What functions measure in another process of the same component: made there, recorded here.

A worker process exports nothing. Each measurement of its functions (``counter.add``, ``histogram.record``, …) is sent
as it is made, so it is not lost when the worker dies, and recorded here by an instrument of the same name: one series,
however many workers there are. Observable instruments are refused, with a line in the log: each worker would observe
something else, and no sum or last value of that is right.
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

__all__ = ["Measuring", "Recording"]

log = logging.getLogger("mesh.telemetry")

Send = Callable[[bytes], None]

_encode = msgspec.msgpack.Encoder(enc_hook=str).encode
_decode = msgspec.msgpack.Decoder().decode


class Measuring(MeterProvider):
    """The provider of the process in which it is measured.

    Args:
        send: Takes a measurement, in whatever thread it was made.
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
        """Return a meter whose instruments send what they are given."""
        return _Meter(self._send, name, version, schema_url, dict(attributes or {}))


class _Meter(NoOpMeter):
    def __init__(self, send: Send, *scope: Any) -> None:
        super().__init__(scope[0], scope[1], scope[2])
        self._to = send
        self._scope = scope

    def create_counter(self, name: str, unit: str = "", description: str = "") -> metrics.Counter:
        return _Counter(self._to, self._scope, name, unit, description)

    def create_up_down_counter(self, name: str, unit: str = "", description: str = "") -> metrics.UpDownCounter:
        return _UpDownCounter(self._to, self._scope, name, unit, description)

    def create_histogram(self, name: str, unit: str = "", description: str = "", **more: Any) -> metrics.Histogram:
        bounds = more.get("explicit_bucket_boundaries_advisory")
        return _Histogram(self._to, self._scope, name, unit, description, None if bounds is None else list(bounds))

    def create_gauge(self, name: str, unit: str = "", description: str = "") -> Gauge:
        return _Gauge(self._to, self._scope, name, unit, description)

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


class _Sending:
    """What instruments have in common."""

    _kind = ""

    def __init__(self, send: Send, scope: tuple[Any, ...], name: str, unit: str, description: str, *more: Any) -> None:
        self._send = send
        self._told = [list(scope), self._kind, name, unit, description, *(more or [None])]

    def measured(
        self,
        amount: float,
        attributes: Mapping[str, Any] | None = None,
        context: Context | None = None,  # noqa: ARG002 - the API's signature; there are no exemplars of it
    ) -> None:
        """Send the measurement."""
        try:
            body = _encode([self._told, amount, dict(attributes or {})])
        except BaseException:  # noqa: BLE001 - an odd value, which must not end the function: the nearest that can be carried
            body = self._odd(amount, attributes)
        if body:
            self._send(body)

    def _odd(self, amount: float, attributes: Mapping[str, Any] | None) -> bytes:
        try:
            return _encode([self._told, float(amount), plain_attributes(attributes)])
        except BaseException:
            log.exception("what the instrument %s measured cannot be recorded", self._told[2])
            return b""


class _Counter(_Sending, metrics.Counter):
    _kind = "counter"
    add = _Sending.measured


class _UpDownCounter(_Sending, metrics.UpDownCounter):
    _kind = "up_down_counter"
    add = _Sending.measured


class _Histogram(_Sending, metrics.Histogram):
    _kind = "histogram"
    record = _Sending.measured


class _Gauge(_Sending, Gauge):
    _kind = "gauge"
    set = _Sending.measured


class Recording:
    """Records the measurements of other processes.

    Args:
        meters: The provider of this component.
    """

    def __init__(self, meters: MeterProvider) -> None:
        self._meters = meters
        self._known: dict[str, Callable[..., None]] = {}

    def __call__(self, body: bytes) -> None:
        """Record what another process gave to ``send``."""
        told, amount, attributes = _decode(body)
        key = repr(told)
        try:
            record = self._known.get(key)
            if record is None:
                record = self._known[key] = self._make(*told)
            record(amount, attributes)
        except Exception:  # what a function measures wrongly must not end its worker
            log.exception("what the instrument %s measured in a worker cannot be recorded", told[2])

    def _make(
        self, scope: list[Any], kind: str, name: str, unit: str, description: str, bounds: list[float] | None
    ) -> Callable[..., None]:
        meter = self._meters.get_meter(*scope)
        if kind == "histogram":
            return meter.create_histogram(name, unit, description, explicit_bucket_boundaries_advisory=bounds).record
        made: Any = getattr(meter, f"create_{kind}")(name, unit, description)
        record: Callable[..., None] = made.set if kind == "gauge" else made.add
        return record
