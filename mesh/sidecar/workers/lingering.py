"""Functions that go on after their call has ended: who keeps the call's place, and who is told.

A thread cannot be stopped, a process can: the sidecar replaces a worker whose functions do not end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import Context
from typing import Any

from mesh.call import current
from mesh.main_thread import MainThread
from mesh.sidecar.workers.fork_setup import GRACE
from mesh.sidecar.workers.worker_calls import Answered
from mesh.threads import Block, Runs

__all__ = ["Alone", "Watched"]


class Watched:
    """Threads that are watched: a function that goes on long after its call has ended is reported.

    Args:
        places: Where the functions run.
        stuck: Reports it, by its method.
    """

    def __init__(self, places: Runs, stuck: Callable[[str], None]) -> None:
        self._places = places
        self._stuck = stuck

    async def run(self, work: Callable[[Block], Any], context: Context | None = None) -> Any:
        """Return ``work(block)`` (see ``Runs``)."""
        running = False

        def watched(block: Block) -> Any:
            nonlocal running
            running = True
            try:
                return work(block)
            finally:
                running = False

        try:
            return await self._places.run(watched, context)
        except asyncio.CancelledError:
            path = _path()
            asyncio.get_running_loop().call_later(GRACE, lambda: running and self._stuck(path))
            raise


class Alone:
    """The main thread of a worker that answers one call at a time: a call is over when its function is.

    A call that the sidecar cancels keeps its place until then, and the sidecar ends the worker when that takes long.
    One that ends by itself (a Lambda function's time-out) is answered at once, so it is reported before: no other call
    may come to this worker.

    Args:
        main: The main thread.
        stuck: Reports a function that goes on, by its method.
    """

    def __init__(self, main: MainThread, stuck: Callable[[str], None]) -> None:
        self._main = main
        self._stuck = stuck

    async def run(self, work: Callable[[Block], Any], context: Context | None = None) -> Any:
        """Return ``work(block)`` (see ``Runs``)."""
        try:
            return await self._main.run(work, context)
        except asyncio.CancelledError:
            call = current.get()
            if self._main.busy:
                if isinstance(call, Answered) and call.revoked:
                    await self._main.free()
                else:
                    self._stuck(_path())
            raise


def _path() -> str:
    call = current.get()
    return "" if call is None else call.method.path
