"""The channel with misbehaving servers, and leaks."""

from __future__ import annotations

import asyncio
import gc
import socket
import zlib

import grpc
import pytest
from fault_server import HEADERS, OK, PATH, framed
from ngh2 import ErrorCode, Setting
from pki import Pki

from mesh.call import Call, Metadata
from mesh.rpc import framing
from mesh.rpc.client import http2_connection, reset_limiter
from mesh.rpc.client.http2_connection import Connection
from mesh.rpc.client.http2_stream import Stream
from mesh.rpc.client.service_tls import ServiceTls


@pytest.fixture
def transport():
    return "ngh2"


def pool_of(channel):
    return channel.target._handler.pool


def unary(channel, message=b"", **options):
    return channel.unary_unary(PATH)(message, **{"timeout": 10, **options})


async def failure(awaitable):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await awaitable
    assert "127.0.0.1" not in caught.value.details(), "the text for callers names an address"
    return caught.value


async def test_what_goes_over_the_wire(faulty, channel):
    server = await faulty(lambda peer, stream_id: peer.respond(stream_id, b"answer"))
    assert await unary(channel(server.address), b"question", metadata=[("x-a", "1"), ("x-b-bin", b"\0")]) == b"answer"
    [peer] = server.peers
    headers = dict(peer.requests[1])
    timeout = headers.pop(b"grpc-timeout")
    assert headers == {
        b":method": b"POST", b":scheme": b"http", b":path": PATH.encode(), b":authority": server.address.encode(),
        b"te": b"trailers", b"content-type": b"application/grpc", b"user-agent": b"grpc-python-mesh/0.1.0",
        b"grpc-accept-encoding": b"identity,gzip", b"x-a": b"1", b"x-b-bin": b"AA",
    }  # fmt: skip
    assert 9 < framing.parse_timeout(timeout) <= 10
    assert peer.bodies[1] == framed(b"question")


async def test_refused_stream_is_tried_again(faulty, channel):
    def answer(peer, stream_id):
        if stream_id == 1:
            peer.h2.reset_stream(stream_id, ErrorCode.REFUSED_STREAM)
        else:
            peer.respond(stream_id, b"taken")

    server = await faulty(answer)
    assert await unary(channel(server.address)) == b"taken"


async def test_refused_for_ever_ends(faulty, channel):
    server = await faulty(lambda peer, stream_id: peer.h2.reset_stream(stream_id, ErrorCode.REFUSED_STREAM))
    error = await failure(unary(channel(server.address)))
    assert error.code() == grpc.StatusCode.UNAVAILABLE
    assert server.address in error.debug_error_string()
    assert len(server.peers[-1].requests) == 5


async def test_calls_above_goaways_last_stream_are_tried_elsewhere(faulty, channel):
    def answer(peer, stream_id):
        if peer.number == 1:
            if stream_id == 3:
                peer.h2.send_goaway(0, last_stream_id=1)
                peer.flush()
                peer.respond(1, b"old")
        else:
            peer.respond(stream_id, b"new")

    server = await faulty(answer)
    made = channel(server.address)
    one = asyncio.ensure_future(unary(made))
    await server.until(lambda: server.peers and server.peers[-1].requests)
    assert await unary(made) == b"new"
    assert await one == b"old"
    await server.until(lambda: server.accepted == 2 and len(server.peers) == 1)


async def test_a_stream_above_goaways_last_stream_is_tried_elsewhere(faulty, channel):
    def answer(peer, stream_id):
        if peer.number == 2:  # the first that carries a stream
            peer.h2.send_goaway(0, last_stream_id=0)
        else:
            peer.respond(stream_id, b"new")

    server = await faulty(answer)
    call = channel(server.address).stream_stream(PATH)(iter([b"a", b"b"]), timeout=10)
    assert [answer async for answer in call] == [b"new"]
    assert server.peers[-1].number == 3
    assert server.peers[-1].bodies[1] == framed(b"a") + framed(b"b")


async def test_trailers_only(faulty, channel):
    trailers = [*HEADERS, (b"grpc-status", b"5"), (b"grpc-message", b"no%20such%20thing"), (b"x-why", b"gone")]
    server = await faulty(lambda peer, stream_id: peer.h2.send_response(stream_id, trailers, end_stream=True))
    error = await failure(unary(channel(server.address)))
    assert (error.code(), error.details()) == (grpc.StatusCode.NOT_FOUND, "no such thing")
    assert list(error.trailing_metadata()) == [("x-why", "gone")]
    assert list(error.initial_metadata()) == []


async def test_gzip_answer(faulty, channel):
    def answer(peer, stream_id):
        peer.h2.send_response(stream_id, [*HEADERS, (b"grpc-encoding", b"gzip")])
        peer.h2.send_data(stream_id, framed(zlib.compress(b"abc" * 1000, wbits=31), 1))
        peer.h2.send_trailers(stream_id, OK)

    server = await faulty(answer)
    assert await unary(channel(server.address)) == b"abc" * 1000


async def test_an_answer_in_single_bytes(faulty, channel):
    def answer(peer, stream_id):
        peer.h2.send_response(stream_id, HEADERS)
        for byte in framed(b"abc") + framed(b"") + framed(b"d" * 300):
            peer.h2.send_data(stream_id, bytes([byte]))
            peer.flush()
        peer.h2.send_trailers(stream_id, OK)

    server = await faulty(answer)
    call = channel(server.address).unary_stream(PATH)(b"", timeout=10)
    assert [message async for message in call] == [b"abc", b"", b"d" * 300]


@pytest.mark.parametrize("noise", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\0" * 100, b"\xff" * 100])
async def test_a_server_that_speaks_something_else(channel, noise):
    async def talk(reader, writer):
        await reader.read(24)
        writer.write(noise)
        await writer.drain()
        await reader.read()
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    error = await failure(unary(channel(address)))
    assert error.code() == grpc.StatusCode.UNAVAILABLE
    assert address in error.debug_error_string()
    server.close()


async def test_garbage_in_the_middle_fails_only_what_it_carried(faulty, channel):
    broken, sound = await faulty(), await faulty()
    made = channel(broken.address, sound.address)
    calls = [asyncio.ensure_future(unary(made, wait_for_ready=True)) for _ in range(40)]
    await broken.until(lambda: broken.peers and len(broken.peers[-1].ended) >= 5)
    carried = len(broken.peers[-1].ended)
    while len(sound.peers[-1].ended) + carried < 40:
        sound.changed.clear()
        await sound.changed.wait()
        carried = len(broken.peers[-1].ended)
    broken.peers[-1].transport.write(b"\xff" * 50)
    await broken.until(lambda: not broken.peers or len(broken.peers[-1].ended) == 0)
    [peer] = sound.peers
    for stream_id in list(peer.ended):
        peer.respond(stream_id, b"fine")
    peer.flush()
    answers = await asyncio.gather(*calls, return_exceptions=True)
    failed = [answer for answer in answers if isinstance(answer, grpc.aio.AioRpcError)]
    assert len(failed) == carried
    assert {error.code().name for error in failed} == {"UNAVAILABLE"}
    assert all(broken.address in error.debug_error_string() for error in failed)
    assert answers.count(b"fine") == 40 - carried


async def test_a_server_that_is_late_with_settings(faulty, channel):
    server = await faulty(lambda peer, stream_id: peer.respond(stream_id, b"late"), settings=None)
    call = asyncio.ensure_future(unary(channel(server.address)))
    await server.until(lambda: bool(server.peers))
    [peer] = server.peers
    assert not call.done()
    peer.begin({})
    assert await call == b"late"


async def test_a_server_that_never_sends_settings(faulty, channel, monkeypatch):
    server = await faulty(settings=None)
    error = await failure(unary(channel(server.address), timeout=0.2))
    assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert server.address in error.debug_error_string()
    monkeypatch.setattr("mesh.rpc.client.connection_pool.CONNECT_TIMEOUT", 0.2)
    error = await failure(unary(channel(server.address)))
    assert error.code() == grpc.StatusCode.UNAVAILABLE
    assert "no response within 0.2 s" in error.debug_error_string()


async def test_settings_change_the_limit_of_streams(faulty, channel):
    server = await faulty(settings={Setting.MAX_CONCURRENT_STREAMS: 1})
    made = channel(server.address)
    calls = [asyncio.ensure_future(unary(made)) for _ in range(3)]
    await server.until(lambda: bool(server.peers) and len(server.peers[-1].ended) == 1)
    [peer] = server.peers
    calls[1].cancel()  # a call that waits for a stream
    peer.h2.update_settings({Setting.MAX_CONCURRENT_STREAMS: 2})
    peer.flush()
    await server.until(lambda: len(peer.ended) == 2)
    for stream_id in peer.ended:
        peer.respond(stream_id, b"fine")
    peer.flush()
    assert [await call for call in (calls[0], calls[2])] == [b"fine", b"fine"]
    assert len(peer.requests) == 2


async def test_cancel_is_a_reset(faulty, channel):
    server = await faulty()
    call = asyncio.ensure_future(unary(channel(server.address)))
    await server.until(lambda: bool(server.peers) and bool(server.peers[-1].ended))
    call.cancel()
    await server.until(lambda: server.peers[-1].resets == {1: ErrorCode.CANCEL})


async def test_a_deadline_is_a_reset(faulty, channel):
    server = await faulty(lambda peer, stream_id: peer.respond(stream_id) if stream_id == 1 else None)
    made = channel(server.address)
    await unary(made)  # the time it takes to connect is not the next call's
    assert (await failure(unary(made, timeout=0.1))).code().name == "DEADLINE_EXCEEDED"
    await server.until(lambda: server.peers[-1].resets == {3: ErrorCode.CANCEL})


async def test_an_answer_before_the_request_has_ended(faulty, channel):
    server = await faulty()

    async def endless():
        while True:
            yield b"x" * 1000

    call = channel(server.address).stream_unary(PATH)(endless(), timeout=10)
    await server.until(lambda: bool(server.peers) and len(server.peers[-1].bodies.get(1, b"")) > 10_000)
    server.peers[-1].respond(1, b"enough")
    server.peers[-1].flush()
    assert await call == b"enough"
    await server.until(lambda: 1 in server.peers[-1].resets)


async def test_a_writer_waits_while_the_server_does_not_read(faulty, channel):
    server = await faulty(settings={Setting.INITIAL_WINDOW_SIZE: 1000})
    call = channel(server.address).stream_stream(PATH)(timeout=30)
    written = 0

    async def write():
        nonlocal written
        while True:
            await call.write(b"x" * 10_000)
            written += 10_000

    writer = asyncio.create_task(write())
    await server.until(lambda: bool(server.peers) and bool(server.peers[-1].bodies))
    server.peers[-1].transport.pause_reading()
    before = -1
    while before != written:
        before = written
        await asyncio.sleep(0.1)  # that nothing happens has no event
    assert written < 1_000_000
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writer


async def test_pings_find_a_dead_peer_and_do_not_pester_a_quiet_one(faulty, channel, monkeypatch):
    monkeypatch.setattr(http2_connection, "PING_DELAYS", (0.05, 0.1, 60.0))
    monkeypatch.setattr(http2_connection, "PING_TIMEOUT", 0.2)
    server = await faulty()
    made = channel(server.address)
    quiet = asyncio.ensure_future(unary(made, timeout=0.6))
    assert (await failure(quiet)).code().name == "DEADLINE_EXCEEDED"
    assert 1 <= server.peers[-1].pings <= 2
    call = asyncio.ensure_future(unary(made))
    await server.until(lambda: len(server.peers[-1].ended) == 2)
    server.peers[-1].transport.pause_reading()
    monkeypatch.setattr(http2_connection, "PING_DELAYS", (0.05, 0.05, 0.05))
    error = await failure(call)
    assert error.code().name == "UNAVAILABLE"
    assert "PING" in error.debug_error_string()


async def test_no_ping_without_calls(faulty, channel, monkeypatch):
    monkeypatch.setattr(http2_connection, "PING_DELAYS", (0.02, 0.02, 0.02))
    server = await faulty(lambda peer, stream_id: peer.respond(stream_id))
    made = channel(server.address)
    await unary(made)
    await asyncio.sleep(0.2)  # that nothing happens has no event
    assert server.peers[-1].pings == 0


async def test_a_name_is_resolved_again_as_time_passes(faulty, channel, monkeypatch):
    first = await faulty(lambda peer, stream_id: peer.respond(stream_id, b"first"))
    second = await faulty(lambda peer, stream_id: peer.respond(stream_id, b"second"), port=first.port, host="127.0.0.2")
    leads_to = ["127.0.0.1"]
    asked = asyncio.Semaphore(0)

    async def look_up(host, port, **_):
        assert host == "service.test"
        asked.release()
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, port)) for ip in leads_to]

    monkeypatch.setattr("mesh.rpc.client.resolver.look_up", look_up)
    monkeypatch.setattr("mesh.rpc.client.connection_pool.RESOLVE_INTERVAL", 0.05)
    made = channel(f"service.test:{first.port}")
    assert await unary(made) == b"first"
    leads_to[:] = ["127.0.0.2"]
    while await unary(made) == b"first":
        await asked.acquire()
    await first.until(lambda: not first.peers)
    assert await unary(made) == b"second"
    assert first.accepted == second.accepted == 1


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2"])
async def test_calls_wait_for_a_server_that_restarts(faulty, channel, monkeypatch, host):
    """At its old address or at another one. A call that was never sent can wait, whatever its method is."""
    first = await faulty(lambda peer, stream_id: peer.respond(stream_id, b"first"))
    leads_to = ["127.0.0.1"]
    refused = asyncio.Event()

    async def look_up(_host, port, **_):
        if not leads_to:
            refused.set()
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, port)) for ip in leads_to]

    monkeypatch.setattr("mesh.rpc.client.resolver.look_up", look_up)
    monkeypatch.setattr("mesh.rpc.client.connection_pool.RESOLVE_MIN_INTERVAL", 0.05)
    made = channel(f"service.test:{first.port}")
    assert await unary(made) == b"first"
    leads_to.clear()  # like the name of a container that does not run
    await first.stop()
    waiting = [asyncio.ensure_future(unary(made)) for _ in range(20)]
    await refused.wait()
    second = await faulty(lambda peer, stream_id: peer.respond(stream_id, b"second"), port=first.port, host=host)
    leads_to.append(host)
    assert await asyncio.gather(*waiting) == [b"second"] * 20
    assert second.accepted == 1


async def test_patience_ends(faulty, channel, monkeypatch):
    monkeypatch.setattr("mesh.rpc.client.connection_pool.RECONNECT_TIMEOUT", 0.3)
    server = await faulty(lambda peer, stream_id: peer.respond(stream_id))
    made = channel(server.address)
    await unary(made)
    await server.stop()
    error = await failure(unary(made))
    assert error.code().name == "UNAVAILABLE"
    assert "connection refused" in error.debug_error_string()
    begin = asyncio.get_running_loop().time()
    assert (await failure(unary(made))).code().name == "UNAVAILABLE"
    assert asyncio.get_running_loop().time() - begin < 0.2  # calls do not wait for a server that was lost long ago


async def test_tls(faulty, channel, tmp_path):
    pki = Pki(tmp_path)
    serving = pki.credentials("echo").server_context()
    server = await faulty(lambda peer, stream_id: peer.respond(stream_id, b"safe"), ssl=serving)
    tls = ServiceTls(pki.credentials("caller"), "echo")
    assert await unary(channel(server.address, tls=tls)) == b"safe"
    assert server.peers[-1].requests[1][b":scheme"] == b"https"
    serving.set_alpn_protocols(["http/1.1"])
    error = await failure(unary(channel(server.address, tls=tls)))
    assert error.code().name == "UNAVAILABLE"
    assert "does not speak HTTP/2 (ALPN)" in error.debug_error_string()


async def test_nothing_leaks(faulty, channel, monkeypatch):
    """Thousands of calls that end in every way leave no stream, task, future or window behind."""
    monkeypatch.setattr(reset_limiter, "MAX_BURST", 10**6)  # otherwise one connection replaces the other

    def answer(peer, stream_id):
        match stream_id // 2 % 5:
            case 0:
                peer.h2.reset_stream(stream_id, ErrorCode.INTERNAL_ERROR)
            case 1:
                peer.h2.send_response(stream_id, [*HEADERS, (b"grpc-status", b"9")], end_stream=True)
            case 2:
                pass  # cancelled, or its deadline passes
            case _:
                peer.respond(stream_id, b"x" * 3000)

    server = await faulty(answer)
    made = channel(server.address)

    async def one(index):
        if index % 7 == 0:
            call = made.unary_stream(PATH)(b"", timeout=0.3)
            return [message async for message in call]
        return await unary(made, b"y" * 100, timeout=0.3)

    async def round_(count):
        for _ in range(count // 200):
            tasks = [asyncio.create_task(one(index)) for index in range(200)]
            await asyncio.sleep(0.02)
            for task in tasks[::10]:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    await round_(400)
    [connection] = pool_of(made).ready
    await _emptied(connection)
    await _without_stream_connections(made)
    before = await _alive()
    await round_(4000)
    assert pool_of(made).ready == [connection]
    await _emptied(connection)
    assert not connection._writers
    assert not pool_of(made)._waiters
    await _without_stream_connections(made)
    assert await _alive() == before


async def _without_stream_connections(channel) -> None:
    """Close the connections that wait for the next stream."""
    stream_connections = channel.target._handler.stream_connections
    await stream_connections.close()
    async with asyncio.timeout(5):
        while stream_connections._open:  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0.01)


async def _emptied(connection) -> None:
    async with asyncio.timeout(5):  # the server has a moment to end expired calls
        while connection.streams:  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0.01)


async def _alive() -> dict[str, int]:
    for _ in range(3):  # references of callbacks and finalizers are gone in the next turn
        await asyncio.sleep(0)
        gc.collect()
    kinds = (Stream, Connection, asyncio.Future, asyncio.Task)
    return {kind.__name__: sum(isinstance(item, kind) for item in gc.get_objects()) for kind in kinds}


async def test_downloads_that_are_cancelled_do_not_use_up_the_window(faulty, channel):
    def answer(peer, stream_id):
        peer.h2.send_response(stream_id, HEADERS)
        peer.h2.send_data(stream_id, framed(b"x" * 3_000_000))

    server = await faulty(answer)
    made = channel(server.address)
    for turn in range(60):
        call = made.unary_stream(PATH)(b"", timeout=10)
        await call.initial_metadata()
        for _ in range(turn % 4):
            await asyncio.sleep(0)
        call.cancel()
    server.answer = lambda peer, stream_id: peer.respond(stream_id, b"x" * 4_000_000)
    assert len(await unary(made)) == 4_000_000


async def test_closing_ends_a_stream_whose_server_does_not_read(faulty, channel):
    server = await faulty(settings={Setting.INITIAL_WINDOW_SIZE: 2**31 - 1})
    made = channel(server.address)
    call = made.stream_stream(PATH)(timeout=60)
    await call.write(b"first")
    await server.until(lambda: any(peer.requests for peer in server.peers))
    [peer] = [peer for peer in server.peers if peer.requests]
    peer.h2.set_local_window_size(2**31 - 1)
    peer.flush()
    peer.transport.pause_reading()
    writing = asyncio.create_task(_write_forever(call))
    [lane] = made.target._handler.stream_connections._open
    while not lane._paused:  # noqa: ASYNC110 - a step of the loop, no time: until the sockets are full
        await asyncio.sleep(0)
    await made.target.close()
    assert await call.code() is grpc.StatusCode.UNAVAILABLE
    await failure(writing)
    peer.transport.resume_reading()


async def test_closing_while_a_stream_is_being_connected(faulty, channel):
    server = await faulty()
    made = channel(server.address)
    await made.target._handler.pool.acquire(Call(None, Metadata()))
    server.settings = None  # the next connection is accepted, and ready when the test says so
    call = made.unary_stream(PATH)(b"", timeout=60)
    await server.until(lambda: len(server.peers) == 2)
    await made.target.close()
    await server.until(lambda: len(server.peers) == 1)
    server.peers[0].begin({})
    assert (await failure(call.read())).code() is grpc.StatusCode.UNAVAILABLE
    await server.until(lambda: not server.peers)


async def _write_forever(call):
    while True:
        await call.write(bytes(2**20))
