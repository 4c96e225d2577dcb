"""Write lock of one process on a SQLite file: writers queue instead of polling for SQLite's lock."""

from __future__ import annotations

import asyncio
from time import monotonic

from mesh.call import note_wait
from mesh.errors import Unavailable

__all__ = ["SqliteWriteLock"]


class SqliteWriteLock:
    """Write lock with a timeout.

    Args:
        timeout: Seconds to wait for it.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._lock = asyncio.Lock()

    async def acquire(self) -> None:
        """Acquire the lock.

        Raises:
            Unavailable: Another transaction held it for too long.
        """
        began = monotonic()
        try:
            async with asyncio.timeout(self._timeout):
                await self._lock.acquire()
        except TimeoutError:
            raise Unavailable("the database is busy: another transaction holds it", retry_after=1.0) from None
        finally:
            note_wait(monotonic() - began)

    def release(self) -> None:
        """Release the lock to the next writer."""
        self._lock.release()
