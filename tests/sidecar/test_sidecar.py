"""The sidecar server: its chain, its hooks, its shutdown."""

from __future__ import annotations

import asyncio
import sys
import types
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import grpc
import pytest
from conformance.v1 import conformance_pb2 as pb
from conformance.v1 import conformance_pb2_grpc
from hosting import hosted, sidecar_of

from mesh.call import Call, Handler, current
from mesh.contract.model import Contract
from mesh.control.readiness import STOP_MARGIN_SECONDS
from mesh.errors import PermissionDenied
from mesh.layers.concurrency import ConcurrencyLimit
from mesh.rpc.server.listener import ListenError


@pytest.fixture
def module() -> Iterator[types.ModuleType]:
    """An empty module of functions; those of apps.echo fill the gaps."""
    from apps import echo

    made = types.ModuleType("made_functions")
    made.__dict__.update({key: value for key, value in vars(echo).items() if not key.startswith("__")})
    sys.modules[made.__name__] = made
    yield made
    del sys.modules[made.__name__]


async def test_the_chain_in_its_order(contract: Contract, module: types.ModuleType) -> None:
    seen: list[str] = []

    def layer(name: str) -> Any:
        async def note(call: Call, next: Handler) -> None:
            seen.append(name)
            await next(call)

        return note

    async def unary(request: pb.EchoRequest, context: Any) -> pb.EchoResponse:
        seen.append("function")
        assert current.get() is context.call
        return pb.EchoResponse()

    module.unary = unary
    layers = {name: layer(name) for name in ("trace", "authenticate", "authorize", "concurrency_limit")}
    async with hosted(contract, module.__name__, **layers) as address, grpc.aio.insecure_channel(address) as channel:
        await conformance_pb2_grpc.EchoStub(channel).Unary(pb.EchoRequest())
    assert seen == ["trace", "authenticate", "authorize", "concurrency_limit", "function"]
    assert current.get() is None


async def test_a_layer_that_fails_refuses_the_call(contract: Contract) -> None:
    async def broken(call: Call, next: Handler) -> None:
        raise KeyError("inside")

    async def closed(call: Call, next: Handler) -> None:
        raise PermissionDenied("not you")

    for layer, code, text in ((broken, "INTERNAL", "internal error"), (closed, "PERMISSION_DENIED", "not you")):
        async with hosted(contract, authorize=layer) as address, grpc.aio.insecure_channel(address) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await conformance_pb2_grpc.EchoStub(channel).Unary(pb.EchoRequest())
            assert (caught.value.code().name, caught.value.details()) == (code, text)


async def test_a_trace_layer_that_fails_refuses_the_call_too(contract: Contract) -> None:
    async def broken(call: Call, next: Handler) -> None:
        raise KeyError("inside")

    async with hosted(contract, trace=broken) as address, grpc.aio.insecure_channel(address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await conformance_pb2_grpc.EchoStub(channel).Unary(pb.EchoRequest())
    assert (caught.value.code().name, caught.value.details()) == ("INTERNAL", "internal error")


async def test_a_full_gate_refuses_at_once(contract: Contract) -> None:
    async with (
        hosted(contract, concurrency_limit=ConcurrencyLimit(1, 0)) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        stub = conformance_pb2_grpc.EchoStub(channel)
        inside = stub.Bidi()
        await inside.write(pb.EchoRequest())
        await inside.read()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Unary(pb.EchoRequest())
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        await inside.done_writing()
        await inside.code()
        assert await stub.Unary(pb.EchoRequest(text="again")) == pb.EchoResponse(text="again")


async def test_hooks_run_before_the_first_call_and_after_the_last(contract: Contract, module: types.ModuleType) -> None:
    seen: list[str] = []

    async def startup(service: Any) -> None:
        seen.append(f"startup {service.name}")

    async def shutdown(service: Any) -> None:
        seen.append(f"shutdown {service.name}")

    async def unary(request: pb.EchoRequest, context: Any) -> pb.EchoResponse:
        await asyncio.sleep(0.1)
        seen.append("call")
        return pb.EchoResponse()

    module.startup, module.shutdown, module.unary = startup, shutdown, unary
    sidecar = sidecar_of(contract, module.__name__)
    assert seen == []
    async with grpc.aio.insecure_channel(await sidecar.start()) as channel:
        call = conformance_pb2_grpc.EchoStub(channel).Unary(pb.EchoRequest())
        while not sidecar.app.calls:  # noqa: ASYNC110 - there is no event to await in the server
            await asyncio.sleep(0.001)
        await sidecar.stop()
        await call
    assert seen == ["startup echo", "call", "shutdown echo"]


async def test_a_function_that_ignores_its_cancellation_keeps_no_service_from_its_shutdown(
    contract: Contract, module: types.ModuleType
) -> None:
    seen: list[str] = []
    begun, released = asyncio.Event(), asyncio.Event()

    async def shutdown(service: Any) -> None:
        seen.append("shutdown")

    async def unary(request: pb.EchoRequest, context: Any) -> pb.EchoResponse:
        begun.set()
        while not released.is_set():
            with suppress(asyncio.CancelledError):
                await released.wait()
        return pb.EchoResponse()

    module.shutdown, module.unary = shutdown, unary
    sidecar = sidecar_of(contract, module.__name__, drain=3.0)
    async with grpc.aio.insecure_channel(await sidecar.start()) as channel:
        call = conformance_pb2_grpc.EchoStub(channel).Unary(pb.EchoRequest())
        await begun.wait()
        try:
            async with asyncio.timeout(3 + STOP_MARGIN_SECONDS):  # `mesh up` kills it then
                await sidecar.stop()
        finally:
            released.set()
        assert seen == ["shutdown"]
        assert await call.code() is grpc.StatusCode.UNAVAILABLE


async def test_what_cannot_start_is_shut_down_again(contract: Contract, module: types.ModuleType) -> None:
    seen: list[str] = []

    async def startup(service: Any) -> None:
        seen.append("startup")

    async def shutdown(service: Any) -> None:
        seen.append("shutdown")

    module.startup, module.shutdown = startup, shutdown
    async with hosted(contract) as address:
        with pytest.raises(ListenError, match=address):
            await sidecar_of(contract, module.__name__, listen=address).start()
    assert seen == ["startup", "shutdown"]


async def test_a_drain_under_load_loses_no_call(contract: Contract) -> None:
    """Every call that reached a function gets its response; every other one is refused as UNAVAILABLE."""
    began: list[str] = []
    answered: list[str] = []
    refused: list[grpc.StatusCode] = []

    async def note(call: Call, next: Handler) -> None:
        began.append(str(call.metadata["x-id"]))
        await next(call)

    sidecar = sidecar_of(contract, trace=note)
    address = await sidecar.start()

    async def load(worker: int, channel: grpc.aio.Channel) -> None:
        stub = conformance_pb2_grpc.EchoStub(channel)
        for number in range(10_000):
            name = f"{worker}-{number}"
            try:
                if worker % 4:
                    await stub.Unary(pb.EchoRequest(sleep_ms=worker), metadata=[("x-id", name)])
                else:
                    request = pb.EchoRequest(count=5, sleep_ms=2)
                    call = stub.ServerStream(request, metadata=[("x-id", name)])
                    assert len([response async for response in call]) == 5
            except grpc.aio.AioRpcError as error:
                refused.append(error.code())
                return
            answered.append(name)

    channels = [grpc.aio.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) for _ in range(4)]
    workers = [asyncio.create_task(load(worker, channels[worker % 4])) for worker in range(40)]
    async with asyncio.timeout(20):
        while len(answered) < 200:  # noqa: ASYNC110 - until the load is on
            await asyncio.sleep(0.01)
        await sidecar.stop()
        await asyncio.gather(*workers)
    for channel in channels:
        await channel.close()
    assert sorted(began) == sorted(answered)
    assert refused == [grpc.StatusCode.UNAVAILABLE] * 40


async def test_what_outlives_the_drain_is_unavailable(contract: Contract) -> None:
    sidecar = sidecar_of(contract, drain=0.2)
    async with grpc.aio.insecure_channel(await sidecar.start()) as channel:
        stub = conformance_pb2_grpc.EchoStub(channel)
        slow = stub.Unary(pb.EchoRequest(sleep_ms=60_000))
        stream = stub.Bidi()
        await stream.write(pb.EchoRequest())
        await stream.read()
        await asyncio.wait_for(sidecar.stop(), 5)
        for call in (slow, stream):
            assert await call.code() is grpc.StatusCode.UNAVAILABLE
            assert await call.details() == "the server is shutting down"


async def test_watched_streams_take_no_permit_and_end_when_the_drain_begins(contract: Contract) -> None:
    path = "/conformance.v1.Echo/Bidi"
    sidecar = sidecar_of(contract, drain=60.0, watched={path}, concurrency_limit=ConcurrencyLimit(1, 0))
    async with grpc.aio.insecure_channel(await sidecar.start()) as channel:
        stub = conformance_pb2_grpc.EchoStub(channel)
        streams = [stub.Bidi() for _ in range(3)]
        for stream in streams:
            await stream.write(pb.EchoRequest())
            await stream.read()
        assert (await stub.Unary(pb.EchoRequest(text="there is a permit"))).text
        await asyncio.wait_for(sidecar.stop(), 30)
        for stream in streams:
            assert await stream.code() is grpc.StatusCode.UNAVAILABLE
            assert await stream.details() == "this replica is shutting down"
