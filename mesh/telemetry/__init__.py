"""Telemetry: OpenTelemetry traces and metrics, JSON logs, and an in-memory trace store for one machine.

The OpenTelemetry SDK is imported and configured in this package only.

Decisions:

- **The spans of calls are not the SDK's.** The SDK takes about 50 µs for a span of a call, a ``Span`` of this package
  takes a few. It holds plain values while the call runs. The export thread turns it into the SDK's ``ReadableSpan``, so
  every standard exporter, sampler, limit and resource works on it, and a backend sees no difference.
- **The spans that functions start are the SDK's**, made with the plain OpenTelemetry API. Both kinds live in the API's
  context, so each can be the parent of the other. Both leave through one queue.
- **Telemetry never breaks or delays a call.** The queue is bounded, and spans that do not fit are counted. A thread of
  its own talks to the collector. Shutdown takes a bounded time.
- **The standard variables have their standard meaning** (``mesh.telemetry.configuration``). They win over the defaults
  of ``mesh up``.

Refused: log export over OTLP, and observable instruments of functions that run in workers.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mesh.telemetry.configuration import Telemetry, configure

__all__ = ["Telemetry", "configure"]


def __getattr__(name: str) -> Any:
    """Load the SDK (some 150 ms) when a component is configured. ``mesh trace`` and the trace store do not need it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from mesh.telemetry import otel_environment  # noqa: PLC0415 - see above

    otel_environment.normalize(os.environ)  # the SDK reads some when it is imported
    from mesh.telemetry import configuration  # noqa: PLC0415 - see above

    return getattr(configuration, name)
