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
import sqlite3
from typing import TYPE_CHECKING, Any, Protocol

from opentelemetry import trace

from mesh.database.failures import status
from mesh.errors import Aborted, FailedPrecondition, Unavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from google.protobuf.message import Message
    from opentelemetry.trace import Span, Tracer
    from sqlalchemy.ext.asyncio import AsyncConnection

    from mesh.context import Transaction

__all__ = ["WAIT", "Outbox", "OwnTransaction", "SqliteTransaction"]

WAIT = 5.0
"""Seconds to wait for a connection, for a server to accept one, and for another process's lock on a SQLite file."""
_AGAIN = 0.05
"""Seconds between two interruptions of a statement that may not have begun at the one before."""


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


class OwnTransaction:
    """``mesh.context.Transaction`` on one connection.

    Args:
        connection: Started, and nobody else's meanwhile.
        tracer: Of the spans.
        attributes: What is the same for every span.
        outbox: Where events go, or None.
    """

    __slots__ = ("_attributes", "_connection", "_cut", "_entered", "_mark", "_outbox", "_published", "_tracer")

    def __init__(
        self, connection: AsyncConnection, tracer: Tracer, attributes: dict[str, Any], outbox: Outbox | None
    ) -> None:
        self._connection = connection
        self._outbox = outbox
        self._published = False
        self._entered = False
        self._mark: Any = None
        self._cut = False
        self._tracer = tracer
        self._attributes = attributes

    async def execute(self, statement: Any, parameters: Any = None) -> Any:
        """Execute an SQLAlchemy statement and return its (buffered) result.

        Raises:
            Unavailable: The database cannot be reached, or its lock was not had in time.
            Aborted: Another transaction changed the same data, or a statement before this one was cancelled.
            sqlalchemy.exc.IntegrityError: A constraint was violated; on PostgreSQL the transaction is over.
        """
        self._check()
        if self._outbox is not None and not self._entered and not only_reads(statement):
            self._entered = True
            self._mark = await self._outbox.enter(self)
        span = self._tracer.start_span("SQL", kind=trace.SpanKind.CLIENT, attributes=self._attributes)
        try:
            result = await self._run(statement, parameters)
        except BaseException as error:
            self._cut = self._cut or isinstance(error, asyncio.CancelledError)
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
            Aborted: Another transaction changed the same data, or a statement was cancelled.
            sqlalchemy.exc.IntegrityError: A deferred constraint was violated; nothing is committed.
        """
        self._check()
        if not self._connection.in_transaction():
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

    def _check(self) -> None:
        if self._cut:
            raise Aborted("a statement of this transaction was cancelled, and with it all that the transaction did")

    def _run(self, statement: Any, parameters: Any) -> Awaitable[Any]:
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
        writer: asyncio.Lock,
    ) -> None:
        super().__init__(connection, tracer, attributes, outbox)
        self._writer = writer
        self._writing = False
        self._driver: Any = None
        self._running: asyncio.Future[Any] | None = None

    async def _run(self, statement: Any, parameters: Any) -> Any:
        await self._begin(reads=only_reads(statement))
        return await self._whole(self._connection.execute(statement, parameters))

    async def _commit(self) -> None:
        await self._whole(self._connection.commit())
        self._driver = None  # nothing is open any more

    def _may_have_published(self) -> bool:
        return self._published or self._writing  # a trigger may have written events too

    async def _begin(self, *, reads: bool) -> None:
        """Begin when the first statement says what kind of transaction it is."""
        if not reads and not self._writing:
            try:
                async with asyncio.timeout(WAIT):
                    await self._writer.acquire()
            except TimeoutError:
                raise Unavailable("the database is busy: another transaction holds it", retry_after=1.0) from None
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
                    if self._cut:
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
    """Return whether it is a plain SELECT."""
    return bool(getattr(statement, "is_select", False)) and getattr(statement, "_for_update_arg", None) is None


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
