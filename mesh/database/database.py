"""Database of a service: start, migrations, transactions, shutdown."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from opentelemetry import trace
from sqlalchemy import Column, Integer, MetaData, String, Table, delete, event, exc, insert, select, update
from sqlalchemy.pool import NullPool, QueuePool

from mesh.boundary import contain
from mesh.call import note_wait
from mesh.database import engine, migrations
from mesh.database.failures import DatabaseError, reason, status
from mesh.database.leader_lock import FileLeaderLock, LeaderLock, PostgresLeaderLock
from mesh.database.sqlite_transaction import SqliteConnection, StatementExecutor
from mesh.database.sqlite_write_lock import SqliteWriteLock
from mesh.database.transaction import DatabaseTransaction, SqliteTransaction, TransactionOutbox
from mesh.errors import Unavailable
from mesh.text import text_of

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer
    from sqlalchemy.ext.asyncio import AsyncEngine

    from mesh.database.migrations import PrepareStep
    from mesh.database_url import DatabaseUrl

__all__ = ["Database", "DatabaseError", "TransactionOutbox"]

log = logging.getLogger("mesh.database")

POOL_SIZE, MAX_OVERFLOW = 10, 10
"""Connections that each process keeps, and further ones under load."""
WAIT_TIMEOUT = 5.0
"""Seconds to wait for a pooled connection, for a server to accept one, and for another process's lock on SQLite."""
_UNTRACED = trace.NoOpTracer()
CONNECTION_MAX_AGE = 1800
"""Seconds after which a connection is replaced. Proxies and firewalls drop idle ones."""


class Database:
    """The database of a service.

    Args:
        url: ``sqlite:///PATH`` or ``postgresql://USER:PASSWORD@HOST:PORT/NAME``, with libpq's parameters
            (``mesh.database_url``).
        migrations: Folder of Alembic version files, or None.
        migrate: Whether ``start`` runs them. Else the database is opened at its present version.
        name: The service's name, for errors and logs.
        before: Steps of the mesh at every start, before the migrations and in their transaction.
        after: Steps of the mesh after the migrations, in the same transaction.
        outbox: The outbox of the service's events, or None if it publishes none.

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
        before: Sequence[PrepareStep] = (),
        after: Sequence[PrepareStep] = (),
        outbox: TransactionOutbox | None = None,
    ) -> None:
        self._name = name
        self._migrations, self._migrate = migrations, migrate
        self._before, self._after = before, after
        self._outbox = outbox
        self._url = engine.parse_url(url)
        self._file = self._url.file
        self._tracer = trace.get_tracer("mesh.database")
        self._attributes = _attributes(self._url)
        self._write_lock = SqliteWriteLock(WAIT_TIMEOUT)
        self._internal = None if self._file is None else SqliteConnection(self._file, self._write_lock, WAIT_TIMEOUT)
        self._engine: AsyncEngine | None = None

    def __str__(self) -> str:
        return str(self._url)

    async def start(self) -> None:
        """Migrate the database to its newest version and open it. Several replicas may do so at once.

        Raises:
            DatabaseError: The database cannot be used. The message is one line: the reason, without the password.
        """
        try:
            engine.check_files(self._url)
            make = partial(self._create, pooled=False)
            upgrade = partial(
                migrations.upgrade, make, self._migrations, self._file, self._before, self._after, migrate=self._migrate
            )
            await contain(asyncio.to_thread(upgrade))
        except DatabaseError as error:
            raise DatabaseError(f"database of {self._name} ({self}): {error}") from error
        except Exception as error:
            location = migrations.error_location(error, self._migrations)
            driver = isinstance(error, exc.SQLAlchemyError | OSError) or getattr(error, "sqlstate", None) is not None
            why = reason(error) if driver else f"{type(error).__name__}: {text_of(error)}"
            failed = "a migration failed: " if location or not driver else ""
            raise DatabaseError(f"database of {self._name} ({self}): {failed}{why}{location}") from error
        self.open()

    def open(self) -> None:
        """Open the database without migrations, after another process of the same component has run them.

        No connection is made before the first transaction, so the process may be forked afterwards.
        """
        self._engine = self._create(pooled=True)

    def precompile_statements(self) -> None:
        """Compile one statement of each kind, so that forked processes need not do SQLAlchemy's work of a first use."""
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
            if self._internal is not None:
                self._internal.close()

    def leader_lock(self, name: str) -> LeaderLock:
        """Return the leader lock ``name`` of the service's replicas."""
        if self._file is not None:
            return FileLeaderLock(self._file.with_name(f"{self._file.name}.{name}"))
        return PostgresLeaderLock(partial(self._create, pooled=False), name)

    def transaction(self) -> AbstractAsyncContextManager[DatabaseTransaction]:
        """Begin a transaction. It commits at the end of the block, and rolls back on any error and on cancellation.

        Raises:
            Unavailable: The database cannot be reached, or its lock was not acquired in time.
            Aborted: Another transaction changed the same data. The block may be retried.
        """
        return self._transaction(self._tracer, self._outbox)

    def housekeeping(self) -> AbstractAsyncContextManager[StatementExecutor]:
        """Begin an internal transaction of the mesh, with text statements only. It has no spans and wakes no relay.

        Raises:
            StatusError: As for ``transaction``.
        """
        return self._transaction(_UNTRACED, None) if self._internal is None else self._internal.transaction()

    @asynccontextmanager
    async def _transaction(
        self, tracer: Tracer, outbox: TransactionOutbox | None
    ) -> AsyncIterator[DatabaseTransaction]:
        if self._engine is None:
            raise Unavailable(f"the database of {self._name} is not open")
        connection = self._engine.connect()
        began, exhausted = monotonic(), self._connections_exhausted
        try:
            await connection.start()
        except Exception as error:
            raise _translated(error) from error
        finally:
            note_wait(monotonic() - began if exhausted else 0.0)
        if self._file is None:
            transaction = DatabaseTransaction(connection, tracer, self._attributes, outbox)
        else:
            transaction = SqliteTransaction(connection, tracer, self._attributes, outbox, self._write_lock)
        try:
            yield transaction
            await transaction.commit()
        finally:
            await transaction.close()

    @property
    def _connections_exhausted(self) -> bool:
        """Whether a transaction has to wait until another one ends."""
        pool = None if self._engine is None else self._engine.pool
        return isinstance(pool, QueuePool) and pool.checkedout() >= POOL_SIZE + MAX_OVERFLOW

    def _create(self, *, pooled: bool) -> AsyncEngine:
        pool: dict[str, Any] = (
            {"poolclass": NullPool}
            if not pooled
            else {
                "pool_size": POOL_SIZE,
                "max_overflow": MAX_OVERFLOW,
                "pool_timeout": WAIT_TIMEOUT,
                "pool_recycle": CONNECTION_MAX_AGE,
            }
        )
        created = engine.create(self._url, WAIT_TIMEOUT, **pool)
        if self._file is not None:
            event.listen(created.sync_engine, "connect", _prepare_sqlite)
        return created


def _attributes(url: DatabaseUrl) -> dict[str, Any]:
    """Return the attributes of every span (OpenTelemetry semantic conventions for database client spans)."""
    if url.file is not None:
        return {"db.system.name": "sqlite", "db.namespace": url.file.name}
    found: dict[str, Any] = {"db.system.name": "postgresql", "db.namespace": url.database or ""}
    if len(url.hosts) == 1:  # with several hosts, it is unknown which one a connection has
        [(host, port)] = url.hosts
        found |= {**({"server.address": host} if host else {}), **({"server.port": port} if port else {})}
    return found


def _translated(error: Exception) -> Exception:
    log.warning("no connection to the database: %s", reason(error))
    return status(error) or Unavailable("the database cannot be reached", retry_after=1.0)


def _prepare_sqlite(connection: Any, _: Any) -> None:
    connection.isolation_level = None  # we send BEGIN: sqlite3's own comes too late and never takes the write lock
    cursor = connection.cursor()
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.close()
