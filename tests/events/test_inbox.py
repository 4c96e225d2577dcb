"""Inbox: an event that is delivered twice has its effect once, on both databases, over replicas and kills."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from delivering import broker_at, dead_letters, delivering, happened, publish, until
from google.protobuf.empty_pb2 import Empty
from sqlalchemy import text

from mesh.contract.model import Contract
from mesh.database import Database
from mesh.errors import Unavailable
from mesh.events.broker.nats_connection import Outgoing
from mesh.events.cloudevents import MESSAGE_ID
from mesh.events.consume import inbox
from mesh.events.consume.dead_letters import read_dead_letter
from mesh.events.consume.delivery import DeliverySettings
from mesh.events.consume.outcome import RetryLimits

QUICK = DeliverySettings(limits=RetryLimits(attempts=3, first_delay=0.01, max_delay=0.02))
SUBSCRIBER = Path(__file__).parent / "subscriber.py"


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Database]:
    database = Database(url, migrations=None, name="recorder", after=[inbox.prepare])
    await database.start()
    try:
        async with database.transaction() as tx:
            key = "SERIAL" if url.startswith("postgresql") else "INTEGER"
            await tx.execute(text(f"CREATE TABLE seen (id {key} PRIMARY KEY, key TEXT, number INTEGER)"))
        yield database
    finally:
        await database.stop()


async def insert(tx: Any, request: Any) -> None:
    row = {"key": request.key, "number": request.number}
    await tx.execute(text("INSERT INTO seen (key, number) VALUES (:key, :number)"), row)


async def rows(database: Database) -> list[tuple[str, int]]:
    async with database.transaction() as tx:
        return [(key, number) for key, number in await tx.execute(text("SELECT key, number FROM seen ORDER BY id"))]


async def test_the_same_event_twice(contract: Contract, nats_url: str, new_database: Callable[[], str]) -> None:
    calls = 0

    async def on_happened(request: Any, context: Any) -> Empty:
        nonlocal calls
        calls += 1
        async with context.transaction() as tx:  # reading is free
            await tx.execute(text("SELECT 1").columns())
        async with context.transaction() as tx:
            await insert(tx, request)
        return Empty()

    async with (
        opened(new_database()) as database,
        delivering(contract, nats_url, {"on_happened": on_happened}, database=database, settings=QUICK) as replica,
    ):
        event = happened("k", 1)
        await publish(replica.broker, event)
        for again in ("one", "two"):
            headers = {**event.to_headers(), MESSAGE_ID: again}
            await replica.broker.store(Outgoing(event.subject, headers, event.data))
        await until(lambda: calls == 3)
        await publish(replica.broker, happened("k", 2))
        await until(lambda: calls == 4)
        await replica.delivery.stop(5)
        assert await rows(database) == [("k", 1), ("k", 2)]
        async with database.transaction() as tx:
            await inbox.prune(tx, 0)
            assert (await tx.execute(text("SELECT count(*) FROM mesh_inbox"))).scalar() == 2
            await inbox.prune(tx, 2e12)
            assert (await tx.execute(text("SELECT count(*) FROM mesh_inbox"))).scalar() == 0


async def test_a_transaction_that_failed_may_be_tried_again(
    contract: Contract, nats_url: str, new_database: Callable[[], str]
) -> None:
    calls = 0

    async def on_happened(request: Any, context: Any) -> Empty:
        nonlocal calls
        calls += 1
        async with context.transaction() as tx:
            await insert(tx, request)
            if calls == 1:
                raise Unavailable("after the write")
        return Empty()

    async with (
        opened(new_database()) as database,
        delivering(contract, nats_url, {"on_happened": on_happened}, database=database, settings=QUICK) as replica,
    ):
        await publish(replica.broker, happened("k", 1))
        await until(lambda: calls == 2)
        await replica.delivery.stop(5)
        assert await rows(database) == [("k", 1)]


@pytest.mark.parametrize("beside", [False, True], ids=["afterwards", "beside"])
async def test_a_second_writing_transaction_is_refused(
    contract: Contract,
    nats_url: str,
    new_database: Callable[[], str],
    beside: bool,  # noqa: FBT001 - by name
) -> None:
    async def write(request: Any, context: Any) -> None:
        async with context.transaction() as tx:
            await insert(tx, request)

    async def on_happened(request: Any, context: Any) -> Empty:
        if beside:
            found = await asyncio.gather(*(write(request, context) for _ in range(2)), return_exceptions=True)
            raise next(error for error in found if error is not None)
        for _ in range(2):
            await write(request, context)
        return Empty()

    async with (
        opened(new_database()) as database,
        delivering(contract, nats_url, {"on_happened": on_happened}, database=database, settings=QUICK) as replica,
    ):
        await publish(replica.broker, happened("k", 1))
        letters: list[Any] = []
        while not letters:
            letters = await dead_letters(replica.broker)
            await asyncio.sleep(0.02)
        assert await rows(database) == [("k", 1)]
    letter = read_dead_letter(letters[0].headers)
    assert letter.code == "FAILED_PRECONDITION"
    assert "write all of it in one" in letter.error


@pytest.fixture
def subscribers() -> Iterator[Callable[[str, str], subprocess.Popen[bytes]]]:
    made: list[subprocess.Popen[bytes]] = []

    def start(broker: str, database: str) -> subprocess.Popen[bytes]:
        made.append(subprocess.Popen([sys.executable, "-P", str(SUBSCRIBER), broker, database]))
        return made[-1]

    yield start
    for process in made:
        process.kill()
        process.wait()


@pytest.mark.slow
async def test_two_replicas_killed_again_and_again(
    nats_url: str,
    new_postgres: Callable[[], str],
    subscribers: Callable[[str, str], subprocess.Popen[bytes]],
) -> None:
    url = new_postgres()
    chance = random.Random(7)  # noqa: S311 - no secret
    async with opened(url) as database, broker_at(nats_url) as broker:
        replicas = [subscribers(nats_url, url) for _ in range(2)]
        count = 0

        async def some() -> None:
            nonlocal count
            await publish(broker, *(happened(f"k{number % 12}", number) for number in range(count, count + 100)))
            count += 100

        async def written() -> int:
            return len(await rows(database))

        for _ in range(5):
            await some()
            before = await written()
            async with asyncio.timeout(40):
                while await written() <= before:  # noqa: ASYNC110 - another process writes
                    await asyncio.sleep(0.02)
            victim = chance.randrange(2)
            replicas[victim].kill()
            replicas[victim].wait()
            replicas[victim] = subscribers(nats_url, url)
        async with asyncio.timeout(60):
            while await written() < count:  # noqa: ASYNC110 - as above
                await asyncio.sleep(0.1)
        found = await rows(database)
        assert await dead_letters(broker) == []
    by_key: dict[str, list[int]] = defaultdict(list)
    for key, number in found:
        by_key[key].append(number)
    # Effects lost: 0; doubled: 0; and of each key in order.
    assert by_key == {f"k{key}": list(range(key, count, 12)) for key in range(12)}
