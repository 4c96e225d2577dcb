"""A stream ends with the token of its user; what the function said before counts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from types import MappingProxyType
from typing import Any

import grpc
import pytest
from conformance.v1 import conformance_pb2 as pb
from conformance.v1 import conformance_pb2_grpc
from hosting import hosted

from mesh.auth import end_with_token
from mesh.call import Call, Handler, Identity
from mesh.contract.model import Contract
from mesh.errors import NotFound, Unauthenticated


async def authenticate(call: Call, next: Handler) -> None:
    """Give the call a user whose token is valid for two seconds from now."""
    call.identity = Identity("u1", claims=MappingProxyType({"exp": time.time() + 2}))
    await next(call)


async def run(function: Handler, leeway: float = 0.0, **claims: Any) -> None:
    call = Call(None, None)  # type: ignore[arg-type]
    call.identity = Identity("u1", claims=MappingProxyType({"iss": "me", **claims}))
    await end_with_token({"me": leeway})(call, function)


async def hang(_: Call) -> None:
    await asyncio.Event().wait()


async def test_a_stream_is_cancelled_when_the_token_expires() -> None:
    with pytest.raises(Unauthenticated, match="the token has expired; refresh it and open the stream again"):
        await asyncio.wait_for(run(hang, exp=time.time() + 0.05), 10)


async def test_an_expiry_that_is_text_ends_a_stream_too() -> None:
    with pytest.raises(Unauthenticated, match="the token has expired"):
        await asyncio.wait_for(run(hang, exp=str(int(time.time()))), 10)


async def test_a_token_in_its_leeway_does_not_end_a_stream_at_once() -> None:
    task = asyncio.ensure_future(run(hang, leeway=600.0, exp=time.time() - 5))
    done, _ = await asyncio.wait([task], timeout=0.1)
    assert not done
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("claims", [{}, {"exp": "soon"}, {"exp": time.time() + 1e9}])
async def test_a_stream_without_an_end_goes_on(claims: dict[str, Any]) -> None:
    done = asyncio.Event()

    async def function(_: Call) -> None:
        done.set()

    await run(function, **claims)
    assert done.is_set()


async def test_what_the_function_said_counts() -> None:
    async def function(_: Call) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise NotFound("its own status") from None

    with pytest.raises(NotFound):
        await run(function, exp=time.time() + 0.05)


async def test_the_client_of_a_stream_is_told(contract: Contract) -> None:
    """Over the wire, after the messages that came before; unary calls are not cut off."""
    layers = {"authenticate": authenticate, "stream_identity": [end_with_token({})]}
    async with hosted(contract, **layers) as address, grpc.aio.insecure_channel(address) as channel:
        stub = conformance_pb2_grpc.EchoStub(channel)

        async def requests() -> AsyncIterator[pb.EchoRequest]:
            yield pb.EchoRequest(text="first")
            await asyncio.Event().wait()

        stream = stub.Bidi(requests())
        first = await stream.read()
        assert first.text == "first"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await asyncio.wait_for(stream.read(), 30)
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert (await stub.Unary(pb.EchoRequest(text="later"))).text == "later"
