"""Isolation of calls on one connection from hostile callers, functions and servers."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from fault_server import HEADERS, PATH, framed
from hosting import hosted
from ngh2 import Setting

from mesh.call import Call, Metadata
from mesh.errors import DeadlineExceeded
from mesh.layers.concurrency import ConcurrencyLimit
from mesh.rpc.client.connection_pool import ConnectionPool


@pytest.fixture
def transport():
    return "ngh2"


async def test_a_long_error_text_hurts_no_other_call(contract, rpc, dial):
    async with hosted(contract) as address:
        stub = dial(address)
        other = asyncio.create_task(_once(stub, rpc.pb.EchoRequest(text="other", sleep_ms=300)))
        await stub.Unary(rpc.pb.EchoRequest())
        for details in (False, True):
            fail = rpc.pb.Failure(code=3, message="é" * 600_000, details=details)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.Unary(rpc.pb.EchoRequest(fail=fail))
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert caught.value.details().startswith("éé")
        assert (await other).text == "other"


async def _once(stub, request):
    return await stub.Unary(request)


async def test_a_call_that_is_cancelled_as_it_gets_its_place(faulty, channel):
    """Its place in the queue is gone then; the call ends as cancelled all the same."""
    server = await faulty(lambda peer, stream_id: None, {Setting.MAX_CONCURRENT_STREAMS: 1})  # noqa: ARG005
    pool = ConnectionPool([server.address])
    call = Call(None, Metadata())
    waiting = [asyncio.create_task(pool.acquire(call)) for _ in range(2)]
    while len(pool._waiters) < 2:  # noqa: ASYNC110 - a step of the loop, no time
        await asyncio.sleep(0)
    waiting[0].cancel()
    pool._wake_all()
    with pytest.raises(asyncio.CancelledError):
        await waiting[0]
    await waiting[1]
    await pool.close()


async def test_a_deadline_that_passes_as_the_call_gets_its_place(faulty):
    server = await faulty(lambda peer, stream_id: None)  # noqa: ARG005
    pool = ConnectionPool([server.address])
    call = Call(None, Metadata(), asyncio.get_running_loop().time() + 10)
    waiting = asyncio.create_task(pool.acquire(call))
    while not pool._waiters:  # noqa: ASYNC110 - a step of the loop, no time
        await asyncio.sleep(0)
    pool._waiters[0].cancel()  # as the timeout does
    pool._wake_all()
    with pytest.raises((asyncio.CancelledError, DeadlineExceeded)):
        await waiting
    await pool.close()


async def test_one_answer_is_all_that_a_unary_call_keeps(faulty, channel):
    """A server that streams where one response is expected fills no memory."""
    sent = 0

    def answer(peer, stream_id):
        nonlocal sent
        peer.h2.send_response(stream_id, HEADERS)
        task = asyncio.create_task(flood(peer, stream_id))
        task.add_done_callback(lambda _: None)

    async def flood(peer, stream_id):
        nonlocal sent
        while stream_id not in peer.resets and sent < 500:
            peer.h2.send_data(stream_id, framed(bytes(10_000)))
            peer.flush()
            sent += 1
            await asyncio.sleep(0.001)

    server = await faulty(answer)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await channel(server.address).unary_unary(PATH)(b"", timeout=3)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert sent < 100


def test_room_of_one_connection_is_no_debt_of_another():
    """A server that lowers its limit has more streams than it allows; streams of other connections are available."""

    class Some:
        def __init__(self, available):
            self.available_streams = available
            self.streams = ()

    async def woken():
        pool = ConnectionPool(["127.0.0.1:1"])
        pool.ready = [Some(-50), Some(10)]
        place = asyncio.get_running_loop().create_future()
        pool._waiters.append(place)
        pool.on_stream_available()
        return place.done()

    assert asyncio.run(woken())


@pytest.mark.parametrize("how", ["cancelled", "expired", "streams cancelled", "streams expired"])
async def test_calls_that_end_early_hurt_no_other_call(contract, rpc, dial, how):
    """h2corn drops every call on a connection that carries more than 200 resets within ten seconds."""
    slow = rpc.pb.EchoRequest(sleep_ms=60_000, count=1)
    timeout = 0.5 if "expired" in how else 60
    async with hosted(contract, concurrency_limit=ConcurrencyLimit(2000, 0)) as address:
        stub = dial(address)
        await stub.Unary(rpc.pb.EchoRequest())
        healthy = [asyncio.create_task(_once(stub, rpc.pb.EchoRequest(text="on", sleep_ms=1500))) for _ in range(20)]
        make = stub.ServerStream if "streams" in how else stub.Unary

        async def early():
            call = make(slow, timeout=timeout)
            return [answer async for answer in call] if "streams" in how else await call

        for _ in range(4):
            calls = [asyncio.create_task(early()) for _ in range(250)]
            await asyncio.sleep(0.05)
            healthy.append(asyncio.create_task(_once(stub, rpc.pb.EchoRequest(text="on", sleep_ms=1000))))
            if "cancelled" in how:
                for call in calls:
                    call.cancel()
            ended = await asyncio.gather(*calls, return_exceptions=True)
            kind = asyncio.CancelledError if "cancelled" in how else grpc.aio.AioRpcError
            assert {type(error) for error in ended if not isinstance(error, kind)} == set()
            assert (await stub.Unary(rpc.pb.EchoRequest(text="new"))).text == "new"
        assert {answer.text for answer in await asyncio.gather(*healthy)} == {"on"}
        await _until(lambda: len(stub.target._handler.pool._connections) == 1)  # the replaced connections have closed
        [connection] = stub.target._handler.pool._connections
        assert not connection.draining


async def _until(condition):
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - the end of a connection has no event
            await asyncio.sleep(0.01)


async def test_a_server_with_the_same_deadline_ends_the_call_itself(faulty, channel):
    def answer(peer, stream_id):
        loop = asyncio.get_running_loop()
        loop.call_later(0.15, late, peer, stream_id)

    def late(peer, stream_id):
        peer.h2.send_response(stream_id, [*HEADERS, (b"grpc-status", b"4")], end_stream=True)
        peer.flush()

    server = await faulty(answer)
    made = channel(server.address)
    for make in (made.unary_unary, made.unary_stream):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            call = make(PATH)(b"", timeout=0.1)
            await (call if make == made.unary_unary else call.read())
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    pool = made.target._handler.pool
    await _until(lambda: not pool.ready[0].streams)
    assert server.peers[0].resets == {}


async def test_a_call_that_is_collected_in_a_thread_is_cancelled_on_the_loop(faulty, channel):
    """The garbage collector may run in any thread; the loop's objects may be used on the loop only."""
    server = await faulty(lambda peer, stream_id: None)  # noqa: ARG005
    made = channel(server.address)
    calls = [made.unary_stream(PATH)(b"", timeout=30)]
    task = calls[0].core.task
    await _until(lambda: bool(server.peers) and bool(server.peers[-1].ended))
    peer = server.peers[-1]
    asyncio.get_running_loop().set_debug(True)  # the loop then refuses calls from another thread
    await asyncio.to_thread(calls.clear)
    async with asyncio.timeout(2):
        await asyncio.wait([task])
    await _until(lambda: bool(peer.resets))


@pytest.mark.parametrize(
    "trailers", [[(b"grpc-status", b"9" * 5000)], [(b"grpc-status", b"14"), (b"grpc-retry-pushback-ms", b"9" * 5000)]]
)
async def test_numbers_that_nobody_reads(faulty, rpc, dial, trailers):
    """Python raises ValueError for an integer of more than 4,300 digits."""
    server = await faulty(lambda peer, stream_id: peer.respond(stream_id, b"", trailers))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await dial(server.address).Idempotent(rpc.pb.EchoRequest(), timeout=5)
    assert caught.value.code() in (grpc.StatusCode.UNKNOWN, grpc.StatusCode.UNAVAILABLE)
