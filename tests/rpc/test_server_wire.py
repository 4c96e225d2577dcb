"""Requests over raw HTTP/2 that no gRPC library makes, and the server's responses."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator

import ngh2
import pytest
from conformance.v1 import conformance_pb2 as pb
from hosting import hosted, sidecar_of
from raw_h2 import RawClient, frame, raw_client

from mesh.call import Call, Handler
from mesh.contract.model import Contract

HELLO = pb.EchoRequest(text="hello").SerializeToString()
GZIP = (b"grpc-encoding", b"gzip")
CLIENT_STREAM = "/conformance.v1.Echo/ClientStream"


@pytest.fixture
async def client(contract: Contract) -> AsyncIterator[RawClient]:
    async with hosted(contract, max_message=1000) as address, raw_client(address) as raw:
        yield raw


async def test_the_shape_of_a_unary_answer(client: RawClient) -> None:
    answer = await client.call(frame(HELLO))
    assert answer.headers == {b":status": b"200", b"content-type": b"application/grpc"}
    assert pb.EchoResponse.FromString(answer.body[5:]).text == "hello"
    assert answer.trailers == {b"grpc-status": b"0"}


async def test_a_refusal_is_one_frame(client: RawClient) -> None:
    answer = await client.call(frame(pb.EchoRequest(fail=pb.Failure(code=5, message="100% ñ")).SerializeToString()))
    assert answer.trailers_only
    assert (answer.http, answer.status, answer.message) == (200, 5, "100%25 %C3%B1")


@pytest.mark.parametrize("kind", [b"application/grpc+proto", b"application/grpc;charset=utf-8", b"Application/gRPC"])
async def test_content_types_of_grpc(client: RawClient, kind: bytes) -> None:
    assert (await client.call(frame(HELLO), content_type=kind)).status == 0


@pytest.mark.parametrize("kind", [b"application/xml", b"application/grpc-web", b"application/grpc+json", b"", None])
async def test_any_other_content_type_is_415(client: RawClient, kind: bytes | None) -> None:
    answer = await client.call(b"{}", content_type=kind)
    assert (answer.http, answer.status) == (415, -1)
    assert answer.headers[b"accept-post"] == b"application/grpc, application/json, application/proto"


@pytest.mark.parametrize("method", [b"GET", b"PUT"])
@pytest.mark.parametrize("kind", [b"application/grpc", b"application/json", None])
async def test_only_post(client: RawClient, method: bytes, kind: bytes | None) -> None:
    answer = await client.answer(client.request(method=method, content_type=kind, end=True))
    assert (answer.http, answer.headers[b"allow"]) == (405, b"POST")


async def test_without_te_nothing_runs(contract: Contract, capfd: pytest.CaptureFixture[str]) -> None:
    ran: list[Call] = []

    async def note(call: Call, next: Handler) -> None:
        ran.append(call)
        await next(call)

    async with hosted(contract, authorize=note) as address, raw_client(address) as client:
        answer = await client.call(frame(HELLO), te=None)
        assert (answer.http, answer.status, answer.trailers_only) == (200, 13, True)
        assert "`te: trailers` is missing" in answer.message
        assert (await client.call(frame(HELLO))).status == 0
    assert len(ran) == 1
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("value", [b"", b"5", b"S", b"-1S", b"1.5S", b"123456789S", b"5s", b"5 S"])
async def test_a_malformed_timeout(client: RawClient, value: bytes) -> None:
    answer = await client.call(frame(HELLO), headers=[(b"grpc-timeout", value)])
    assert answer.status == 13
    assert "malformed grpc-timeout" in answer.message


@pytest.mark.parametrize("value", [b"0n", b"1n"])
async def test_a_timeout_that_is_over(client: RawClient, value: bytes) -> None:
    assert (await client.call(frame(HELLO), headers=[(b"grpc-timeout", value)])).status == 4


async def test_an_unknown_encoding_is_told_what_is_known(client: RawClient) -> None:
    answer = await client.call(frame(HELLO), headers=[(b"grpc-encoding", b"snappy")])
    assert (answer.status, answer.headers[b"grpc-accept-encoding"]) == (12, b"identity,gzip")
    assert "snappy" in answer.message


MALFORMED = {
    "a flag that is neither 0 nor 1": (frame(HELLO, flag=2), (), 13),
    "compressed, and no encoding declared": (frame(gzip.compress(HELLO), flag=1), (), 13),
    "compressed, and identity declared": (frame(HELLO, flag=1), [(b"grpc-encoding", b"identity")], 13),
    "no gzip data": (frame(b"not gzip", flag=1), [GZIP], 13),
    "gzip data cut off": (frame(gzip.compress(HELLO)[:-4], flag=1), [GZIP], 13),
    "bytes after the gzip data": (frame(gzip.compress(HELLO) + b"more", flag=1), [GZIP], 13),
    "a prefix cut off": (frame(HELLO)[:3], (), 13),
    "a message cut off": (frame(HELLO)[:-1], (), 13),
    "no message": (b"", (), 12),
    "two messages for one": (frame(HELLO) * 2, (), 12),
    "a message cut off after a whole one": (frame(HELLO) + b"\0", (), 13),
    "too large": (frame(bytes(1001)), (), 8),
    "too large by what it says": (b"\0\xff\xff\xff\xff", (), 8),
    "too large when decompressed": (frame(gzip.compress(bytes(100_000)), flag=1), [GZIP], 8),
}


@pytest.mark.parametrize("name", MALFORMED)
async def test_malformed_requests(client: RawClient, name: str) -> None:
    data, headers, status = MALFORMED[name]
    answer = await client.call(data, headers=headers)
    assert answer.status == status, answer.message
    assert (await client.call(frame(HELLO))).status == 0  # the connection stays open


async def test_messages_cut_anywhere(client: RawClient) -> None:
    data = b"".join(frame(pb.EchoRequest(text=str(number)).SerializeToString()) for number in range(3))
    stream = client.request(CLIENT_STREAM)
    for byte in data:
        client.data(stream, bytes([byte]))
    client.data(stream, b"", end=True)
    answer = await client.answer(stream)
    assert pb.EchoResponse.FromString(answer.body[5:]).text == "0,1,2"


async def test_plain_messages_in_a_compressed_stream(client: RawClient) -> None:
    data = frame(HELLO) + frame(gzip.compress(HELLO), flag=1) + frame(b"")
    answer = await client.call(data, path=CLIENT_STREAM, headers=[GZIP])
    assert pb.EchoResponse.FromString(answer.body[5:]).text == "hello,hello,"


ACCEPT = (b"grpc-accept-encoding", b"identity, deflate, gzip")


@pytest.mark.parametrize(
    ("headers", "size", "flag"),
    [([GZIP, ACCEPT], 2000, 1), ([GZIP, ACCEPT], 10, 0), ([GZIP], 2000, 0), ([ACCEPT], 2000, 0)],
)
async def test_answers_are_compressed_for_callers_that_compress(
    client: RawClient, headers: list[tuple[bytes, bytes]], size: int, flag: int
) -> None:
    answer = await client.call(frame(pb.EchoRequest(answer_bytes=size).SerializeToString()), headers=headers)
    assert answer.body[0] == flag
    assert (answer.headers.get(b"grpc-encoding") == b"gzip") is (headers == [GZIP, ACCEPT])
    message = gzip.decompress(answer.body[5:]) if flag else answer.body[5:]
    assert len(pb.EchoResponse.FromString(message).payload) == size


async def test_binary_metadata_padded_unpadded_and_joined(client: RawClient) -> None:
    answer = await client.call(frame(HELLO), headers=[(b"x-echo-a-bin", b"AP8="), (b"x-echo-b-bin", b"AP8,/wA")])
    assert (answer.headers[b"x-echo-a-bin"], answer.headers[b"x-echo-b-bin"]) == (b"AP8", b"/wA")


async def test_an_answer_before_the_request_has_ended(client: RawClient) -> None:
    stream = client.request(CLIENT_STREAM)
    client.data(stream, frame(pb.EchoRequest(fail=pb.Failure(code=9, message="enough")).SerializeToString()))
    answer = await client.answer(stream)
    assert (answer.status, answer.message) == (9, "enough")


async def test_an_answer_that_cannot_be_sent_is_a_logged_bug(
    contract: Contract, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    async def spoil(call: Call, next: Handler) -> None:
        await next(call)
        call.headers.append((b"bad name", b"x\r\ny"))

    async with hosted(contract, authorize=spoil) as address, raw_client(address) as client:
        answer = await client.call(frame(HELLO))
        assert (answer.status, answer.message) == (13, "internal error")
    assert "its response could not be sent" in caplog.text
    assert capfd.readouterr().err == ""


async def test_a_function_whose_own_task_was_cancelled(contract: Contract) -> None:
    async def inner(call: Call, next: Handler) -> None:
        task = asyncio.create_task(asyncio.sleep(30))
        asyncio.get_running_loop().call_soon(task.cancel)
        await task

    async with hosted(contract, authorize=inner) as address, raw_client(address) as client:
        answer = await client.call(frame(HELLO))
        assert (answer.status, answer.message) == (1, "the call was cancelled")


async def test_what_comes_while_the_server_goes_is_answered_or_never_begun(contract: Contract) -> None:
    """GOAWAY names the last stream that is processed; a client may send later streams again elsewhere."""
    began: list[str] = []

    async def note(call: Call, next: Handler) -> None:
        began.append(str(call.metadata["x-id"]))
        await next(call)

    sidecar = sidecar_of(contract, trace=note)
    async with raw_client(await sidecar.start()) as client:
        streams: list[int] = []
        stopping = None
        request = frame(pb.EchoRequest(sleep_ms=20).SerializeToString())
        await client.call(request, headers=[(b"x-id", b"first")])  # from now on the server has the connection
        while client.h2.can_send_request and len(streams) < 2000:
            stream = client.request(headers=[(b"x-id", b"%d" % len(streams))])
            client.data(stream, request, end=True)
            streams.append(stream)
            if len(streams) == 100:
                stopping = asyncio.create_task(sidecar.stop())
            if len(streams) % 10 == 0:
                await asyncio.sleep(0)
        assert stopping is not None
        await asyncio.wait_for(stopping, 10)
        await client.until(lambda: client.lost)
        last = min(event.last_stream_id for event in client.events if isinstance(event, ngh2.GoAwayReceived))
        for number, stream in enumerate(streams):
            answer = await client.answer(stream)
            assert (answer.status == 0) is (str(number) in began) is (stream <= last)
        assert len(began) > 1
