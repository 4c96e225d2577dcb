"""Streaming methods over WebSockets, with a stock client."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from stream.v1 import stream_pb2 as pb
from streaming import LIMIT, Running, edge
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, ConnectionClosedOK, InvalidStatus


@pytest.fixture(params=["process", "sidecar"])
async def running(contract: Any, request: pytest.FixtureRequest) -> AsyncIterator[Running]:
    async with edge(contract, request.param) as found:
        yield found


def opened(running: Running, path: str, **options: Any) -> Any:
    return connect(f"ws://{running.address}{path}", proxy=None, open_timeout=10, **options)


async def ask(socket: ClientConnection, frame: Any) -> Any:
    await socket.send(frame if isinstance(frame, bytes | str) else json.dumps(frame))
    answer = await socket.recv()
    return json.loads(answer) if isinstance(answer, str) else answer


@pytest.mark.parametrize("path", ["/s/rooms/r%2F1/chat", "/s/rooms/r%2F1/talk"])
async def test_frames_are_messages(running, path):
    async with opened(running, path + "?number=7" * path.endswith("talk")) as socket:
        first = await ask(socket, {"text": "a"})
        assert first == {"room": "r/1", "text": "a"} | ({"number": "7"} if path.endswith("talk") else {})
        assert await ask(socket, {"text": "b"}) == {"text": "b"}
        await socket.send("")
        with pytest.raises(ConnectionClosedOK):
            await socket.recv()
        assert socket.close_code == 1000
    assert running.calls[0].status == 101
    assert running.ended == [None]


async def test_binary_frames_are_protobuf(running):
    async with opened(running, "/s/rooms/r/chat") as socket:
        answer = await ask(socket, pb.Item(text="a").SerializeToString())
        assert pb.Item.FromString(answer) == pb.Item(room="r", text="a")
        answer = await ask(socket, {"text": "b"})  # the first frame decides
        assert pb.Item.FromString(answer) == pb.Item(text="b")
        assert await ask(socket, b"") == b""
    async with opened(running, "/s/rooms/r/chat?$alt=json;enum-encoding=int") as socket:
        assert await ask(socket, pb.Item(mood=pb.GOOD).SerializeToString()) == {"room": "r", "mood": 1}
    async with opened(running, "/s/rooms/r/chat?$alt=proto") as socket:
        assert pb.Item.FromString(await ask(socket, {"text": "a"})) == pb.Item(room="r", text="a")


async def test_a_server_stream(running):
    async with opened(running, "/s/count/3?room=a") as socket:
        assert [json.loads(frame)["number"] async for frame in socket] == ["1", "2", "3"]
        assert socket.close_code == 1000
    async with opened(running, "/s/count") as socket:
        await socket.send('{"count": 1}')
        assert [json.loads(frame)["number"] async for frame in socket] == ["1"]


async def test_one_answer_to_a_stream(running):
    async with opened(running, "/s/rooms/r/gather") as socket:
        for text in "abc":
            await socket.send(json.dumps({"text": text}))
        assert await ask(socket, "") == {"items": 3, "text": "abc", "room": "r"}
        with pytest.raises(ConnectionClosedOK):
            await socket.recv()


async def ended(socket: ClientConnection) -> tuple[Any, int, str]:
    """Return the last frame, and code and reason of the close."""
    last = None
    with pytest.raises(ConnectionClosed):
        while True:
            last = json.loads(await socket.recv())
    return last, socket.close_code or 0, socket.close_reason or ""


@pytest.mark.parametrize(
    ("frame", "code", "reason"),
    [
        ('{"text": "fail"}', 4005, "nobody is here"),
        ("nope", 4003, "message 1: the body is not valid JSON"),
        ('{"what": 1}', 4003, "message 1: what"),
        (b"\xff", 4003, "message 1: the body is not a serialized stream.v1.Item"),
        ('"' + "a" * LIMIT + '"', 1009, "message 1 is larger than"),
    ],
)
async def test_a_failure_is_a_last_frame_and_a_close(running, frame, code, reason):
    async with opened(running, "/s/rooms/r/chat") as socket:
        await socket.send(frame)
        last, closed, why = await ended(socket)
    assert closed == code
    assert why.startswith(reason)
    assert last["error"]["message"].startswith(reason)


async def test_a_failure_of_a_server_stream(running):
    async with opened(running, "/s/count/1?fail=bug") as socket:
        last, code, reason = await ended(socket)
    assert (code, reason, last["error"]["message"]) == (4013, "internal error", "internal error")


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/s/nowhere", 404), ("/s/echo", 400), ("/s/secret", 401), ("/s/count/x", 400), ("/s/count/1?what=1", 400),
        ("/s/count/1?$alt=sse", 400), ("/s/rooms/%ff/chat", 400),
    ],
)  # fmt: skip
async def test_a_refusal_before_the_upgrade_is_http(running, path, status):
    with pytest.raises(InvalidStatus) as caught:
        async with opened(running, path):
            pass
    assert caught.value.response.status_code == status
    assert json.loads(caught.value.response.body)["message"]


async def test_a_token_as_a_subprotocol(running):
    async with opened(running, "/s/secret", subprotocols=["bearer", "admin"]) as socket:
        assert socket.subprotocol == "bearer"
        assert await ask(socket, {"text": "a"}) == {"text": "a"}
    async with opened(running, "/s/secret", additional_headers={"authorization": "Bearer admin"}) as socket:
        assert await ask(socket, {"text": "a"}) == {"text": "a"}
    for token, status in (("forged", 401), ("guest", 403)):
        with pytest.raises(InvalidStatus) as caught:
            async with opened(running, "/s/secret", subprotocols=["bearer", token]):
                pass
        assert caught.value.response.status_code == status


@pytest.mark.parametrize("text", ["a", "silent"])
async def test_a_client_that_closes_cancels_the_call(running, text):
    async with opened(running, "/s/rooms/r/chat") as socket:
        await socket.send(json.dumps({"text": text}))
        await running.seen.until(lambda: running.seen.received == 1)
    await asyncio.wait_for(running.seen.cancelled.wait(), 5)


async def test_a_client_that_is_lost_cancels_the_call(running):
    async with opened(running, "/s/count/2?room=stepwise") as socket:
        running.seen.more.release()
        await socket.recv()
        socket.transport.abort()
        await asyncio.wait_for(running.seen.cancelled.wait(), 5)


async def test_a_slow_reader_holds_the_function(running):
    async with opened(running, "/s/count/-1?size=50000", max_queue=1, compression=None) as socket:
        await socket.recv()
        assert await running.seen.quiet() * 50_000 < 32 * 2**20
        socket.transport.abort()
    await asyncio.wait_for(running.seen.cancelled.wait(), 5)


async def test_a_function_that_does_not_read_holds_the_client(running):
    async with opened(running, "/s/rooms/r/chat", compression=None) as socket:
        await socket.send('{"text": "silent"}')
        await running.seen.begun.wait()
        sent = 0
        with pytest.raises(TimeoutError):
            while sent < 64 * 2**20:
                async with asyncio.timeout(1):
                    await socket.send(b"x" * 60_000)
                sent += 60_000
        assert sent < 32 * 2**20
        socket.transport.abort()


async def test_a_stop_closes_the_socket(running):
    async with opened(running, "/s/rooms/r/chat") as socket:
        await ask(socket, {"text": "a"})
        await running.door.stop()
        _, code, _ = await ended(socket)
    assert code in (1001, 4014)  # whichever of server and edge is first
    await asyncio.wait_for(running.finished.wait(), 5)
    await asyncio.wait_for(running.seen.cancelled.wait(), 5)
