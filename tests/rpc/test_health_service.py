"""grpc.health.v1 with the stock client."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from grpc_health.v1 import health_pb2 as pb
from grpc_health.v1 import health_pb2_grpc
from hosting import ECHO, sidecar_of

from mesh.call import Call, Handler
from mesh.contract.model import Contract
from mesh.errors import Unauthenticated
from mesh.layers.concurrency import ConcurrencyLimit

Status = pb.HealthCheckResponse


async def refuse(call: Call, next: Handler) -> None:
    raise Unauthenticated("nobody passes")


async def test_check_and_list_pass_neither_gate_nor_authentication(contract: Contract) -> None:
    sidecar = sidecar_of(contract, authenticate=refuse, concurrency_limit=ConcurrencyLimit(0, 0))
    async with grpc.aio.insecure_channel(await sidecar.start()) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for name in ("", ECHO):
            assert (await stub.Check(pb.HealthCheckRequest(service=name))).status == Status.SERVING
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Check(pb.HealthCheckRequest(service="nobody.v1.Nobody"))
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        statuses = (await stub.List(pb.HealthListRequest())).statuses
        assert {name: status.status for name, status in statuses.items()} == dict.fromkeys(
            ("", ECHO, "liveness"), Status.SERVING
        )
    await sidecar.stop()


async def test_liveness_is_served_also_during_the_drain(contract: Contract) -> None:
    sidecar = sidecar_of(contract)
    async with grpc.aio.insecure_channel(await sidecar.start()) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        sidecar.health.drain()
        assert (await stub.Check(pb.HealthCheckRequest(service=ECHO))).status == Status.NOT_SERVING
        assert (await stub.Check(pb.HealthCheckRequest(service="liveness"))).status == Status.SERVING
    await sidecar.stop()


async def test_watch_hears_of_the_stop_and_does_not_delay_it(contract: Contract) -> None:
    sidecar = sidecar_of(contract, drain=30.0)
    async with grpc.aio.insecure_channel(await sidecar.start()) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        watch = stub.Watch(pb.HealthCheckRequest(service=ECHO))
        unknown = stub.Watch(pb.HealthCheckRequest(service="nobody.v1.Nobody"))
        assert (await watch.read()).status == Status.SERVING
        assert (await unknown.read()).status == Status.SERVICE_UNKNOWN
        await asyncio.wait_for(sidecar.stop(), 5)
        assert (await watch.read()).status == Status.NOT_SERVING
        assert await watch.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_watch_that_is_left_ends(contract: Contract) -> None:
    sidecar = sidecar_of(contract)
    async with grpc.aio.insecure_channel(await sidecar.start()) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(pb.HealthCheckRequest())
        await watch.read()
        assert len(sidecar.app.calls) == 1
        watch.cancel()
        async with asyncio.timeout(5):
            while sidecar.app.calls:  # noqa: ASYNC110 - there is no event to await in the server
                await asyncio.sleep(0.01)
    await sidecar.stop()
