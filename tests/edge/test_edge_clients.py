"""Clients that are slow, silent or greedy, over real sockets: they are ended, and nobody else notices."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from contextlib import asynccontextmanager

import grpc
import pytest
from grpc_edge import grpc_edge
from raw_h2 import frame, raw_client
from streaming import LIMIT
from streaming import edge as streaming_edge
from websockets.asyncio.client import connect

from mesh.rpc.server.clients import client_stream
from mesh.rpc.server.clients.limits import ClientLimits

STALL = 0.5
POST = {"content_type": b"application/json", "te": None}
GET = {"method": b"GET", "content_type": None, "te": None, "end": True}


@pytest.fixture
def pb():
    from conformance.v1 import conformance_pb2

    return conformance_pb2


class Counted(ClientLimits):
    """Limits that remember the reasons that they counted."""

    __slots__ = ("reasons", "told")

    def __init__(self, **limits):
        super().__init__(**{"stall": STALL, **limits})
        self.reasons = []
        self.told = asyncio.Event()

    def count(self, reason):
        self.reasons.append(reason)
        self.told.set()

    async def until(self, reason):
        async with asyncio.timeout(10):
            while reason not in self.reasons:
                self.told.clear()
                await self.told.wait()


@asynccontextmanager
async def edge(contract, **limits):
    clients = Counted(**limits)
    async with streaming_edge(contract, "process", clients=clients) as running:
        running.clients = clients
        yield running
    async with asyncio.timeout(5):
        while clients.held:  # the server tells a little later what it has written  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert (clients.uploads.used, clients.held) == (0, 0)  # whatever ended the requests


async def opened(address):
    """Open a connection whose client has little room for what it does not read."""
    host, _, port = address.rpartition(":")
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.setblocking(False)  # noqa: FBT003
    await asyncio.get_running_loop().sock_connect(connection, (host, int(port)))
    return connection


# -- clients that send slowly --


async def test_a_body_that_stops_is_408(contract):
    async with edge(contract) as running, raw_client(running.address) as client:
        stream = client.request("/s/echo", **POST)
        client.data(stream, b'{"text":')
        answer = await client.answer(stream)
        assert (answer.http, json.loads(answer.body)["code"]) == (408, 4)
        assert running.clients.reasons == ["slow_body"]


async def test_a_body_that_drips_is_408(contract, monkeypatch):
    """Each byte comes in time, but all of them are fewer than the rate that a client needs to have."""
    monkeypatch.setattr(client_stream, "MIN_RATE_BYTES", 1000)
    async with edge(contract) as running, raw_client(running.address) as client:
        stream = client.request("/s/echo", **POST)

        async def drip():
            while True:
                client.data(stream, b" ")
                await asyncio.sleep(STALL / 10)

        dripping = asyncio.create_task(drip())
        assert (await client.answer(stream)).http == 408
        dripping.cancel()


async def test_a_grpc_request_that_stops_ends_with_a_status(contract):
    clients = Counted()
    async with grpc_edge(contract, clients=clients) as edge, raw_client(edge.address) as client:
        stream = client.request()
        client.data(stream, frame(b"x" * 100)[:50])
        answer = await client.answer(stream)
        assert (answer.status, answer.message) == (4, "the request body did not come in time")


async def test_between_two_messages_a_client_may_be_silent(contract):
    async with edge(contract, stall=0.1) as running, raw_client(running.address) as client:
        stream = client.request("/s/rooms/r/gather", content_type=b"application/x-ndjson", te=None)
        for _ in range(3):
            client.data(stream, b'{"text":"a"}\n')
            await asyncio.sleep(0.3)  # silence is what is tested
            client.data(stream, b" \r\n")
        client.data(stream, b"", end=True)
        assert (await client.answer(stream)).http == 200


async def test_within_a_message_it_may_not(contract):
    async with edge(contract) as running, raw_client(running.address) as client:
        stream = client.request("/s/rooms/r/gather", content_type=b"application/x-ndjson", te=None)
        client.data(stream, b'{"text":"a"}\n{"te')
        assert (await client.answer(stream)).http == 408


async def test_a_grpc_stream_may_be_silent_between_messages_but_not_within(contract, pb):
    clients = Counted(stall=0.2)
    async with grpc_edge(contract, clients=clients) as edge, raw_client(edge.address) as client:
        stream = client.request("/conformance.v1.Echo/ClientStream")
        client.data(stream, frame(pb.EchoRequest(text="a").SerializeToString()))
        await asyncio.sleep(0.5)  # silence is what is tested
        assert not clients.reasons
        client.data(stream, frame(b"abc")[:4])
        assert (await client.answer(stream)).status == 4


# -- clients that do not read --


async def test_a_reader_that_stops_is_dropped_over_http_1(contract):
    async with edge(contract) as running:
        connection = await opened(running.address)
        connection.send(b"GET /s/count/-1?size=60000 HTTP/1.1\r\nhost: a\r\naccept: application/x-ndjson\r\n\r\n")
        await running.clients.until("slow_reader")
        async with asyncio.timeout(5):
            await running.seen.cancelled.wait()
        connection.close()


async def test_a_reader_that_stops_is_dropped_over_http_2(contract):
    """Its connection goes on: the stream has a window of its own."""
    async with edge(contract) as running:
        connection = await opened(running.address)
        path = b"/s/count/-1?size=60000"
        head = b"\x82\x86\x04" + bytes([len(path)]) + path + b"\x01\x01x"
        connection.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + h2(4, 0, 0, struct.pack("!HI", 4, 0)) + h2(1, 5, 1, head))
        await running.clients.until("slow_reader")
        async with asyncio.timeout(5):
            await running.seen.cancelled.wait()
        connection.close()


def h2(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """Return an HTTP/2 frame (RFC 9113, 4.1)."""
    return struct.pack("!IBBI", len(payload), kind, flags, stream)[1:] + payload


async def test_a_web_socket_that_is_not_read_is_dropped(contract):
    async with edge(contract) as running:
        connection = await opened(running.address)
        connection.send(
            b"GET /s/count/-1?size=60000 HTTP/1.1\r\nhost: a\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
            b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        await running.clients.until("slow_reader")
        async with asyncio.timeout(5):
            await running.seen.cancelled.wait()
        connection.close()


async def test_a_grpc_stream_that_is_not_read_is_dropped(contract, pb):
    clients = Counted()
    async with grpc_edge(contract, clients=clients) as edge, grpc.aio.insecure_channel(edge.address) as channel:
        from conformance.v1 import conformance_pb2_grpc

        call = conformance_pb2_grpc.EchoStub(channel).ServerStream(pb.EchoRequest(count=100_000, payload=b"x" * 50_000))
        await call.read()
        await clients.until("slow_reader")
        call.cancel()


async def test_a_quiet_stream_is_left_alone(contract):
    async with edge(contract, stall=0.1) as running, raw_client(running.address) as client:
        stream = client.request("/s/count/3?room=stepwise", **GET, headers=[(b"accept", b"application/x-ndjson")])
        for _ in range(3):
            await asyncio.sleep(0.3)  # silence is what is tested
            running.seen.more.release()
        assert (await client.answer(stream)).body.count(b"\n") == 3
        async with connect(f"ws://{running.address}/s/rooms/r/chat", proxy=None) as chat:
            await asyncio.sleep(0.3)  # silence is what is tested
            await chat.send('{"text":"a"}')
            assert json.loads(await chat.recv())["text"] == "a"
        assert running.clients.reasons == []


async def test_a_large_response_comes_whole(contract):
    async with edge(contract) as running, raw_client(running.address) as client:
        answer = await client.answer(client.request("/s/count/1?size=1000000", **GET))
        assert len(json.loads(answer.body)[0]["text"]) == 1_000_000


# -- clients that want too much --


async def test_a_flood_of_uploads_takes_only_what_others_leave(contract):
    async with edge(contract, stall=30.0, uploads=10) as running:  # noqa: SIM117 - one line would be too long
        async with raw_client(running.address) as flood, raw_client(running.address) as other:
            streams = [flood.request("/s/echo", **POST) for _ in range(20)]
            await flood.until(lambda: sum(bool(flood.of(stream)) for stream in streams) >= 10)
            refused = [await flood.answer(stream) for stream in streams if flood.of(stream)]
            assert {answer.http for answer in refused} == {429}
            assert all(answer.headers[b"retry-after"] == b"1" for answer in refused)
            waiting = other.request("/s/echo", **POST)  # it displaces one of the flood
            await flood.until(lambda: sum(bool(flood.of(stream)) for stream in streams) == 11)
            other.data(waiting, b'{"text":"a"}', end=True)
            assert (await other.answer(waiting)).http == 200
            assert "displaced" in running.clients.reasons


async def test_the_bytes_of_uploads_have_a_budget(contract):
    async with edge(contract, stall=30.0, buffers=4 * LIMIT) as running:  # noqa: SIM117 - one line would be too long
        async with raw_client(running.address) as flood, raw_client(running.address) as other:
            streams = [flood.request("/s/echo", **POST) for _ in range(12)]
            for stream in streams:
                flood.data(stream, b" " * (LIMIT - 100))
            await flood.until(lambda: sum(bool(flood.of(stream)) for stream in streams) >= 8)
            assert running.clients.buffers.used <= 4 * LIMIT
            body = b" " * (LIMIT // 2) + b'{"text":"a"}'
            stream = other.request("/s/echo", **POST)
            other.data(stream, body, end=True)
            assert (await other.answer(stream)).http == 200


async def test_responses_that_are_not_read_have_a_budget(contract):
    async with edge(contract, stall=30.0, buffers=2_000_000) as running:
        head = b"GET /s/count/-1?size=500000 HTTP/1.1\r\nhost: a\r\n\r\n"
        flood = []
        for _ in range(20):
            connection = await opened(running.address)
            connection.send(head)
            flood.append(connection)
        await running.clients.until("buffers")
        assert running.clients.buffers.used <= 2_000_000
        for connection in flood:
            connection.close()


@pytest.mark.parametrize("stall", [0.5, 30.0])
async def test_a_refused_upload_over_http_1_gets_its_status(contract, stall):
    """The rest of the body is discarded without limits."""
    async with edge(contract, stall=stall, buffers=LIMIT if stall > 1 else 2**26) as running:
        host, _, port = running.address.rpartition(":")
        clients = []
        for _ in range(3):
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(b"POST /s/echo HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n")
            writer.write(b"content-length: %d\r\n\r\n" % LIMIT + b" " * (LIMIT - 1))
            clients.append((reader, writer))
        statuses = [int((await asyncio.wait_for(reader.readuntil(b"\r\n"), 10)).split()[1]) for reader, _ in clients]
        assert set(statuses) <= {408, 429}  # 408 also for the one that the budget allows: it does not go on
        assert (429 in statuses) == (stall > 1)
        for _, writer in clients:
            writer.close()


async def test_large_responses_are_counted_before_they_are_there(contract):
    async with edge(contract, stall=30.0, buffers=2_500_000) as running:
        running.clients.response_sizes["/stream.v1.Streams/Echo"] = 1_000_000
        async with raw_client(running.address) as client:
            streams = [client.request("/s/echo", **POST) for _ in range(3)]
            for stream in streams:
                client.data(stream, b'{"text":"a"}', end=True)
            assert 200 in [(await client.answer(stream)).http for stream in streams]
            # small responses are expected the next times
            for _ in range(40):
                stream = client.request("/s/echo", **POST)
                client.data(stream, b"{}", end=True)
                assert (await client.answer(stream)).http == 200
        assert running.clients.response_sizes == {}
