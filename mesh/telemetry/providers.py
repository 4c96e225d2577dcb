"""OpenTelemetry's process-wide providers: set once, they delegate to the component that was configured last.

The API allows a process to set its providers only once. A test, a notebook or ``mesh.testing`` starts and stops several
components in one process, so the provider delegates. With ``mesh up``, each component has a process of its own.
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
"""Providers of the configured components. The last one is current."""


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
    """Make a component's providers current for calls of the plain API.

    The meter provider of the first component stays for the life of the process, since an instrument belongs to its
    provider.
    """
    if trace.get_tracer_provider() is not _provider:
        trace.set_tracer_provider(_provider)
        metrics.set_meter_provider(meters)
    _stack.append(tracers)


def uninstall(tracers: TracerProvider) -> None:
    """Remove the provider. The one before it becomes current."""
    if tracers in _stack:
        _stack.remove(tracers)
