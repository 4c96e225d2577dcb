"""The listener with plain ASGI applications: start, stop, limits and protocols."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from typing import Any

import pytest
from grpc.aio import insecure_channel
from raw_h2 import raw_client

from mesh.address import split
from mesh.rpc.server.listener import Listener, ListenError


class Slow:
    """Application that sends its response when ``go`` is set."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.go = asyncio.Event()
        self.cancelled = False

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:  # noqa: ARG002
        self.begun.set()
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})


async def refused(address: str) -> None:
    """Return when connections to the address are refused."""
    with pytest.raises(ConnectionError):
        while True:
            _, writer = await asyncio.open_connection(*address.split(":"))
            writer.close()
            await asyncio.sleep(0.01)


async def test_port_0_picks_a_free_one_and_says_which() -> None:
    listener = Listener(Slow(), "127.0.0.1:0", grpc=True, drain=1)
    address = await listener.start()
    assert address.startswith("127.0.0.1:")
    assert not address.endswith(":0")
    await listener.stop()
    await listener.stop()  # a second stop has no effect


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="no IPv6 here")
async def test_every_interface_is_that_of_both_protocols() -> None:
    listener = Listener(Slow(), "*:0", grpc=True, drain=0)
    port = split(await listener.start())[1]
    for host in ("127.0.0.1", "::1"):
        _, writer = await asyncio.open_connection(host, port)
        writer.close()
    await listener.stop()


async def test_a_taken_port_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ListenError, match=f"cannot listen on {address}: address already in use"):
            await Listener(Slow(), address, grpc=True, drain=1).start()


async def test_an_address_of_another_machine_is_named() -> None:
    with pytest.raises(ListenError, match=r"cannot listen on 192\.0\.2\.1:1: "):
        await Listener(Slow(), "192.0.2.1:1", grpc=True, drain=1).start()


async def test_a_listening_socket_is_adopted() -> None:
    with socket.create_server(("127.0.0.1", 0)) as own:
        slow = Slow()
        slow.go.set()
        listener = Listener(slow, "127.0.0.1:0", fd=own.fileno(), grpc=True, drain=1)
        address = await listener.start()
        assert address == f"127.0.0.1:{own.getsockname()[1]}"
        async with raw_client(address) as client:
            assert (await client.call(b"")).http == 204
        await listener.stop()


async def test_a_stop_waits_for_what_is_in_flight_and_refuses_what_is_new() -> None:
    slow = Slow()
    listener = Listener(slow, "127.0.0.1:0", grpc=True, drain=5)
    address = await listener.start()
    async with raw_client(address) as client:
        stream = client.request(end=True)
        await slow.begun.wait()
        stopping = asyncio.create_task(listener.stop())
        await client.until(lambda: not client.h2.can_send_request)  # GOAWAY was received
        await refused(address)
        assert not stopping.done()
        slow.go.set()
        assert (await client.answer(stream)).http == 204
        await asyncio.wait_for(stopping, 5)


def connect(port: int) -> None:
    """Connect repeatedly until a connection is refused."""
    with contextlib.suppress(ConnectionError):
        while True:
            socket.create_connection(("127.0.0.1", port)).close()


async def test_a_stop_among_new_connections_cuts_no_call_off() -> None:
    """The socket must stay open while h2corn still accepts: else one stop of ten ended the server and all calls."""
    await asyncio.gather(*(stop_among_new_connections() for _ in range(150)))


async def stop_among_new_connections() -> None:
    slow = Slow()
    listener = Listener(slow, "127.0.0.1:0", grpc=True, drain=5)
    address = await listener.start()
    storm = asyncio.create_task(asyncio.to_thread(connect, int(address.split(":")[1])))
    async with raw_client(address) as client:
        stream = client.request(end=True)
        await slow.begun.wait()
        stopping = asyncio.create_task(listener.stop())
        await storm
        assert not stopping.done()
        slow.go.set()
        assert (await client.answer(stream)).http == 204
        await stopping


FEW = """
import asyncio, logging, os, resource, sys
from mesh.address import split
from mesh.rpc.server.listener import Listener

async def app(scope, receive, send):
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body"})

async def main():
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    listener = Listener(app, "127.0.0.1:0", grpc=False, drain=1)
    print(await listener.start(), flush=True)
    taken = []
    while line := await asyncio.to_thread(sys.stdin.readline):
        try:
            while line == "take all\\n":
                taken.append(os.open("/dev/null", os.O_RDONLY))
        except OSError as error:
            print(error.strerror, flush=True)
        while line == "free\\n" and taken:
            os.close(taken.pop())
    await listener.stop()

logging.basicConfig(level=logging.ERROR, stream=sys.stdout, format="%(message)s")
asyncio.run(main())
"""
"""A server whose process may have 64 open files, and opens them all on command."""


async def ask(address: str) -> tuple[asyncio.StreamWriter, asyncio.Task[bytes]]:
    reader, writer = await asyncio.open_connection(*address.split(":"))
    writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
    return writer, asyncio.create_task(reader.readline())


async def test_a_server_outlives_a_lack_of_descriptors() -> None:
    pipe = asyncio.subprocess.PIPE
    server = await asyncio.create_subprocess_exec(sys.executable, "-c", FEW, stdin=pipe, stdout=pipe, stderr=pipe)
    try:
        await starved_and_freed(server)
    finally:
        if server.returncode is None:
            server.kill()
            await server.wait()


async def starved_and_freed(server: asyncio.subprocess.Process) -> None:
    assert server.stdin is not None
    assert server.stdout is not None
    address = (await server.stdout.readline()).decode().strip()
    server.stdin.write(b"take all\n")
    assert await server.stdout.readline() == b"Too many open files\n"
    writer, answer = await ask(address)
    said = b"127.0.0.1:0: the server ended (Too many open files (os error 24)); it is started anew\n"
    while await server.stdout.readline() != said:  # asyncio reports the exceptions of h2corn too
        assert not server.stdout.at_eof()
    writer.close()
    answer.cancel()
    server.stdin.write(b"free\n")
    writer, answer = await ask(address)
    assert (await answer).startswith(b"HTTP/1.1 204")
    writer.close()

    asked = [await ask(address) for _ in range(40)]
    for _, answer in asked[:32]:
        assert (await answer).startswith(b"HTTP/1.1 204")
    done, _ = await asyncio.wait([answer for _, answer in asked[32:]], timeout=0.2)
    assert not done  # half of the descriptors are reserved for other uses
    for writer, _ in asked[:32]:
        writer.close()
    for writer, answer in asked[32:]:
        assert (await answer).startswith(b"HTTP/1.1 204")
        writer.close()
    server.stdin.close()
    assert await server.wait() == 0


async def test_what_does_not_end_in_time_is_told_then_cut_off() -> None:
    slow = Slow()
    told: list[bool] = []
    listener = Listener(slow, "127.0.0.1:0", grpc=True, drain=0.1, expire=lambda: told.append(slow.cancelled))
    async with raw_client(await listener.start()) as client:
        client.request(end=True)
        await slow.begun.wait()
        await asyncio.wait_for(listener.stop(), 5)
    assert told == [False]
    assert slow.cancelled


async def test_a_connection_of_http_1_stays_open_at_the_edge_only(capfd: pytest.CaptureFixture[str]) -> None:
    slow = Slow()
    slow.go.set()
    for grpc in (False, True):
        listener = Listener(slow, "127.0.0.1:0", grpc=grpc, drain=1)
        host, port = (await listener.start()).split(":")
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 204")
        assert (b"connection: close" in head) is grpc
        if grpc:
            assert await reader.read() == b""
        writer.close()
        await listener.stop()
    assert capfd.readouterr().err == ""


async def test_grpc_and_other_http_on_one_address() -> None:
    async def swallow(_: Any, receive: Any, send: Any) -> None:
        size, more = 0, True
        while more:
            event = await receive()
            size, more = size + len(event.get("body", b"")), event.get("more_body", False)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x-size", b"%d" % size)]})
        await send({"type": "http.response.body", "body": b""})

    listener = Listener(swallow, "127.0.0.1:0", grpc=True, drain=1, max_body=1000)
    address = await listener.start()
    async with raw_client(address) as client:
        for kind in (
            b"application/grpc",
            b"application/grpc+proto",
        ):  # no limit here: the application limits its messages
            answer = await client.call(b"x" * 5000, content_type=kind)
            assert (answer.http, answer.headers[b"x-size"]) == (200, b"5000")
        length = [(b"content-length", b"5000")]
        for kind in (b"application/json", b"application/grpc-web"):
            assert (await client.call(b"x" * 5000, content_type=kind, headers=length)).http == 413
    reader, writer = await asyncio.open_connection(*address.split(":"))
    writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
    assert (await reader.readline()).startswith(b"HTTP/1.1 200")
    writer.close()
    await writer.wait_closed()
    await listener.stop()


async def test_a_call_that_ends_before_the_server_cancels_it_for_a_client_that_has_gone_is_no_failure(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """h2corn reports a disconnect a moment before it cancels the task; here that moment is longer."""
    monkeypatch.setattr("mesh.rpc.server.listener.DISCONNECT_DELAY", 30.0, raising=False)
    ended = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        ended.set()
        raise asyncio.CancelledError("the caller went away")

    listener = Listener(app, "127.0.0.1:0", grpc=True, drain=5)
    async with insecure_channel(await listener.start()) as channel:
        call = channel.stream_stream("/a.v1.A/B")()
        await call.write(b"")
        await asyncio.wait_for(ended.wait(), 5)
        call.cancel()
    await listener.stop()  # waits for the call
    assert capfd.readouterr().err == ""
