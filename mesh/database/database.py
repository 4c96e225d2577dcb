"""``Database``: one engine and what it is opened, migrated and closed with."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opentelemetry import trace
from sqlalchemy import Column, Integer, MetaData, String, Table, delete, event, exc, insert, select, update
from sqlalchemy.pool import NullPool

from mesh.boundary import contain
from mesh.database import engine, migrations
from mesh.database.failures import DatabaseError, reason, status
from mesh.database.leader_lock import FileSole, PostgresSole, Sole
from mesh.database.sqlite_transaction import Execute, Plain
from mesh.database.sqlite_write_lock import Writer
from mesh.database.transaction import Outbox, OwnTransaction, SqliteTransaction
from mesh.errors import Unavailable
from mesh.text import text_of

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer
    from sqlalchemy.ext.asyncio import AsyncEngine

    from mesh.database.migrations import Prepare
    from mesh.database_url import DatabaseUrl

__all__ = ["Database", "DatabaseError", "Outbox"]

log = logging.getLogger("mesh.database")

CONNECTIONS, EXTRA = 10, 10
"""Connections kept, and more of them under load, for each process."""
WAIT = 5.0
"""Seconds to wait for a connection, for a server to accept one, and for another process's lock on a SQLite file."""
_UNTRACED = trace.NoOpTracer()
RECYCLE = 1800
"""Seconds after which a connection is made anew: proxies and firewalls forget idle ones."""


class Database:
    """A service's own database.

    Args:
        url: ``sqlite:///PATH`` or ``postgresql://USER:PASSWORD@HOST:PORT/NAME``, with libpq's parameters
            (``mesh.database_url``).
        migrations: Folder of Alembic version files, or None.
        migrate: Run them at the start; else the database is opened at the version that it is at.
        name: The service's name, for errors and logs.
        before: What the mesh itself does in it at every start, before the migrations and in their transaction.
        after: And after them.
        outbox: Where events go, or None when the service publishes none.

    Raises:
        DatabaseError: The URL cannot be used.
    """

    def __init__(
        self,
        url: str,
        *,
        migrations: Path | None,
        name: str,
        migrate: bool = True,
        before: Sequence[Prepare] = (),
        after: Sequence[Prepare] = (),
        outbox: Outbox | None = None,
    ) -> None:
        self._name = name
        self._migrations, self._migrate = migrations, migrate
        self._before, self._after = before, after
        self._outbox = outbox
        self._url = engine.read(url)
        self._file = self._url.file
        self._tracer = trace.get_tracer("mesh.database")
        self._attributes = _attributes(self._url)
        self._writer = Writer(WAIT)
        self._plain = None if self._file is None else Plain(self._file, self._writer, WAIT)
        self._engine: AsyncEngine | None = None

    def __str__(self) -> str:
        return str(self._url)

    async def start(self) -> None:
        """Bring the database to its newest version and open it; safe when several replicas start at once.

        Raises:
            DatabaseError: It cannot be used; one line that says why, without the password.
        """
        try:
            engine.check_files(self._url)
            make = partial(self._create, once=True)
            upgrade = partial(
                migrations.upgrade, make, self._migrations, self._file, self._before, self._after, migrate=self._migrate
            )
            await contain(asyncio.to_thread(upgrade))
        except DatabaseError as error:
            raise DatabaseError(f"database of {self._name} ({self}): {error}") from error
        except Exception as error:
            place = migrations.place(error, self._migrations)
            driver = isinstance(error, exc.SQLAlchemyError | OSError) or getattr(error, "sqlstate", None) is not None
            why = reason(error) if driver else f"{type(error).__name__}: {text_of(error)}"
            failed = "a migration failed: " if place or not driver else ""
            raise DatabaseError(f"database of {self._name} ({self}): {failed}{why}{place}") from error
        self.open()

    def open(self) -> None:
        """Open it as it is: another process of the same component has brought it to its newest version.

        There is no connection before the first transaction, so a process that has opened it may be forked.
        """
        self._engine = self._create(once=False)

    def warm(self) -> None:
        """Do what SQLAlchemy does at the first use of each kind of statement: for a process that is to be forked."""
        if self._engine is not None:
            table = Table("warm", MetaData(), Column("id", Integer, primary_key=True), Column("text", String))
            for statement in (
                select(table).where(table.c.id == 1).order_by(table.c.text).limit(1),
                insert(table).values(id=1),
                update(table).where(table.c.id == 1).values(text=""),
                delete(table).where(table.c.id == 1),
            ):
                statement.compile(dialect=self._engine.dialect)

    async def stop(self) -> None:
        """Close all connections."""
        if self._engine is not None:
            await self._engine.dispose()
            self._engine = None
            if self._plain is not None:
                self._plain.close()

    def sole(self, name: str) -> Sole:
        """Return the right to do something alone over all replicas of the service."""
        if self._file is not None:
            return FileSole(self._file.with_name(f"{self._file.name}.{name}"))
        return PostgresSole(partial(self._create, once=True), name)

    def transaction(self) -> AbstractAsyncContextManager[OwnTransaction]:
        """Begin a transaction: commits at the end of the block, rolls back on any error and on cancellation.

        Raises:
            Unavailable: The database cannot be reached, or its lock was not had in time.
            Aborted: Another transaction changed the same data; the whole block may be tried again.
        """
        return self._transaction(self._tracer, self._outbox)

    def housekeeping(self) -> AbstractAsyncContextManager[Execute]:
        """Begin a transaction of the mesh's own, of text statements: without spans, and it wakes no relay.

        Raises:
            StatusError: As for ``transaction``.
        """
        return self._transaction(_UNTRACED, None) if self._plain is None else self._plain.transaction()

    @asynccontextmanager
    async def _transaction(self, tracer: Tracer, outbox: Outbox | None) -> AsyncIterator[OwnTransaction]:
        if self._engine is None:
            raise Unavailable(f"the database of {self._name} is not open")
        connection = self._engine.connect()
        try:
            await connection.start()
        except Exception as error:
            raise _translated(error) from error
        if self._file is None:
            transaction = OwnTransaction(connection, tracer, self._attributes, outbox)
        else:
            transaction = SqliteTransaction(connection, tracer, self._attributes, outbox, self._writer)
        try:
            yield transaction
            await transaction.commit()
        finally:
            await transaction.close()

    def _create(self, *, once: bool) -> AsyncEngine:
        pool: dict[str, Any] = (
            {"poolclass": NullPool}
            if once
            else {"pool_size": CONNECTIONS, "max_overflow": EXTRA, "pool_timeout": WAIT, "pool_recycle": RECYCLE}
        )
        made = engine.create(self._url, WAIT, **pool)
        if self._file is not None:
            event.listen(made.sync_engine, "connect", _prepare_sqlite)
        return made


def _attributes(url: DatabaseUrl) -> dict[str, Any]:
    """Return what is the same for every span (OpenTelemetry semantic conventions for database client spans)."""
    if url.file is not None:
        return {"db.system.name": "sqlite", "db.namespace": url.file.name}
    found: dict[str, Any] = {"db.system.name": "postgresql", "db.namespace": url.database or ""}
    if len(url.hosts) == 1:  # of several, a connection is to one of them
        [(host, port)] = url.hosts
        found |= {**({"server.address": host} if host else {}), **({"server.port": port} if port else {})}
    return found


def _translated(error: Exception) -> Exception:
    log.warning("no connection to the database: %s", reason(error))
    return status(error) or Unavailable("the database cannot be reached", retry_after=1.0)


def _prepare_sqlite(connection: Any, _: Any) -> None:
    connection.isolation_level = None  # BEGIN is ours: sqlite3's own comes too late and never takes the write lock
    cursor = connection.cursor()
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.close()
