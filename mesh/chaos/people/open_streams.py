"""Open streams: calls that last, as many as one client can open."""

from __future__ import annotations

import asyncio
import base64
import os

from mesh.chaos.people.attack_target import AttackTarget
from mesh.chaos.people.holding import hold_connections, hold_streams, read_status
from mesh.chaos.people.http2_client import Http2Client, grpc_frame
from mesh.chaos.people.observed import Observed

__all__ = ["event_streams", "hung_calls", "reflection", "server_streams", "watches", "web_sockets"]

STREAMS = 1000
"""Streams that an attacker keeps open."""
WATCH = "/grpc.health.v1.Health/Watch"
REFLECTION = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
_LIST_SERVICES = grpc_frame(b"\x3a\x01*")
"""``ServerReflectionRequest`` with ``list_services`` (field 7)."""


async def server_streams(target: AttackTarget, observed: Observed) -> None:
    """Keep 1,000 server streams open on one HTTP/2 connection."""
    await hold_streams(target, observed, STREAMS, lambda client: client.ask(target, target.stream))


async def event_streams(target: AttackTarget, observed: Observed) -> None:
    """Keep 1,000 server-sent event streams open on one HTTP/2 connection."""
    accept = ((b"accept", b"text/event-stream"),)
    await hold_streams(
        target, observed, STREAMS, lambda client: client.request(target, "GET", target.stream, accept, end=True)
    )


async def web_sockets(target: AttackTarget, observed: Observed) -> None:
    """Keep 1,000 WebSockets open, each on a connection of its own (RFC 6455)."""

    async def use(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        key = base64.b64encode(os.urandom(16)).decode()
        observed.note("requests")
        writer.write(
            f"GET {target.stream} HTTP/1.1\r\nhost: {target.authority}\r\nconnection: upgrade\r\n"
            f"upgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: {key}\r\n\r\n".encode()
        )
        if await read_status(reader, observed):
            while await reader.read(65_536):
                pass

    await hold_connections(target, observed, STREAMS, use)


async def hung_calls(target: AttackTarget, observed: Observed) -> None:
    """Keep 1,000 calls of a service in progress that never responds."""
    await hold_streams(target, observed, STREAMS, lambda client: client.ask(target, target.hung))


async def watches(target: AttackTarget, observed: Observed) -> None:
    """Keep 1,000 health watches open on one HTTP/2 connection."""
    await hold_streams(
        target, observed, STREAMS, lambda client: client.grpc_request(target, WATCH, grpc_frame(b""), end=True)
    )


async def reflection(target: AttackTarget, observed: Observed) -> None:
    """Keep 1,000 reflection streams open, each asking once a second, and read no response."""

    def ask(client: Http2Client, stream: int) -> None:
        client.data(stream, _LIST_SERVICES)

    await hold_streams(
        target, observed, STREAMS,
        lambda client: client.grpc_request(target, REFLECTION, _LIST_SERVICES * 10, end=False), step=ask, window=0,
    )  # fmt: skip
