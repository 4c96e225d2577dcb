"""The same application under pyvoy (Envoy with Python inside), in a process of its own, with a grpcio client."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from conformance.v1 import conformance_pb2 as pb
from conformance.v1 import conformance_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from pyvoy import PyvoyServer

TESTS = Path(__file__).parents[1]
Served = tuple[grpc.aio.Channel, Path]


@pytest.fixture(params=["apps.echo", "apps.echo_sync"])
async def served(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Served]:
    log = tmp_path / "log"
    log.touch()
    env = {
        "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent), *sys.path]),
        "TEST_ASGI_LOG": str(log),
        "TEST_ASGI_MODULE": request.param,
    }
    async with PyvoyServer("apps.asgi_echo:app", env=env, lifespan=True) as server:
        address = f"127.0.0.1:{server.listener_port}"
        async with grpc.aio.insecure_channel(address) as channel:
            yield channel, log


async def _logged(log: Path, line: str) -> None:
    async with asyncio.timeout(10):
        while line not in log.read_text().splitlines():  # noqa: ASYNC110, ASYNC240 - it is another process
            await asyncio.sleep(0.02)


async def test_all_four_kinds(served: Served) -> None:
    channel, _ = served
    stub = conformance_pb2_grpc.EchoStub(channel)
    assert (await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())).status == 1
    call = stub.Unary(pb.EchoRequest(text="v"), timeout=10, metadata=[("x-echo-a", "1"), ("x-echo-b-bin", b"\0")])
    assert (await call).text == "v"
    assert ("x-echo-a", "1") in tuple(await call.initial_metadata())
    assert ("x-echo-b-trailer-bin", b"\0") in tuple(await call.trailing_metadata())
    assert [response.index async for response in stub.ServerStream(pb.EchoRequest(count=3))] == [0, 1, 2]
    requests = [pb.EchoRequest(text=text) for text in "abc"]
    assert (await stub.ClientStream(iter(requests))).text == "a,b,c"
    bidi = stub.Bidi()
    for number in range(3):
        await bidi.write(pb.EchoRequest(text=str(number)))
        assert (await bidi.read()).text == str(number)
    await bidi.done_writing()
    assert await bidi.code() is grpc.StatusCode.OK


async def test_errors_and_large_messages(served: Served) -> None:
    channel, _ = served
    stub = conformance_pb2_grpc.EchoStub(channel)
    payload = os.urandom(3_000_000)
    assert (await stub.Unary(pb.EchoRequest(payload=payload))).payload == payload
    for request, code in (
        (pb.EchoRequest(fail=pb.Failure(code=5, message="no ñandú")), grpc.StatusCode.NOT_FOUND),
        (pb.EchoRequest(payload=bytes(5_000_000)), grpc.StatusCode.RESOURCE_EXHAUSTED),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Unary(request)
        assert caught.value.code() is code


async def test_a_cancelled_call_cancels_the_function(served: Served) -> None:
    channel, log = served
    stub = conformance_pb2_grpc.EchoStub(channel)
    slow = stub.Unary(pb.EchoRequest(sleep_ms=20_000))
    await _logged(log, "began Unary")
    slow.cancel()
    await _logged(log, "CancelledError Unary")
    bidi = stub.Bidi()
    await bidi.write(pb.EchoRequest())
    await bidi.read()
    bidi.cancel()
    await _logged(log, "CancelledError Bidi")
    assert (await stub.Unary(pb.EchoRequest(text="on"))).text == "on"
