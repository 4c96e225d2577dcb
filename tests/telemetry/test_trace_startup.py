"""What a module does before the first call is one trace, and the calls after it are none of its children."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from typing import Any

import grpc.aio
import pytest
from conformance.v1 import conformance_pb2 as pb
from conformance.v1 import conformance_pb2_grpc
from hosting import hosted
from opentelemetry import trace
from telemetry_parts import HttpCollector

from mesh.contract.model import Contract
from mesh.telemetry import Telemetry


async def test_the_startup_of_a_module_is_one_trace(
    contract: Contract,
    start: Callable[..., Telemetry],
    collector: HttpCollector,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from apps import echo

    async def startup(_: Any) -> None:
        for name in ("first", "second"):
            trace.get_tracer("function").start_span(name).end()

    module = types.ModuleType("made_with_startup")
    module.__dict__.update({key: value for key, value in vars(echo).items() if not key.startswith("__")})
    vars(module)["startup"] = startup
    monkeypatch.setitem(sys.modules, module.__name__, module)
    telemetry = start(OTEL_EXPORTER_OTLP_ENDPOINT=collector.url)
    layers = {"trace": telemetry.inbound}
    async with hosted(contract, module.__name__, **layers) as address, grpc.aio.insecure_channel(address) as channel:
        await conformance_pb2_grpc.EchoStub(channel).Unary(pb.EchoRequest())
    await telemetry.shutdown()
    root = collector.one("startup")
    assert not root.parent_span_id
    for name in ("first", "second"):
        assert collector.one(name).parent_span_id == root.span_id
    [call] = [span for span in collector.all() if span.name not in ("startup", "first", "second")]
    assert (call.parent_span_id, call.trace_id == root.trace_id) == (b"", False)
