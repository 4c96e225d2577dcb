"""Transactions of a service's database, with a span for each statement.

A statement may be cancelled at any moment, since calls have deadlines. With PostgreSQL, the server is told, and the
connection is dropped. A SQLite connection that is closed while an object still refers to one of its statements keeps
its locks until the next garbage collection, which never comes in an idle process. So with SQLite the statement ends
first, interrupted if needed, and an uncommitted transaction is rolled back explicitly.
Source: https://www.sqlite.org/c3ref/close.html (connections that become "zombies").
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import sqlite3
from typing import TYPE_CHECKING, Any, Protocol, cast

from opentelemetry import trace
from sqlalchemy import BindParameter, ColumnClause, SelectBase, TableClause, TextClause, TextualSelect

from mesh.database.failures import status
from mesh.errors import Aborted, FailedPrecondition
from mesh.message_methods import descriptor_of

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from google.protobuf.message import Message
    from opentelemetry.trace import Span, Tracer
    from sqlalchemy.ext.asyncio import AsyncConnection

    from mesh.context import Transaction
    from mesh.database.sqlite_write_lock import SqliteWriteLock

__all__ = ["DatabaseTransaction", "SqliteTransaction", "TransactionOutbox"]

_CANCELLED, _FAILED = "was cancelled", "failed"
_ROLLBACK_TO = re.compile(r"\s*ROLLBACK\s+(TRANSACTION\s+|WORK\s+)?TO\b", re.IGNORECASE)
"""Rollback to a savepoint, which repairs a transaction after a failed statement."""
_SELECT, _LOCKING = re.compile(r"\s*SELECT\b", re.IGNORECASE), re.compile(r"\b(FOR|INTO)\b", re.IGNORECASE)
_LEAVES = (TableClause, ColumnClause, BindParameter)
"""Parts of a statement without children."""
_INTERRUPT_INTERVAL = 0.05
"""Seconds between two interruptions of a statement. The first may come before the statement has begun."""


class TransactionOutbox(Protocol):
    """Outbox of a transaction's events, as the database uses it (``mesh.events.publish.outbox``)."""

    async def put(self, tx: Transaction, event: Message) -> None:
        """Write an event in the transaction."""

    async def enter(self, tx: Transaction) -> Any:
        """Prepare a transaction before its first write. Return a value for ``leave``."""

    async def leave(self, tx: Transaction, mark: Any) -> None:
        """Finish a transaction that has written, before its commit."""

    def committed(self) -> None:
        """Note that a transaction which may have written events has committed."""


class DatabaseTransaction:
    """``mesh.context.Transaction`` on one connection.

    Args:
        connection: A started connection. Nobody else uses it meanwhile.
        tracer: Tracer of the spans.
        attributes: Attributes of every span.
        outbox: The outbox of the events, or None.
    """

    __slots__ = (
        "_attributes",
        "_changes",
        "_connection",
        "_entered",
        "_failure",
        "_mark",
        "_outbox",
        "_published",
        "_tracer",
    )  # fmt: skip

    def __init__(
        self, connection: AsyncConnection, tracer: Tracer, attributes: dict[str, Any], outbox: TransactionOutbox | None
    ) -> None:
        self._connection = connection
        self._outbox = outbox
        self._published = False
        self._entered = False
        self._mark: Any = None
        self._failure = ""
        self._changes = False
        self._tracer = tracer
        self._attributes = attributes

    async def execute(self, statement: Any, parameters: Any = None) -> Any:
        """Execute an SQLAlchemy statement and return its (buffered) result.

        Raises:
            Unavailable: The database cannot be reached, or its lock was not acquired in time.
            Aborted: Another transaction changed the same data. Or an earlier statement was cancelled, or failed and was
                not undone by ``ROLLBACK TO SAVEPOINT``.
            sqlalchemy.exc.IntegrityError: A constraint was violated. The transaction has failed.
        """
        self._check(statement)
        reads = is_read_only(statement)
        self._changes = self._changes or not reads
        if self._outbox is not None and not self._entered and not reads:
            self._entered = True
            self._mark = await self._outbox.enter(self)
        span = self._tracer.start_span("SQL", kind=trace.SpanKind.CLIENT, attributes=self._attributes)
        try:
            result = await self._run(statement, parameters, reads=reads)
        except BaseException as error:
            self._failure = _CANCELLED if isinstance(error, asyncio.CancelledError) else self._failure or _FAILED
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
        """Publish an event if the transaction commits.

        Raises:
            FailedPrecondition: The service publishes no events.
            StatusError: As for ``execute``, and the outbox's reasons to refuse the event.
        """
        if self._outbox is None:
            raise FailedPrecondition(
                f"{descriptor_of(event).full_name} was not published: this service declares no events; "
                f'add publishes: "{descriptor_of(event).full_name}" to its options in the contract'
            )
        await self._outbox.put(self, event)
        self._published = True

    async def commit(self) -> None:
        """Commit the transaction.

        Raises:
            Unavailable: The connection was lost. It is unknown whether the transaction was committed.
            Aborted: Another transaction changed the same data, or a statement was cancelled or has failed.
            sqlalchemy.exc.IntegrityError: A deferred constraint was violated. Nothing is committed.
        """
        if self._changes:
            self._check()
        if self._failure or not self._connection.in_transaction():
            return
        if self._outbox is not None and self._entered:
            await self._outbox.leave(self, self._mark)
        span = self._tracer.start_span("COMMIT", kind=trace.SpanKind.CLIENT, attributes=self._attributes)
        try:
            await self._commit()
        except BaseException as error:
            _describe(span, "COMMIT", error)
            translated = status(error)
            if translated is None:
                raise
            raise translated from error
        else:
            _describe(span, "COMMIT", None)
            if self._outbox is not None and self._may_have_published():
                self._outbox.committed()
        finally:
            span.end()

    async def close(self) -> None:
        """Roll back an uncommitted transaction and release the connection, even if the caller is cancelled."""
        await asyncio.shield(asyncio.ensure_future(self._end()))

    def _check(self, statement: Any = None) -> None:
        """Refuse statements and the commit after a statement that did not succeed.

        Else they would run outside of a transaction, or be rolled back without an error: PostgreSQL rolls back at such
        a COMMIT and reports success. SQLite rolls back by itself after some errors, and goes on without a transaction.
        """
        if self._failure == _FAILED and isinstance(statement, TextClause) and _ROLLBACK_TO.match(statement.text):
            self._failure = ""
        if self._failure:
            raise Aborted(f"a statement of this transaction {self._failure}, which ended all of it")

    def _run(self, statement: Any, parameters: Any, *, reads: bool) -> Awaitable[Any]:  # noqa: ARG002 - see below
        return self._connection.execute(statement, parameters)

    def _commit(self) -> Awaitable[None]:
        return self._connection.commit()

    async def _end(self) -> None:
        await self._connection.close()

    def _may_have_published(self) -> bool:
        return self._published  # PostgreSQL itself notifies of events that triggers write


class SqliteTransaction(DatabaseTransaction):
    """Transaction on a SQLite file, which has one writer at a time.

    Args:
        connection: As for ``DatabaseTransaction``, like the following three.
        tracer: See there.
        attributes: See there.
        outbox: See there.
        write_lock: The write lock of this process.
    """

    __slots__ = ("_driver", "_running", "_write_lock", "_writing")

    def __init__(
        self,
        connection: AsyncConnection,
        tracer: Tracer,
        attributes: dict[str, Any],
        outbox: TransactionOutbox | None,
        write_lock: SqliteWriteLock,
    ) -> None:
        super().__init__(connection, tracer, attributes, outbox)
        self._write_lock = write_lock
        self._writing = False
        self._driver: Any = None
        self._running: asyncio.Future[Any] | None = None

    async def _run(self, statement: Any, parameters: Any, *, reads: bool) -> Any:
        await self._begin(reads=reads)
        return await self._run_to_completion(self._connection.execute(statement, parameters))

    async def _commit(self) -> None:
        await self._run_to_completion(self._connection.commit())
        self._driver = None  # no transaction is open

    def _may_have_published(self) -> bool:
        return self._published or self._writing  # a trigger may have written events too

    async def _begin(self, *, reads: bool) -> None:
        """Begin with the first statement, as a reading or a writing transaction."""
        if not reads and not self._writing:
            await self._write_lock.acquire()
            self._writing = True
        if self._driver is None:
            # Directly on the driver: SQLAlchemy would change threads for cursor, statement and the cursor's end.
            self._driver = (await self._connection.get_raw_connection()).driver_connection
            await self._driver.execute("BEGIN" if reads else "BEGIN IMMEDIATE")

    async def _run_to_completion(self, work: Awaitable[Any]) -> Any:
        """Let the work end even if its caller is cancelled."""
        self._running = asyncio.ensure_future(work)
        return await asyncio.shield(self._running)

    async def _end(self) -> None:
        running = self._running
        try:
            if running is not None:
                while not running.done():
                    if self._failure == _CANCELLED:
                        await self._driver.interrupt()
                    await asyncio.wait([running], timeout=_INTERRUPT_INTERVAL)
                if not running.cancelled():
                    running.exception()  # mark it as retrieved; a caller that still waits gets it
            try:
                if self._driver is not None:
                    with contextlib.suppress(ValueError, sqlite3.Error):  # closed already; else ``close`` reports it
                        await self._driver.rollback()
            finally:
                await self._connection.close()
        finally:
            if self._writing:
                self._write_lock.release()


def is_read_only(statement: Any) -> bool:
    """Whether a statement is a SELECT that locks nothing and contains no INSERT, UPDATE or DELETE.

    Text can be any statement. It counts as reading only if ``columns()`` makes it a SELECT and it begins as one.
    """
    if isinstance(statement, TextualSelect):
        text = cast("TextClause", statement.element).text
        return _SELECT.match(text) is not None and _LOCKING.search(text) is None
    if not isinstance(statement, SelectBase):
        return False
    # SQLAlchemy's own visitor also visits every column of every table, which takes about twice as long.
    parts: list[Any] = [statement]
    while parts:
        part = parts.pop()
        if part.is_dml or getattr(part, "_for_update_arg", None) is not None:
            return False
        parts += [one for one in part.get_children() if not isinstance(one, _LEAVES)]
    return True


def _describe(span: Span, statement: str | None, error: BaseException | None) -> None:
    """Set the span's name and attributes. Statements have placeholders, never values."""
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
