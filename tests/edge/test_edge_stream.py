"""Streams over HTTP: their forms, their ends, and that each side waits for the other."""

from __future__ import annotations

import asyncio
import dataclasses
import gzip
import json
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
from raw_h2 import raw_client
from streaming import LIMIT, SERVICE, Running, codes, edge, head, read_chunk, read_head

from mesh.edge.http import streaming

NDJSON = "application/x-ndjson"
SSE = "text/event-stream"


@pytest.fixture(params=["process", "sidecar"])
async def running(contract: Any, request: pytest.FixtureRequest) -> AsyncIterator[Running]:
    async with edge(contract, request.param) as found:
        yield found


def lines(body: bytes) -> list[Any]:
    return [json.loads(line) for line in body.splitlines()]


def events(body: bytes) -> list[tuple[str, Any]]:
    """Parse Server-Sent Events as a browser does."""
    found = []
    for block in body.decode().split("\n\n"):
        name, data = "message", []
        for line in block.split("\n"):
            key, _, value = line.partition(": ")
            if key == "event":
                name = value
            elif key == "data":
                data.append(value)
        if data:
            found.append((name, json.loads("\n".join(data))))
    return found


# -- forms --


async def test_a_stream_is_an_array(running):
    reply = await running.ask("GET", "/s/count/3?room=a")
    assert (reply.status, reply.headers["content-type"]) == (200, "application/json")
    assert json.loads(reply.body) == [{"room": "a", "number": str(number), "mood": "GOOD"} for number in (1, 2, 3)]
    assert reply.headers["x-mine"] == "yes"
    assert "accept" in reply.headers["vary"]
    assert reply.headers["x-content-type-options"] == "nosniff"


async def test_an_empty_stream(running):
    assert (await running.ask("GET", "/s/count/0")).body == b"[]"
    reply = await running.ask("GET", "/s/count/0", accept=NDJSON)
    assert (reply.status, reply.body, reply.headers["content-type"]) == (200, b"", NDJSON)
    assert (await running.ask("GET", "/s/count/0", accept=SSE)).body == b""


@pytest.mark.parametrize("kind", [NDJSON, "application/jsonl", "application/ndjson"])
async def test_lines(running, kind):
    reply = await running.ask("GET", "/s/count/2", accept=kind)
    assert reply.headers["content-type"] == kind
    assert reply.body.endswith(b"\n")
    assert [item["number"] for item in lines(reply.body)] == ["1", "2"]


async def test_events(running):
    reply = await running.ask("GET", "/s/count/2", accept=SSE)
    assert reply.headers["content-type"] == SSE
    assert reply.headers["cache-control"] == "no-cache"
    assert [(name, item["number"]) for name, item in events(reply.body)] == [("message", "1"), ("message", "2")]


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("*/*", "application/json"),
        ("text/event-stream;q=0.5, application/x-ndjson", NDJSON),
        ("application/json;q=0.1, text/*", SSE),
        ("application/json;q=0, */*", NDJSON),
        ("text/html, application/xml;q=0.9, */*;q=0.8", "application/json"),
    ],
)
async def test_quality_decides(running, accept, kind):
    assert (await running.ask("GET", "/s/count/1", accept=accept)).headers["content-type"] == kind


async def test_nothing_that_fits_is_406(running):
    reply = await running.ask("GET", "/s/count/1", accept="text/html")
    assert reply.status == 406
    assert "text/event-stream" in json.loads(reply.body)["message"]
    assert not running.seen.begun.is_set()
    assert (await running.ask("POST", "/s/echo", b"{}", content_type="application/json", accept=SSE)).status == 406


async def test_alt_wins_over_accept(running):
    reply = await running.ask("GET", "/s/count/1?%24alt=sse&$prettyPrint=true", accept="text/html")
    assert events(reply.body) == [("message", {"number": "1", "mood": "GOOD"})]
    reply = await running.ask("GET", "/s/count/1?$alt=json;enum-encoding=int")
    assert json.loads(reply.body) == [{"number": "1", "mood": 1}]
    assert (await running.ask("GET", "/s/count/1?$alt=proto")).status == 400
    assert (await running.ask("GET", "/s/count/1?$alt=xml")).status == 400
    assert (await running.ask("GET", "/s/count/1?$nothing=1")).status == 400
    assert (await running.ask("GET", "/s/count/1?alt=json")).status == 400


async def test_each_item_leaves_at_once(running):
    reader, writer = await running.connect()
    writer.write(head("GET", "/s/count/3?room=stepwise", accept=NDJSON))
    running.seen.more.release()
    assert (await read_head(reader))[0] == 200
    for number in (1, 2, 3):
        piece = b""
        while not piece.endswith(b"\n"):
            piece += await read_chunk(reader) or b""
        assert json.loads(piece)["number"] == str(number)
        running.seen.more.release()
    assert await read_chunk(reader) == b""
    writer.close()


async def test_one_field_of_each_item(running):
    assert json.loads((await running.ask("GET", "/s/texts/2?size=3")).body) == ["xxx", "xxx"]


async def test_a_stream_asked_for_by_a_body(running):
    reply = await running.ask("POST", "/s/count", b'{"count":1,"room":"b"}', content_type="application/json")
    assert json.loads(reply.body) == [{"room": "b", "number": "1", "mood": "GOOD"}]
    assert (await running.ask("POST", "/s/count", b"{", content_type="application/json")).status == 400


async def test_head_is_answered_by_the_first_item(running):
    reply = await running.ask("HEAD", "/s/count/-1")
    assert (reply.status, reply.headers["content-type"], reply.body) == (200, "application/json", b"")
    await asyncio.wait_for(running.seen.cancelled.wait(), 5)
    assert (await running.ask("HEAD", "/s/count/1?fail=first")).status == 404
    assert (await running.ask("HEAD", "/s/count/0")).status == 200
    assert codes(running.ended) == ["NoneType", "NOT_FOUND", "NoneType"]


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(streaming, "START_DELAY", 0.05)
    monkeypatch.setattr(streaming, "KEEPALIVE_INTERVAL", 0.05)


@pytest.mark.parametrize(
    ("accept", "sign", "whole"),
    [(SSE, b": alive\n\n", events), ("*/*", b"\n", json.loads), (NDJSON, b"\n", lambda body: lines(body.strip()))],
)
async def test_a_silent_stream_opens_and_says_that_it_is_alive(running, impatient, accept, sign, whole):
    reader, writer = await running.connect()
    writer.write(head("GET", "/s/count/1?room=stepwise", accept=accept))
    assert (await read_head(reader))[0] == 200  # before there is an item
    body = b""
    while body.count(sign) < 2:
        body += await read_chunk(reader) or b""
    running.seen.more.release()
    while piece := await read_chunk(reader):
        body += piece
    assert len(whole(body)) == 1
    writer.close()


async def test_a_client_that_goes_from_a_silent_stream_is_noticed(running, impatient):
    reader, writer = await running.connect()
    writer.write(head("GET", "/s/count/1?room=stepwise"))
    await read_head(reader)
    writer.transport.abort()
    await asyncio.wait_for(running.seen.cancelled.wait(), 5)


async def test_head_of_a_silent_stream(running, impatient):
    reply = await running.ask("HEAD", "/s/count/1?room=stepwise", accept=SSE)
    assert (reply.status, reply.headers["content-type"]) == (200, SSE)
    await asyncio.wait_for(running.finished.wait(), 5)
    assert running.ended == [None]


# -- failures --


async def test_a_failure_before_the_first_item_is_a_status(running):
    for accept in ("*/*", NDJSON, SSE):
        reply = await running.ask("GET", "/s/count/1?fail=first", accept=accept)
        assert (reply.status, reply.headers["content-type"]) == (404, "application/json")
        assert json.loads(reply.body)["message"] == "there is no such room"


async def test_a_failure_in_mid_stream_has_the_streams_form(running):
    status = {"code": 9, "message": "it broke", "details": []}
    reply = await running.ask("GET", "/s/count/2?fail=last")
    assert (reply.status, reply.whole) == (200, True)
    assert json.loads(reply.body)[2] == {"error": status}
    reply = await running.ask("GET", "/s/count/2?fail=last", accept=NDJSON)
    assert lines(reply.body)[2] == {"error": status}
    reply = await running.ask("GET", "/s/count/2?fail=last", accept=SSE)
    assert events(reply.body)[2] == ("error", status)
    assert codes(running.ended) == ["FAILED_PRECONDITION"] * 3


async def test_a_bug_in_mid_stream_leaks_nothing(running):
    reply = await running.ask("GET", "/s/count/1?fail=bug")
    assert json.loads(reply.body)[1]["error"] == {"code": 13, "message": "internal error", "details": []}


async def test_the_deadline_of_a_stream(running):
    assert (await running.ask("GET", "/s/brief")).status == 504
    reply = await running.ask("GET", "/s/brief?count=1")
    assert (reply.status, json.loads(reply.body)[1]["error"]["code"]) == (200, 4)


# -- who waits, who goes --


async def test_a_client_that_goes_cancels_the_call_over_http1(running):
    reader, writer = await running.connect()
    writer.write(head("GET", "/s/count/-1?size=1000"))
    await read_head(reader)
    writer.transport.abort()
    await asyncio.wait_for(running.seen.cancelled.wait(), 5)


async def test_a_client_that_resets_its_stream_cancels_the_call(running):
    async with raw_client(running.address) as client:
        stream = client.request("/s/count/2?room=stepwise", method=b"GET", content_type=None, end=True)
        running.seen.more.release()
        await client.until(lambda: client.body(stream))
        client.reset(stream)
        await asyncio.wait_for(running.seen.cancelled.wait(), 5)


async def test_a_slow_reader_holds_the_function(running):
    host, _, port = running.address.rpartition(":")
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.setblocking(False)  # noqa: FBT003 - the standard library's own
        loop = asyncio.get_running_loop()
        await loop.sock_connect(slow, (host, int(port)))
        await loop.sock_sendall(slow, head("GET", "/s/count/-1?size=50000", accept=NDJSON))
        await running.seen.begun.wait()
        sent = await running.seen.quiet()
        assert sent * 50_000 < 32 * 2**20
        got = 0
        while got < sent * 50_000:  # it goes on when the reader does
            got += len(await loop.sock_recv(slow, 2**20))
        await running.seen.until(lambda: running.seen.sent > sent)
    await asyncio.wait_for(running.seen.cancelled.wait(), 5)


# -- request streams --


async def test_lines_are_messages(running):
    body = b'{"text":"a"}\n\n  {"text":"b"}\r\n{"text":"c"}'
    reply = await running.ask("POST", "/s/rooms/r%2F1/gather", body, content_type=NDJSON)
    assert (reply.status, json.loads(reply.body)) == (200, {"items": 3, "text": "abc", "room": "r/1"})
    assert int(reply.headers["content-length"]) == len(reply.body)


@pytest.mark.parametrize(
    "body",
    [b'[{"text":"a"},{"text":"]\\""}]', b'{"text":"a"}\n{"text":"]\\""}', b' [{"text":"a"} , {"text":"]\\""}]\n'],
)
async def test_json_is_messages_too(running, body):
    reply = await running.ask("POST", "/s/rooms/r/gather", body, content_type="application/json")
    assert json.loads(reply.body) == {"items": 2, "text": 'a]"', "room": "r"}


async def test_a_packed_body_of_lines(running):
    body = gzip.compress(b'{"text":"a"}\n' * 1000)
    reply = await running.ask("POST", "/s/rooms/r/gather", body, content_type=NDJSON, content_encoding="gzip")
    assert json.loads(reply.body)["items"] == 1000


async def test_no_message_but_what_the_path_says(running):
    for body in (b"", b"\n"):
        reply = await running.ask("POST", "/s/rooms/r/gather", body, content_type=NDJSON)
        assert json.loads(reply.body) == {"items": 1, "room": "r"}


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b'{"text":"a"}\nnope\n', "message 2: "),
        (b'{"text":"a"}\n{"no":1}', "message 2: no"),
        (b'{"text":1}\n', "message 1: text"),
    ],
)
async def test_a_message_that_is_wrong_is_named(running, body, text):
    reply = await running.ask("POST", "/s/rooms/r/gather", body, content_type=NDJSON)
    assert reply.status == 400
    assert json.loads(reply.body)["message"].startswith(text)


async def test_a_message_that_is_too_large_is_413(running):
    body = b'{"text":"' + b"a" * LIMIT + b'"}'
    assert (await running.ask("POST", "/s/rooms/r/gather", body, content_type=NDJSON)).status == 413
    packed = gzip.compress(body)
    reply = await running.ask("POST", "/s/rooms/r/gather", packed, content_type=NDJSON, content_encoding="gzip")
    assert reply.status == 413
    many = b'{"text":"a"}\n' * 20_000  # more than the limit in all
    assert (
        json.loads((await running.ask("POST", "/s/rooms/r/gather", many, content_type=NDJSON)).body)["items"] == 20_000
    )


async def test_other_media_types_of_a_request_stream_are_415(running):
    for kind in ("text/plain", "application/x-protobuf", "application/x-ndjson; charset=latin1"):
        assert (await running.ask("POST", "/s/rooms/r/gather", b"{}", content_type=kind)).status == 415
    assert (await running.ask("POST", "/s/rooms/r/gather", b"{}")).status == 415


async def test_both_ways_at_once_over_http2(running):
    async with raw_client(running.address) as client:
        stream = client.request(
            "/s/rooms/r/chat", content_type=b"application/x-ndjson", headers=[(b"accept", NDJSON.encode())]
        )
        for number in (b"1", b"2", b"3"):
            client.data(stream, b'{"text":"' + number + b'"}\n')
            await client.until(lambda wanted=number: b'"' + wanted + b'"' in client.body(stream))
        client.data(stream, b"", end=True)
        reply = await client.answer(stream)
        assert lines(reply.body) == [{"room": "r", "text": "1"}, {"text": "2"}, {"text": "3"}]


async def test_a_function_that_ends_early_ends_the_stream(running):
    async with raw_client(running.address) as client:
        stream = client.request("/s/rooms/r/chat", content_type=b"application/x-ndjson")
        client.data(stream, b'{"text":"a"}\n{"text":"bye"}\n')
        reply = await client.answer(stream)
        assert json.loads(reply.body) == [{"room": "r", "text": "a"}]


async def test_a_failure_between_messages(running):
    body = b'{"text":"a"}\n{"text":"fail"}\n'
    reply = await running.ask("POST", "/s/rooms/r/chat", body, content_type=NDJSON)
    assert json.loads(reply.body)[1]["error"]["message"] == "nobody is here"
    body = b'{"text":"a"}\nnope\n'
    reply = await running.ask("POST", "/s/rooms/r/chat", body, content_type=NDJSON)
    assert reply.status in (200, 400)  # the mistake may be found before the first answer is back
    assert b"message 2: " in reply.body


async def test_a_client_that_goes_while_it_sends_cancels_the_call(running):
    async with raw_client(running.address) as client:
        stream = client.request("/s/rooms/r/gather", content_type=b"application/x-ndjson")
        client.data(stream, b'{"text":"a"}\n')
        await running.seen.until(lambda: running.seen.received == 1)
        client.reset(stream)
        await asyncio.wait_for(running.seen.cancelled.wait(), 5)


async def test_a_function_that_does_not_read_holds_the_client(running):
    _, writer = await running.connect()
    writer.write(head("PUT", "/s/large/stuck", content_type="a/b", transfer_encoding="chunked"))
    piece = b"10000\r\n" + bytes(65536) + b"\r\n"
    sent = 0
    with pytest.raises(TimeoutError):
        while sent < 128 * 2**20:
            writer.write(piece)
            sent += 65536
            async with asyncio.timeout(1):
                await writer.drain()
    assert sent < 32 * 2**20
    writer.transport.abort()


async def test_who_may_call_is_checked_before_anything_is_read(running):
    for token, status in ((None, 401), ("forged", 401), ("guest", 403)):
        headers = {"authorization": f"Bearer {token}"} if token else {}
        assert (await running.ask("POST", "/s/secret", b"{}", content_type=NDJSON, **headers)).status == status
    reply = await running.ask("POST", "/s/secret", b"{}", content_type=NDJSON, authorization="Bearer admin")
    assert json.loads(reply.body) == [{}]


async def test_a_stop_ends_a_stream_in_its_own_form(running):
    reader, writer = await running.connect()
    writer.write(head("GET", "/s/count/2?room=stepwise"))
    running.seen.more.release()
    await read_head(reader)
    body = await read_chunk(reader)
    await running.door.stop()
    while piece := await read_chunk(reader):
        body += piece
    assert piece == b""
    assert json.loads(body)[1]["error"]["code"] == 14
    assert running.seen.cancelled.is_set()
    writer.close()


async def test_a_method_that_streams_requests_has_its_success_status(contract: Any) -> None:
    service = contract.services[SERVICE]
    gather = dataclasses.replace(service.methods["Gather"], success_status=201)
    changed = dataclasses.replace(service, methods={**service.methods, "Gather": gather})
    async with edge(
        dataclasses.replace(contract, services={**contract.services, SERVICE: changed}), "process"
    ) as found:
        reply = await found.ask("POST", "/s/rooms/a/gather", b"{}", content_type="application/json")
        assert (reply.status, json.loads(reply.body)["items"]) == (201, 1)
