"""``Database``: one engine, its transactions, and a span for each statement."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from opentelemetry import trace
from sqlalchemy import Column, Integer, MetaData, String, Table, delete, event, exc, insert, select, update
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from mesh.database import migrations
from mesh.database.failures import DatabaseError, reason, status
from mesh.database.plain import Execute, Plain
from mesh.database.sole import FileSole, PostgresSole, Sole
from mesh.errors import FailedPrecondition, Unavailable

if TYPE_CHECKING:
    from google.protobuf.message import Message
    from opentelemetry.trace import Span, Tracer
    from sqlalchemy.engine import URL

    from mesh.context import Transaction
    from mesh.database.migrations import Prepare

__all__ = ["Database", "DatabaseError", "Outbox"]

log = logging.getLogger("mesh.database")

CONNECTIONS, EXTRA = 10, 10
"""Connections kept, and more of them under load, for each process."""
WAIT = 5.0
"""Seconds to wait for a connection, for a server to accept one, and for another process's lock on a SQLite file."""
_UNTRACED = trace.NoOpTracer()
RECYCLE = 1800
"""Seconds after which a connection is made anew: proxies and firewalls forget idle ones."""


class Outbox(Protocol):
    """Where a transaction's events go (``mesh.events.outbox``)."""

    async def put(self, tx: Transaction, event: Message) -> None:
        """Write an event in the transaction."""

    async def enter(self, tx: Transaction) -> Any:
        """Do what belongs before a transaction's first write; returns what ``leave`` needs."""

    async def leave(self, tx: Transaction, mark: Any) -> None:
        """Do what belongs before the commit of a transaction that has written."""

    def committed(self) -> None:
        """Take note that a transaction which may have written events has committed."""


class Database:
    """A service's own database.

    Args:
        url: ``sqlite:///PATH`` or ``postgresql://USER:PASSWORD@HOST:PORT/NAME``.
        migrations: Folder of Alembic version files, or None.
        name: The service's name, for errors and logs.
        before: What the mesh itself does in it at every start, before the migrations and in their transaction.
        after: And after them.
        outbox: Where events go, or None when the service publishes none.

    Raises:
        DatabaseError: The URL is of neither kind.
    """

    def __init__(
        self,
        url: str,
        *,
        migrations: Path | None,
        name: str,
        before: Sequence[Prepare] = (),
        after: Sequence[Prepare] = (),
        outbox: Outbox | None = None,
    ) -> None:
        self._name = name
        self._migrations = migrations
        self._before, self._after = before, after
        self._outbox = outbox
        self._url = _parse(url)
        self._file = Path(self._url.database) if self._url.drivername == "sqlite" and self._url.database else None
        self._tracer = trace.get_tracer("mesh.database")
        self._attributes = _attributes(self._url)
        self._writer = asyncio.Lock()
        self._plain = None if self._file is None else Plain(self._file, self._writer, WAIT)
        self._engine: AsyncEngine | None = None

    def __str__(self) -> str:
        return self._url.render_as_string(hide_password=True)

    async def start(self) -> None:
        """Bring the database to its newest version and open it; safe when several replicas start at once.

        Raises:
            DatabaseError: It cannot be used; one line that says why, without the password.
        """
        try:
            make = partial(self._create, once=True)
            await asyncio.to_thread(migrations.upgrade, make, self._migrations, self._file, self._before, self._after)
        except DatabaseError as error:
            raise DatabaseError(f"database of {self._name} ({self}): {error}") from error
        except (exc.SQLAlchemyError, OSError) as error:
            raise DatabaseError(f"database of {self._name} ({self}): {reason(error)}") from error
        except Exception as error:
            if getattr(error, "sqlstate", None) is None:  # not the driver's: a bug in a version file
                raise DatabaseError(
                    f"database of {self._name} ({self}): a migration failed: {type(error).__name__}: {error}"
                ) from error
            raise DatabaseError(f"database of {self._name} ({self}): {reason(error)}") from error
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

    def transaction(self) -> AbstractAsyncContextManager[_Transaction]:
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
    async def _transaction(self, tracer: Tracer, outbox: Outbox | None) -> AsyncIterator[_Transaction]:
        if self._engine is None:
            raise Unavailable(f"the database of {self._name} is not open")
        connection = self._engine.connect()
        try:
            await connection.start()
        except Exception as error:
            raise _translated(error) from error
        writer = None if self._file is None else self._writer
        transaction = _Transaction(connection, writer, tracer, self._attributes, outbox)
        try:
            yield transaction
            await transaction.commit()
        finally:
            await transaction.close()

    def _create(self, *, once: bool) -> AsyncEngine:
        sqlite = self._file is not None
        # asyncpg waits for a server by itself; sqlite3 for another process's lock.
        pool: dict[str, Any] = (
            {"poolclass": NullPool}
            if once
            else {"pool_size": CONNECTIONS, "max_overflow": EXTRA, "pool_timeout": WAIT, "pool_recycle": RECYCLE}
        )
        url = self._url.set(drivername="sqlite+aiosqlite" if sqlite else "postgresql+asyncpg")
        engine = create_async_engine(url, connect_args={"timeout": WAIT}, **pool)
        if sqlite:
            event.listen(engine.sync_engine, "connect", _prepare_sqlite)
        else:
            event.listen(engine.sync_engine, "checkout", _check_open)
        return engine


class _Transaction:
    """``mesh.context.Transaction`` on one connection."""

    __slots__ = (
        "_attributes", "_began", "_connection", "_entered", "_mark", "_outbox", "_published", "_tracer", "_writer",
        "_writing",
    )  # fmt: skip

    def __init__(
        self,
        connection: AsyncConnection,
        writer: asyncio.Lock | None,
        tracer: Tracer,
        attributes: dict[str, Any],
        outbox: Outbox | None,
    ) -> None:
        self._connection = connection
        self._outbox = outbox
        self._published = False
        self._entered = False
        self._mark: Any = None
        self._writer = writer
        self._writing = False
        self._began = False
        self._tracer = tracer
        self._attributes = attributes

    async def execute(self, statement: Any, parameters: Any = None) -> Any:
        """Execute an SQLAlchemy statement and return its (buffered) result.

        Raises:
            Unavailable: The database cannot be reached, or its lock was not had in time.
            Aborted: Another transaction changed the same data.
            sqlalchemy.exc.IntegrityError: A constraint was violated; on PostgreSQL the transaction is over.
        """
        if self._outbox is not None and not self._entered and not _only_reads(statement):
            self._entered = True
            self._mark = await self._outbox.enter(self)
        span = self._tracer.start_span("SQL", kind=trace.SpanKind.CLIENT, attributes=self._attributes)
        try:
            if self._writer is not None:
                await self._begin(self._writer, reads=_only_reads(statement))
            result = await self._connection.execute(statement, parameters)
        except BaseException as error:
            _describe(span, getattr(error, "statement", None), error)
            translated = status(error)
            if translated is None:
                raise
            raise translated from error
        else:
            _describe(span, result.context.statement, None)
            return result
        finally:
            span.end()

    async def publish(self, event: Message) -> None:
        """Publish an event that commits with the transaction, or not at all.

        Raises:
            FailedPrecondition: The service publishes no events.
            StatusError: As for ``execute``, and what the outbox has against the event.
        """
        if self._outbox is None:
            raise FailedPrecondition(
                f"{event.DESCRIPTOR.full_name} was not published: this service declares no events; "
                f'add publishes: "{event.DESCRIPTOR.full_name}" to its options in the contract'
            )
        await self._outbox.put(self, event)
        self._published = True

    async def commit(self) -> None:
        """Commit what was done.

        Raises:
            Unavailable: The connection was lost; whether it was committed is not known.
            Aborted: Another transaction changed the same data.
        """
        if not self._connection.in_transaction():
            return
        if self._outbox is not None and self._entered:
            await self._outbox.leave(self, self._mark)
        span = self._tracer.start_span("COMMIT", kind=trace.SpanKind.CLIENT, attributes=self._attributes)
        try:
            await self._connection.commit()
        except BaseException as error:
            _describe(span, "COMMIT", error)
            translated = status(error)
            if translated is None:
                raise
            raise translated from error
        else:
            _describe(span, "COMMIT", None)
            # On SQLite a trigger may have written events too; PostgreSQL tells of those by itself.
            if self._outbox is not None and (self._published or self._writing):
                self._outbox.committed()
        finally:
            span.end()

    async def close(self) -> None:
        """Give the connection back, rolling back what is not committed; cancellation waits for it."""
        closing = asyncio.ensure_future(self._connection.close())
        try:
            await asyncio.shield(closing)
        finally:
            if self._writing and self._writer is not None:
                if closing.done():
                    self._writer.release()
                else:
                    closing.add_done_callback(self._release)

    def _release(self, _: object) -> None:
        if self._writer is not None:
            self._writer.release()

    async def _begin(self, writer: asyncio.Lock, *, reads: bool) -> None:
        """Begin on SQLite, when the first statement says what kind of transaction it is."""
        if not reads and not self._writing:
            try:
                async with asyncio.timeout(WAIT):
                    await writer.acquire()
            except TimeoutError:
                raise Unavailable("the database is busy: another transaction holds it", retry_after=1.0) from None
            self._writing = True
        if not self._began:
            # To the driver itself: SQLAlchemy would change threads for the cursor, the statement and the cursor's end.
            raw = await self._connection.get_raw_connection()
            assert raw.driver_connection is not None  # noqa: S101 - it was just checked out
            await raw.driver_connection.execute("BEGIN" if reads else "BEGIN IMMEDIATE")
            self._began = True


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url)
    except (exc.ArgumentError, ValueError):
        parsed = None
    if (
        parsed is None
        or parsed.drivername not in ("sqlite", "postgresql")
        or not parsed.database
        or parsed.database == ":memory:"
    ):
        raise DatabaseError("expected a database URL: sqlite:///PATH or postgresql://USER:PASSWORD@HOST:PORT/NAME")
    return parsed


def _attributes(url: URL) -> dict[str, Any]:
    """Return what is the same for every span (OpenTelemetry semantic conventions for database client spans)."""
    if url.drivername == "sqlite":
        return {"db.system.name": "sqlite", "db.namespace": Path(url.database or "").name}
    found: dict[str, Any] = {"db.system.name": "postgresql", "db.namespace": url.database}
    host = url.host or url.query.get("host")
    if isinstance(host, str):
        found["server.address"] = host
    if url.port:
        found["server.port"] = url.port
    return found


def _describe(span: Span, statement: str | None, error: BaseException | None) -> None:
    """Say what the span was: statements hold placeholders, never values."""
    if not span.is_recording():
        return
    if statement:
        operation = statement.split(None, 1)[0].upper()
        span.update_name(operation)
        span.set_attribute("db.operation.name", operation)
        span.set_attribute("db.query.text", statement)
    if error is not None:
        original = getattr(error, "orig", None) or error
        span.set_attribute("error.type", str(getattr(original, "sqlstate", None) or type(original).__name__))
        span.set_status(trace.StatusCode.ERROR)


def _only_reads(statement: Any) -> bool:
    return bool(getattr(statement, "is_select", False)) and getattr(statement, "_for_update_arg", None) is None


def _translated(error: Exception) -> Exception:
    log.warning("no connection to the database: %s", reason(error))
    return status(error) or Unavailable("the database cannot be reached", retry_after=1.0)


def _prepare_sqlite(connection: Any, _: Any) -> None:
    connection.isolation_level = None  # BEGIN is ours: sqlite3's own comes too late and never takes the write lock
    cursor = connection.cursor()
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.close()


def _check_open(connection: Any, *_: Any) -> None:
    if connection.driver_connection.is_closed():  # the server ended it meanwhile: the pool makes another one
        raise exc.DisconnectionError
