"""The right to write to a SQLite file, within one process: writers queue instead of polling for SQLite's lock."""

from __future__ import annotations

import asyncio

from mesh.errors import Unavailable

__all__ = ["Writer"]


class Writer:
    """Held by whoever writes.

    Args:
        wait: Seconds to wait for it.
    """

    def __init__(self, wait: float) -> None:
        self._wait = wait
        self._lock = asyncio.Lock()

    async def acquire(self) -> None:
        """Wait until nobody else writes.

        Raises:
            Unavailable: Somebody did for too long.
        """
        try:
            async with asyncio.timeout(self._wait):
                await self._lock.acquire()
        except TimeoutError:
            raise Unavailable("the database is busy: another transaction holds it", retry_after=1.0) from None

    def release(self) -> None:
        """Let the next one write."""
        self._lock.release()
