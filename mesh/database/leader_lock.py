"""The right to do something alone, over all replicas of a service, and the news that there is something to do.

The database itself decides: an advisory lock of PostgreSQL's, or a locked file beside the SQLite file. Both end with
the process that holds them, however it ends. News cross processes too: PostgreSQL notifies, a named pipe lies beside
the SQLite file. News can be lost with a connection, so whoever waits for them also looks from time to time.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import zlib
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol

from sqlalchemy import exc

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

__all__ = ["FileSole", "PostgresSole", "Sole"]

RETRY = 0.5
"""Seconds between two tries to have what another replica has."""
PULSE = 5.0
"""Seconds between two questions to PostgreSQL whether the connection still stands, and for an answer."""
_ADVISORY = 0x6D657368
"""First half of the key of PostgreSQL's advisory lock; the second is a digest of the name."""


class Sole(Protocol):
    """The right, held or not.

    Attributes:
        news: Set when there may be something to do; whoever looks clears it first.
        lost: Set when the right was lost while it was held; that is news too.
    """

    news: asyncio.Event
    lost: asyncio.Event

    async def acquire(self) -> None:
        """Wait for the right, for ever if need be, also while the database is away."""

    async def release(self) -> None:
        """Give it back, if it is held."""

    def tell(self) -> None:
        """Tell whoever holds it, in whatever process, that there is something to do."""


class FileSole:
    """The right beside a SQLite file.

    Args:
        path: Its lock is ``PATH.lock``, its pipe ``PATH.pipe``.
    """

    def __init__(self, path: Path) -> None:
        self.news = asyncio.Event()
        self.lost = asyncio.Event()
        self._lock = path.with_name(f"{path.name}.lock")
        self._pipe = path.with_name(f"{path.name}.pipe")
        self._held: IO[str] | None = None
        self._reading: int | None = None

    async def acquire(self) -> None:
        """Wait for the locked file."""
        file = self._lock.open("w")
        try:
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    await asyncio.sleep(RETRY)
        except BaseException:
            file.close()
            raise
        self._held = file
        with contextlib.suppress(FileExistsError):
            os.mkfifo(self._pipe, 0o600)
        # Open for writing too: a pipe that its last writer closed would be readable for ever.
        self._reading = os.open(self._pipe, os.O_RDWR | os.O_NONBLOCK)
        asyncio.get_running_loop().add_reader(self._reading, self._read, self._reading)

    async def release(self) -> None:
        """Unlock the file."""
        if self._reading is not None:
            asyncio.get_running_loop().remove_reader(self._reading)
            os.close(self._reading)
            self._reading = None
        if self._held is not None:
            self._held.close()
            self._held = None

    def tell(self) -> None:
        """Set ``news`` here, or write to the pipe for another process."""
        if self._held is not None:
            self.news.set()
            return
        try:
            pipe = os.open(self._pipe, os.O_WRONLY | os.O_NONBLOCK)
        except OSError as error:
            if error.errno not in (errno.ENXIO, errno.ENOENT):  # nobody holds the right: whoever comes next looks
                raise
            return
        with contextlib.suppress(BlockingIOError):  # a full pipe is news enough
            os.write(pipe, b".")
        os.close(pipe)

    def _read(self, pipe: int) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(pipe, 65536)
        self.news.set()


class PostgresSole:
    """The right by an advisory lock of PostgreSQL's, on a connection of its own.

    Args:
        engine: Makes an engine that does not pool.
        name: The lock's name, and that of the channel by which the database notifies.
    """

    def __init__(self, engine: Callable[[], AsyncEngine], name: str) -> None:
        self.news = asyncio.Event()
        self.lost = asyncio.Event()
        self._engine = engine
        self._name = name
        self._connection: AsyncConnection | None = None
        self._driver: Any = None
        self._pulse: asyncio.Task[None] | None = None

    async def acquire(self) -> None:
        """Wait for the lock, and for the database."""
        while True:
            try:
                if self._driver is None or self._driver.is_closed():
                    await self.release()
                    await self._connect()
                schema = await self._driver.fetchval("SELECT current_schema()")
                # Services that share a database have a schema each; the key of "public" is that of earlier releases.
                own = self._name if schema in (None, "public") else f"{schema}.{self._name}"
                second = zlib.crc32(own.encode()) - 2**31
                if await self._driver.fetchval("SELECT pg_try_advisory_lock($1, $2)", _ADVISORY, second):
                    await self._driver.add_listener(self._name, self._notified)
                    break
            except (exc.SQLAlchemyError, OSError, TimeoutError):
                await self.release()
            except Exception as error:
                if not _from_driver(error):
                    raise
                await self.release()
            await asyncio.sleep(RETRY)
        self.lost.clear()
        self._pulse = asyncio.get_running_loop().create_task(self._beat(self._driver))

    async def release(self) -> None:
        """End the connection, and the lock with it."""
        connection, self._connection, self._driver = self._connection, None, None
        if self._pulse is not None:
            self._pulse.cancel()
            self._pulse = None
        if connection is not None:
            for part in (connection.invalidate, connection.close):
                with contextlib.suppress(Exception):  # it may be broken: whatever it says, it is given up
                    await part()

    def tell(self) -> None:
        """Set ``news``; other replicas learn it from the database."""
        self.news.set()

    async def _connect(self) -> None:
        self._connection = await self._engine().connect()
        raw = await self._connection.get_raw_connection()
        self._driver = raw.driver_connection
        # A holder whose machine died must not keep the lock for the two hours that TCP is patient by itself.
        for name, value in (("idle", 10), ("interval", 5), ("count", 3)):
            await self._driver.execute(f"SET tcp_keepalives_{name} = {value}")
        self._driver.add_termination_listener(self._terminated)

    async def _beat(self, driver: Any) -> None:
        try:
            while True:
                await asyncio.sleep(PULSE)
                await asyncio.wait_for(driver.fetchval("SELECT 1"), PULSE)
        except Exception:  # noqa: BLE001 - whatever is wrong with the connection, the lock on it is not to be relied on
            self._lose()

    def _notified(self, *_: object) -> None:
        self.news.set()

    def _terminated(self, connection: object) -> None:
        if connection is self._driver:
            self._lose()

    def _lose(self) -> None:
        self.lost.set()
        self.news.set()


def _from_driver(error: Exception) -> bool:
    return type(error).__module__.startswith("asyncpg")
