"""What every method does, wherever its function runs: one suite for the event loop, threads and worker processes.

A test module imports all of it and has a fixture ``stub``: conformance.v1.Echo behind a sidecar.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging

import grpc
import pytest
from conformance.v1 import conformance_pb2 as pb
from google.rpc import error_details_pb2, status_pb2

from mesh.chaos.endings.ways import BUGS, CANCELLATIONS, GOOD


async def test_unary(stub) -> None:
    response = await stub.Unary(pb.EchoRequest(text="hello", payload=b"\0\1"), timeout=5)
    assert (response.text, response.payload) == ("hello", b"\0\1")
    assert 4 < response.remaining.ToTimedelta().total_seconds() < 5.1  # grpcio rounds a timeout up


async def test_server_stream(stub) -> None:
    responses = [response async for response in stub.ServerStream(pb.EchoRequest(text="s", count=5))]
    assert [response.index for response in responses] == [0, 1, 2, 3, 4]


async def test_a_stream_may_be_empty(stub) -> None:
    assert [response async for response in stub.ServerStream(pb.EchoRequest())] == []
    assert (await stub.ClientStream(iter([]))).index == 0


async def test_client_stream(stub) -> None:
    requests = [pb.EchoRequest(text=str(number), payload=b"x" * number) for number in range(4)]
    response = await stub.ClientStream(iter(requests))
    assert (response.text, response.payload, response.index) == ("0,1,2,3", b"x" * 6, 4)


async def test_both_directions_at_once(stub) -> None:
    call = stub.Bidi()
    for number in range(5):
        await call.write(pb.EchoRequest(text=str(number)))
        response = await call.read()  # answered before the next request is made: full duplex
        assert (response.text, response.index) == (str(number), number)
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF
    assert await call.code() is grpc.StatusCode.OK


METADATA = (("x-echo-a", "1"), ("x-echo-a", "2"), ("x-echo-b-bin", b"\x00\xff"), ("x-other", "no"))


@pytest.mark.parametrize("fail", [False, True])
async def test_metadata_both_ways(stub, *, fail: bool) -> None:
    request = pb.EchoRequest(fail=pb.Failure(code=9, message="no")) if fail else pb.EchoRequest()
    call = stub.Unary(request, metadata=METADATA)
    initial = [pair for pair in await call.initial_metadata() if pair[0].startswith("x-")]
    trailing = [pair for pair in await call.trailing_metadata() if pair[0].startswith("x-")]
    assert initial == [("x-echo-a", "1"), ("x-echo-a", "2"), ("x-echo-b-bin", b"\x00\xff")]
    assert trailing == [
        ("x-echo-a-trailer", "1"), ("x-echo-a-trailer", "2"), ("x-echo-b-trailer-bin", b"\x00\xff"),
    ]  # fmt: skip
    assert (await call.code()) is (grpc.StatusCode.FAILED_PRECONDITION if fail else grpc.StatusCode.OK)


async def test_headers_of_a_stream_come_before_its_messages(stub) -> None:
    call = stub.ServerStream(pb.EchoRequest(count=2, sleep_ms=1), metadata=METADATA)
    assert ("x-echo-a", "1") in tuple(await call.initial_metadata())
    assert len([response async for response in call]) == 2
    assert ("x-echo-a-trailer", "2") in tuple(await call.trailing_metadata())


@pytest.mark.parametrize("message", ["plain", "50% ¿ñandú?\n→ next", ""])
@pytest.mark.parametrize("code", [code for code in grpc.StatusCode if code is not grpc.StatusCode.OK])
async def test_errors(stub, code: grpc.StatusCode, message: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Unary(pb.EchoRequest(fail=pb.Failure(code=code.value[0], message=message)))
    assert (caught.value.code(), caught.value.details()) == (code, message)


async def test_rich_status(stub) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Unary(pb.EchoRequest(fail=pb.Failure(code=3, message="bad", details=True)))
    trailers = dict(caught.value.trailing_metadata())
    rich = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
    detail = error_details_pb2.BadRequest()
    assert rich.details[0].Unpack(detail)
    assert (rich.code, rich.message, detail.field_violations[0].field) == (3, "bad", "text")


async def test_a_bug_tells_nothing_of_the_inside(stub) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Unary(pb.EchoRequest(fail=pb.Failure(message="secret")))
    assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.INTERNAL, "internal error")


METHODS = pytest.mark.parametrize("method", ["Unary", "ServerStream", "ClientStream", "Bidi"])


async def outcome(stub, method: str, how: str) -> tuple[grpc.StatusCode, str]:
    """Call a method whose function ends so (``mesh.chaos.endings.ways``)."""
    request = pb.EchoRequest(count=1, fail=pb.Failure(message=how))
    call = getattr(stub, method)(request if method in ("Unary", "ServerStream") else iter([request]), timeout=20)
    if method in ("ServerStream", "Bidi"):
        with contextlib.suppress(grpc.aio.AioRpcError):
            async for _ in call:
                pass
    return await call.code(), await call.details()


@METHODS
@pytest.mark.parametrize("how", BUGS)
async def test_whatever_a_function_raises_is_a_bug_and_ends_nothing_else(
    stub, method: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("mesh.layers.recover"), "disabled", how == "unprintable")
    other = stub.Bidi()
    await other.write(pb.EchoRequest(text="before"))
    assert (await other.read()).text == "before"
    assert await outcome(stub, method, how) == (grpc.StatusCode.INTERNAL, "internal error")
    await other.write(pb.EchoRequest(text="after"))
    assert (await other.read()).text == "after"
    await other.done_writing()
    assert await other.code() is grpc.StatusCode.OK


@METHODS
@pytest.mark.parametrize("how", CANCELLATIONS)
async def test_a_cancellation_of_the_functions_own_is_cancelled_and_not_a_caller_that_has_gone(
    stub, method: str, how: str
) -> None:
    assert await outcome(stub, method, how) == (grpc.StatusCode.CANCELLED, "the call was cancelled")


@pytest.mark.parametrize(
    ("method", "how"), [("Unary", GOOD[0]), *((method, GOOD[1]) for method in ("Unary", "ServerStream", "Bidi"))]
)
async def test_a_cancellation_that_the_function_itself_outlives_hits_nothing_after_it(
    stub, method: str, how: str
) -> None:
    assert await outcome(stub, method, how) == (grpc.StatusCode.OK, "")


@pytest.mark.parametrize("how", [*BUGS, "raises a cancellation"])
async def test_a_generator_may_fail_as_it_is_closed(stub, how: str) -> None:
    call = stub.ServerStream(pb.EchoRequest(count=2, fail=pb.Failure(message=f"at last: {how}")), timeout=20)
    assert [(await call.read()).index for _ in range(2)] == [0, 1]
    expected = grpc.StatusCode.INTERNAL if how in BUGS else grpc.StatusCode.CANCELLED
    assert await call.code() is expected


async def test_the_deadline_of_a_function_that_has_outlived_its_own_cancellation(stub) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Slow(pb.EchoRequest(sleep_ms=1000, fail=pb.Failure(message="swallows its own and sleeps")))
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


@pytest.mark.parametrize("details", [False, True])
@pytest.mark.parametrize(("code", "said"), [(0, "internal error"), (5, "no user ?!")])
async def test_a_text_that_is_no_utf_8_is_replaced(
    stub, code: int, said: str, monkeypatch: pytest.MonkeyPatch, *, details: bool
) -> None:
    monkeypatch.setattr(logging.getLogger("mesh.layers.recover"), "disabled", True)  # xdist cannot carry the line
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        fail = pb.Failure(code=code, message="no user <half>!", details=details)
        await stub.Unary(pb.EchoRequest(fail=fail), timeout=5)
    assert (caught.value.code().value[0], caught.value.details()) == (code or 13, said)
    rich = dict(caught.value.trailing_metadata() or ()).get("grpc-status-details-bin")
    assert (rich is not None) == (details and code != 0)


async def test_a_stream_may_fail_after_messages(stub) -> None:
    call = stub.ServerStream(pb.EchoRequest(count=3, fail=pb.Failure(code=8, message="enough")))
    assert [(await call.read()).index for _ in range(3)] == [0, 1, 2]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "enough")


async def test_a_method_s_own_deadline(stub) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Slow(pb.EchoRequest(sleep_ms=1000))
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


@pytest.mark.parametrize("algorithm", [grpc.Compression.Gzip, grpc.Compression.NoCompression])
async def test_gzip_both_ways(stub, algorithm: grpc.Compression) -> None:
    payload = b"compressible " * 10_000
    response = await stub.Unary(pb.EchoRequest(payload=payload), compression=algorithm)
    assert response.payload == payload
    call = stub.Bidi(compression=algorithm)
    for size in (10, 100_000):
        await call.write(pb.EchoRequest(payload=b"y" * size))
        assert (await call.read()).payload == b"y" * size
    await call.done_writing()
    assert await call.code() is grpc.StatusCode.OK


async def test_messages_up_to_the_limit_and_not_beyond(stub) -> None:
    limit = 4 * 2**20
    under = pb.EchoRequest(payload=bytes(limit - 5))
    assert under.ByteSize() == limit
    assert (await stub.ClientStream(iter([under]))).index == 1
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Unary(pb.EchoRequest(payload=bytes(limit)))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert str(limit) in (caught.value.details() or "")


async def test_many_calls_at_once(stub) -> None:
    responses = await asyncio.gather(*(stub.Unary(pb.EchoRequest(text=str(number))) for number in range(300)))
    assert [response.text for response in responses] == [str(number) for number in range(300)]
