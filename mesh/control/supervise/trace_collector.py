"""Trace store of ``mesh up``, which runs when the environment names no collector."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping

from mesh.rpc.server.listener import Listener
from mesh.telemetry import otel_environment

__all__ = ["ENDPOINTS", "EXPORTER", "TraceCollector", "external_collector"]

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
"""Environment variables with the URL of a collector, the first that is set wins."""
EXPORTER = "OTEL_TRACES_EXPORTER"
"""Environment variable with the names of the exporters of traces."""


def external_collector(environ: Mapping[str, str] | None = None) -> str:
    """Return the destination that the standard ``OTEL_*`` variables name for traces, or "" if they name none."""
    found = os.environ if environ is None else environ
    names = otel_environment.exporters(found, "traces")
    if names is None:
        return ""
    endpoint = next((found[name] for name in ENDPOINTS if found.get(name)), "")
    if endpoint and "otlp" in names:
        return endpoint
    return f"{', '.join(names) or 'no exporter'} ({EXPORTER})"


class TraceCollector:
    """Trace store with its OTLP receiver, on a free port of the loopback interface, in this process.

    Attributes:
        secret: Bearer token of its clients, made for this run.
    """

    def __init__(self) -> None:
        # The receiver loads OpenTelemetry's protobuf classes. A mesh with a collector does not pay for that.
        from mesh.telemetry.otlp_receiver import Receiver  # noqa: PLC0415 - see above
        from mesh.telemetry.trace_store import Store  # noqa: PLC0415 - see above

        self.secret = secrets.token_urlsafe()
        self._listener = Listener(Receiver(Store(), self.secret), "127.0.0.1:0", grpc=False, drain=1.0)

    async def start(self) -> str:
        """Start; return its URL."""
        return f"http://{await self._listener.start()}"

    async def stop(self) -> None:
        """Stop; the traces are lost."""
        await self._listener.stop()
