"""Separation of methods that kill workers: other methods lose no call, not even those that cannot be retried."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
from conformance.v1 import conformance_pb2 as pb
from test_worker_pool import ask, given_up, refused, running

from mesh.contract.model import Contract
from mesh.sidecar.workers.method_health import MethodHealth

UNARY = "/conformance.v1.Echo/Unary"
ALIVE = pb.EchoRequest(text="alive", count=3, sleep_ms=30)


async def streamed(stub: Any, request: pb.EchoRequest = ALIVE) -> list[int]:
    """Return the responses of a stream, which cannot be moved to another worker once it has started."""
    return [answer.index async for answer in stub.ServerStream(request, timeout=20)]


async def prove(stub: Any) -> None:
    """Make the streaming method a proven one."""
    await asyncio.gather(*(streamed(stub, pb.EchoRequest(text="alive", count=1)) for _ in range(5)))


async def test_the_first_call_of_a_method_is_beside_none_that_is_proven(contract: Contract) -> None:
    async with running(contract, max=3, concurrency=8) as (stub, _):
        await prove(stub)
        streams = [asyncio.ensure_future(streamed(stub)) for _ in range(6)]
        assert (await refused(ask(stub, "exit 1", timeout=20)))[0] == "UNAVAILABLE"
        assert await asyncio.gather(*streams) == [[0, 1, 2]] * 6


async def test_once_known_it_shares_no_worker(contract: Contract) -> None:
    async with running(contract, max=3, concurrency=8) as (stub, pool):
        await prove(stub)
        assert (await refused(ask(stub, "exit 1", timeout=20)))[0] == "UNAVAILABLE"
        assert pool._health.health[UNARY] is MethodHealth.SUSPECT
        for _ in range(5):
            streams = [asyncio.ensure_future(streamed(stub)) for _ in range(6)]
            crashes = [refused(ask(stub, "exit 1", timeout=20)) for _ in range(3)]
            assert {code for code, _ in await asyncio.gather(*crashes)} == {"UNAVAILABLE"}
            assert await asyncio.gather(*streams) == [[0, 1, 2]] * 6


async def test_one_that_blocks_its_worker_is_known_by_that(contract: Contract) -> None:
    async with running(contract, max=2, concurrency=8) as (stub, pool):
        await given_up(ask(stub, "loop"), pool)
        async with asyncio.timeout(20):
            while pool._health.health.get(UNARY) is not MethodHealth.SUSPECT:  # noqa: ASYNC110 - blame has no event
                await asyncio.sleep(0.02)
        stuck = asyncio.ensure_future(refused(ask(stub, "loop", timeout=1)))
        assert await streamed(stub) == [0, 1, 2], "in a worker of its own"
        assert (await stuck)[0] == "DEADLINE_EXCEEDED"


async def test_answers_clear_it(contract: Contract) -> None:
    async with running(contract, max=2, concurrency=8) as (stub, pool):
        await refused(ask(stub, "exit 1", timeout=20))
        for _ in range(10):
            await ask(stub, "hello", timeout=20)
        assert UNARY not in pool._health.health


async def test_one_worker_is_shared_all_the_same(contract: Contract) -> None:
    async with running(contract, max=1, concurrency=4) as (stub, _):
        await refused(ask(stub, "exit 1", timeout=20))
        assert await streamed(stub) == [0, 1, 2]
        assert (await ask(stub, "hello", timeout=20)).text


async def test_many_suspects_and_others_all_get_their_turn(contract: Contract) -> None:
    async with running(contract, max=2, concurrency=2) as (stub, _):
        await refused(ask(stub, "exit 1", timeout=20))
        calls = [*(ask(stub, "sleep 0.05", timeout=20) for _ in range(20)), *(streamed(stub) for _ in range(20))]
        found = await asyncio.gather(*calls, return_exceptions=True)
    assert not [one for one in found if isinstance(one, grpc.aio.AioRpcError)]


async def test_callers_that_give_up_as_they_lose_their_place_break_nothing(contract: Contract) -> None:
    """A full queue displaces a waiting call in the turn of the event loop in which that call is cancelled."""
    async with running(contract, max=1, concurrency=1, queue=4) as (stub, pool):
        inside = asyncio.ensure_future(ask(stub, "sleep 60", timeout=100))
        while not pool._queue.running:  # noqa: ASYNC110 - the queue has no event; also below
            await asyncio.sleep(0)
        for _ in range(20):
            waiting = [asyncio.ensure_future(ask(stub, "", timeout=20)) for _ in range(4)]
            while pool._queue.waiting < 4:  # noqa: ASYNC110
                await asyncio.sleep(0)
            others = [asyncio.ensure_future(streamed(stub)) for _ in range(2)]
            for call in waiting:
                call.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
            for call in others:
                call.cancel()
            await asyncio.gather(*others, return_exceptions=True)
            while pool._queue.waiting:  # noqa: ASYNC110
                await asyncio.sleep(0)
        assert not inside.done()
        inside.cancel()
        assert (await ask(stub, "hello", timeout=20)).text
