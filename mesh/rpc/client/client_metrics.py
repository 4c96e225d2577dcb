"""Metrics of the gRPC client besides durations: retries, hedges, ejected endpoints, circuit breakers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol
from weakref import WeakKeyDictionary

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, Observation

__all__ = ["EJECTIONS", "HEDGES", "REFUSALS", "RETRIES", "TARGET", "observe_breaker", "observe_ejections"]

TARGET = "mesh.target"
"""Attribute: the called service, as in mesh.toml."""

_meter = metrics.get_meter("mesh.rpc")
RETRIES = _meter.create_counter("mesh.client.retries", "{attempt}", "Attempts after the first one, by method")
HEDGES = _meter.create_counter("mesh.client.hedges", "{attempt}", "Hedged attempts after the first one, by method")
EJECTIONS = _meter.create_counter("mesh.client.ejections", "{ejection}", "Addresses taken out of the balancing")
REFUSALS = _meter.create_counter("mesh.client.breaker.refusals", "{call}", "Calls refused by an open circuit breaker")


class _Ejecting(Protocol):
    @property
    def ejected(self) -> int: ...


class _Breaking(Protocol):
    @property
    def is_open(self) -> bool: ...


_ejecting: WeakKeyDictionary[_Ejecting, str] = WeakKeyDictionary()
_breaking: WeakKeyDictionary[_Breaking, str] = WeakKeyDictionary()


def observe_ejections(ejection: _Ejecting, target: str) -> None:
    """Report the number of ejected endpoints of a target as long as the object lives."""
    _ejecting[ejection] = target


def observe_breaker(breaker: _Breaking, target: str) -> None:
    """Report the state of a target's circuit breaker as long as the object lives."""
    _breaking[breaker] = target


def _ejected(_: CallbackOptions) -> Iterator[Observation]:
    for each, target in list(_ejecting.items()):
        yield Observation(each.ejected, {TARGET: target})


def _open(_: CallbackOptions) -> Iterator[Observation]:
    for each, target in list(_breaking.items()):
        yield Observation(int(each.is_open), {TARGET: target})


_meter.create_observable_gauge("mesh.client.ejected", [_ejected], "{address}", "Addresses ejected now")
_meter.create_observable_gauge("mesh.client.breaker.open", [_open], "1", "1 while the circuit breaker is open, else 0")
