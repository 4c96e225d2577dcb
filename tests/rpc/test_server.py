"""The gRPC server with a stock grpcio client: every kind of method, every way to end.

Most of it is ``behaviour``, here for functions in the event loop and in threads.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc
import pytest
from behaviour import *  # noqa: F403 - the suite
from conformance.v1 import conformance_pb2 as pb
from conformance.v1 import conformance_pb2_grpc
from hosting import hosted

from mesh.contract.model import Contract


@pytest.fixture(params=["apps.echo", "apps.echo_sync"])
async def stub(request: pytest.FixtureRequest, contract: Contract) -> AsyncIterator[conformance_pb2_grpc.EchoStub]:
    unlimited = [("grpc.max_receive_message_length", -1)]
    async with hosted(contract, request.param) as address, grpc.aio.insecure_channel(address, unlimited) as channel:
        yield conformance_pb2_grpc.EchoStub(channel)


async def test_a_call_without_a_deadline_has_none(stub) -> None:
    assert not (await stub.Unary(pb.EchoRequest())).HasField("remaining")


async def test_a_bug_is_in_the_log(stub, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Unary(pb.EchoRequest(fail=pb.Failure(message="secret")))
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert "secret" in caplog.text


async def test_unknown_method_and_service(contract: Contract) -> None:
    async with hosted(contract) as address, grpc.aio.insecure_channel(address) as channel:
        for path, said in (
            ("/conformance.v1.Echo/Nothing", "service conformance.v1.Echo has no method Nothing"),
            ("/conformance.v1.Nobody/Unary", "service conformance.v1.Nobody is not served here"),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await channel.unary_unary(path)(b"")
            assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.UNIMPLEMENTED, said)


async def test_bytes_that_are_no_message(contract: Contract) -> None:
    async with hosted(contract) as address, grpc.aio.insecure_channel(address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary("/conformance.v1.Echo/Unary")(b"\xff\xff")
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details() == "the request is not a conformance.v1.EchoRequest message"
