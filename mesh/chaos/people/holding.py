"""Holders of streams and connections: keep a number of them open, and open again whatever the server ends."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable
from typing import TypeAlias

from mesh.chaos.people.attack_target import AttackTarget
from mesh.chaos.people.http2_client import CONNECT_TIMEOUT, Http2Client
from mesh.chaos.people.observed import Observed

__all__ = ["Start", "Step", "hold_connections", "hold_streams", "read_status"]

LOOK_INTERVAL = 0.05
"""Seconds between two looks at what is missing."""
REOPENED = 25
"""Streams or connections that are opened again in one interval at most: 500 a second."""
RETRY_DELAY = 0.5
"""Seconds before a connection of HTTP/1.1 that ended is opened again."""

Start: TypeAlias = Callable[[Http2Client], int]
"""Opens a stream and returns its id."""
Step: TypeAlias = Callable[[Http2Client, int], None]
"""Does something on an open stream, once a second."""


async def hold_streams(
    target: AttackTarget,
    observed: Observed,
    count: int,
    start: Start,
    *,
    step: Step | None = None,
    window: int = 65_535,
    streams_per_connection: int = 2**31,
) -> None:
    """Keep streams open until it is cancelled, on as few connections as the server's limit allows.

    Args:
        target: The server.
        observed: Counts what is observed.
        count: Number of streams.
        start: Opens one.
        step: Called for each open stream once a second.
        window: As of ``Http2Client``.
        streams_per_connection: Streams on one connection at most.
    """
    clients: list[Http2Client] = []
    loop = asyncio.get_running_loop()
    budget, due = count, loop.time() + 1
    try:
        while True:
            clients = [one for one in clients if not one.closed]
            missing = min(budget, count - sum(len(one.streams) for one in clients))
            while missing > 0:
                free = [(one, min(one.free_streams, streams_per_connection - len(one.streams))) for one in clients]
                client, capacity = max(free, key=lambda pair: pair[1], default=(None, 0))
                if client is None or capacity <= 0:
                    client = await Http2Client.open(target, observed, window=window)
                    if client is None or not client.free_streams:
                        break
                    clients.append(client)
                    continue
                for _ in range(min(capacity, missing)):
                    start(client)
                    missing -= 1
                client.flush()
            budget = REOPENED
            if step is not None and loop.time() >= due:
                due = loop.time() + 1
                for client in clients:
                    for stream in list(client.streams):
                        step(client, stream)
                    client.flush()
            await asyncio.sleep(LOOK_INTERVAL)
    finally:
        for client in clients:
            client.close()


async def hold_connections(
    target: AttackTarget,
    observed: Observed,
    count: int,
    use: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> None:
    """Keep TCP connections open until it is cancelled.

    Args:
        target: The server.
        observed: Counts what is observed.
        count: Number of connections.
        use: Talks on one, and returns when the server has ended it.
    """

    async def one(number: int) -> None:
        await asyncio.sleep(number / (REOPENED / LOOK_INTERVAL))
        while True:
            writer = None
            try:
                async with asyncio.timeout(CONNECT_TIMEOUT):
                    reader, writer = await asyncio.open_connection(
                        target.host, target.port, local_addr=(target.source, 0) if target.source else None
                    )
                observed.note("connections")
                await use(reader, writer)
                observed.note("connection closed")
            except TimeoutError:
                observed.note("connection refused")
            except OSError:
                observed.note("connection refused" if writer is None else "connection reset")
            finally:
                if writer is not None:
                    writer.transport.abort()
            await asyncio.sleep(RETRY_DELAY)

    async with asyncio.TaskGroup() as group:
        for number in range(count):
            group.create_task(one(number))


async def read_status(reader: asyncio.StreamReader, observed: Observed) -> bool:
    """Read the head of an HTTP/1.1 response and count its status; return False at the end of the connection."""
    head = b""
    with contextlib.suppress(asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        head = await reader.readuntil(b"\r\n\r\n")
    words = head.split(None, 2)
    if len(words) < 2:  # noqa: PLR2004 - version and status
        return False
    observed.note(f"HTTP {words[1].decode(errors='replace')}")
    return True


def small_socket(target: AttackTarget) -> socket.socket:
    """Return a socket with the smallest receive buffer, bound to the attacker's address."""
    made = socket.socket()
    made.setblocking(False)  # noqa: FBT003 - the standard library's own signature
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    if target.source:
        made.bind((target.source, 0))
    return made
