"""Retries in a chain of services: a failing last one gets few attempts, however deep the chain is."""

from __future__ import annotations

from contextlib import AsyncExitStack

import grpc
import pytest
from hosting import hosted, pool_of, working
from test_retry import FAST

from mesh.call import chain
from mesh.rpc.client.channel import Channel
from mesh.rpc.client.retry import retry
from mesh.rpc.client.target import Target
from mesh.sidecar import ServiceContext

DEPTH = 3


@pytest.fixture
async def relays(serve, contract, request):
    """A chain of sidecars before a server; gives the address of the first, and the server."""
    last = await serve()
    async with AsyncExitStack() as stack:
        address = last.address
        for _ in range(DEPTH):
            target = Target([address])
            stack.push_async_callback(target.close)
            onward = chain(retry(FAST), target)
            if request.param == "sidecar":
                context = ServiceContext("relay", channel=Channel(onward, contract), blocking=None)
                address = await stack.enter_async_context(hosted(contract, "apps.relay", service=context))
            else:
                workers = pool_of(contract, "apps.relay", onward=onward, min=1, max=1)
                address = await stack.enter_async_context(working(contract, workers))
        yield address, last.servicer


@pytest.mark.parametrize("relays", ["sidecar", "workers"], indirect=True)
@pytest.mark.parametrize(
    ("text", "bound"),
    [
        ("pass", FAST.max_attempts),
        ("replace", FAST.max_attempts),
        ("hide", DEPTH * (FAST.max_attempts - 1) + FAST.max_attempts),
    ],
)
async def test_a_failing_last_service_gets_few_attempts(relays, dial, rpc, text, bound):
    address, last = relays
    last.refuse = 10**9
    stub = dial(address)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Idempotent(rpc.pb.EchoRequest(text=text), timeout=60)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert FAST.max_attempts <= last.calls <= bound < FAST.max_attempts**DEPTH


@pytest.mark.parametrize("relays", ["sidecar"], indirect=True)
async def test_a_last_service_that_recovers_is_reached(relays, dial, rpc):
    address, last = relays
    last.refuse = FAST.max_attempts - 1
    response = await dial(address).Idempotent(rpc.pb.EchoRequest(text="pass"), timeout=60)
    assert response.text == "pass"
    assert last.calls == FAST.max_attempts


@pytest.mark.parametrize("relays", ["sidecar"], indirect=True)
async def test_a_refusal_for_overload_is_not_retried(relays, dial, rpc):
    address, last = relays
    request = rpc.pb.EchoRequest(text="pass", fail=rpc.pb.Failure(code=8, message="the queue is full"))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await dial(address).Idempotent(request, timeout=60)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert last.calls == 1
