"""Slow senders: heads and bodies of which a byte comes now and then, or the end never."""

from __future__ import annotations

import asyncio

from mesh.chaos.people.attack_target import AttackTarget
from mesh.chaos.people.holding import hold_connections, hold_streams, read_status
from mesh.chaos.people.http2_client import Http2Client, grpc_frame
from mesh.chaos.people.observed import Observed

__all__ = [
    "body_less_posts",
    "slow_bodies",
    "slow_bodies_http1",
    "slow_heads",
    "slow_heads_http1",
    "uploads",
    "uploads_http1",
]

BYTE_INTERVAL = 1.0
"""Seconds between two bytes of a slow sender."""
SLOW_CONNECTIONS = 500
"""Connections of slow senders."""
STREAMS = 1000
"""Streams of slow bodies."""
BODY_LESS_STREAMS = 2001
"""POST requests without a body: one more than permits and queue of the edge had at default settings."""
UPLOADS = 80
"""Unfinished uploads."""
UPLOAD_SIZE = 4 * 2**20 - 64
"""Bytes of an upload, just below the default limit of a body."""
_JSON = (b"content-type", b"application/json")


async def slow_heads_http1(target: AttackTarget, observed: Observed) -> None:
    """Send a head of HTTP/1.1, a byte a second, on each of 500 connections."""

    async def use(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(f"POST {target.post} HTTP/1.1\r\nhost: {target.authority}\r\nx-slow: ".encode())
        await _dribble(reader, writer, observed)

    await hold_connections(target, observed, SLOW_CONNECTIONS, use)


async def slow_heads(target: AttackTarget, observed: Observed) -> None:
    """Send a HEADERS frame, a byte a second, on each of 500 HTTP/2 connections."""

    async def one(number: int) -> None:
        await asyncio.sleep(number / SLOW_CONNECTIONS)
        while True:
            client = await Http2Client.open(target, observed)
            if client is not None:
                client.request(target, "POST", target.post, [_JSON, (b"x-slow", b"a" * 300)], end=False)
                rest = client.held_back()
                while rest and not client.closed:
                    client.write(rest[:1])
                    rest = rest[1:]
                    await asyncio.sleep(BYTE_INTERVAL)
                client.close()
            await asyncio.sleep(BYTE_INTERVAL)

    async with asyncio.TaskGroup() as group:
        for number in range(SLOW_CONNECTIONS):
            group.create_task(one(number))


async def slow_bodies_http1(target: AttackTarget, observed: Observed) -> None:
    """Send a body of HTTP/1.1, a byte a second, on each of 500 connections."""

    async def use(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        observed.note("requests")
        writer.write(_post_head(target, UPLOAD_SIZE))
        await _dribble(reader, writer, observed)

    await hold_connections(target, observed, SLOW_CONNECTIONS, use)


async def slow_bodies(target: AttackTarget, observed: Observed) -> None:
    """Send the bodies of 1,000 requests of one HTTP/2 connection, a byte a second each."""
    await hold_streams(
        target,
        observed,
        STREAMS,
        lambda client: _begin(client, target),
        step=lambda client, one: client.data(one, b" "),
    )


async def body_less_posts(target: AttackTarget, observed: Observed) -> None:
    """Open 2,001 POST requests on one HTTP/2 connection and send nothing of their bodies."""
    await hold_streams(target, observed, BODY_LESS_STREAMS, lambda client: _begin(client, target))


async def uploads(target: AttackTarget, observed: Observed) -> None:
    """Send 80 uploads of 4 MB but for their last byte, eight on each HTTP/2 connection."""
    data = b'{"text": "' + b"a" * UPLOAD_SIZE
    if target.grpc:
        data = grpc_frame(b"a" * UPLOAD_SIZE)[:-1]

    def start(client: Http2Client) -> int:
        stream = _begin(client, target)
        client.data(stream, data)
        return stream

    await hold_streams(target, observed, UPLOADS, start, streams_per_connection=8)


async def uploads_http1(target: AttackTarget, observed: Observed) -> None:
    """Send 80 uploads of 4 MB but for their last byte, each on an HTTP/1.1 connection."""

    async def use(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        observed.note("requests")
        writer.write(_post_head(target, UPLOAD_SIZE) + b'{"text": "' + b"a" * (UPLOAD_SIZE - 11))
        await read_status(reader, observed)

    await hold_connections(target, observed, UPLOADS, use)


def _begin(client: Http2Client, target: AttackTarget) -> int:
    """Open a request whose body does not come."""
    if target.grpc:
        return client.grpc_request(target, target.post, b"", end=False)
    return client.request(target, "POST", target.post, [_JSON], end=False)


def _post_head(target: AttackTarget, size: int) -> bytes:
    return (
        f"POST {target.post} HTTP/1.1\r\nhost: {target.authority}\r\n"
        f"content-type: application/json\r\ncontent-length: {size}\r\n\r\n"
    ).encode()


async def _dribble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, observed: Observed) -> None:
    """Write a byte a second until the server responds or ends the connection."""
    response = asyncio.create_task(read_status(reader, observed))
    try:
        while not response.done():
            writer.write(b"a")
            await asyncio.wait({response}, timeout=BYTE_INTERVAL)
        await response
    finally:
        response.cancel()
