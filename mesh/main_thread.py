"""The main thread of a process, for ``def`` functions: the event loop runs in another thread meanwhile.

Much code expects to be called in the main thread, which has also imported it: signal handlers can be set there only,
``asyncio.get_event_loop()`` makes a loop there only, and SQLite connections and ``threading.local`` belong to the
thread that made them. AWS Lambda calls its handlers so.

One function runs at a time. A call that comes meanwhile waits, or is done by other threads: at once when functions
usually take long, and else as soon as the one that runs has taken ``BRISK``.

The two threads share a queue: the main thread takes jobs from its left end, the loop's takes back from its right end
what others are to do. Python raises an exception of a signal handler between any two steps of the main thread; so the
main thread notes each step before it takes it, and such an exception ends the function that runs, or nothing.
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

from mesh.forks import STOPS
from mesh.threads import BRISK, Block, Job, Threads

__all__ = ["MainThread", "ignore", "ignoring"]

log = logging.getLogger("mesh.functions")

T = TypeVar("T")

_LATEST = 8
"""Calls that say how long the functions usually take, as in ``mesh.threads``."""


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
        self._given: deque[Job] = deque()
        self._since = 0.0
        self._usual = 0.0
        # Of the loop's thread:
        self._outstanding: set[Job] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._free = asyncio.Event()
        self._free.set()
        # Of the main thread:
        self._next: Job | None = None
        self._begun: Job | None = None
        self._finished: Job | None = None
        self._resting = False
        self._done: deque[Job] = deque()
        self._told = False
        self._raised: BaseException | None = None

    @property
    def busy(self) -> bool:
        """Whether a function runs here, or is about to."""
        return bool(self._outstanding)

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
        if not self._outstanding or self._others is None:
            self._give(job)
        elif self._usual < BRISK and monotonic() - self._since < BRISK:
            self._give(job)
            if self._timer is None:
                self._timer = job.loop.call_later(BRISK, self._held_up, job.loop)
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
        for job in self._taken_back():
            job.interrupt(RuntimeError("the main thread takes no more functions"))
            job.settle()
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
        job = self._next
        if job is None:
            try:
                self._next = self._given[0]
            except IndexError:  # there is none, or the loop has just taken it back
                self._rest()
            return
        if job is not self._begun:
            try:
                self._given.remove(job)
            except ValueError:
                if job.elsewhere:
                    self._next = None
                    return
                # else it was taken, and a signal handler raised before that could be noted
            self._begun = job
            self._since = monotonic()
            job.do()
            self._usual += (monotonic() - self._since - self._usual) / _LATEST
        self._finish(job)
        self._next = None

    def _rest(self) -> None:
        """Wait for a job, unless one has come since it was looked for, or for other work."""
        self._resting = True
        if self._given:
            return
        work = self._wake.get()
        if work is not None:
            work()
            self._kept()

    def _finish(self, job: Job) -> None:
        with contextlib.suppress(Exception):
            self._kept()
        self._done.append(job)
        if not self._told:
            self._told = True
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                job.loop.call_soon_threadsafe(self._deliver)
        self._finished = job

    def _blame(self) -> None:
        """Have what a signal handler raised end the function that ran, if any."""
        error, job = self._raised, self._begun
        if job is not None:
            with contextlib.suppress(RuntimeError):  # as in _finish, where it may have come between the two lines
                job.loop.call_soon_threadsafe(self._deliver)
            if error is not None and job is not self._finished:
                job.interrupt(error)
                error = None
        self._raised = None
        if error is not None:
            log.warning("a signal handler raised while no function ran: %r", error)

    # -- in the loop's thread --

    def _give(self, job: Job) -> None:
        if not self._outstanding:
            self._since = monotonic()  # it will begin at once
        self._outstanding.add(job)
        self._free.clear()
        self._given.append(job)
        if self._resting:
            self._resting = False
            self._wake.put(None)

    def _deliver(self) -> None:
        self._told = False
        while self._done:
            job = self._done.popleft()
            self._outstanding.discard(job)
            job.settle()
        if not self._outstanding:
            self._free.set()

    def _held_up(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        if not self._given or self._others is None:
            return
        if monotonic() - self._since < BRISK:
            self._timer = loop.call_later(BRISK, self._held_up, loop)
            return
        for job in self._taken_back():
            try:
                self._others.take(job.apart())
            except RuntimeError as error:  # the machine gives no thread
                job.interrupt(error)
                job.settle()

    def _taken_back(self) -> list[Job]:
        """Take the jobs that the main thread has not taken, first come first."""
        found: list[Job] = []
        while True:
            try:
                job = self._given[-1]
            except IndexError:
                return found[::-1]
            job.elsewhere = True
            try:
                self._given.remove(job)
            except ValueError:  # the main thread was faster
                job.elsewhere = False
                continue
            self._outstanding.discard(job)
            found.append(job)


def ignore(*_: object) -> None:
    """Do nothing; a handler, unlike SIG_IGN, is not inherited by programs that a function starts."""


def ignoring() -> None:
    """Have the signals that end a process do nothing, where a function has given them back their default."""
    for number in STOPS:
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, ignore)
