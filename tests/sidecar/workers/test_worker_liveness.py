"""Workers and fork servers that hang are ended and replaced; workers with functions that block are not."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable

import grpc
import pytest
from conformance.v1 import conformance_pb2 as pb
from conformance.v1 import conformance_pb2_grpc
from hosting import pool_of, working
from suspend import suspend

from mesh.contract.model import Contract


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - other processes do it
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("part", ["worker", "fork server"])
async def test_a_stopped_process_is_replaced(contract: Contract, part: str, caplog: pytest.LogCaptureFixture) -> None:
    pool = pool_of(contract, "apps.trouble", min=1, max=1, concurrency=10, liveness_timeout=1.0)
    async with working(contract, pool) as address, grpc.aio.insecure_channel(address) as channel:
        stub = conformance_pb2_grpc.EchoStub(channel)
        await stub.Unary(pb.EchoRequest())
        [worker] = pool.lifecycle.ready
        pid = worker.pid if part == "worker" else pool.spawner.pid
        assert pid is not None
        suspend(pid)
        await until(lambda: worker not in pool.lifecycle.alive)
        await until(lambda: pool.lifecycle.ready)
        await stub.Unary(pb.EchoRequest(), timeout=20)
    said = "its event loop has not turned for 1 s" if part == "worker" else "the fork server has not responded for 1 s"
    assert said in caplog.text


async def test_a_worker_that_is_not_stopped_keeps_its_calls(contract: Contract) -> None:
    """The function blocks the event loop for longer than the timeout, and its call has time."""
    pool = pool_of(contract, "apps.trouble", min=1, max=1, concurrency=10, liveness_timeout=1.0)
    async with working(contract, pool) as address, grpc.aio.insecure_channel(address) as channel:
        [worker] = pool.lifecycle.ready
        answer = await conformance_pb2_grpc.EchoStub(channel).Unary(pb.EchoRequest(text="block 3"), timeout=20)
        assert answer.text == str(worker.pid)
        assert pool.lifecycle.ready == [worker]


async def test_a_stopped_fork_server_without_workers_stops_no_calls(contract: Contract) -> None:
    """A call that waits for it is served by the next one, or told to try again."""
    pool = pool_of(contract, "apps.trouble", min=0, max=1, concurrency=10, liveness_timeout=1.0)
    async with working(contract, pool) as address, grpc.aio.insecure_channel(address) as channel:
        stub = conformance_pb2_grpc.EchoStub(channel)
        [worker] = pool.lifecycle.ready
        assert pool.spawner.pid is not None
        suspend(pool.spawner.pid)
        os.kill(worker.pid, signal.SIGKILL)
        async with asyncio.timeout(30):
            while True:
                try:
                    await stub.Unary(pb.EchoRequest(), timeout=20)
                except grpc.aio.AioRpcError as error:
                    assert error.code() is grpc.StatusCode.UNAVAILABLE  # noqa: PT017 - every other ends the test
                else:
                    break
