"""Silent readers: clients that ask for large responses and read nothing of them."""

from __future__ import annotations

import asyncio
import select

from mesh.chaos.people.attack_target import AttackTarget
from mesh.chaos.people.holding import hold_streams, small_socket
from mesh.chaos.people.http2_client import CONNECT_TIMEOUT
from mesh.chaos.people.observed import Observed

__all__ = ["silent_readers", "silent_readers_http1"]

STREAMS = 2020
"""Requests of HTTP/2 whose responses are not read: more than permits and queue of the edge had at default settings."""
CONNECTIONS = 200
"""Connections of HTTP/1.1 that do not read."""
LOOK_INTERVAL = 0.5
"""Seconds between two looks whether the server has ended a connection."""


async def silent_readers(target: AttackTarget, observed: Observed) -> None:
    """Ask for 2,020 large responses on one HTTP/2 connection and leave their windows at 0 bytes."""
    message = bytes.fromhex(target.large_request)
    await hold_streams(target, observed, STREAMS, lambda client: client.ask(target, target.large, message), window=0)


async def silent_readers_http1(target: AttackTarget, observed: Observed) -> None:
    """Ask for a large response on each of 200 HTTP/1.1 connections and read nothing."""
    head = f"GET {target.large} HTTP/1.1\r\nhost: {target.authority}\r\n\r\n".encode()
    loop = asyncio.get_running_loop()

    async def one(number: int) -> None:
        await asyncio.sleep(number / CONNECTIONS)
        while True:
            with small_socket(target) as made:
                try:
                    async with asyncio.timeout(CONNECT_TIMEOUT):
                        await loop.sock_connect(made, (target.host, target.port))
                        await loop.sock_sendall(made, head)
                except (OSError, TimeoutError):
                    observed.note("connection refused")
                else:
                    observed.note("connections")
                    observed.note("requests")
                    poll = select.poll()
                    poll.register(made, select.POLLRDHUP)
                    while not poll.poll(0):  # noqa: ASYNC110 - a loop that watches a socket would read it
                        await asyncio.sleep(LOOK_INTERVAL)
                    observed.note("connection closed")
            await asyncio.sleep(LOOK_INTERVAL)

    async with asyncio.TaskGroup() as group:
        for number in range(CONNECTIONS):
            group.create_task(one(number))
