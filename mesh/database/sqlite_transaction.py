"""The mesh's own transactions on a SQLite file: text statements, each with one change of threads.

Through SQLAlchemy and aiosqlite a transaction of one statement changes threads eight times, which costs more than the
statement does; and an outbox is read and cleared after every commit. Functions never see this.
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
from mesh.database.sqlite_write_lock import Writer

if TYPE_CHECKING:
    from sqlalchemy import TextClause
    from sqlalchemy.sql.selectable import TextualSelect

__all__ = ["Execute", "Plain", "PlainTransaction"]

T = TypeVar("T")


class Execute(Protocol):
    """What a transaction of the mesh's own can do, on either kind of database."""

    async def execute(self, statement: TextClause | TextualSelect, parameters: Any = None) -> Any:
        """Execute a text statement and return its rows."""


class Plain:
    """One connection to a SQLite file, in a thread of its own.

    Args:
        file: The file.
        writer: Held by whoever writes in this process.
        wait: Seconds to wait for a lock.
    """

    def __init__(self, file: Path, writer: Writer, wait: float) -> None:
        self._file = file
        self.writer = writer
        self._wait = wait
        self._turn = asyncio.Lock()  # one transaction at a time: they share the connection, and what drops it
        self._thread = ThreadPoolExecutor(1, "mesh-outbox")
        self._connection: sqlite3.Connection | None = None

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[PlainTransaction]:
        """Begin a transaction: commits at the end of the block, rolls back on any error and on cancellation.

        Raises:
            Unavailable: The file cannot be used, or its lock was not had in time.
            Aborted: Another transaction changed the same data.
        """
        transaction = PlainTransaction(self)
        async with self._turn:
            try:
                yield transaction
                if transaction.writing:
                    await self.run(self._commit)
            except BaseException:
                # In the one thread this comes after whatever still runs there, also when nobody waits for it.
                self._thread.submit(self._drop)
                raise
            finally:
                if transaction.writing:
                    self.writer.release()

    async def run(self, work: Callable[..., T], *arguments: Any) -> T:
        """Run in the thread.

        Raises:
            StatusError: What SQLite says to it.
        """
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)
        except sqlite3.Error as error:
            translated = status(error)
            if translated is None:
                raise
            raise translated from error

    def close(self) -> None:
        """Close the connection, when what runs has ended."""
        if self._connection is not None:
            self._thread.submit(self._drop)
        self._thread.shutdown(wait=False)

    # -- in the thread --

    def execute(self, begin: bool, statement: str, parameters: Mapping[str, Any]) -> list[Any]:  # noqa: FBT001 - by position: run_in_executor
        """Execute one statement and return its rows."""
        connection = self._connection
        if connection is None:
            connection = self._connection = sqlite3.connect(self._file, self._wait, isolation_level=None)
            # By hand anything can be written as text; one row must not keep the others from being read.
            connection.text_factory = _text
            connection.execute("PRAGMA synchronous=FULL")
        if begin:
            connection.execute("BEGIN IMMEDIATE")
        return connection.execute(statement, parameters).fetchall()

    def _commit(self) -> None:
        assert self._connection is not None  # noqa: S101 - it has written
        self._connection.execute("COMMIT")

    def _drop(self) -> None:
        """Close the connection, which rolls back; the next statement makes another."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(sqlite3.Error):
                connection.close()


class PlainTransaction:
    """What is executed in it commits together; what reads before anything was written stands by itself.

    Attributes:
        writing: Something was, or was about to be, written.
    """

    __slots__ = ("_plain", "writing")

    def __init__(self, plain: Plain) -> None:
        self._plain = plain
        self.writing = False

    async def execute(self, statement: TextClause | TextualSelect, parameters: Any = None) -> list[Any]:
        """Execute a text statement and return its rows; one that reads has ``columns()``.

        Raises:
            StatusError: As for ``Plain.transaction``.
        """
        begin = not (self.writing or getattr(statement, "is_select", False))
        if begin:
            await self._plain.writer.acquire()
            self.writing = True
        return await self._plain.run(self._plain.execute, begin, _sql(statement), parameters or {})


def _text(held: bytes) -> str:
    return held.decode(errors="replace")


@lru_cache
def _sql(statement: TextClause | TextualSelect) -> str:
    return str(statement)
