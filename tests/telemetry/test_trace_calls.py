"""Spans of real calls between a real channel and a real sidecar."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import grpc
import pytest
from connect_client import JSON, Client
from hosting import hosted, pool_of, working
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from telemetry_parts import HttpCollector, attributes

from mesh.call import chain
from mesh.contract.model import Contract
from mesh.rpc.client.channel import Channel
from mesh.rpc.client.retry import retry
from mesh.rpc.client.target import Target
from mesh.telemetry import Telemetry

Start = Callable[..., Telemetry]


def serve(contract: Contract, telemetry: Telemetry, workers: bool) -> AbstractAsyncContextManager[str]:  # noqa: FBT001
    """Host the functions in this process, or in workers."""
    if workers:
        return working(contract, pool_of(contract), trace=telemetry.inbound)
    return hosted(contract, trace=telemetry.inbound)


@pytest.mark.parametrize("transport", ["ngh2", "grpcio"])
async def test_a_client_span_says_where_the_call_went(
    start: Start, collector: HttpCollector, contract: Contract, transport: str
) -> None:
    from conformance.v1 import conformance_pb2 as pb
    from conformance.v1.conformance_pb2_grpc import EchoStub

    telemetry = start(OTEL_EXPORTER_OTLP_ENDPOINT=collector.url)
    async with hosted(contract) as address:
        target = Target([address], transport=transport)
        stub = EchoStub(Channel(chain(telemetry.outbound, retry(), target), contract))
        await stub.Unary(pb.EchoRequest())
        await stub.Idempotent(pb.EchoRequest())
        assert [answer.index async for answer in stub.ServerStream(pb.EchoRequest(count=2))] == [0, 1]
        await target.close()
    assert telemetry.flush()
    spans = [attributes(span) for span in collector.all()]
    assert len(spans) == 3
    for told in spans:
        assert f"{told['server.address']}:{told['server.port']}" == address


async def test_a_client_span_says_why_there_was_no_answer(start: Start, collector: HttpCollector) -> None:
    telemetry = start(OTEL_EXPORTER_OTLP_ENDPOINT=collector.url)
    target = Target(["127.0.0.1:1"])
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await Channel(chain(telemetry.outbound, target)).unary_unary("/a.B/C")(b"", timeout=5)
    await target.close()
    assert telemetry.flush()
    span = collector.one("a.B/C")
    assert span.status.message == "the service cannot be reached now; try again later (127.0.0.1:1: connection refused)"
    assert "127.0.0.1" not in caught.value.details()
    assert "127.0.0.1:1: connection refused" in caught.value.debug_error_string()


async def test_a_method_that_is_not_served_is_traced_under_one_name(
    start: Start, collector: HttpCollector, contract: Contract
) -> None:
    telemetry = start(OTEL_EXPORTER_OTLP_ENDPOINT=collector.url)
    async with hosted(contract, trace=telemetry.inbound) as address:
        target = Target([address])
        channel = Channel(target)
        for path in ("/conformance.v1.Echo/Nothing", "/no.Such/Thing", "/no.Such/Other"):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await channel.unary_unary(path)(b"", timeout=5)
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
            assert path.rpartition("/")[0].strip("/") in caught.value.details()
        await target.close()
    assert telemetry.flush()
    spans = collector.all()
    assert [(span.name, span.kind, span.status.code) for span in spans] == [
        ("_OTHER", Span.SPAN_KIND_SERVER, Status.STATUS_CODE_ERROR)
    ] * 3
    assert {attributes(span)["rpc.method"] for span in spans} == {"_OTHER"}


async def test_a_connect_call_is_traced_and_measured_as_one(
    start: Start, collector: HttpCollector, contract: Contract
) -> None:
    telemetry = start(OTEL_EXPORTER_OTLP_ENDPOINT=collector.url)
    async with hosted(contract, trace=telemetry.inbound, trace_connect=telemetry.connect) as address:
        client = Client(address, "2")
        parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        for body in (b"{}", b'{"fail":{"code":1}}', b'{"nothing":1}'):
            await client("Unary", body, {**JSON, "traceparent": parent})
        await client("Nothing", b"{}", JSON)
    assert telemetry.flush()
    fine, cancelled, malformed, unknown = collector.all()
    assert (fine.name, fine.trace_id.hex()) == ("conformance.v1.Echo/Unary", parent.split("-")[1])
    assert attributes(fine) == {"rpc.system.name": "connectrpc", "rpc.method": "conformance.v1.Echo/Unary"}
    codes = [attributes(span)["rpc.response.status_code"] for span in (cancelled, malformed, unknown)]
    assert codes == ["canceled", "invalid_argument", "unimplemented"]
    assert (unknown.name, attributes(unknown)["rpc.system.name"]) == ("_OTHER", "connectrpc")


@pytest.mark.parametrize(("how", "code"), [("panic", "INTERNAL"), ("cancelled task", "CANCELLED")])
@pytest.mark.parametrize("workers", [False, True])
async def test_the_server_span_says_how_a_function_ended_that_raised_no_exception(
    start: Start, collector: HttpCollector, contract: Contract, how: str, code: str, *, workers: bool
) -> None:
    from conformance.v1 import conformance_pb2 as pb
    from conformance.v1.conformance_pb2_grpc import EchoStub

    telemetry = start(OTEL_EXPORTER_OTLP_ENDPOINT=collector.url)
    async with serve(contract, telemetry, workers) as address, grpc.aio.insecure_channel(address) as channel:
        with pytest.raises(grpc.aio.AioRpcError):
            await EchoStub(channel).Unary(pb.EchoRequest(fail=pb.Failure(message=how)))
    assert telemetry.flush()
    span = collector.one("conformance.v1.Echo/Unary")
    assert span.status.code == Status.STATUS_CODE_ERROR
    assert attributes(span)["rpc.response.status_code"] == code
    [event] = span.events
    told = {one.key: one.value.string_value for one in event.attributes}
    raised = "CancelledError" if code == "CANCELLED" else "Panic: secret"
    assert raised in told["exception.stacktrace"]


@pytest.mark.parametrize("workers", [False, True])
async def test_the_span_of_a_caller_that_has_gone_is_no_error(
    start: Start, collector: HttpCollector, contract: Contract, capfd: pytest.CaptureFixture[str], *, workers: bool
) -> None:
    from conformance.v1 import conformance_pb2 as pb
    from conformance.v1.conformance_pb2_grpc import EchoStub

    telemetry = start(OTEL_EXPORTER_OTLP_ENDPOINT=collector.url)
    async with serve(contract, telemetry, workers) as address, grpc.aio.insecure_channel(address) as channel:
        call = EchoStub(channel).ServerStream(pb.EchoRequest(count=2, sleep_ms=1))
        await call.read()
        slow = EchoStub(channel).Unary(pb.EchoRequest(sleep_ms=60_000))
        await call.read()
        await asyncio.sleep(0.05)  # into the function; whichever moment it hits must do
        slow.cancel()
        await call.read()
    assert telemetry.flush()
    span = collector.one("conformance.v1.Echo/Unary")
    assert (span.status.code, span.events) == (Status.STATUS_CODE_UNSET, [])
    assert attributes(span)["rpc.response.status_code"] == "CANCELLED"
    assert "CancelledError" not in capfd.readouterr().err
