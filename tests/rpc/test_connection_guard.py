"""Connections of clients that have too many or make no request, on a real listener; fair shares by property."""

from __future__ import annotations

import asyncio
import socket
import sys
from contextlib import asynccontextmanager
from ipaddress import ip_network
from time import monotonic

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.rpc.server.connection_guard import ConnectionGuard, PublicLimits, fair_share
from mesh.rpc.server.listener import Listener

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the guard needs /proc")

GET = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"


async def app(scope, _receive, send):
    if scope["path"] == "/large":
        body = b"x" * 2**24
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body, "more_body": False})
    else:
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})


@asynccontextmanager
async def listening(**changed):
    refused = []
    usual = {"streams": 10, "connections": 16, "stall": 60.0, "max_frame": 1000, "proxies": ()}
    limits = PublicLimits(**usual | changed, refused=refused.append)
    listener = Listener(app, "127.0.0.1:0", grpc=False, drain=0.0, max_body=0, public=limits)
    address = await listener.start()
    await listener._guard.stop()  # the test looks by itself
    try:
        yield listener._guard, int(address.rpartition(":")[2]), refused
    finally:
        await listener.stop()


async def opened(port, host="127.0.0.1"):
    return await asyncio.open_connection("127.0.0.1", port, local_addr=(host, 0))


async def ask(reader, writer, path=b"/"):
    writer.write(GET.replace(b"/ ", path + b" ", 1))
    return await reader.readuntil(b"\r\n\r\n")


async def test_the_client_with_most_connections_loses_the_newest():
    async with listening() as (guard, port, refused):
        flood = [await opened(port) for _ in range(13)]
        other = await opened(port, "127.0.0.2")
        await ask(*other)
        guard.sweep(port, monotonic())
        assert refused == []  # 14 of 16, no more than may be used
        more = await opened(port, "127.0.0.3")
        await ask(*more)  # the guard sees a connection once it is accepted
        guard.sweep(port, monotonic())
        assert refused == ["connections"]
        reads = [asyncio.ensure_future(reader.read(1)) for reader, _ in flood]
        closed, going_on = await asyncio.wait(reads, timeout=10, return_when=asyncio.FIRST_COMPLETED)
        assert [read.result() for read in closed] == [b""]
        for read in going_on:
            read.cancel()
        await ask(*other)
        await ask(*more)
        for _, writer in (*flood, other, more):
            writer.close()


async def test_connections_of_proxies_stay():
    async with listening(connections=4, proxies=(ip_network("127.0.0.0/8"),)) as (guard, port, refused):
        connections = [await opened(port) for _ in range(4)]
        guard.sweep(port, monotonic())
        assert refused == []
        for _, writer in connections:
            writer.close()


async def test_a_connection_without_a_request_is_closed_after_a_while():
    """Also when its client sends a head byte by byte. One look is not enough: the loop may lag."""
    async with listening(stall=5.0) as (guard, port, refused):
        slow_reader, slow = await opened(port)
        reader, writer = await opened(port)
        slow.write(GET[:-2])
        await ask(reader, writer)
        now = monotonic()
        guard.sweep(port, now)
        guard.sweep(port, now + 4)
        guard.sweep(port, now + 6)
        assert refused == []
        guard.sweep(port, now + 7)
        assert refused == ["slow_head"]
        assert await slow_reader.read() == b""
        await ask(reader, writer)
        slow.close()
        writer.close()


async def test_a_later_head_has_a_limit_too():
    async with listening() as (guard, port, refused):
        reader, writer = await opened(port)
        await ask(reader, writer)
        writer.write(GET[:-2])
        now = monotonic() + 121
        guard.sweep(port, now)
        guard.sweep(port, now + 1)
        assert refused == ["slow_head"]
        writer.close()


async def test_a_client_that_reads_nothing_loses_its_connection():
    """h2corn has taken the response, so only the kernel knows."""
    async with listening(stall=1.0) as (_, port, _):
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.setblocking(False)  # noqa: FBT003
        loop = asyncio.get_running_loop()
        await loop.sock_connect(connection, ("127.0.0.1", port))
        await loop.sock_sendall(connection, GET.replace(b"/ ", b"/large ", 1))
        with pytest.raises(ConnectionError):
            async with asyncio.timeout(20):
                while True:
                    await loop.sock_sendall(connection, b"x")
                    await asyncio.sleep(0.1)
        connection.close()


@settings(deadline=None)
@given(st.lists(st.integers(1, 50), max_size=12), st.integers(0, 200))
def test_a_fair_share_fits_and_is_the_largest(sizes, room):
    share = fair_share(sizes, room)
    taken = sum(min(size, share) for size in sizes)
    assert taken <= room or share == 1
    if share < max(sizes, default=1):
        assert sum(min(size, share + 1) for size in sizes) > room


def test_the_networks_of_clients():
    from ipaddress import ip_address

    guard = ConnectionGuard(PublicLimits(1, 1, 1.0, 1, (ip_network("10.0.0.0/8"),), print))
    assert guard._client_of(ip_address("2001:db8::1")) == guard._client_of(ip_address("2001:db8::2")) == "2001:db8::/64"
    assert guard._client_of(ip_address("10.1.2.3")) is None
