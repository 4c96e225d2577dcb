"""OpenTelemetry's process-wide providers, set once, pointing at whichever component was configured last.

The API lets a process set its providers once and for all. A test, a notebook or ``mesh.testing`` starts and stops
components in one process, so what is set is a pointer. ``mesh up`` gives each component a process of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from opentelemetry import metrics, trace
from opentelemetry.trace import NoOpTracer, Span, Tracer, TracerProvider
from opentelemetry.util._decorator import (
    _agnosticcontextmanager,
)  # a context manager that decorates async functions too

__all__ = ["install", "uninstall"]

_stack: list[TracerProvider] = []
"""Configured components' providers, the last one current."""


class _CurrentTracer(Tracer):
    """Starts spans with the current provider's tracer of the same name."""

    def __init__(self, *scope: Any) -> None:
        self._scope = scope
        self._found: tuple[TracerProvider | None, Tracer] = (None, NoOpTracer())

    def start_span(self, *args: Any, **kwargs: Any) -> Span:
        return self._tracer().start_span(*args, **kwargs)

    @_agnosticcontextmanager
    def start_as_current_span(self, *args: Any, **kwargs: Any) -> Iterator[Span]:
        with self._tracer().start_as_current_span(*args, **kwargs) as span:
            yield span

    def _tracer(self) -> Tracer:
        provider = _stack[-1] if _stack else None
        if provider is not self._found[0]:
            self._found = (provider, NoOpTracer() if provider is None else provider.get_tracer(*self._scope))
        return self._found[1]


class _CurrentProvider(TracerProvider):
    def get_tracer(
        self,
        instrumenting_module_name: str,
        instrumenting_library_version: str | None = None,
        schema_url: str | None = None,
        attributes: Any = None,
    ) -> Tracer:
        return _CurrentTracer(instrumenting_module_name, instrumenting_library_version, schema_url, attributes)


_provider = _CurrentProvider()


def install(tracers: TracerProvider, meters: metrics.MeterProvider) -> None:
    """Make the providers those that functions' plain API calls reach.

    Meters are the first component's for the life of the process: an instrument, once made, belongs to its provider.
    """
    if trace.get_tracer_provider() is not _provider:
        trace.set_tracer_provider(_provider)
        metrics.set_meter_provider(meters)
    _stack.append(tracers)


def uninstall(tracers: TracerProvider) -> None:
    """Take the provider away again; the one before it is current."""
    if tracers in _stack:
        _stack.remove(tracers)
