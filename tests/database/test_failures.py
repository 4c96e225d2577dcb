"""Failures that mean "not now, and nothing happened", made on the real databases: another try works."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import exc, text

from mesh.database import Database
from mesh.database.failures import status
from mesh.errors import Aborted, StatusError, Unavailable

Hand = Callable[..., Awaitable[Any]]


@pytest.fixture
async def database(each_postgres: Callable[[], str]) -> AsyncIterator[Database]:
    """On each version of PostgreSQL that is there."""
    made = Database(each_postgres(), migrations=None, name="shop")
    await made.start()
    async with made.transaction() as tx:
        await tx.execute(text("CREATE TYPE colour AS ENUM ('red', 'blue')"))
        await tx.execute(text("CREATE TYPE size AS (width int, height int)"))
        await tx.execute(text("CREATE TABLE items (id int PRIMARY KEY, n int, c colour, s size)"))
        await tx.execute(text("INSERT INTO items VALUES (1, 1, 'red', (1, 2))"))
    yield made
    await made.stop()


@pytest.fixture
async def hand(database: Database) -> AsyncIterator[Hand]:
    """Another replica, or somebody with psql."""
    other = Database(f"{database._url.where}&user=postgres", migrations=None, name="hand")
    await other.start()

    async def write(*statements: str) -> Any:
        async with other.transaction() as tx:
            for statement in statements:
                result = await tx.execute(text(statement))
            return result.scalar_one() if result.returns_rows else None

    yield write
    await other.stop()


async def read(database: Database, statement: str, **values: object) -> Any:
    async with database.transaction() as tx:
        return (await tx.execute(text(statement), values)).scalar_one()


async def fails(database: Database, statement: str, **values: object) -> StatusError:
    with pytest.raises(StatusError) as caught:
        await read(database, statement, **values)
    return caught.value


SELECT = "SELECT n FROM items WHERE id = 1"


async def test_a_plan_that_a_migration_made_stale(database: Database, hand: Hand):
    """Every connection of the pool remembers it; one failed call is enough for all of them."""
    async with database.transaction() as one, database.transaction() as two:
        for tx in (one, two):
            await tx.execute(text(SELECT))
    await hand("ALTER TABLE items ALTER n TYPE text")
    failure = await fails(database, SELECT)
    assert (type(failure), failure.message) == (Aborted, "the tables were changed while the service runs; try again")
    async with database.transaction() as one, database.transaction() as two:
        for tx in (one, two):
            assert (await tx.execute(text(SELECT))).scalar_one() == "1"


async def test_a_column_that_came_does_not_fail_what_names_columns(database: Database, hand: Hand):
    assert await read(database, SELECT) == 1
    await hand("ALTER TABLE items ADD COLUMN later int")
    assert await read(database, SELECT) == 1


async def test_a_composite_type_that_a_migration_changed(database: Database, hand: Hand):
    query = "SELECT s FROM items WHERE id = 1"
    async with database.transaction() as one, database.transaction() as two:
        for tx in (one, two):
            assert tuple((await tx.execute(text(query))).scalar_one()) == (1, 2)
    await hand("ALTER TYPE size ADD ATTRIBUTE depth int")
    assert isinstance(await fails(database, query), Aborted)
    async with database.transaction() as one, database.transaction() as two:
        for tx in (one, two):
            assert tuple((await tx.execute(text(query))).scalar_one()) == (1, 2, None)


async def test_an_enumeration_that_a_migration_replaced(database: Database, hand: Hand):
    """The type of a parameter is gone."""
    query = "SELECT n FROM items WHERE c = CAST(:c AS colour)"
    other = "SELECT n FROM items WHERE c = :c"
    assert await read(database, query, c="red") == 1
    assert await read(database, other, c="red") == 1
    await hand(
        "ALTER TYPE colour RENAME TO old", "CREATE TYPE colour AS ENUM ('red', 'green')",
        "ALTER TABLE items ALTER c TYPE colour USING c::text::colour", "DROP TYPE old",
    )  # fmt: skip
    assert isinstance(await fails(database, query, c="red"), Aborted)
    assert await read(database, query, c="red") == 1
    assert await read(database, other, c="red") == 1


async def test_a_server_that_became_a_standby(database: Database, hand: Hand):
    """Its open connections go, so the next one is to whichever host takes writes now."""
    await hand("SELECT 1")
    async with database.transaction() as tx:
        before = (await tx.execute(text("SELECT pg_backend_pid()"))).scalar_one()
        await tx.execute(text("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY"))
    failure = await fails(database, "UPDATE items SET n = 2 RETURNING n")
    assert (type(failure), failure.message) == (Unavailable, "the database takes no writes at the moment")
    assert await read(database, "UPDATE items SET n = 2 RETURNING n") == 2
    assert await read(database, "SELECT pg_backend_pid()") != before


async def test_prepared_statements_that_the_server_does_not_have(database: Database):
    """As behind a pooler in transaction mode."""
    assert await read(database, SELECT) == 1
    async with database.transaction() as tx:
        await tx.execute(text("DEALLOCATE ALL"))
    assert isinstance(await fails(database, SELECT), Unavailable)
    assert await read(database, SELECT) == 1


@pytest.mark.parametrize(
    ("setting", "statement"),
    [
        ("statement_timeout = 50", "SELECT pg_sleep(60)"),
        ("temp_file_limit = '64kB'", "SELECT count(*) FROM (SELECT g FROM generate_series(1, 500000) g ORDER BY -g) s"),
    ],
)
async def test_a_limit_of_the_server(database: Database, setting: str, statement: str):
    with pytest.raises(Unavailable):
        async with database.transaction() as tx:
            await tx.execute(text("SET LOCAL work_mem = '64kB'"))
            await tx.execute(text(f"SET LOCAL {setting}"))
            await tx.execute(text(statement))
    assert await read(database, SELECT) == 1


async def test_a_lock_that_is_not_had_in_time(database: Database):
    async with database.transaction() as holder:
        await holder.execute(text("SELECT 1 FROM items FOR UPDATE"))
        with pytest.raises(Aborted):
            async with database.transaction() as tx:
                await tx.execute(text("SET LOCAL lock_timeout = 50"))
                await tx.execute(text("SELECT 1 FROM items FOR UPDATE"))
    assert await read(database, SELECT) == 1


async def test_a_transaction_that_idles_too_long(database: Database):
    with pytest.raises(Unavailable):
        async with database.transaction() as tx:
            await tx.execute(text("SET LOCAL idle_in_transaction_session_timeout = 50"))
            raw: Any = await tx._connection.get_raw_connection()
            async with asyncio.timeout(10):
                while not raw.driver_connection.is_closed():  # noqa: ASYNC110 - the driver says it to nobody
                    await asyncio.sleep(0.01)
            await tx.execute(text(SELECT))
    assert await read(database, SELECT) == 1


async def test_a_deadlock(database: Database):
    async with database.transaction() as tx:
        await tx.execute(text("INSERT INTO items VALUES (2, 1)"))
    met = asyncio.Barrier(2)

    async def take(first: int, second: int) -> None:
        async with database.transaction() as tx:
            await tx.execute(text("SET LOCAL deadlock_timeout = 50"))
            await tx.execute(text("SELECT 1 FROM items WHERE id = :id FOR UPDATE"), {"id": first})
            await met.wait()
            await tx.execute(text("SELECT 1 FROM items WHERE id = :id FOR UPDATE"), {"id": second})

    ended = await asyncio.gather(take(1, 2), take(2, 1), return_exceptions=True)
    assert sorted(type(one).__name__ for one in ended) == ["Aborted", "NoneType"]


async def test_too_many_connections(database: Database, hand: Hand, caplog: pytest.LogCaptureFixture):
    name = await hand("SELECT current_database()")
    await hand(f"CREATE ROLE clerk_{name} LOGIN CONNECTION LIMIT 0")
    try:
        url = f"{database._url.where}&user=clerk_{name}"
        closed = Database(url, migrations=None, name="closed")
        closed.open()
        caplog.set_level(logging.WARNING)
        failure = await fails(closed, "SELECT 1")
        assert isinstance(failure, Unavailable)
        assert "the server has no connection left" in caplog.text
        await closed.stop()
    finally:
        await hand(f"DROP ROLE clerk_{name}")


async def test_what_is_about_the_data_stays_what_it_is(database: Database):
    for statement in ("INSERT INTO items VALUES (1)", "SELECT 1 / 0", "SELECT nothing", "SELECT CAST('x' AS int)"):
        with pytest.raises(exc.DBAPIError):
            await read(database, statement)


async def test_a_sqlite_file_that_is_full(tmp_path: Path):
    database = Database(f"sqlite:///{tmp_path}/x.db", migrations=None, name="shop")
    await database.start()
    async with database.transaction() as tx:
        await tx.execute(text("CREATE TABLE t (v)"))
    with pytest.raises(Unavailable, match="the database cannot be written"):
        async with database.transaction() as tx:
            await tx.execute(text("PRAGMA max_page_count = 3"))
            await tx.execute(text("INSERT INTO t VALUES (randomblob(100000))"))
    async with database.transaction() as tx:
        assert (await tx.execute(text("SELECT count(*) FROM t"))).scalar_one() == 0
    await database.stop()


async def test_a_sqlite_table_that_another_process_changed(tmp_path: Path):
    """SQLite prepares the statement anew by itself."""
    database = Database(f"sqlite:///{tmp_path}/x.db", migrations=None, name="shop")
    await database.start()
    async with database.transaction() as tx:
        await tx.execute(text("CREATE TABLE t (v)"))
    query = text("SELECT * FROM t").columns()
    for turn in range(3):
        async with database.transaction() as tx:
            assert len((await tx.execute(query)).keys()) == turn + 1
        with sqlite3.connect(tmp_path / "x.db") as other:
            other.execute(f"ALTER TABLE t ADD COLUMN c{turn}")
        other.close()
    await database.stop()


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (sqlite3.SQLITE_SCHEMA, Aborted), (sqlite3.SQLITE_BUSY_SNAPSHOT, Aborted),
        (sqlite3.SQLITE_PROTOCOL, Unavailable), (sqlite3.SQLITE_BUSY_RECOVERY, Unavailable),
        (sqlite3.SQLITE_LOCKED_SHAREDCACHE, Unavailable), (sqlite3.SQLITE_IOERR_FSYNC, Unavailable),
        (sqlite3.SQLITE_READONLY_DBMOVED, Unavailable), (sqlite3.SQLITE_CORRUPT, type(None)),
        (sqlite3.SQLITE_CONSTRAINT_UNIQUE, type(None)),
    ],
)  # fmt: skip
def test_result_codes_of_sqlite(code: int, kind: type):
    """Those that cannot be made at will."""
    error = sqlite3.OperationalError("x")
    error.sqlite_errorcode = code
    assert type(status(error)) is kind
