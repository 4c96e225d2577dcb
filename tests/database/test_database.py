"""One behaviour on SQLite and on PostgreSQL."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.empty_pb2 import Empty
from odd.v1 import extended_pb2
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from sqlalchemy import (
    Column,
    Executable,
    Integer,
    MetaData,
    String,
    Table,
    exists,
    func,
    insert,
    select,
    text,
    true,
    update,
)
from sqlalchemy.exc import DBAPIError, IntegrityError

from mesh.database import Database, DatabaseError
from mesh.database.transaction import is_read_only
from mesh.database_url import parse, sqlite_url
from mesh.errors import Aborted, FailedPrecondition, Unavailable

ITEMS = Table("items", MetaData(), Column("id", Integer, primary_key=True), Column("name", String, unique=True))

FIRST = '''
"""first"""
import sqlalchemy as sa
from alembic import op

revision = "1"
down_revision = None


def upgrade():
    op.create_table("items", sa.Column("id", sa.Integer, primary_key=True), sa.Column("name", sa.String, unique=True))
    op.execute("INSERT INTO items (id, name) VALUES (1, 'one')")
'''
SECOND = '''
"""second"""
from alembic import op

revision = "2"
down_revision = "1"


def upgrade():
    op.execute("INSERT INTO items (id, name) VALUES (2, 'two')")
    {more}
'''


@pytest.fixture
def migrations(tmp_path: Path) -> Path:
    folder = tmp_path / "migrations"
    folder.mkdir()
    (folder / "v1.py").write_text(FIRST)
    return folder


@pytest.fixture
def url(new_database: Callable[[], str]) -> str:
    return new_database()


@pytest.fixture
async def database(url: str, migrations: Path) -> AsyncIterator[Database]:
    opened = Database(url, migrations=migrations, name="items")
    await opened.start()
    yield opened
    await opened.stop()


@pytest.fixture
async def locked(
    tmp_path: Path, migrations: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[Database, sqlite3.Connection]]:
    """A SQLite database that waits briefly, and another connection that holds its write lock."""
    monkeypatch.setattr("mesh.database.database.WAIT_TIMEOUT", 0.1)
    file = tmp_path / "x.db"
    database = Database(f"sqlite:///{file}", migrations=migrations, name="x")
    await database.start()
    with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield database, other
    await database.stop()


async def names(database: Database) -> list[str]:
    async with database.transaction() as tx:
        return list((await tx.execute(select(ITEMS.c.name).order_by(ITEMS.c.id))).scalars())


async def test_a_block_commits_at_its_end(database: Database):
    async with database.transaction() as tx:
        await tx.execute(insert(ITEMS), [{"id": 2, "name": "two"}, {"id": 3, "name": "three"}])
    assert await names(database) == ["one", "two", "three"]


async def test_an_error_rolls_back(database: Database):
    with pytest.raises(ZeroDivisionError):
        async with database.transaction() as tx:
            await tx.execute(insert(ITEMS).values(id=2, name="two"))
            raise ZeroDivisionError
    assert await names(database) == ["one"]


async def test_cancellation_rolls_back_and_gives_the_lock_back(database: Database):
    inside = asyncio.Event()

    async def work() -> None:
        async with database.transaction() as tx:
            await tx.execute(insert(ITEMS).values(id=2, name="two"))
            inside.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await inside.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with database.transaction() as tx:
        await tx.execute(insert(ITEMS).values(id=2, name="again"))
    assert await names(database) == ["one", "again"]


async def test_cancellation_at_any_point_leaves_a_database_that_works(database: Database):
    async def work(number: int) -> None:
        async with database.transaction() as tx:
            await tx.execute(insert(ITEMS).values(id=number, name=str(number)))

    for turns in range(25):
        task = asyncio.create_task(work(100 + turns))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    async with asyncio.timeout(5):
        await work(99)
    assert "99" in await names(database)


LONG = text("WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 300000) SELECT max(x) FROM n")


@pytest.mark.parametrize(
    "statement",
    [
        insert(ITEMS).values(name="x").returning(ITEMS.c.id),
        select(ITEMS.c.name),
        LONG.columns(ITEMS.c.id),
        text("UPDATE items SET name = name"),
    ],
    ids=["insert returning", "select", "long", "update"],
)
async def test_a_cancelled_statement_keeps_no_lock(tmp_path: Path, migrations: Path, statement: Executable):
    """Not even until the garbage collector comes: an idle service would keep others from its file for ever."""
    database = Database(f"sqlite:///{tmp_path}/x.db", migrations=migrations, name="x")
    await database.start()
    async with database.transaction() as tx:
        await tx.execute(insert(ITEMS), [{"name": str(number)} for number in range(200)])

    async def work() -> None:
        async with database.transaction() as tx:
            await tx.execute(insert(ITEMS).values(name="y"))
            await tx.execute(statement)

    gc.collect()
    gc.disable()
    try:
        for turns in range(60):
            task = asyncio.create_task(work())
            await asyncio.sleep(turns / 15_000)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, IntegrityError):
                await task
            del task
            await asyncio.to_thread(_clear, tmp_path / "x.db")  # the loop may still have to give the lock back
    finally:
        gc.enable()
        await database.stop()


def _clear(file: Path) -> None:
    with contextlib.closing(sqlite3.connect(file, timeout=3, isolation_level=None)) as other:
        other.execute("DELETE FROM items WHERE name IN ('x', 'y')")


async def test_what_was_cancelled_within_a_block_ends_the_whole_of_it(database: Database):
    sleep = "SELECT pg_sleep(60)" if "postgresql" in str(database) else LONG.text.replace("300000", "3000000000")
    with pytest.raises(Aborted, match="was cancelled"):
        async with database.transaction() as tx:
            await tx.execute(insert(ITEMS).values(id=2, name="two"))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.2):
                    await tx.execute(text(sleep))
            await tx.execute(insert(ITEMS).values(id=3, name="three"))
    with pytest.raises(Aborted, match="was cancelled"):
        async with database.transaction() as tx:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.2):
                    await tx.execute(text(sleep))
    assert await names(database) == ["one"]


async def test_a_commit_that_fails_leaves_nothing_open(database: Database):
    key = "REFERENCES items (id) DEFERRABLE INITIALLY DEFERRED"
    async with database.transaction() as tx:
        await tx.execute(text(f"CREATE TABLE parts (item INTEGER {key})"))
    for _ in range(2):
        with pytest.raises(IntegrityError):
            async with database.transaction() as tx:
                await tx.execute(text("INSERT INTO parts VALUES (7)"))
    async with database.transaction() as tx:
        await tx.execute(insert(ITEMS).values(id=7, name="seven"))
        assert (await tx.execute(text("SELECT count(*) FROM parts"))).scalar_one() == 0


async def test_what_failed_within_a_block_ends_the_whole_of_it(database: Database):
    """PostgreSQL answers a COMMIT then by rolling back, and says nothing."""
    with pytest.raises(Aborted, match="failed"):
        async with database.transaction() as tx:
            await tx.execute(insert(ITEMS).values(id=2, name="two"))
            with pytest.raises(IntegrityError):
                await tx.execute(insert(ITEMS).values(id=1, name="taken"))
    with pytest.raises(Aborted, match="failed"):
        async with database.transaction() as tx:
            with pytest.raises(IntegrityError):
                await tx.execute(insert(ITEMS).values(id=1, name="taken"))
            await tx.execute(insert(ITEMS).values(id=3, name="three"))
    assert await names(database) == ["one"]


async def test_a_savepoint_makes_good_what_failed(database: Database):
    async with database.transaction() as tx:
        await tx.execute(insert(ITEMS).values(id=2, name="two"))
        await tx.execute(text("SAVEPOINT here"))
        with pytest.raises(IntegrityError):
            await tx.execute(insert(ITEMS).values(id=1, name="taken"))
        await tx.execute(text("ROLLBACK TO SAVEPOINT here"))
        await tx.execute(insert(ITEMS).values(id=3, name="three"))
    assert await names(database) == ["one", "two", "three"]


async def test_a_block_that_only_reads_may_fail_and_go_on(database: Database):
    async with database.transaction() as tx:
        with pytest.raises(DBAPIError):
            await tx.execute(select(text("nothing")).select_from(ITEMS))
    assert await names(database) == ["one"]


async def test_nothing_is_done_outside_a_transaction(locked: tuple[Database, sqlite3.Connection]):
    """SQLite goes on without one after a BEGIN that failed, and after what it rolls back by itself."""
    database, other = locked
    with pytest.raises(Aborted):
        async with database.transaction() as tx:
            with pytest.raises(Unavailable):
                await tx.execute(insert(ITEMS).values(id=2, name="two"))
            other.execute("ROLLBACK")
            await tx.execute(insert(ITEMS).values(id=2, name="two"))
    with pytest.raises(Aborted):
        async with database.transaction() as tx:
            await tx.execute(insert(ITEMS).values(id=3, name="three"))
            with pytest.raises(IntegrityError):
                await tx.execute(text("INSERT OR ROLLBACK INTO items (id, name) VALUES (3, 'again')"))
            await tx.execute(insert(ITEMS).values(id=4, name="four"))
    assert await names(database) == ["one"]


@pytest.mark.parametrize(
    ("statement", "reads"),
    [
        (select(ITEMS), True),
        (select(ITEMS).union(select(ITEMS)), True),
        (text("select 1").columns(), True),
        (select(ITEMS).with_for_update(), False),
        (select(select(ITEMS).with_for_update().subquery()), False),
        (select(ITEMS).join(OTHER := ITEMS.alias(), OTHER.c.id == ITEMS.c.id), True),
        (select(ADDED := insert(ITEMS).values(id=2).returning(ITEMS.c.id).cte()), False),
        (select(ITEMS).add_cte(ADDED), False),
        (select(ITEMS).where(exists(select(ADDED))), False),
        (select(ITEMS).join(ADDED.alias(), true()), False),
        (select(ITEMS.c.id).union(select(ADDED.c.id)), False),
        (select(func.coalesce(select(ADDED.c.id).scalar_subquery(), 1)), False),
        (select(ITEMS).limit(select(ADDED.c.id).scalar_subquery()), False),
        (select(ITEMS).where(ITEMS.c.id.in_(select(ITEMS.c.id).with_for_update())), False),
        (text("INSERT INTO items (id) VALUES (2) RETURNING id").columns(ITEMS.c.id), False),
        (text("SELECT id FROM items FOR UPDATE").columns(ITEMS.c.id), False),
        (text("SELECT 1"), False),
        (insert(ITEMS).values(id=2), False),
    ],
    ids=str,
)
def test_what_only_reads(statement: Executable, reads: bool):  # noqa: FBT001 - pytest gives it by name
    assert is_read_only(statement) is reads


async def test_a_violated_constraint_is_the_functions_to_understand(database: Database):
    with pytest.raises(IntegrityError):
        async with database.transaction() as tx:
            await tx.execute(insert(ITEMS).values(id=2, name="one"))
    assert await names(database) == ["one"]


async def test_writers_queue_and_lose_no_update(database: Database):
    async def bump() -> None:
        async with database.transaction() as tx:
            row = (await tx.execute(select(ITEMS.c.name).where(ITEMS.c.id == 7).with_for_update())).scalar_one()
            await tx.execute(update(ITEMS).where(ITEMS.c.id == 7).values(name=str(int(row) + 1)))

    async with database.transaction() as tx:
        await tx.execute(insert(ITEMS).values(id=7, name="0"))
    await asyncio.gather(*(bump() for _ in range(30)))
    assert (await names(database))[-1] == "30"


async def test_readers_do_not_wait_for_a_writer(database: Database):
    async with database.transaction() as tx:
        await tx.execute(insert(ITEMS).values(id=2, name="two"))
        async with asyncio.timeout(2):
            assert await names(database) == ["one"]


INSERT = text("INSERT INTO items (id, name) VALUES (:id, :name)")
NAMES = text("SELECT name FROM items ORDER BY id").columns()


async def test_housekeeping_commits_as_one(database: Database):
    async with database.housekeeping() as tx:
        assert [name for (name,) in await tx.execute(NAMES)] == ["one"]
        await tx.execute(INSERT, {"id": 2, "name": "two"})
        assert await names(database) == ["one"]
        await tx.execute(INSERT, {"id": 3, "name": "three"})
        assert [name for (name,) in await tx.execute(NAMES)] == ["one", "two", "three"]
    assert await names(database) == ["one", "two", "three"]


@pytest.mark.parametrize("failure", [ValueError, asyncio.CancelledError])
async def test_housekeeping_that_fails_leaves_nothing_and_no_lock(database: Database, failure: type[BaseException]):
    with pytest.raises(failure):
        async with database.housekeeping() as tx:
            await tx.execute(INSERT, {"id": 2, "name": "two"})
            raise failure
    async with database.transaction() as own:
        await own.execute(insert(ITEMS).values(id=3, name="three"))
    async with database.housekeeping() as tx:
        assert [name for (name,) in await tx.execute(NAMES)] == ["one", "three"]


async def test_housekeeping_and_functions_write_in_turn(database: Database):
    async def keep(number: int) -> None:
        async with database.housekeeping() as tx:
            await tx.execute(INSERT, {"id": number, "name": str(number)})

    async def work(number: int) -> None:
        async with database.transaction() as tx:
            await tx.execute(insert(ITEMS).values(id=number, name=str(number)))

    await asyncio.gather(*(one(number) for number in range(10, 50, 2) for one in (keep, lambda n: work(n + 1))))
    assert await names(database) == ["one", *map(str, range(10, 50))]


async def test_an_event_is_refused_rather_than_lost(database: Database):
    async with database.transaction() as tx:
        with pytest.raises(FailedPrecondition, match=r"google\.protobuf\.Empty was not published"):
            await tx.publish(Empty())
        with pytest.raises(FailedPrecondition, match=r"odd\.v1\.Methods was not published"):
            await tx.publish(extended_pb2.Methods())  # it has a field called DESCRIPTOR


async def test_a_database_that_is_not_open_is_unavailable(database: Database):
    await database.stop()
    with pytest.raises(Unavailable):
        async with database.transaction():
            pass


async def test_newer_versions_run_once(
    url: str, database: Database, migrations: Path, caplog: pytest.LogCaptureFixture
):
    (migrations / "v2.py").write_text(SECOND.format(more="pass"))
    caplog.set_level(logging.INFO, "mesh.database")
    for _ in range(2):
        again = Database(url, migrations=migrations, name="items")
        await again.start()
        assert await names(again) == ["one", "two"]
        await again.stop()
    assert [record.message for record in caplog.records if record.name == "mesh.database"] == [
        "the database was at version 1 and is at 2 now"
    ]


async def test_versions_are_left_alone_when_a_start_shall_not_migrate(
    url: str, database: Database, new_database: Callable[[], str], migrations: Path, caplog: pytest.LogCaptureFixture
):
    (migrations / "v2.py").write_text("half a version (")
    caplog.set_level(logging.INFO, "mesh.database")
    again = Database(url, migrations=migrations, migrate=False, name="items")
    await again.start()
    assert await names(again) == ["one"]
    await again.stop()
    assert caplog.messages == []
    empty = Database(new_database(), migrations=migrations, migrate=False, name="items")
    await empty.start()
    await empty.stop()
    assert caplog.messages == [
        f"the database is at no version: {migrations} is run by the next start of the mesh alone"
    ]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        ("ValueError('no such luck')", "ValueError: no such luck"),
        ("SystemExit('no such luck')", "EscapedError: SystemExit was raised, which is no Exception: no such luck"),
        ("__import__('asyncio').CancelledError", "OwnCancellationError: cancelled, but not by the mesh"),
        ("op.execute('nonsense')", ".*nonsense.*"),
    ],
)
async def test_a_migration_that_fails_leaves_nothing_behind(
    url: str, database: Database, migrations: Path, error: str, said: str
):
    (migrations / "v2.py").write_text(SECOND.format(more=f"raise {error}"))
    with pytest.raises(DatabaseError, match=rf"a migration failed: {said} \(v2\.py:\d+\)\Z"):
        await Database(url, migrations=migrations, name="items").start()
    assert await names(database) == ["one"]


async def test_an_unknown_newer_version_is_named(url: str, database: Database, migrations: Path):
    async with database.transaction() as tx:
        await tx.execute(text("UPDATE alembic_version SET version_num = '9'"))
    with pytest.raises(DatabaseError, match="at version 9, which this code does not have: run the code that has it"):
        await Database(url, migrations=migrations, name="items").start()


NEXT = """
revision = "{name}"
down_revision = "{before}"
compatible = {compatible}


def upgrade():
    pass
"""


def release(folder: Path, marks: Sequence[bool]) -> Path:
    """Return the versions of a newer release: those of ``folder``, and one more for each mark."""
    newer = folder.with_name("newer")
    shutil.copytree(folder, newer, dirs_exist_ok=True)
    for before, mark in enumerate(marks, start=1):
        text = NEXT.format(name=before + 1, before=before, compatible=mark)
        (newer / f"v{before + 1}.py").write_text(text)
    return newer


async def test_older_code_starts_with_a_warning_if_what_it_lacks_is_compatible(
    url: str, database: Database, migrations: Path, caplog: pytest.LogCaptureFixture
):
    steps: list[str] = []
    for _ in range(2):  # forward, back, and forward again
        newer = Database(url, migrations=release(migrations, (True, True)), name="items")
        await newer.start()
        await newer.stop()
        caplog.clear()
        older = Database(
            url, migrations=migrations, name="items",
            before=[lambda _: steps.append("before")], after=[lambda _: steps.append("after")],
        )  # fmt: skip
        await older.start()
        assert await names(older) == ["one"]
        await older.stop()
        assert caplog.messages == [
            "the database is at version 3, and this code at 1: the start goes on, because 2, 3 are marked compatible"
        ]
        assert steps == [], "the newer code has made what is needed, and its triggers stay"


@pytest.mark.parametrize(
    ("marks", "said"),
    [
        (
            (True, False),
            "older code cannot run after 3, which is not marked `compatible = True`: run the code",
        ),
        ((False, True), "older code cannot run after 2, which is not marked"),
        ((False, False), "older code cannot run after 2, 3, which are not marked"),
    ],
)
async def test_older_code_refuses_what_is_not_compatible(
    url: str, database: Database, migrations: Path, marks: tuple[bool, bool], said: str
):
    newer = Database(url, migrations=release(migrations, marks), name="items")
    await newer.start()
    await newer.stop()
    with pytest.raises(DatabaseError, match=f"the database is at version 3, and this code at 1; {said}"):
        await Database(url, migrations=migrations, name="items").start()
    assert await names(database) == ["one"], "and it has changed nothing"


async def test_a_mark_that_is_set_later_counts_from_the_next_start_of_the_newer_code(
    url: str, database: Database, migrations: Path
):
    for mark in (False, True):
        newer = Database(url, migrations=release(migrations, (mark,)), name="items")
        await newer.start()
        await newer.stop()
    older = Database(url, migrations=migrations, name="items")
    await older.start()
    await older.stop()


async def test_a_mark_that_is_no_boolean_is_refused(url: str, migrations: Path):
    (migrations / "v2.py").write_text(NEXT.format(name=2, before=1, compatible="'yes'"))
    with pytest.raises(DatabaseError, match=r"v2\.py needs compatible = True or False, not 'yes'"):
        await Database(url, migrations=migrations, name="items").start()


def test_replicas_that_start_at_once_migrate_once(new_database: Callable[[], str], migrations: Path):
    (migrations / "v2.py").write_text(SECOND.format(more="import time; time.sleep(0.2)"))
    code = (
        "import asyncio, sys; from pathlib import Path; from mesh.database import Database\n"
        "asyncio.run(Database(sys.argv[1], migrations=Path(sys.argv[2]), name='items').start())"
    )
    url = new_database()
    running = [
        subprocess.Popen([sys.executable, "-c", code, url, str(migrations)], stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    assert [(process.communicate()[1], process.returncode) for process in running] == [("", 0)] * 3

    async def check() -> list[str]:
        database = Database(url, migrations=migrations, name="items")
        await database.start()
        try:
            return await names(database)
        finally:
            await database.stop()

    assert asyncio.run(check()) == ["one", "two"]


async def test_sqlite_keeps_what_it_acknowledged(tmp_path: Path):
    database = Database(f"sqlite:///{tmp_path}/new/folder/x.db", migrations=None, name="x")
    await database.start()
    async with database.transaction() as tx:
        found = [
            (await tx.execute(text(f"PRAGMA {name}"))).scalar_one()
            for name in ("journal_mode", "synchronous", "foreign_keys")
        ]
    await database.stop()
    assert found == ["wal", 2, 1]


async def test_a_foreign_lock_is_unavailable_and_a_lost_race_is_aborted(locked: tuple[Database, sqlite3.Connection]):
    database, other = locked
    with pytest.raises(Unavailable, match="locked by another process"):
        async with database.transaction() as tx:
            await tx.execute(insert(ITEMS).values(id=2, name="two"))
    other.execute("COMMIT")
    other.execute("PRAGMA busy_timeout=0")
    async with database.transaction() as tx:  # whoever reads to write has the lock from the first statement on
        await tx.execute(select(ITEMS).with_for_update())
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            other.execute("BEGIN IMMEDIATE")
    with pytest.raises(Aborted, match="try again"):
        async with database.transaction() as tx:
            await tx.execute(select(ITEMS))
            other.execute("INSERT INTO items (id, name) VALUES (3, 'three')")
            await tx.execute(insert(ITEMS).values(id=4, name="four"))


async def test_postgres_serialization_failures_are_aborted(new_postgres: Callable[[], str], migrations: Path):
    database = Database(new_postgres(), migrations=migrations, name="x")
    await database.start()
    try:
        with pytest.raises(Aborted, match="try again"):
            async with database.transaction() as tx:
                await tx.execute(text("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE"))
                await tx.execute(select(func.count()).select_from(ITEMS))
                async with database.transaction() as other:
                    await other.execute(update(ITEMS).values(name="changed"))
                await tx.execute(update(ITEMS).values(name="mine"))
    finally:
        await database.stop()


async def test_a_lost_connection_is_unavailable_and_the_next_call_works(
    new_postgres: Callable[[], str], migrations: Path
):
    database = Database(new_postgres(), migrations=migrations, name="x")
    await database.start()
    try:
        with pytest.raises(Unavailable, match="cannot be reached"):
            async with database.transaction() as tx:
                own = (await tx.execute(text("SELECT pg_backend_pid()"))).scalar_one()
                async with database.transaction() as other:
                    await other.execute(text("SELECT pg_terminate_backend(:pid, 1000)"), {"pid": own})
                await tx.execute(select(ITEMS))
        assert await names(database) == ["one"]
        # Idle connections that the server ended meanwhile are noticed before they are used.
        async with database.transaction() as one, database.transaction() as two, database.transaction() as three:
            for tx in (one, two, three):
                await tx.execute(text("SELECT 1"))
        async with database.transaction() as tx:
            ended = await tx.execute(
                text(
                    "SELECT pg_terminate_backend(pid, 1000) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
                )
            )
            assert len(ended.all()) >= 2
        assert await asyncio.gather(*(names(database) for _ in range(3))) == [["one"]] * 3
    finally:
        await database.stop()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", "the database's URL: expected sqlite:///PATH or postgresql://"),
        ("mysql://x/y", "the database's URL: expected sqlite:///PATH"),
        ("sqlite:///:memory:", "each connection would have its own database in memory"),
        ("postgresql://localhost:secret/x", "a port is a number from 1 to 65535"),
        (
            "postgresql://u:secret@127.0.0.1:1/x",
            r"database of x \(postgresql://u:\*\*\*@127.0.0.1:1/x\): nothing listens there",
        ),
        ("postgresql://u:secret@no-such-host.invalid/x", "there is no such host"),
        ("sqlite:////proc/none/x.db", r"sqlite:////proc/none/x\.db\): /proc/none: no such file or directory"),
    ],
)
async def test_a_database_that_cannot_be_used_says_why_in_one_line(url: str, message: str):
    with pytest.raises(DatabaseError, match=message) as caught:
        await Database(url, migrations=None, name="x").start()
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


async def test_postgres_says_which_part_of_the_url_is_wrong(new_postgres: Callable[[], str]):
    url = new_postgres()
    with pytest.raises(DatabaseError, match="there is no such database on the server"):
        await Database(url.replace("/db_", "/none_"), migrations=None, name="x").start()
    with pytest.raises(DatabaseError, match="the user may not log in"):
        await Database(url.replace("postgres:@", "nobody:@"), migrations=None, name="x").start()


async def test_a_file_that_is_no_database_is_named(tmp_path: Path):
    (tmp_path / "x.db").write_text("this is not a database, whatever its name says" * 100)
    with pytest.raises(DatabaseError, match="the file is not a SQLite database"):
        await Database(f"sqlite:///{tmp_path}/x.db", migrations=None, name="x").start()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (None, "is not a folder"),
        ({}, "found no version"),
        (
            {"a.py": "revision = '1'\ndown_revision = None\n", "b.py": "revision = '2'\ndown_revision = None\n"},
            r"found 2 newest",
        ),
        ({"a.py": "revision = \n"}, "cannot be read: SyntaxError"),
        ({"a.py": "\n1 / 0\n"}, r"cannot be read: ZeroDivisionError: division by zero \(a\.py:2\)"),
        ({"a.py": "revision = '1'\ndown_revision = None\n"}, r"m/a\.py needs def upgrade\(\), a plain function"),
        (
            {"a.py": "revision = '1'\ndown_revision = None\nasync def upgrade():\n    pass\n"},
            r"m/a\.py needs def upgrade\(\), a plain function",
        ),
        (
            {
                "a.py": "revision = '1'\ndown_revision = None\ndef upgrade():\n"
                "    __import__('alembic').op.execute('CREATE TABLE a (')\n"
            },
            r": incomplete input \(a\.py:4\)",
        ),
        ({"a.py": "revision = '2'\ndown_revision = '1'\n"}, "there is no '1', which one names as its down_revision"),
    ],
)
@pytest.mark.filterwarnings("ignore:Revision 1 referenced")  # Alembic's own
async def test_version_files_that_cannot_be_used_are_named(tmp_path: Path, files: dict[str, str] | None, message: str):
    folder = tmp_path / "m"
    if files is not None:
        folder.mkdir()
        for name, content in files.items():
            (folder / name).write_text(content)
    with pytest.raises(DatabaseError, match=message):
        await Database(f"sqlite:///{tmp_path}/x.db", migrations=folder, name="x").start()


async def test_each_statement_is_a_span_without_values(new_database: Callable[[], str], migrations: Path):
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    database = Database(new_database(), migrations=migrations, name="x")
    database._tracer = provider.get_tracer("test")
    await database.start()
    try:
        with provider.get_tracer("test").start_as_current_span("function") as parent:
            with pytest.raises(IntegrityError):
                async with database.transaction() as tx:
                    await tx.execute(insert(ITEMS).values(id=2, name="secret"))
                    await tx.execute(insert(ITEMS).values(id=2, name="secret"))
            async with database.transaction() as tx:
                await tx.execute(select(ITEMS).where(ITEMS.c.name == "secret"))
    finally:
        await database.stop()
        provider.shutdown()
    spans: list[Any] = [span for span in exporter.get_finished_spans() if span.name != "function"]
    assert [span.name for span in spans] == ["INSERT", "INSERT", "SELECT", "COMMIT"]
    for span in spans:
        assert span.parent.span_id == parent.get_span_context().span_id
        assert span.attributes["db.system.name"] in ("sqlite", "postgresql")
        assert span.attributes["db.operation.name"] == span.name
        assert span.attributes["db.query.text"].startswith(span.name)
        assert "secret" not in str(dict(span.attributes))
    assert [span.status.is_ok for span in spans[:2]] == [True, False]
    assert spans[1].attributes["error.type"] in ("IntegrityError", "23505")


@pytest.mark.parametrize(
    "name", ["müller 日本", "#a?b=c", "?x=y", "100%41 $HOME", "q\"uo'te", "a:b@c", "back\\slash\n", "\udcff"]
)
async def test_a_sqlite_file_may_be_called_anything(tmp_path: Path, migrations: Path, name: str):
    folder = tmp_path / name
    folder.mkdir()
    moved = Path(shutil.move(migrations, folder / "migrations %(here)s"))
    assert parse(sqlite_url(folder / "items.db")).file == folder / "items.db"
    opened = Database(sqlite_url(folder / "items.db"), migrations=moved, name="items")
    await opened.start()
    try:
        assert await names(opened) == ["one"]
        async with opened.housekeeping() as tx:
            await tx.execute(text("SELECT 1"))
    finally:
        await opened.stop()
    assert "items.db" in os.listdir(folder)  # noqa: PTH208 - as below
    assert os.listdir(tmp_path) == [name]  # noqa: PTH208 - names as they are
