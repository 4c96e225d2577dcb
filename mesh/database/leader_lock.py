"""Leader lock across the replicas of a service, with a wake-up channel for its holder.

The lock is an advisory lock of PostgreSQL, or a locked file beside the SQLite file. Both end with the process that
holds them, however it ends. Wake-ups cross processes: by PostgreSQL's NOTIFY, or by a named pipe beside the SQLite
file. A wake-up can be lost with a connection, so the holder also checks for work from time to time.
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

from mesh import private_files

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

__all__ = ["FileLeaderLock", "LeaderLock", "PostgresLeaderLock"]

RETRY_INTERVAL = 0.5
"""Seconds between two attempts to get a lock that another replica holds."""
HEARTBEAT_INTERVAL = 5.0
"""Seconds between two checks of the connection to PostgreSQL, and the timeout of a check."""
_LOCK_CLASS = 0x6D657368
"""First half of the key of PostgreSQL's advisory lock. The second half is a digest of the name."""


class LeaderLock(Protocol):
    """The lock, held or not.

    Attributes:
        wakeup: Set when there may be work. The holder clears it before it checks for work.
        lost: Set when the lock was lost while it was held. ``wakeup`` is set then too.
    """

    wakeup: asyncio.Event
    lost: asyncio.Event

    async def acquire(self) -> None:
        """Wait for the lock without a timeout, also while the database is unreachable."""

    async def release(self) -> None:
        """Release the lock, if it is held."""

    def notify(self) -> None:
        """Wake the holder, in whatever process, because there is work."""


class FileLeaderLock:
    """Leader lock for a SQLite database: a locked file beside it.

    Args:
        path: Prefix of the lock file (``PATH.lock``) and the named pipe (``PATH.pipe``).
    """

    def __init__(self, path: Path) -> None:
        self.wakeup = asyncio.Event()
        self.lost = asyncio.Event()
        self._lock = path.with_name(f"{path.name}.lock")
        self._pipe = path.with_name(f"{path.name}.pipe")
        self._locked_file: IO[str] | None = None
        self._pipe_fd: int | None = None

    async def acquire(self) -> None:
        """Wait for the lock on the file."""
        file = os.fdopen(private_files.opener(str(self._lock), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC), "w")
        try:
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    await asyncio.sleep(RETRY_INTERVAL)
        except BaseException:
            file.close()
            raise
        self._locked_file = file
        with contextlib.suppress(FileExistsError):
            os.mkfifo(self._pipe, 0o600)
        # Open for writing too: a pipe without a writer is always readable (end of file).
        self._pipe_fd = os.open(self._pipe, os.O_RDWR | os.O_NONBLOCK)
        asyncio.get_running_loop().add_reader(self._pipe_fd, self._read, self._pipe_fd)

    async def release(self) -> None:
        """Unlock the file."""
        if self._pipe_fd is not None:
            asyncio.get_running_loop().remove_reader(self._pipe_fd)
            os.close(self._pipe_fd)
            self._pipe_fd = None
        if self._locked_file is not None:
            self._locked_file.close()
            self._locked_file = None

    def notify(self) -> None:
        """Set ``wakeup`` here, or write to the pipe for another process."""
        if self._locked_file is not None:
            self.wakeup.set()
            return
        try:
            pipe = os.open(self._pipe, os.O_WRONLY | os.O_NONBLOCK)
        except OSError as error:
            if error.errno not in (errno.ENXIO, errno.ENOENT):  # nobody holds the lock: the next holder checks for work
                raise
            return
        with contextlib.suppress(BlockingIOError):  # a full pipe wakes the holder anyway
            os.write(pipe, b".")
        os.close(pipe)

    def _read(self, pipe: int) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(pipe, 65536)
        self.wakeup.set()


class PostgresLeaderLock:
    """Leader lock for PostgreSQL: an advisory lock on a connection of its own.

    Args:
        engine: Creates an engine without a pool.
        name: Name of the lock, and of the channel of NOTIFY.
    """

    def __init__(self, engine: Callable[[], AsyncEngine], name: str) -> None:
        self.wakeup = asyncio.Event()
        self.lost = asyncio.Event()
        self._engine = engine
        self._name = name
        self._connection: AsyncConnection | None = None
        self._driver: Any = None
        self._heartbeat_task: asyncio.Task[None] | None = None

    async def acquire(self) -> None:
        """Wait for the database and the lock."""
        while True:
            try:
                if self._driver is None or self._driver.is_closed():
                    await self.release()
                    await self._connect()
                schema = await self._driver.fetchval("SELECT current_schema()")
                # Services that share a database have a schema each. The key for "public" is that of earlier releases.
                own = self._name if schema in (None, "public") else f"{schema}.{self._name}"
                second = zlib.crc32(own.encode()) - 2**31
                if await self._driver.fetchval("SELECT pg_try_advisory_lock($1, $2)", _LOCK_CLASS, second):
                    await self._driver.add_listener(self._name, self._notified)
                    break
            except (exc.SQLAlchemyError, OSError, TimeoutError):
                await self.release()
            except Exception as error:
                if not _from_driver(error):
                    raise
                await self.release()
            await asyncio.sleep(RETRY_INTERVAL)
        self.lost.clear()
        self._heartbeat_task = asyncio.get_running_loop().create_task(self._heartbeat(self._driver))

    async def release(self) -> None:
        """Close the connection, which releases the lock."""
        connection, self._connection, self._driver = self._connection, None, None
        if self._heartbeat_task is not None:
            self._heartbeat_task.cancel()
            self._heartbeat_task = None
        if connection is not None:
            for part in (connection.invalidate, connection.close):
                with contextlib.suppress(Exception):  # the connection may be broken; it is dropped anyway
                    await part()

    def notify(self) -> None:
        """Set ``wakeup``. The database notifies other replicas."""
        self.wakeup.set()

    async def _connect(self) -> None:
        self._connection = await self._engine().connect()
        raw = await self._connection.get_raw_connection()
        self._driver = raw.driver_connection
        # A holder whose machine died must not keep the lock for the two hours of TCP's default keepalive.
        for name, value in (("idle", 10), ("interval", 5), ("count", 3)):
            await self._driver.execute(f"SET tcp_keepalives_{name} = {value}")
        self._driver.add_termination_listener(self._terminated)

    async def _heartbeat(self, driver: Any) -> None:
        try:
            while True:
                await asyncio.sleep(HEARTBEAT_INTERVAL)
                await asyncio.wait_for(driver.fetchval("SELECT 1"), HEARTBEAT_INTERVAL)
        except Exception:  # noqa: BLE001 - the lock of a broken connection is not reliable
            self._lose()

    def _notified(self, *_: object) -> None:
        self.wakeup.set()

    def _terminated(self, connection: object) -> None:
        if connection is self._driver:
            self._lose()

    def _lose(self) -> None:
        self.lost.set()
        self.wakeup.set()


def _from_driver(error: Exception) -> bool:
    return type(error).__module__.startswith("asyncpg")
