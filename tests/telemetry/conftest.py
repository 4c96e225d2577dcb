"""Collectors and components that are stopped after the test."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest
from telemetry_parts import GrpcCollector, HttpCollector

from mesh.telemetry import Telemetry, configure
from mesh.telemetry.propagation import CallerTrace


@pytest.fixture
def collector() -> Iterator[HttpCollector]:
    found = HttpCollector()
    yield found
    found.stop()


@pytest.fixture
def grpc_collector() -> Iterator[GrpcCollector]:
    found = GrpcCollector()
    yield found
    found.stop()


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Telemetry]]:
    """Configure a component with exactly these OTEL_* variables; it is stopped after the test."""
    for name in os.environ:
        if name.startswith("OTEL_"):
            monkeypatch.delenv(name)
    started: list[Telemetry] = []

    def begin(
        component: str = "registration",
        default_endpoint: str | None = None,
        secret: str = "",
        callers: CallerTrace = CallerTrace.TRUST,
        **environ: str,
    ) -> Telemetry:
        environ.setdefault("OTEL_METRICS_EXPORTER", "none")
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        parts = {"default_endpoint": default_endpoint, "default_secret": secret, "callers": callers}
        started.append(configure(component, version="1.2.3", **parts))
        return started[-1]

    yield begin
    for telemetry in started:
        telemetry.close(0.1)
