"""The main thread of a process, for ``def`` functions: the event loop runs in another thread meanwhile.

Much code expects to be called in the main thread, which has also imported it: signal handlers can be set there only,
``asyncio.get_event_loop()`` makes a loop there only, and SQLite connections and ``threading.local`` belong to the
thread that made them. AWS Lambda calls its handlers so.

One function runs at a time. A call that comes meanwhile waits, or is done by other threads: at once when functions
usually take long, and else as soon as the one that runs has taken ``BRISK``.

What is noted of who runs is noted by the loop's thread alone. The main thread takes the job that it is given, and says
when it is done; an exception of a signal handler, which Python raises between any two steps of the main thread, ends
the function that runs, or nothing.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import os
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable
from contextvars import Context
from queue import SimpleQueue
from time import monotonic
from typing import Any, NoReturn, TypeVar

from mesh.threads import BRISK, Block, Job, Threads

__all__ = ["MainThread", "ignore", "ignoring"]

log = logging.getLogger("mesh.functions")

T = TypeVar("T")

_LATEST = 8
"""Calls that say how long the functions usually take, as in ``mesh.threads``."""
_STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class MainThread:
    """The main thread, as a place for the functions of one event loop, which runs in another thread (``beside``).

    Args:
        others: Threads for calls that come while a function runs here; None: they wait.
        kept: Called in the main thread after each function: restores what the process needs of signals.
    """

    def __init__(self, others: Threads | None, kept: Callable[[], None] | None = None) -> None:
        self._others = others
        self._kept = ignoring if kept is None else kept
        self._wake: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._closed = False
        # Of the loop's thread:
        self._job: Job | None = None
        self._waiting: deque[Job] = deque()
        self._since = 0.0
        self._usual = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._free = asyncio.Event()
        self._free.set()
        # Of the main thread:
        self._begun: Job | None = None
        self._told: Job | None = None
        self._raised: BaseException | None = None
        self._took = 0.0

    @property
    def busy(self) -> bool:
        """Whether a function runs here, or is about to."""
        return self._job is not None

    async def run(self, work: Callable[[Block], Any], context: Context | None = None) -> Any:
        """Return ``work(block)``, run in the main thread or, while that is busy, in another.

        Args:
            work: The function; ``block(coroutine)`` waits there for what the event loop does.
            context: The context that it runs in, of which another thread gets a copy; None: a copy of the caller's.

        Raises:
            RuntimeError: The threads have been stopped, or the machine gives no thread.
        """
        if self._closed:
            raise RuntimeError("the main thread takes no more functions")
        job = Job(asyncio.get_running_loop(), work, context)
        if self._job is None:
            self._give(job)
        elif self._others is None:
            self._waiting.append(job)
        elif self._usual < BRISK and monotonic() - self._since < BRISK:
            self._waiting.append(job)
            if self._timer is None:
                self._timer = job.loop.call_later(BRISK, self._held_up)
        else:
            self._others.take(job.apart())
        try:
            return await job.future
        finally:
            job.end()

    async def free(self) -> None:
        """Return when no function runs here."""
        await self._free.wait()

    def do(self, work: Callable[[], T]) -> T:
        """Return what ``work`` does in the main thread, and block the loop's thread meanwhile: for imports."""
        outcome: concurrent.futures.Future[T] = concurrent.futures.Future()

        def done() -> None:
            try:
                outcome.set_result(work())
            except BaseException as error:  # noqa: BLE001 - it is raised where it was asked for
                outcome.set_exception(error)

        self._wake.put(done)
        return outcome.result()

    def stop(self) -> None:
        """Take no more functions; one that still runs is left to end by itself."""
        if self._timer is not None:
            self._timer.cancel()
        self._closed = True
        while self._waiting:
            self._waiting.popleft().future.cancel()
        if self._others is not None:
            self._others.stop()

    def beside(self, work: Callable[[], T], left: Callable[[T], NoReturn]) -> T:
        """Return what ``work``, which runs the event loop, does in a thread of its own; functions run here meanwhile.

        Args:
            work: Runs the event loop until the process is to end.
            left: Called there with its result, to end the process, when a function does not leave the main thread.
        """
        outcome: concurrent.futures.Future[T] = concurrent.futures.Future()

        def loop() -> None:
            try:
                outcome.set_result(work())
            except BaseException as error:  # noqa: BLE001 - raised in the main thread
                outcome.set_exception(error)
            self._closed = True
            self._wake.put(None)
            if not self.busy:
                return
            wrong = outcome.exception()
            if wrong is None:
                left(outcome.result())
            traceback.print_exception(wrong)
            os._exit(1)

        threading.Thread(target=loop, name="event loop", daemon=True).start()
        while not self._closed:
            try:
                self._serve()
            except BaseException as error:  # noqa: BLE001 - as there, a moment after the one before
                self._raised = error
        return outcome.result()

    # -- in the main thread: an exception may come anywhere, and what was begun is not begun again --

    def _serve(self) -> None:
        while not self._closed:
            try:
                self._turn()
            except BaseException as error:  # noqa: BLE001 - of a signal handler that a function has set
                self._raised = error

    def _turn(self) -> None:
        if self._raised is not None:
            self._blame()
        job = self._job
        if job is None or job is self._told:
            done = self._wake.get()
            if done is not None:
                done()
            return
        if job is not self._begun:
            self._begun = job
            began = monotonic()
            job.do()
            self._took = monotonic() - began
        with contextlib.suppress(Exception):
            self._kept()
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            job.loop.call_soon_threadsafe(self._done, job)
        self._told = job

    def _blame(self) -> None:
        """Have what a signal handler raised end the function that ran, if any."""
        error, job = self._raised, self._begun
        if error is not None and job is not None and job is not self._told:
            job.interrupt(error)
            self._raised = None
        else:
            self._raised = None
            log.warning("a signal handler raised while no function ran: %r", error)

    # -- in the loop's thread --

    def _give(self, job: Job) -> None:
        self._job = job
        self._since = monotonic()
        self._free.clear()
        self._wake.put(None)

    def _done(self, job: Job) -> None:
        if job is not self._job:
            return
        self._usual += (self._took - self._usual) / _LATEST
        self._job = None
        if self._waiting:
            self._give(self._waiting.popleft())
        else:
            self._free.set()
        job.settle()

    def _held_up(self) -> None:
        self._timer = None
        if not self._waiting or self._others is None:
            return
        if self._job is not None and monotonic() - self._since < BRISK:
            self._timer = self._job.loop.call_later(BRISK, self._held_up)
            return
        while self._waiting:
            job = self._waiting.popleft()
            try:
                self._others.take(job.apart())
            except RuntimeError as error:  # the machine gives no thread
                job.interrupt(error)
                job.settle()


def ignore(*_: object) -> None:
    """Do nothing; a handler, unlike SIG_IGN, is not inherited by programs that a function starts."""


def ignoring() -> None:
    """Have the signals that end a process do nothing, where a function has given them back their default."""
    for number in _STOPS:
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, ignore)
