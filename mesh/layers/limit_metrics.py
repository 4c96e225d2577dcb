"""Metrics of a concurrency limit, by method: the limit, calls in progress, calls that wait, refused calls."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from opentelemetry.metrics import CallbackOptions, Meter, Observation

if TYPE_CHECKING:
    from mesh.layers.concurrency import ConcurrencyLimit, MethodUsage

__all__ = ["register"]


def register(limit: ConcurrencyLimit, meter: Meter) -> None:
    """Register the instruments of a limit."""

    def observed(value: Callable[[MethodUsage], float]) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def observe(_: CallbackOptions) -> Iterable[Observation]:
            return [Observation(value(used), {"rpc.method": used.method.lstrip("/")}) for used in limit.usage()]

        return observe

    for name, description, value in (
        ("limit", "Calls in progress at most: under overload, or of all methods", lambda used: used.limit),
        ("in_progress", "Calls that hold a permit", lambda used: used.running),
        ("queued", "Calls that wait for a permit", lambda used: used.waiting),
    ):
        meter.create_observable_gauge(f"mesh.calls.{name}", [observed(value)], "{call}", description)
    meter.create_observable_counter(
        "mesh.calls.refused", [observed(lambda used: used.refused)], "{call}", "Calls that the limit has refused"
    )
