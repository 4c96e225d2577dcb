"""Internal transactions of the mesh on a SQLite file: text statements, each with one change of threads.

With SQLAlchemy and aiosqlite, a transaction of one statement changes threads eight times, which costs more than the
statement. That matters because an outbox is read and cleared after every commit. Functions do not use this.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from mesh.database.failures import status
from mesh.database.sqlite_write_lock import SqliteWriteLock

if TYPE_CHECKING:
    from sqlalchemy import TextClause
    from sqlalchemy.sql.selectable import TextualSelect

__all__ = ["InternalTransaction", "SqliteConnection", "StatementExecutor"]

T = TypeVar("T")


class StatementExecutor(Protocol):
    """Interface of an internal transaction on both kinds of databases."""

    async def execute(self, statement: TextClause | TextualSelect, parameters: Any = None) -> Any:
        """Execute a text statement and return its rows."""


class SqliteConnection:
    """Connection to a SQLite file, in a thread of its own, for internal transactions.

    Args:
        file: The file.
        write_lock: The write lock of this process.
        timeout: Seconds to wait for a lock.
    """

    def __init__(self, file: Path, write_lock: SqliteWriteLock, timeout: float) -> None:
        self._file = file
        self.write_lock = write_lock
        self._timeout = timeout
        self._transaction_lock = asyncio.Lock()  # one transaction at a time, since they share the connection
        self._thread = ThreadPoolExecutor(1, "mesh-outbox")
        self._connection: sqlite3.Connection | None = None

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[InternalTransaction]:
        """Begin a transaction. It commits at the end of the block, and rolls back on any error and on cancellation.

        Raises:
            Unavailable: The file cannot be used, or its lock was not acquired in time.
            Aborted: Another transaction changed the same data.
        """
        transaction = InternalTransaction(self)
        async with self._transaction_lock:
            try:
                yield transaction
                if transaction.writing:
                    await self.run(self._commit)
            except BaseException:
                # The single thread runs this after a statement that still runs, even if nobody awaits it.
                self._thread.submit(self._drop)
                raise
            finally:
                if transaction.writing:
                    self.write_lock.release()

    async def run(self, work: Callable[..., T], *arguments: Any) -> T:
        """Run a function in the thread.

        Raises:
            StatusError: SQLite's error, as a status.
        """
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)
        except sqlite3.Error as error:
            translated = status(error)
            if translated is None:
                raise
            raise translated from error

    def close(self) -> None:
        """Close the connection after the statements that still run."""
        if self._connection is not None:
            self._thread.submit(self._drop)
        self._thread.shutdown(wait=False)

    # -- in the thread --

    def execute(self, begin: bool, statement: str, parameters: Mapping[str, Any]) -> list[Any]:  # noqa: FBT001 - positional for run_in_executor
        """Execute one statement and return its rows."""
        connection = self._connection
        if connection is None:
            connection = self._connection = sqlite3.connect(self._file, self._timeout, isolation_level=None)
            # Rows written by hand can hold any bytes as text. One such row must not keep the others from being read.
            connection.text_factory = _text
            connection.execute("PRAGMA synchronous=FULL")
        if begin:
            connection.execute("BEGIN IMMEDIATE")
        return connection.execute(statement, parameters).fetchall()

    def _commit(self) -> None:
        assert self._connection is not None  # noqa: S101 - ``execute`` has opened it
        self._connection.execute("COMMIT")

    def _drop(self) -> None:
        """Close the connection, which rolls back. The next statement opens a new one."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(sqlite3.Error):
                connection.close()


class InternalTransaction:
    """Internal transaction on a SQLite file. It begins with the first write; reads before that are on their own.

    Attributes:
        writing: Whether a write was started.
    """

    __slots__ = ("_sqlite", "writing")

    def __init__(self, sqlite: SqliteConnection) -> None:
        self._sqlite = sqlite
        self.writing = False

    async def execute(self, statement: TextClause | TextualSelect, parameters: Any = None) -> list[Any]:
        """Execute a text statement and return its rows. A statement that reads needs ``columns()``.

        Raises:
            StatusError: As for ``SqliteConnection.transaction``.
        """
        begin = not (self.writing or getattr(statement, "is_select", False))
        if begin:
            await self._sqlite.write_lock.acquire()
            self.writing = True
        return await self._sqlite.run(self._sqlite.execute, begin, _sql(statement), parameters or {})


def _text(value: bytes) -> str:
    return value.decode(errors="replace")


@lru_cache
def _sql(statement: TextClause | TextualSelect) -> str:
    return str(statement)
