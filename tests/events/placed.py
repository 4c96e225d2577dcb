"""Replica of ``delivery.v1.Recorder`` with broker, outbox, relay and delivery, for each placement of its functions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from delivering import RECORDER, SIGNER, VERIFIER, dead_letters
from delivery.v1 import delivery_pb2 as pb
from hosting import open_layer, pool_of
from sqlalchemy import text

from mesh.call import Call, Layer, chain
from mesh.contract.model import Contract
from mesh.database import Database
from mesh.events.broker.broker import Broker, Settings
from mesh.events.consume import inbox
from mesh.events.consume.dead_letters import DeadLetter, read_dead_letter
from mesh.events.consume.delivery import Delivery, DeliverySettings
from mesh.events.consume.outcome import RetryLimits
from mesh.events.hops import carry
from mesh.events.publish import outbox
from mesh.events.publish.outbox import Outbox
from mesh.events.publish.publisher import Publications, Publisher
from mesh.events.publish.relay import Relay
from mesh.events.unpublishable import dead_letter_maker
from mesh.function import Functions
from mesh.layers.concurrency import ConcurrencyLimit
from mesh.rpc.client.blocking_channel import BlockingChannel
from mesh.rpc.client.channel import Channel
from mesh.sidecar import ServiceContext, Sidecar
from mesh.sidecar.workers.worker_pool import WorkerPool

QUICK = DeliverySettings(limits=RetryLimits(attempts=3, first_delay=0.01, max_delay=0.05))


class Placed:
    """The replica.

    Attributes:
        database: Its database, as the sidecar has it open.
        broker: Its connection.
        pool: Its workers, or None.
        onward: The calls that its functions have made of others.
    """

    def __init__(self, database: Database, broker: Broker, pool: WorkerPool | None, onward: list[Call]) -> None:
        self.database = database
        self.broker = broker
        self.pool = pool
        self.onward = onward

    async def wrote(self, key: str, count: int) -> list[int]:
        """Return the numbers that its functions have written for a key, once there are so many."""
        numbers = text("SELECT number FROM seen WHERE key = :key ORDER BY id").columns()
        async with asyncio.timeout(30):
            while True:
                async with self.database.housekeeping() as tx:
                    found = [number for (number,) in await tx.execute(numbers, {"key": key})]
                if len(found) >= count:
                    return found
                await asyncio.sleep(0.02)  # another process may write it

    async def letter(self, key: str) -> DeadLetter:
        """Return the dead letter of a key, once there is one."""
        async with asyncio.timeout(60):
            while True:
                for message in await dead_letters(self.broker):
                    if message.headers.get("ce-subject") == key:
                        return read_dead_letter(message.headers)
                await asyncio.sleep(0.05)  # the broker tells nobody

    async def noted(self, number: int) -> Any:
        """Return the message of a ``Noted``, once it was published."""
        link = await self.broker.ready()
        async with asyncio.timeout(30):
            sequence = 0
            while True:
                sequence += 1
                while (await link.js.stream_info("EVENTS")).state.last_seq < sequence:  # noqa: ASYNC110 - as above
                    await asyncio.sleep(0.02)
                message = await link.js.get_msg("EVENTS", sequence)
                kind, data = (message.headers or {}).get("ce-type"), message.data or b""
                if kind == "delivery.v1.Noted" and pb.Noted.FromString(data).number == number:
                    return message


@asynccontextmanager
async def placed(
    contract: Contract,
    place: str,
    nats_url: str,
    database_url: str,
    folder: Path,
    *,
    deliveries: DeliverySettings = QUICK,
    trace: Layer = open_layer,
    outbound: Layer = open_layer,
    spans: Any = None,
    workers: dict[str, Any] | None = None,
) -> AsyncIterator[Placed]:
    """Host ``apps.recorder`` (a place with "thread": ``apps.recorder_sync``) and deliver to it.

    Args:
        place: ``loop``, ``thread``, ``process`` or ``thread of a process``.
        folder: ``settings["meeting"]``.
        deliveries: Settings of deliveries.
        trace: The trace layer of calls that come.
        outbound: And of those that go.
        spans: Takes spans of workers.
        workers: Options of ``Workers``.
    """
    module = "apps.recorder_sync" if "thread" in place else "apps.recorder"
    sqlite = database_url.startswith("sqlite")
    publications = Publications(contract, [RECORDER], "recorder")
    rows = Outbox(publications, sqlite=sqlite)
    database = Database(
        database_url, migrations=None, name="recorder", after=[outbox.create, inbox.prepare], outbox=rows
    )
    await database.start()
    async with database.housekeeping() as tx:
        key = "INTEGER" if sqlite else "SERIAL"
        await tx.execute(text(f"CREATE TABLE IF NOT EXISTS seen (id {key} PRIMARY KEY, key TEXT, number INTEGER)"))
    broker = Broker(Settings(urls=(nats_url,)), "recorder", SIGNER)
    broker.start()
    relay = Relay(database, broker, sqlite=sqlite, make_dead_letters=dead_letter_maker(contract, "recorder"))
    rows.tell = relay.tell
    relay.start()
    made: list[Call] = []

    async def elsewhere(call: Call) -> None:
        await call.receive_one()
        made.append(call)
        await call.send(b"")

    onward = chain(outbound, carry, elsewhere)
    settings = {"meeting": str(folder)}
    channel = Channel(onward, contract)
    service = ServiceContext(
        "recorder", channel=channel, blocking=BlockingChannel(channel, asyncio.get_running_loop()), database=database,
        settings=settings, publisher=Publisher(publications, broker),
    )  # fmt: skip
    pool = None
    if "process" in place:
        pool = pool_of(
            contract, module, serves=RECORDER, onward=onward, settings=settings, database=database_url, events=True,
            publish=broker.publish, spans=spans or (lambda _: None), preload=("delivery.v1.delivery_pb2_grpc",),
            **(workers or {"min": 1, "max": 1}),
        )  # fmt: skip
    layers = {"trace": trace, "authenticate": open_layer, "authorize": open_layer}
    functions: Any = pool or Functions(module, [contract.services[RECORDER]])
    sidecar = Sidecar(
        contract, [RECORDER], functions, service, **layers, concurrency_limit=ConcurrencyLimit(1000, 1000), drain=1.0
    )
    await sidecar.start()
    delivery = Delivery(broker, "recorder", [contract.services[RECORDER]], sidecar.deliveries, deliveries, VERIFIER)
    delivery.start()
    try:
        await broker.ready()
        yield Placed(database, broker, pool, made)
    finally:
        await sidecar.stop(delivery.stop(1.0))
        await relay.stop()
        await broker.stop()
        await database.stop()
