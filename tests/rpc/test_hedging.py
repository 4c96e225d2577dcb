"""Hedging: the first response counts, the others are cancelled; by both transports with real servers."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from types import SimpleNamespace

import pytest
from test_retry import FAST, Outgoing, Script

from mesh.call import chain
from mesh.contract.model import Hedge
from mesh.errors import NotFound, Unavailable
from mesh.headers import ATTEMPTS, NO_RETRY, PUSHBACK
from mesh.rpc.client.attempt import BUDGET_TOKENS, RetryBudget
from mesh.rpc.client.channel import Channel
from mesh.rpc.client.hedging import hedged
from mesh.rpc.client.retry import retry
from mesh.rpc.client.target import Target

NEVER = 3600.0


@pytest.fixture
def method(contract):
    return contract.method("/conformance.v1.Echo/Idempotent")


def hedging(method, delay=0.001, attempts=3):
    return replace(method, hedge=Hedge(delay, attempts))


class Slow:
    """A handler whose first calls do not end; the others respond with their number."""

    def __init__(self, *, hang):
        self.hang = hang
        self.attempts = []
        self.cancelled = 0

    async def __call__(self, call):
        number = len(self.attempts)
        self.attempts.append(call.metadata.wire(ATTEMPTS))
        assert await call.receive_one() == b"request"
        try:
            if number < self.hang:
                await asyncio.sleep(NEVER)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        call.headers.append((b"x-number", b"%d" % number))
        await call.send(b"%d" % number)


async def test_the_first_response_counts_and_the_others_are_cancelled(method):
    slow = Slow(hang=2)
    call = Outgoing(hedging(method), b"request")
    await chain(retry(FAST), slow)(call)
    assert call.answers == [b"2"]
    assert call.headers == [(b"x-number", b"2")]
    assert slow.attempts == [None, b"1", b"2"]
    await asyncio.sleep(0)
    assert slow.cancelled == 2


async def test_an_answer_in_time_is_sent_once(method):
    slow = Slow(hang=0)
    await chain(retry(FAST), slow)(Outgoing(hedging(method, NEVER), b"request"))
    assert slow.attempts == [None]


async def test_attempts_are_limited(method):
    slow = Slow(hang=99)
    call = asyncio.ensure_future(chain(retry(FAST), slow)(Outgoing(hedging(method, attempts=2), b"request")))
    while len(slow.attempts) < 2:  # noqa: ASYNC110 - steps of the loop
        await asyncio.sleep(0.001)
    await asyncio.sleep(0.05)  # that nothing happens has no event
    assert len(slow.attempts) == 2
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await asyncio.sleep(0)
    assert slow.cancelled == 2


async def test_unavailable_sends_the_next_at_once_and_every_other_status_is_the_answer(method):
    script = Script(Unavailable("1"))
    call = Outgoing(hedging(method, NEVER), b"request")
    await chain(retry(FAST), script)(call)
    assert script.attempts == [None, b"1"]
    assert call.trailers == [(b"x-try", b"good")]
    script = Script(NotFound("x"))
    with pytest.raises(NotFound):
        await chain(retry(FAST), script)(Outgoing(hedging(method, NEVER), b"request"))
    assert len(script.seen) == 1


async def test_the_last_failure_asks_for_no_retry(method):
    script = Script(*[Unavailable(str(number)) for number in range(9)])
    call = Outgoing(hedging(method, NEVER), b"request")
    with pytest.raises(Unavailable, match="2"):
        await chain(retry(FAST), script)(call)
    assert len(script.seen) == 3
    assert call.trailers == [(b"x-try", b"failed"), NO_RETRY]


@pytest.mark.parametrize(("value", "attempts"), [(b"-1", 1), (b"5", 2)])
async def test_pushback(method, value, attempts):
    script = Script((PUSHBACK, value))
    call = Outgoing(hedging(method, NEVER), b"request")
    if attempts == 1:
        with pytest.raises(Unavailable):
            await chain(retry(FAST), script)(call)
    else:
        await chain(retry(FAST), script)(call)
    assert len(script.seen) == attempts


async def test_hedges_count_against_the_budget(method):
    budget = RetryBudget()
    budget.tokens = BUDGET_TOKENS / 2 + 2
    policy = Hedge(0.0001, 2)
    hedges = 0
    while not budget.spent:
        slow = Slow(hang=1)
        await hedged(Outgoing(method, b"request"), slow, policy, budget)
        hedges += len(slow.attempts) - 1
    assert hedges == 3  # each takes a token, and its success gives back a tenth
    slow = Slow(hang=1)
    running = asyncio.ensure_future(hedged(Outgoing(method, b"request"), slow, policy, budget))
    await asyncio.sleep(0.05)  # that nothing happens has no event
    assert len(slow.attempts) == 1
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_a_hedge_goes_to_another_address(serve, contract, rpc, transport, method):
    servers = [await serve(), await serve()]
    target = Target([server.address for server in servers], transport=transport)
    hedging_contract = SimpleNamespace(method=lambda path: replace(contract.method(path), hedge=Hedge(0.02, 2)))
    stub = rpc.grpc.EchoStub(Channel(chain(retry(FAST), target), hedging_contract))
    try:
        async with asyncio.timeout(30):
            while not all(server.servicer.calls for server in servers):
                await stub.Idempotent(rpc.pb.EchoRequest(), timeout=30)
        for server in servers:
            server.servicer.calls = 0
        for count in range(1, 6):
            call = asyncio.ensure_future(stub.Idempotent(rpc.pb.EchoRequest(sleep_ms=60_000), timeout=30))
            async with asyncio.timeout(20):
                while any(server.servicer.calls < count for server in servers):  # noqa: ASYNC110 - a call has no event
                    await asyncio.sleep(0.01)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
        assert [server.servicer.calls for server in servers] == [5, 5]
        for server in servers:
            await asyncio.wait_for(server.servicer.idle.wait(), 30)  # the losers were cancelled
    finally:
        await target.close()
