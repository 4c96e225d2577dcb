"""The only room that configures OpenTelemetry: traces, metrics, logs, and a small trace store for one machine.

Decided here:

- **Our own spans are not the SDK's.** The SDK takes about 50 µs for a span in the request; one of ours takes a few. A
  ``Span`` of ours holds plain values while the call runs and becomes the SDK's ``ReadableSpan`` in the thread that
  exports, so every standard exporter, sampler, limit and resource works on it and a backend sees no difference.
- **A function's own spans are the SDK's**, made with the plain OpenTelemetry API. Both kinds live in the API's context,
  so parents are right both ways, and both leave through one buffer.
- **Telemetry never breaks or delays a call**: the buffer is bounded, what does not fit is counted, the collector is
  spoken to in a thread, and stopping takes a bounded time.
- **The standard variables mean what they always mean** (``mesh.telemetry.configuration``). What is said there wins over
what
  ``mesh up`` would do by itself.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mesh.telemetry.configuration import Telemetry, configure

__all__ = ["Telemetry", "configure"]


def __getattr__(name: str) -> Any:
    """Load the SDK (some 150 ms) when a component is configured; ``mesh trace`` and the trace store do without."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from mesh.telemetry import otel_environment  # noqa: PLC0415 - see above

    otel_environment.settle(os.environ)  # the SDK reads some when it is imported
    from mesh.telemetry import configuration  # noqa: PLC0415 - see above

    return getattr(configuration, name)
