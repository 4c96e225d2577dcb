"""Service ``events.v1.Shop`` with a database, an outbox and a relay, for tests of publishing."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import nats
from nats.js.errors import NotFoundError
from sqlalchemy import text

from mesh.contract.model import Contract
from mesh.database import Database
from mesh.events.broker.broker import Broker, Settings
from mesh.events.changes.change_event import encoder
from mesh.events.publish import outbox
from mesh.events.publish.outbox import Outbox
from mesh.events.publish.publisher import Publications
from mesh.events.publish.relay import Relay
from mesh.events.unpublishable import dead_letter_maker

SHOP = "events.v1.Shop"


@dataclass
class Shop:
    """One replica: what a sidecar is made of on the publish side."""

    database: Database
    broker: Broker
    relay: Relay
    outbox: Outbox

    async def publish(self, *messages: Any) -> None:
        async with self.database.transaction() as tx:
            for message in messages:
                await tx.publish(message)

    async def waiting(self) -> int:
        return int((await self.sql("SELECT count(*) FROM mesh_outbox"))[0][0])

    async def empty(self) -> bool:
        return await self.waiting() == 0

    async def sql(self, statement: str) -> list[Any]:
        async with self.database.transaction() as tx:
            result = await tx.execute(text(statement))
            return list(result) if result.returns_rows else []


@asynccontextmanager
async def shop(contract: Contract, url: str, broker_url: str, *, relays: bool = True) -> AsyncIterator[Shop]:
    """Open a replica on a database; ``relays=False``: its relay does not run."""
    sqlite = url.startswith("sqlite")
    own = Outbox(Publications(contract, [SHOP], "shop"), sqlite=sqlite)
    database = Database(url, migrations=None, name="shop", after=[outbox.create], outbox=own)
    await database.start()
    broker = Broker(Settings(urls=(broker_url,)), "shop")
    broker.start()
    relay = Relay(
        database, broker, sqlite=sqlite, encode=encoder(contract), make_dead_letters=dead_letter_maker(contract, "shop")
    )
    own.tell = relay.tell
    if relays:
        relay.start()
    try:
        yield Shop(database, broker, relay, own)
    finally:
        await relay.stop()
        await broker.stop()
        await database.stop()


@asynccontextmanager
async def reader(url: str) -> AsyncIterator[Any]:
    """A consumer of all events, in the order of the stream; ``await take(n)`` gives the first ``n``."""
    client = await nats.connect(url)
    js = client.jetstream()

    async def there() -> bool:
        with contextlib.suppress(NotFoundError):
            return bool(await js.stream_info("EVENTS"))
        return False

    async def take(count: int) -> list[Any]:
        await until(there)  # whoever connects first makes it
        subscription = await js.subscribe("events.>", stream="EVENTS", ordered_consumer=True)
        found = [await subscription.next_msg(20) for _ in range(count)]
        await subscription.unsubscribe()
        return found

    try:
        yield take
    finally:
        await client.close()


async def until(happened: Callable[[], Awaitable[object] | object], settings: float = 20) -> None:
    """Wait for what no event tells."""
    async with asyncio.timeout(settings):
        while True:
            found = happened()
            if await found if isinstance(found, Awaitable) else found:
                return
            await asyncio.sleep(0.01)
