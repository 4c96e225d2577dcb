"""A caller that disconnects cancels the function; a caller that does not read blocks it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import grpc
import pytest
from conformance.v1 import conformance_pb2 as pb
from conformance.v1 import conformance_pb2_grpc
from hosting import hosted
from raw_h2 import frame, raw_client

from mesh.call import Call, Handler
from mesh.contract.model import Contract
from mesh.layers.concurrency import ConcurrencyLimit
from mesh.rpc.server.grpc_app import GrpcApp
from mesh.rpc.server.listener import Listener


class Watcher:
    """A layer that records how each call ended."""

    def __init__(self) -> None:
        self.began: asyncio.Queue[None] = asyncio.Queue()
        self.ended: asyncio.Queue[BaseException | None] = asyncio.Queue()
        self.sent = 0

    async def __call__(self, call: Call, next: Handler) -> None:
        self.began.put_nowait(None)
        error: BaseException | None = None
        try:
            await next(call)
        except BaseException as caught:
            error = caught
            raise
        finally:
            self.ended.put_nowait(error)

    async def begin(self) -> None:
        await asyncio.wait_for(self.began.get(), 5)

    async def end(self) -> BaseException | None:
        return await asyncio.wait_for(self.ended.get(), 5)


SLOW = pb.EchoRequest(text="slow", sleep_ms=30_000)
Start = Callable[[conformance_pb2_grpc.EchoStub], object]


async def _nothing() -> AsyncIterator[pb.EchoRequest]:
    await asyncio.Event().wait()
    yield pb.EchoRequest()


async def _one_slow() -> AsyncIterator[pb.EchoRequest]:
    yield SLOW
    await asyncio.Event().wait()


KINDS: dict[str, Start] = {
    "unary": lambda stub: stub.Unary(SLOW),
    "server stream": lambda stub: stub.ServerStream(pb.EchoRequest(count=2, sleep_ms=30_000)),
    "client stream, waiting for a request": lambda stub: stub.ClientStream(_nothing()),
    "client stream, at work": lambda stub: stub.ClientStream(_one_slow()),
    "bidi, waiting for a request": lambda stub: stub.Bidi(_nothing()),
    "bidi, at work": lambda stub: stub.Bidi(_one_slow()),
}


@pytest.mark.parametrize("kind", KINDS)
async def test_a_cancelled_call_cancels_the_function(contract: Contract, kind: str) -> None:
    watcher = Watcher()
    concurrency_limit = ConcurrencyLimit(1, 0)
    async with (
        hosted(contract, trace=watcher, concurrency_limit=concurrency_limit) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        call = KINDS[kind](conformance_pb2_grpc.EchoStub(channel))
        await watcher.begin()
        await asyncio.sleep(0.02)  # the function runs now; any moment must work
        call.cancel()
        assert isinstance(await watcher.end(), asyncio.CancelledError)
        assert concurrency_limit.in_flight == 0


async def test_a_lost_connection_cancels_its_calls(contract: Contract, capfd: pytest.CaptureFixture[str]) -> None:
    watcher = Watcher()
    async with hosted(contract, trace=watcher) as address:
        async with raw_client(address) as client:
            for _ in range(3):
                client.data(client.request(), frame(SLOW.SerializeToString()), end=True)
            for _ in range(3):
                await watcher.begin()
        for _ in range(3):
            assert isinstance(await watcher.end(), asyncio.CancelledError)
    assert capfd.readouterr().err == ""


async def test_a_function_that_cleans_up_slowly_ends_quietly(
    contract: Contract, capfd: pytest.CaptureFixture[str]
) -> None:
    async def clean_up(call: Call, next: Handler) -> None:
        try:
            await next(call)
        finally:
            await asyncio.sleep(0.05)

    watcher = Watcher()
    async with hosted(contract, trace=watcher, authorize=clean_up) as address, raw_client(address) as client:
        stream = client.request()
        client.data(stream, frame(SLOW.SerializeToString()), end=True)
        await watcher.begin()
        client.reset(stream)
        assert isinstance(await watcher.end(), asyncio.CancelledError)
    assert capfd.readouterr().err == ""


async def test_the_deadline_cancels_the_function(contract: Contract) -> None:
    watcher = Watcher()
    async with hosted(contract, trace=watcher) as address, raw_client(address) as client:
        answer = await client.call(frame(SLOW.SerializeToString()), headers=[(b"grpc-timeout", b"50m")])
        assert (answer.status, answer.message) == (4, "the deadline passed")
        assert await watcher.end() is not None


async def test_a_caller_that_does_not_read_holds_the_stream_back(contract: Contract) -> None:
    total, sent, message = 600, 0, bytes(100_000)
    path = "/conformance.v1.Echo/ServerStream"

    async def pour(call: Call) -> None:
        nonlocal sent
        for _ in range(total):
            await call.send(message)
            sent += 1

    method = contract.method(path)
    listener = Listener(GrpcApp({path: (method, pour)}), "127.0.0.1:0", grpc=True, drain=1)
    async with grpc.aio.insecure_channel(await listener.start()) as channel:
        call = channel.unary_stream(path)(b"")
        await call.read()
        before = -1
        while before != sent:  # until no more is sent
            before = sent
            await asyncio.sleep(0.3)
        assert 0 < before < total // 2
        for _ in range(total - 1):
            assert await call.read() == message
        assert await call.read() is grpc.aio.EOF
        assert sent == total
    await listener.stop()


@pytest.mark.parametrize("module", ["apps.echo", "apps.echo_sync"])
async def test_a_cancelled_stream_frees_its_thread(contract: Contract, module: str) -> None:
    watcher = Watcher()
    async with hosted(contract, module, trace=watcher) as address, grpc.aio.insecure_channel(address) as channel:
        stub = conformance_pb2_grpc.EchoStub(channel)
        for _ in range(40):  # more than there are threads
            call = stub.Bidi()
            await call.write(pb.EchoRequest(text="x"))
            assert (await call.read()).text == "x"
            call.cancel()
            await watcher.end()
        assert (await stub.Unary(pb.EchoRequest(text="free"), timeout=5)).text == "free"
