"""Outbox and relay, on both databases and a real broker."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, closing
from datetime import UTC, datetime
from pathlib import Path

import pytest
from broker_process import BrokerProcess
from events.v1 import events_pb2 as pb
from publishing import Shop, reader, shop, until
from sqlalchemy import text

from mesh.contract.model import Contract
from mesh.errors import FailedPrecondition, InvalidArgument, Unavailable
from mesh.events.cloudevents import Event
from mesh.events.publish import outbox

INSERT = text("INSERT INTO mesh_outbox (id, subject, headers, data, created) VALUES (:id, 'events.a.0._', :h, :d, 1)")


@pytest.fixture
async def one(contract: Contract, new_database: Callable[[], str], nats_url: str) -> AsyncIterator[Shop]:
    async with shop(contract, new_database(), nats_url) as made:
        yield made


async def test_an_event_commits_with_the_transaction(one: Shop, nats_url: str) -> None:
    await one.publish(pb.Ordered(customer="ada", number=1), pb.Noted(text="hi"))
    async with reader(nats_url) as take:
        first, second = await take(2)
    event = Event.from_message(first.headers, first.data)
    assert (event.type, event.source, event.key, event.hops) == ("events.v1.Ordered", "shop", "ada", 0)
    assert pb.Ordered.FromString(event.data) == pb.Ordered(customer="ada", number=1)
    assert first.subject == event.subject == "events.events-v1-Ordered.0.ada"
    assert second.subject.endswith("._")
    assert abs(event.time.timestamp() - time.time()) < 60


async def test_what_is_rolled_back_is_never_sent(one: Shop, nats_url: str) -> None:
    with pytest.raises(ZeroDivisionError):
        async with one.database.transaction() as tx:
            await tx.publish(pb.Noted(text="never"))
            raise ZeroDivisionError
    await one.publish(pb.Noted(text="sent"))
    async with reader(nats_url) as take:
        (message,) = await take(1)
    assert pb.Noted.FromString(message.data).text == "sent"


async def test_the_outbox_is_empty_when_all_is_sent(one: Shop, nats_url: str) -> None:
    await asyncio.gather(*(one.publish(pb.Ordered(customer=f"c{n % 5}", number=n)) for n in range(60)))
    async with reader(nats_url) as take:
        messages = await take(60)
    assert {pb.Ordered.FromString(message.data).number for message in messages} == set(range(60))
    await until(one.empty)


@pytest.mark.parametrize(
    ("message", "text"),
    [
        (pb.Undeclared(), r"events.v1.Undeclared was not published: events.v1.Shop does not declare it; add publishes"),
        (pb.OrderRequest(), r"events.v1.OrderRequest was not published: it is no event"),
    ],
)
async def test_only_what_is_declared(one: Shop, message: object, text: str) -> None:
    with pytest.raises(FailedPrecondition, match=text):
        await one.publish(message)


async def test_what_no_broker_takes_is_refused_before_it_is_written(one: Shop) -> None:
    with pytest.raises(InvalidArgument, match="an event at most 900000"):
        await one.publish(pb.Counted(number=1, padding=bytes(900_000)))
    assert await one.waiting() == 0


async def test_a_key_that_is_too_long_is_refused_before_it_is_written(one: Shop) -> None:
    await one.publish(pb.Ordered(customer="k" * 1024))
    with pytest.raises(InvalidArgument, match="its key, customer, has 1026 bytes, a key at most 1024"):
        await one.publish(pb.Ordered(customer="\u20ac" * 342))


async def test_a_row_whose_headers_are_too_large_holds_up_no_other(one: Shop, nats_url: str) -> None:
    """The key of a captured table may be as long as the database takes."""
    now = datetime.now(UTC)
    long = Event(id="1", type="a.v1.Made", source="shop", key="\u20ac" * 250_000, time=now, data=b"")
    async with one.database.transaction() as tx:
        await tx.execute(INSERT, {"id": "1", "h": json.dumps(long.to_headers()), "d": b""})
        await tx.publish(pb.Noted(text="good"))
    async with reader(nats_url) as take:
        (message,) = await take(1)
    assert pb.Noted.FromString(message.data).text == "good"
    [(id_, refused)] = await one.sql("SELECT id, refused FROM mesh_outbox WHERE refused IS NOT NULL")
    assert id_ == "1"
    assert refused == "the event and its headers are larger than the 1048576 bytes that the event broker takes"


@pytest.mark.parametrize(
    ("subject", "headers", "data", "reason"),
    [
        ("events.a.0._", "{", "", "Input data was truncated"),
        ("events.a.0._", '{"x": 1}', "", "Expected `str`, got `int` - at `$[...]`"),
        ("events.a.0._", '{"two words": "x"}', "", "no message of the event broker can be made of the event: "),
        ("events.two words.0._", "{}", "", "its subject 'events.two words.0._' is not of the form"),
        ("nowhere.a.0._", "{}", "", "its subject 'nowhere.a.0._' is not of the form events.TYPE.PARTITION.KEY or "),
        ("events", "{}", "", "its subject 'events' is not of the form"),
        ("", "{}", "", "its subject '' is not of the form"),
        ("ticks.a", "{}", "", "its subject 'ticks.a' is not of the form"),
        ("events.a.0..", "{}", "", "its subject 'events.a.0..' is not of the form"),
        ("events.a.0.*", "{}", "", "its subject 'events.a.0.*' is not of the form"),
        ("events.a.0.>", "{}", "", "its subject 'events.a.0.>' is not of the form"),
        (f"events.a.0.{'k' * 4096}", "{}", "", "its subject 'events.a.0.kkk"),
        ("events.a.0._", '{"Nats-TTL": "5s"}', "", "the header 'Nats-TTL' is the broker's own"),
        ("events.a.0._", '{"nats-expected-stream": "X"}', "", "the header 'nats-expected-stream' is the broker's own"),
        ("events.a.0._", '{"Nats-Schedule": "@every 1s"}', "", "the header 'Nats-Schedule' is the broker's own"),
        ("events.a.0._", '{"Nats-Batch-Id": "1"}', "", "the header 'Nats-Batch-Id' is the broker's own"),
        ("changes.shop.items", "", "{}", "no change of a row can be read from it: KeyError: 'before'"),
        ("changes.shop.items", "", '{"after": 1, "form": "postgresql", "bytes": 1}', "'float' object is not iterable"),
    ],
)
async def test_a_row_that_is_no_message_holds_up_no_other(
    one: Shop, nats_url: str, subject: str, headers: str, data: str, reason: str
) -> None:
    async with one.database.transaction() as tx:
        row = {"id": "1", "s": subject, "h": headers, "d": data.encode()}
        await tx.execute(text(str(INSERT).replace("'events.a.0._'", ":s")), row)
        await tx.publish(pb.Noted(text="good"))
    async with reader(nats_url) as take:
        (message,) = await take(1)
    assert pb.Noted.FromString(message.data).text == "good"
    [(refused,)] = await one.sql("SELECT refused FROM mesh_outbox WHERE refused IS NOT NULL")
    assert refused.startswith(reason)


@pytest.mark.parametrize(
    ("odd", "sent"),
    [
        ("CAST('1' AS BLOB), CAST('events.a.0._' AS BLOB), CAST('{}' AS BLOB), 'x'", [b"x"]),
        ("'1', CAST('' AS BLOB), '{}', 12", []),
        ("'1', CAST(x'ff' AS TEXT), '{}', 1.5", []),
        ("CAST(x'ff' AS TEXT), 'nowhere', CAST(x'ff' AS TEXT), x''", []),
    ],
)
async def test_a_row_of_other_types_holds_up_no_other(
    contract: Contract, tmp_path: Path, nats_url: str, odd: str, sent: list[bytes]
) -> None:
    """SQLite keeps bytes, numbers and what is no UTF-8 in a column of text."""
    async with shop(contract, f"sqlite:///{tmp_path}/a.db", nats_url) as made, reader(nats_url) as take:
        async with made.database.transaction() as tx:
            row = f"INSERT INTO mesh_outbox (id, subject, headers, data, created) VALUES ({odd}, 1)"  # noqa: S608
            await tx.execute(text(row))
            await tx.publish(pb.Noted(text="good"))
        found = await take(len(sent) + 1)
        assert [message.data for message in found] == [*sent, pb.Noted(text="good").SerializeToString()]


async def test_the_relay_does_not_wake_itself(contract: Contract, new_database: Callable[[], str]) -> None:
    told: list[int] = []
    url = new_database()
    sqlite = url.startswith("sqlite")
    async with shop(contract, url, "nats://127.0.0.1:1", relays=False) as made:
        made.outbox.tell = lambda: told.append(1)
        async with made.database.housekeeping() as tx:
            await outbox.read(tx)
            await outbox.waiting(tx)
            await outbox.delete(tx, [], sqlite=sqlite)
        assert told == []
        await made.publish(pb.Noted(text="a call's"))
        assert told == [1]


async def test_the_table_is_made_once(contract: Contract, new_database: Callable[[], str], nats_url: str) -> None:
    url = new_database()
    async with AsyncExitStack() as stack:
        shops = await asyncio.gather(
            *(stack.enter_async_context(shop(contract, url, nats_url, relays=False)) for _ in range(3))
        )
        await shops[0].publish(pb.Noted(text="kept"))
    async with shop(contract, url, nats_url, relays=False) as again:
        assert await again.waiting() == 1


async def test_rows_wait_while_the_broker_is_away(
    contract: Contract, new_database: Callable[[], str], new_nats: Callable[..., BrokerProcess]
) -> None:
    server = new_nats()
    async with shop(contract, new_database(), server.url) as made:
        await made.broker.ready()
        server.kill()
        for number in range(30):
            await made.publish(pb.Ordered(customer="ada", number=number))
        assert await made.waiting() == 30
        server.start()
        async with reader(server.url) as take:
            messages = await take(30)
        assert [pb.Ordered.FromString(message.data).number for message in messages] == list(range(30))


async def test_nothing_committed_is_lost_while_the_broker_is_killed_again_and_again(
    contract: Contract, new_database: Callable[[], str], new_nats: Callable[..., BrokerProcess]
) -> None:
    """Each key in its order, every event once."""
    server = new_nats()
    committed: dict[str, int] = dict.fromkeys("abcd", 0)
    async with shop(contract, new_database(), server.url) as made:
        stop = asyncio.Event()

        async def work(key: str) -> None:
            while not stop.is_set():
                await made.publish(pb.Ordered(customer=key, number=committed[key]))
                committed[key] += 1

        workers = [asyncio.create_task(work(key)) for key in committed]
        for _ in range(4):
            goal = sum(committed.values()) + 150
            await until(lambda goal=goal: sum(committed.values()) >= goal)
            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(server.start)
        stop.set()
        await asyncio.gather(*workers)
        async with reader(server.url) as take:
            messages = await take(sum(committed.values()))
        await until(made.empty)
        seen: dict[str, list[int]] = {key: [] for key in committed}
        for message in messages:
            order = pb.Ordered.FromString(message.data)
            seen[order.customer].append(order.number)
        assert seen == {key: list(range(count)) for key, count in committed.items()}
        assert (await (await made.broker.ready()).js.stream_info("EVENTS")).state.messages == len(messages)


async def test_a_relay_that_dies_between_sending_and_deleting_sends_nothing_twice(
    contract: Contract, new_database: Callable[[], str], nats_url: str
) -> None:
    url = new_database()
    async with shop(contract, url, nats_url, relays=False) as first:
        await first.publish(*(pb.Ordered(customer="ada", number=number) for number in range(20)))
        rows = await first.sql("SELECT subject, headers, data FROM mesh_outbox ORDER BY sequence LIMIT 7")
        link = await first.broker.ready()
        from mesh.events.publish.outbox import Row
        from mesh.events.publish.relay import as_stored

        stored = await link.store([as_stored(Row(0, "", *row)) for row in rows])
        assert stored == (7, None)
    async with shop(contract, url, nats_url) as one, shop(contract, url, nats_url) as other, reader(nats_url) as take:
        await until(lambda: one.relay.waiting or other.relay.waiting)
        first, second = (other, one) if one.relay.waiting is not None else (one, other)  # either may have come first
        began = time.monotonic()
        await first.publish(pb.Noted(text="told across"))
        await take(1)
        assert time.monotonic() - began < 0.5
        assert first.relay.waiting is None
        await second.relay.stop()
        await first.publish(pb.Noted(text="taken over"))
        await take(2)
        assert second.relay.waiting is None
        await until(lambda: first.relay.waiting)


def by_hand(file: Path) -> None:
    with closing(sqlite3.connect(file)) as connection, connection:
        connection.execute(
            "INSERT INTO mesh_outbox (id, subject, headers, data, created) VALUES ('x', 'events.a.0._', ?, '', 1)",
            ['{"Nats-Msg-Id": "x"}'],
        )


async def test_hand_made_sql_is_noticed(contract: Contract, tmp_path: Path, nats_url: str) -> None:
    file = tmp_path / "a.db"
    async with shop(contract, f"sqlite:///{file}", nats_url) as made, reader(nats_url) as take:
        await made.broker.ready()
        await asyncio.to_thread(by_hand, file)
        (message,) = await take(1)
        assert message.headers == {"Nats-Msg-Id": "x"}


async def test_one_key_is_sent_in_the_order_of_commits(contract: Contract, new_postgres: Callable[[], str]) -> None:
    """The second transaction waits with its number for the first; another key does not wait."""
    async with shop(contract, new_postgres(), "nats://127.0.0.1:1", relays=False) as made:
        order: list[str] = []

        async def second() -> None:
            async with made.database.transaction() as tx:
                await tx.publish(pb.Ordered(customer="ada", number=2))
            order.append("second")

        async with made.database.transaction() as tx:
            await tx.publish(pb.Ordered(customer="ada", number=1))
            waiting = asyncio.create_task(second())
            await asyncio.wait_for(made.publish(pb.Ordered(customer="bob", number=3)), 5)
            assert order == []
            assert not waiting.done()
        await waiting
        rows = await made.sql("SELECT data FROM mesh_outbox ORDER BY sequence")
        numbers = [pb.Ordered.FromString(row[0]).number for row in rows]
        assert numbers.index(1) < numbers.index(2)


async def test_a_transaction_that_commits_late_is_not_overlooked(
    contract: Contract, new_postgres: Callable[[], str], nats_url: str
) -> None:
    async with shop(contract, new_postgres(), nats_url) as made, reader(nats_url) as take:
        async with made.database.transaction() as tx:
            await tx.publish(pb.Ordered(customer="late", number=1))
            await made.publish(*(pb.Ordered(customer="ada", number=number) for number in range(5)))
            await take(5)
        messages = await take(6)
        assert pb.Ordered.FromString(messages[-1].data).customer == "late"


async def test_a_lost_lock_is_taken_again(contract: Contract, new_postgres: Callable[[], str], nats_url: str) -> None:
    async with shop(contract, new_postgres(), nats_url) as made, reader(nats_url) as take:
        await made.publish(pb.Noted(text="1"))
        await take(1)
        # Everything that the relay holds on to, but not the connection that asks.
        await made.sql("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND granted")
        for _ in range(50):
            try:
                await made.publish(pb.Noted(text="2"))
            except Unavailable:
                await asyncio.sleep(0.1)
            else:
                break
        await take(2)
