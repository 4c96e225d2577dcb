"""Threads for ``def`` functions: bounded, with the call's context variables, and a way back to the event loop.

A thread cannot be stopped from outside. When its call ends early (deadline, caller gone) the call is answered at once
and the thread finds out at its next message: whatever it waits for, or asks for next, raises ``Cancelled``.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Callable, Coroutine
from contextvars import copy_context
from typing import Any

from mesh.errors import Cancelled

__all__ = ["Block", "Threads"]

Block = Callable[[Coroutine[Any, Any, Any]], Any]


class Threads:
    """A bounded pool of threads.

    Args:
        limit: Threads at most; they are started as they are needed. Calls beyond that wait their turn.
    """

    def __init__(self, limit: int) -> None:
        self._pool = concurrent.futures.ThreadPoolExecutor(limit, thread_name_prefix="function")

    async def run(self, work: Callable[[Block], Any]) -> Any:
        """Return ``work(block)``, run in a thread; ``block(coroutine)`` waits there for what the event loop does."""
        bridge = _Bridge(asyncio.get_running_loop())
        try:
            return await bridge.loop.run_in_executor(self._pool, copy_context().run, work, bridge.block)
        finally:
            bridge.end()

    def stop(self) -> None:
        """Take no more work; threads that still run are left to end by themselves."""
        self._pool.shutdown(wait=False, cancel_futures=True)


class _Bridge:
    """From one thread to the loop, until the call ends."""

    __slots__ = ("_ended", "_waiting", "loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._ended = False
        self._waiting: concurrent.futures.Future[Any] | None = None

    def block(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Wait in the thread for a coroutine on the loop.

        Raises:
            Cancelled: The call has ended.
        """
        if self._ended:
            coroutine.close()
            raise Cancelled("the call has ended")
        self._waiting = waiting = asyncio.run_coroutine_threadsafe(coroutine, self.loop)
        if self._ended:  # between the two lines above
            waiting.cancel()
        try:
            return waiting.result()
        except (concurrent.futures.CancelledError, asyncio.CancelledError):
            raise Cancelled("the call has ended") from None

    def end(self) -> None:
        self._ended = True
        if self._waiting is not None:
            self._waiting.cancel()
