"""Throughput of the outbox relay in a process of its own, on an outbox that was filled before.

    python -m benchmarks.relay DATABASE NATS-URL ROWS

Prints rows/s and the CPU time of a row in this process, in microseconds, as JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from datetime import UTC, datetime
from uuid import uuid4

import orjson
import uvloop
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import text

from mesh.database import Database
from mesh.events.broker.broker import Broker, Settings
from mesh.events.cloudevents import Event
from mesh.events.publish import outbox
from mesh.events.publish.relay import Relay
from mesh.events.signatures import EventSigner

_INSERT = text(
    "INSERT INTO mesh_outbox (id, subject, headers, data, created) VALUES (:id, :subject, :headers, :data, :created)"
)
_COUNT = text("SELECT count(*) FROM mesh_outbox")


def _row(number: int) -> dict[str, object]:
    event = Event(
        id=str(uuid4()), type="notes.v1.Noted", source="benchmark", key=f"k{number % 1000}", time=datetime.now(UTC),
        data=b"p" * 120, traceparent=f"00-{uuid4().hex}-{uuid4().hex[:16]}-01",
    )  # fmt: skip
    headers = orjson.dumps(event.to_headers()).decode()
    created = time.time_ns() // 1000
    return {"id": event.id, "subject": event.subject, "headers": headers, "data": event.data, "created": created}


async def run(url: str, nats: str, rows: int) -> None:
    """Fill the outbox, relay it, and print the figures."""
    sqlite = url.startswith("sqlite")
    database = Database(url, migrations=None, name="relay", after=[outbox.create])
    await database.start()
    async with database.transaction() as tx:
        await tx.execute(_INSERT, [_row(number) for number in range(rows)])
    broker = Broker(Settings(urls=(nats,)), "relay", EventSigner("relay", Ed25519PrivateKey.generate()))
    broker.start()
    await broker.ready()
    relay = Relay(database, broker, sqlite=sqlite, make_dead_letters=lambda *_: ())  # no row is refused
    began, used = time.perf_counter(), time.process_time()
    relay.start()
    left = rows
    while left:
        await asyncio.sleep(0.05)
        async with database.transaction() as tx:
            left = (await tx.execute(_COUNT)).scalar_one()
    took, cpu = time.perf_counter() - began, time.process_time() - used
    print(json.dumps({"rate": rows / took, "cpu": cpu / rows * 1e6}), flush=True)
    await relay.stop()
    await broker.stop()
    await database.stop()


if __name__ == "__main__":
    uvloop.run(run(sys.argv[1], sys.argv[2], int(sys.argv[3])))
