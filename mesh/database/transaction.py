"""Transactions of a service's own database, and a span for each statement.

A statement may be cancelled at any moment: calls have deadlines. PostgreSQL is told, and the connection is given up. A
SQLite connection that is closed while something still refers to one of its statements keeps its locks, until the
garbage collector comes by, which in an idle process is never. There a statement ends, interrupted if need be, before
anything else is done with its connection, and whatever was not committed is rolled back by name.
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
    from mesh.database.sqlite_write_lock import Writer

__all__ = ["Outbox", "OwnTransaction", "SqliteTransaction"]

_CANCELLED, _FAILED = "was cancelled", "failed"
_BACK = re.compile(r"\s*ROLLBACK\s+(TRANSACTION\s+|WORK\s+)?TO\b", re.IGNORECASE)
"""What goes back to a savepoint, and makes good again what failed since."""
_SELECT, _LOCKING = re.compile(r"\s*SELECT\b", re.IGNORECASE), re.compile(r"\b(FOR|INTO)\b", re.IGNORECASE)
_LEAVES = (TableClause, ColumnClause, BindParameter)
"""Parts of a statement that hold no others."""
_AGAIN = 0.05
"""Seconds between two interruptions of a statement that may not have begun at the one before."""


class Outbox(Protocol):
    """Where a transaction's events go (``mesh.events.publish.outbox``)."""

    async def put(self, tx: Transaction, event: Message) -> None:
        """Write an event in the transaction."""

    async def enter(self, tx: Transaction) -> Any:
        """Do what belongs before a transaction's first write; returns what ``leave`` needs."""

    async def leave(self, tx: Transaction, mark: Any) -> None:
        """Do what belongs before the commit of a transaction that has written."""

    def committed(self) -> None:
        """Take note that a transaction which may have written events has committed."""


class OwnTransaction:
    """``mesh.context.Transaction`` on one connection.

    Args:
        connection: Started, and nobody else's meanwhile.
        tracer: Of the spans.
        attributes: What is the same for every span.
        outbox: Where events go, or None.
    """

    __slots__ = (
        "_attributes", "_changes", "_connection", "_entered", "_mark", "_outbox", "_over", "_published", "_tracer",
    )  # fmt: skip

    def __init__(
        self, connection: AsyncConnection, tracer: Tracer, attributes: dict[str, Any], outbox: Outbox | None
    ) -> None:
        self._connection = connection
        self._outbox = outbox
        self._published = False
        self._entered = False
        self._mark: Any = None
        self._over = ""
        self._changes = False
        self._tracer = tracer
        self._attributes = attributes

    async def execute(self, statement: Any, parameters: Any = None) -> Any:
        """Execute an SQLAlchemy statement and return its (buffered) result.

        Raises:
            Unavailable: The database cannot be reached, or its lock was not had in time.
            Aborted: Another transaction changed the same data; or a statement before this one was cancelled, or failed
                and was not undone by ``ROLLBACK TO SAVEPOINT``.
            sqlalchemy.exc.IntegrityError: A constraint was violated; the transaction is over.
        """
        self._check(statement)
        reads = only_reads(statement)
        self._changes = self._changes or not reads
        if self._outbox is not None and not self._entered and not reads:
            self._entered = True
            self._mark = await self._outbox.enter(self)
        span = self._tracer.start_span("SQL", kind=trace.SpanKind.CLIENT, attributes=self._attributes)
        try:
            result = await self._run(statement, parameters, reads=reads)
        except BaseException as error:
            self._over = _CANCELLED if isinstance(error, asyncio.CancelledError) else self._over or _FAILED
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
                f"{descriptor_of(event).full_name} was not published: this service declares no events; "
                f'add publishes: "{descriptor_of(event).full_name}" to its options in the contract'
            )
        await self._outbox.put(self, event)
        self._published = True

    async def commit(self) -> None:
        """Commit what was done.

        Raises:
            Unavailable: The connection was lost; whether it was committed is not known.
            Aborted: Another transaction changed the same data, or a statement was cancelled or has failed.
            sqlalchemy.exc.IntegrityError: A deferred constraint was violated; nothing is committed.
        """
        if self._changes:
            self._check()
        if self._over or not self._connection.in_transaction():
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
        """Give the connection back, rolling back what is not committed; cancellation does not keep it from that."""
        await asyncio.shield(asyncio.ensure_future(self._end()))

    def _check(self, statement: Any = None) -> None:
        """Refuse what would be done on its own, or be undone in silence, after a statement that did not succeed.

        PostgreSQL answers a COMMIT then by rolling back, without an error; SQLite rolls back by itself for some errors,
        and goes on without a transaction.
        """
        if self._over == _FAILED and isinstance(statement, TextClause) and _BACK.match(statement.text):
            self._over = ""
        if self._over:
            raise Aborted(f"a statement of this transaction {self._over}, which ended all of it")

    def _run(self, statement: Any, parameters: Any, *, reads: bool) -> Awaitable[Any]:  # noqa: ARG002 - see below
        return self._connection.execute(statement, parameters)

    def _commit(self) -> Awaitable[None]:
        return self._connection.commit()

    async def _end(self) -> None:
        await self._connection.close()

    def _may_have_published(self) -> bool:
        return self._published  # of what triggers write, PostgreSQL tells by itself


class SqliteTransaction(OwnTransaction):
    """The same on a SQLite file, which has one writer at a time.

    Args:
        connection: As for ``OwnTransaction``, and so are those that follow.
        tracer: See there.
        attributes: See there.
        outbox: See there.
        writer: Held by whoever writes in this process.
    """

    __slots__ = ("_driver", "_running", "_writer", "_writing")

    def __init__(
        self,
        connection: AsyncConnection,
        tracer: Tracer,
        attributes: dict[str, Any],
        outbox: Outbox | None,
        writer: Writer,
    ) -> None:
        super().__init__(connection, tracer, attributes, outbox)
        self._writer = writer
        self._writing = False
        self._driver: Any = None
        self._running: asyncio.Future[Any] | None = None

    async def _run(self, statement: Any, parameters: Any, *, reads: bool) -> Any:
        await self._begin(reads=reads)
        return await self._whole(self._connection.execute(statement, parameters))

    async def _commit(self) -> None:
        await self._whole(self._connection.commit())
        self._driver = None  # nothing is open any more

    def _may_have_published(self) -> bool:
        return self._published or self._writing  # a trigger may have written events too

    async def _begin(self, *, reads: bool) -> None:
        """Begin when the first statement says what kind of transaction it is."""
        if not reads and not self._writing:
            await self._writer.acquire()
            self._writing = True
        if self._driver is None:
            # To the driver itself: SQLAlchemy would change threads for the cursor, the statement and the cursor's end.
            self._driver = (await self._connection.get_raw_connection()).driver_connection
            await self._driver.execute("BEGIN" if reads else "BEGIN IMMEDIATE")

    async def _whole(self, work: Awaitable[Any]) -> Any:
        """Let it end whether or not somebody waits for it."""
        self._running = asyncio.ensure_future(work)
        return await asyncio.shield(self._running)

    async def _end(self) -> None:
        running = self._running
        try:
            if running is not None:
                while not running.done():
                    if self._over == _CANCELLED:
                        await self._driver.interrupt()
                    await asyncio.wait([running], timeout=_AGAIN)
                if not running.cancelled():
                    running.exception()  # whoever waited for it has seen it, or does not want to
            try:
                if self._driver is not None:
                    with contextlib.suppress(ValueError, sqlite3.Error):  # it is closed already, or closing says more
                        await self._driver.rollback()
            finally:
                await self._connection.close()
        finally:
            if self._writing:
                self._writer.release()


def only_reads(statement: Any) -> bool:
    """Return whether it is a SELECT that locks nothing and holds no INSERT, UPDATE or DELETE.

    Text may be anything: it reads only when ``columns()`` makes a SELECT of it, and it begins as one.
    """
    if isinstance(statement, TextualSelect):
        text = cast("TextClause", statement.element).text
        return _SELECT.match(text) is not None and _LOCKING.search(text) is None
    if not isinstance(statement, SelectBase):
        return False
    # SQLAlchemy's own visitor looks at every column of every table too, which takes about twice as long.
    parts: list[Any] = [statement]
    while parts:
        part = parts.pop()
        if part.is_dml or getattr(part, "_for_update_arg", None) is not None:
            return False
        parts += [one for one in part.get_children() if not isinstance(one, _LEAVES)]
    return True


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
