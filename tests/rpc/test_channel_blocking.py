"""Blocking stubs, called from threads as ``def`` functions call them."""

from __future__ import annotations

import asyncio
import decimal
import gc
from contextvars import ContextVar

import grpc
import pytest

from mesh.call import Call, Metadata, current
from mesh.errors import Cancelled, NotFound
from mesh.rpc.client.blocking_channel import BlockingChannel
from mesh.rpc.client.channel import Channel
from mesh.rpc.client.target import Target
from mesh.threads import ThreadPool

variable: ContextVar[str] = ContextVar("variable", default="lost")


@pytest.fixture
async def blocking(echo, rpc, contract):
    target = Target([echo.address], tls=getattr(echo, "tls", None))
    yield rpc.grpc.EchoStub(BlockingChannel(Channel(target, contract), asyncio.get_running_loop()))
    await target.close()


async def test_all_four_kinds(blocking, rpc):
    def function():
        requests = [rpc.pb.EchoRequest(text=text) for text in "abc"]
        return (
            blocking.Unary(requests[0], timeout=5).text,
            [answer.index for answer in blocking.ServerStream(rpc.pb.EchoRequest(count=3), timeout=5)],
            blocking.ClientStream(iter(requests), timeout=5).text,
            [answer.text for answer in blocking.Bidi(requests, timeout=5)],
        )

    assert await asyncio.to_thread(function) == ("a", [0, 1, 2], "a,b,c", ["a", "b", "c"])


async def test_errors(blocking, rpc):
    def function():
        blocking.Unary(rpc.pb.EchoRequest(fail={"code": 5, "message": "gone"}), timeout=5)

    with pytest.raises(NotFound) as caught:
        await asyncio.to_thread(function)
    assert isinstance(caught.value, grpc.RpcError)
    assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.NOT_FOUND, "gone")


async def test_metadata(blocking, rpc):
    def function():
        _, call = blocking.Unary.with_call(rpc.pb.EchoRequest(), metadata=[("x-echo-a", "1")], timeout=5)
        stream = blocking.ServerStream(rpc.pb.EchoRequest(count=1), metadata=[("x-echo-a", "2")], timeout=5)
        assert list(stream.initial_metadata()) == [("x-echo-a", "2")]
        assert len(list(stream)) == 1
        assert stream.code() == grpc.StatusCode.OK
        assert stream.details() == ""
        return list(call.initial_metadata()), list(stream.trailing_metadata())

    assert await asyncio.to_thread(function) == ([("x-echo-a", "1")], [("x-echo-a-trailer", "2")])


async def test_the_deadline_of_the_call_being_answered_travels_from_the_thread(blocking, rpc):
    token = current.set(Call(None, Metadata(), asyncio.get_running_loop().time() + 10))
    try:
        answer = await asyncio.to_thread(blocking.Unary, rpc.pb.EchoRequest())
    finally:
        current.reset(token)
    assert 5 < answer.remaining.ToTimedelta().total_seconds() <= 10.1


async def test_requests_are_made_with_the_context_variables_of_the_function(blocking, rpc):
    def function():
        answered = Call(None, Metadata(), 1e9)
        current.set(answered)
        variable.set("kept")
        decimal.getcontext().prec = 5

        def requests():
            for _ in range(2):
                yield rpc.pb.EchoRequest(text=f"{variable.get()} {decimal.Decimal(1) / 3} {current.get() is answered}")
                variable.set("changed")

        return blocking.ClientStream(requests(), timeout=5).text, variable.get()

    assert await asyncio.to_thread(function) == ("kept 0.33333 True,changed 0.33333 True", "kept")


async def test_a_stream_that_is_dropped_is_cancelled(blocking, echo, rpc):
    def function():
        for _ in blocking.ServerStream(rpc.pb.EchoRequest(sleep_ms=20, count=1000), timeout=30):
            break
        gc.collect()

    await asyncio.to_thread(function)
    await echo.servicer.cancelled.wait()


@pytest.mark.parametrize("method", ["Unary", "ServerStream"])
async def test_a_call_ends_with_the_one_that_the_function_answers(contract, rpc, method):
    begun, ended, told = asyncio.Event(), asyncio.Event(), asyncio.Queue()

    async def behind(call):
        if method == "ServerStream":
            await call.send(rpc.pb.EchoResponse().SerializeToString())
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    loop = asyncio.get_running_loop()
    stub = rpc.grpc.EchoStub(BlockingChannel(Channel(behind, contract), loop))

    def function(_):
        for _ in range(2):  # the call in progress, and the next one
            try:
                answer = getattr(stub, method)(rpc.pb.EchoRequest())
                if method == "ServerStream":
                    list(answer)
            except Cancelled as error:
                loop.call_soon_threadsafe(told.put_nowait, error)

    threads = ThreadPool(1)
    try:
        answering = asyncio.ensure_future(threads.run(function))
        await asyncio.wait_for(begun.wait(), 20)
        answering.cancel()
        await asyncio.wait_for(ended.wait(), 20)
        for _ in range(2):
            assert (await asyncio.wait_for(told.get(), 20)).message == "the call has ended"
    finally:
        threads.stop()


async def test_it_refuses_to_stop_the_loop(blocking, rpc):
    with pytest.raises(RuntimeError, match="await the async one"):
        blocking.Unary(rpc.pb.EchoRequest())
