"""Metrics of the concurrency limit."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from limit_model import method
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from mesh.call import Call, Metadata
from mesh.errors import ResourceExhausted
from mesh.layers import limit_metrics
from mesh.layers.concurrency import ConcurrencyLimit


async def test_each_method_has_its_figures() -> None:
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    limit, go = ConcurrencyLimit(1, 1, adaptive=True), asyncio.Event()
    limit_metrics.register(limit, provider.get_meter("test"))

    async def function(_: Any) -> None:
        await go.wait()

    calls = [Call(method("/t.v1.S/Do"), Metadata()) for _ in range(3)]
    tasks = [asyncio.ensure_future(limit(call, function)) for call in calls[:2]]
    await asyncio.sleep(0)
    with pytest.raises(ResourceExhausted, match="1 calls of this method are in progress and 1 wait"):
        await limit(calls[2], function)
    found = reader.get_metrics_data()
    assert found is not None
    points = {
        metric.name: [(dict(point.attributes or {}), point.value) for point in metric.data.data_points]  # type: ignore[union-attr]
        for metric in found.resource_metrics[0].scope_metrics[0].metrics
    }
    attributes = {"rpc.method": "t.v1.S/Do"}
    assert points == {
        "mesh.calls.limit": [(attributes, 1)],
        "mesh.calls.in_progress": [(attributes, 1)],
        "mesh.calls.queued": [(attributes, 1)],
        "mesh.calls.refused": [(attributes, 1)],
    }
    go.set()
    await asyncio.gather(*tasks)
    provider.shutdown()
