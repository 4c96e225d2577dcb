"""Overrun detection: reports functions that go on after their call has ended.

A thread cannot be stopped, but a process can. So the sidecar replaces a worker in which a function overruns.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import Context
from typing import Any

from mesh.call import current
from mesh.main_thread import MainThread
from mesh.sidecar.workers.worker_calls import OVERRUN_TIMEOUT, ServedCall
from mesh.threads import Block, FunctionRunner

__all__ = ["OverrunWatcher", "SingleCallMainThread"]


class OverrunWatcher:
    """Runs functions in threads and reports each that goes on ``OVERRUN_TIMEOUT`` after its call was cancelled.

    Args:
        threads: Where the functions run.
        report: Called with the method of a function that overruns.
    """

    def __init__(self, threads: FunctionRunner, report: Callable[[str], None]) -> None:
        self._threads = threads
        self._report = report

    async def run(self, work: Callable[[Block], Any], context: Context | None = None) -> Any:
        """Return ``work(block)`` (see ``FunctionRunner``)."""
        running = False

        def watched(block: Block) -> Any:
            nonlocal running
            running = True
            try:
                return work(block)
            finally:
                running = False

        try:
            return await self._threads.run(watched, context)
        except asyncio.CancelledError:
            path = _current_path()
            asyncio.get_running_loop().call_later(OVERRUN_TIMEOUT, lambda: running and self._report(path))
            raise


class SingleCallMainThread:
    """The main thread of a worker that serves one call at a time: a call ends when its function does.

    A call that the sidecar cancels keeps its permit until then; the sidecar ends the worker if that takes long. A call
    that ends by itself (the timeout of a Lambda function) gets its status at once. It is reported before, because no
    other call may come to this worker.

    Args:
        main: The main thread.
        report: Called with the method of a function that overruns.
    """

    def __init__(self, main: MainThread, report: Callable[[str], None]) -> None:
        self._main = main
        self._report = report

    async def run(self, work: Callable[[Block], Any], context: Context | None = None) -> Any:
        """Return ``work(block)`` (see ``FunctionRunner``)."""
        try:
            return await self._main.run(work, context)
        except asyncio.CancelledError:
            call = current.get()
            if self._main.busy:
                if isinstance(call, ServedCall) and call.cancelled:
                    await self._main.wait_idle()
                else:
                    self._report(_current_path())
            raise


def _current_path() -> str:
    call = current.get()
    return "" if call is None else call.method.path
