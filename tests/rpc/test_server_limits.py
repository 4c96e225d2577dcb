"""Limits on the callers of a service: on the bytes that they make it hold, and on the time that it waits for them."""

from __future__ import annotations

import asyncio
import gzip
import os

import ngh2
import pytest
from conformance.v1 import conformance_pb2 as pb
from hosting import hosted
from raw_h2 import frame, raw_client

from mesh.call import Call, Metadata
from mesh.contract.model import Contract
from mesh.errors import ResourceExhausted
from mesh.rpc.client.target import Target
from mesh.rpc.server.clients.limits import RECENT_RESPONSES, ClientLimits

UNARY = "/conformance.v1.Echo/Unary"
STREAM = "/conformance.v1.Echo/ClientStream"
SIZE = 300_000


def echo(size: int) -> bytes:
    return pb.EchoRequest(payload=b"x" * size).SerializeToString()


async def released(limits: ClientLimits) -> None:
    """Wait until nothing is held: the server tells a little later what it has written."""
    async with asyncio.timeout(5):
        while limits.held:  # noqa: ASYNC110 - see above
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("begun", [b"", frame(b"x" * 100)[:50]])
async def test_a_request_that_stops_ends_with_a_status(contract: Contract, begun: bytes) -> None:
    limits = ClientLimits(stall=0.2)
    async with hosted(contract, clients=limits) as address, raw_client(address) as client:
        stream = client.request(UNARY)
        client.data(stream, begun)
        answer = await client.answer(stream)
        assert (answer.status, answer.message) == (4, "the request did not come in time")
        await released(limits)


async def test_a_stream_may_be_silent_between_messages_but_not_within(contract: Contract) -> None:
    async with hosted(contract, clients=ClientLimits(stall=0.2)) as address, raw_client(address) as client:
        stream = client.request(STREAM)
        client.data(stream, frame(b""))
        await asyncio.sleep(0.6)  # silence is what is tested
        assert not client.of(stream)
        client.data(stream, frame(b"abc")[:4])
        assert (await client.answer(stream)).status == 4


async def test_the_bytes_of_requests_have_a_budget(contract: Contract) -> None:
    limits = ClientLimits(buffers=2 * SIZE, stall=30.0)
    async with hosted(contract, clients=limits) as address, raw_client(address) as client:
        streams = [client.request(UNARY) for _ in range(4)]
        for stream in streams:
            client.data(stream, frame(echo(200_000))[:-1])
        await client.until(lambda: any(client.of(stream) for stream in streams))
        assert {(await client.answer(stream)).status for stream in streams if client.of(stream)} == {8}
        assert 0 < limits.held <= 2 * SIZE
    await released(limits)


async def test_a_large_response_is_reserved_before_the_function_is_called(contract: Contract) -> None:
    limits = ClientLimits(buffers=2 * SIZE, stall=30.0)
    limits.response_sizes[UNARY] = 3 * SIZE
    called = []

    async def note(call: Call, next: object) -> None:
        await next(call)  # type: ignore[operator]
        called.append(call)

    async with hosted(contract, clients=limits, authorize=note) as address, raw_client(address) as client:
        refused = await client.call(frame(echo(10)))
        assert (refused.status, called) == (8, [])
        limits.response_sizes[UNARY] = SIZE
        assert (await client.call(frame(echo(10)))).status == 0
        assert UNARY not in limits.response_sizes  # the response was small
        await released(limits)


async def test_the_responses_of_a_method_are_large_if_all_of_the_last_ones_were(contract: Contract) -> None:
    limits = ClientLimits(buffers=20 * SIZE, stall=30.0)
    async with hosted(contract, clients=limits) as address, raw_client(address) as client:

        async def ask(size: int) -> None:
            request = pb.EchoRequest(answer_bytes=size).SerializeToString()
            assert (await client.call(frame(request))).status == 0

        for _ in range(2):
            for number in range(RECENT_RESPONSES - 1):
                await ask(SIZE + 1000 * number)
            assert limits.response_sizes == {}
            await ask(10)
        for number in range(RECENT_RESPONSES):
            await ask(SIZE + 1000 * number)
        assert SIZE <= limits.response_sizes[UNARY] < SIZE + 100  # the smallest
        await ask(10)
        assert limits.response_sizes == limits.recent_sizes == {}
        await released(limits)


async def test_one_large_response_closes_a_method_to_nobody(contract: Contract) -> None:
    limits = ClientLimits(buffers=20 * SIZE, stall=30.0)
    async with hosted(contract, clients=limits) as address, raw_client(address) as client:
        for _ in range(3):
            assert (await client.call(frame(pb.EchoRequest(answer_bytes=10 * SIZE).SerializeToString()))).status == 0
            streams = [client.request(UNARY) for _ in range(50)]
            for stream in streams:
                client.data(stream, frame(pb.EchoRequest(sleep_ms=50).SerializeToString()), end=True)
            assert [(await client.answer(stream)).status for stream in streams] == [0] * 50


async def test_a_caller_may_refuse_a_response_by_its_size(contract: Contract) -> None:
    expected = []

    class Once(Call):
        async def receive_one(self) -> bytes:
            return echo(SIZE)

        def expect_response(self, size: int) -> None:
            expected.append(size)
            raise ResourceExhausted("no room")

    async with hosted(contract) as address:
        target = Target([address])
        with pytest.raises(ResourceExhausted, match="no room"):
            await target(Once(contract.method(UNARY), Metadata()))
        await target.close()
    assert expected[0] >= SIZE


@pytest.mark.parametrize("compressed", [False, True])
async def test_a_response_counts_until_the_server_has_written_it(
    contract: Contract, monkeypatch: pytest.MonkeyPatch, *, compressed: bool
) -> None:
    limits = ClientLimits(stall=30.0)
    request = pb.EchoRequest(payload=os.urandom(SIZE)).SerializeToString()
    headers = [(b"grpc-encoding", b"gzip"), (b"grpc-accept-encoding", b"gzip")] if compressed else []
    data = frame(gzip.compress(request), 1) if compressed else frame(request)
    connection = ngh2.Connection(ngh2.Role.CLIENT, ngh2.Configuration(auto_window_update=False))
    async with hosted(contract, clients=limits) as address:
        with monkeypatch.context() as patch:
            patch.setattr(ngh2, "Connection", lambda _: connection)  # a client that does not read
            async with raw_client(address) as client:
                client.data(client.request(UNARY, headers=headers), data, end=True)
                await client.until(lambda: any(isinstance(event, ngh2.DataReceived) for event in client.events))
                await asyncio.sleep(0.1)  # the function has ended, and the server has its response
                assert limits.held >= SIZE
        async with raw_client(address) as client:  # the server lets go of objects when it next has work to do
            assert (await client.call(frame(b""))).status == 0
            await released(limits)


async def test_a_connection_of_http1_that_is_not_read_is_closed(contract: Contract) -> None:
    limits = ClientLimits(stall=0.2)
    request = pb.EchoRequest(answer_bytes=8 * SIZE).SerializeToString()
    head = f"POST {UNARY} HTTP/1.1\r\nhost: a\r\ncontent-type: application/proto\r\ncontent-length: {len(request)}\r\n"
    async with hosted(contract, clients=limits) as address:
        host, port = address.split(":")
        reader, writer = await asyncio.open_connection(host, int(port), limit=1024)  # stops to read beyond this
        writer.write(f"{head}\r\n".encode() + request)
        async with asyncio.timeout(10), raw_client(address) as client:
            while not limits.held:  # noqa: ASYNC110 - the function has ended when they are held
                await asyncio.sleep(0.01)
            while limits.held:  # the server lets go of objects when it next has work to do
                assert (await client.call(frame(b""))).status == 0
                await asyncio.sleep(0.05)
        writer.transport.abort()
        assert not reader.at_eof()
