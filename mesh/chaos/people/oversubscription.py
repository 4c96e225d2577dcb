"""Oversubscription: a crowd of clients that offers more requests of a costly method than can be served."""

from __future__ import annotations

import asyncio
import itertools
import random
from time import monotonic

from mesh.chaos.people.attack_target import AttackTarget
from mesh.chaos.people.observed import Observed

__all__ = ["RESPONSE_TIMEOUT", "offer", "saturate", "send_costly"]

RESPONSE_TIMEOUT = 10.0
"""Seconds after which a client gives up."""
CROWD = 200
"""Source addresses of the crowd, from 127.0.1.1 on."""
SATURATING_CLIENTS = 8
"""Clients that measure the capacity, each with one request at a time."""


async def offer(target: AttackTarget, observed: Observed) -> None:
    """Offer ``target.rate`` costly requests a second at random times, whatever happens to those before (open loop)."""
    chance = random.Random(1)  # noqa: S311 - the same load in each run
    due = monotonic()
    async with asyncio.TaskGroup() as group:
        for number in itertools.count() if target.reuse else range(len(target.costly_bodies)):
            due += chance.expovariate(target.rate)
            await asyncio.sleep(max(0.0, due - monotonic()))
            group.create_task(send_costly(target, observed, number))


async def saturate(target: AttackTarget, observed: Observed) -> None:
    """Keep eight costly requests in progress: the capacity of the method (closed loop)."""

    async def client(first: int) -> None:
        for number in itertools.count(first, SATURATING_CLIENTS):
            await send_costly(target, observed, number)

    async with asyncio.TaskGroup() as group:
        for number in range(SATURATING_CLIENTS):
            group.create_task(client(number))


async def send_costly(target: AttackTarget, observed: Observed, number: int) -> None:
    """Send one costly request as client ``number``, on a connection and from an address of its own."""
    body = target.costly_bodies[number % len(target.costly_bodies)].encode()
    head = (
        f"POST {target.costly} HTTP/1.1\r\nhost: {target.authority}\r\nconnection: close\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    start, writer = monotonic(), None
    observed.note("requests")
    try:
        async with asyncio.timeout(RESPONSE_TIMEOUT):
            reader, writer = await asyncio.open_connection(
                target.host, target.port, local_addr=(f"127.0.1.{number % CROWD + 1}", 0) if target.source else None
            )
            writer.write(head.encode() + body)
            words = (await reader.readline()).split()
        status = int(words[1])
    except TimeoutError:
        observed.note(f"no response in {RESPONSE_TIMEOUT:g} s")
    except (OSError, IndexError, ValueError):
        observed.note("connection refused" if writer is None else "connection closed")
    else:
        observed.note(f"HTTP {status}")
        if status < 300:  # noqa: PLR2004 - success
            observed.times.append(monotonic() - start)
    finally:
        if writer is not None:
            writer.transport.abort()
