"""Main thread as the executor of ``def`` functions, while the event loop runs in another thread.

Much code expects to run in the main thread, which also imported it. Signal handlers can be set there only,
``asyncio.get_event_loop()`` creates a loop there only, and SQLite connections and ``threading.local`` belong to the
thread that created them. AWS Lambda calls its handlers in the main thread.

One function runs at a time. Further calls are queued, or run in other threads: at once if functions usually take long,
otherwise after the running one has taken ``HANDOFF_DELAY``.

The two threads share a queue. The main thread takes jobs from its left end, the event loop takes jobs back from its
right end for other threads. Python raises an exception of a signal handler between any two steps of the main thread.
So the main thread records each step before it takes it, and such an exception ends the running function or nothing.
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

from mesh.call import note_wait
from mesh.errors import ResourceExhausted
from mesh.forks import STOP_SIGNALS
from mesh.threads import HANDOFF_DELAY, Block, Job, ThreadPool, ThreadUsage

__all__ = ["MainThread", "ignore_signal", "ignore_stop_signals"]

log = logging.getLogger("mesh.functions")

T = TypeVar("T")

_AVERAGED_CALLS = 8
"""Calls in the moving average of the run time, as in ``mesh.threads``."""


class MainThread:
    """Executor of functions in the main thread, for one event loop in another thread (``run_with_loop``).

    Args:
        overflow: Thread pool for calls that come while a function runs here; None: they are queued.
        restore_signals: Called in the main thread after each function; restores the signal handlers of the process.
    """

    def __init__(self, overflow: ThreadPool | None, restore_signals: Callable[[], None] | None = None) -> None:
        self._overflow = overflow
        self._restore_signals = ignore_stop_signals if restore_signals is None else restore_signals
        self._wake: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._closed = False
        self._queue: deque[Job] = deque()
        self._since = 0.0
        self._average_seconds = 0.0
        # Used by the event loop's thread:
        self._outstanding: set[Job] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._idle_event = asyncio.Event()
        self._idle_event.set()
        # Used by the main thread:
        self._next: Job | None = None
        self._started: Job | None = None
        self._finished: Job | None = None
        self._idle = False
        self._done: deque[Job] = deque()
        self._delivery_scheduled = False
        self._signal_error: BaseException | None = None

    @property
    def busy(self) -> bool:
        """Whether a function runs here or is queued."""
        return bool(self._outstanding)

    async def run(self, work: Callable[[Block], Any], context: Context | None = None) -> Any:
        """Run ``work(block)`` in the main thread, or in another one while that is busy, and return its result.

        Args:
            work: The function. ``block(coroutine)`` runs a coroutine on the event loop.
            context: Context to run in, of which another thread gets a copy; None: a copy of the caller's.

        Raises:
            RuntimeError: The executor was stopped, or the system can start no thread.
        """
        if self._closed:
            raise RuntimeError("the main thread takes no more functions")
        job = Job(asyncio.get_running_loop(), work, context)
        if not self._outstanding or self._overflow is None:
            self._enqueue(job)
        elif self._average_seconds < HANDOFF_DELAY and monotonic() - self._since < HANDOFF_DELAY:
            self._enqueue(job)
            if self._timer is None:
                self._timer = job.loop.call_later(HANDOFF_DELAY, self._check_progress, job.loop)
        else:
            self._overflow.take(job.copy_context())
        try:
            return await job.future
        finally:
            job.end()
            note_wait(job.waited)

    @property
    def usage(self) -> ThreadUsage:
        """Use of the threads, the main thread included, for metrics. It may be read in any thread."""
        others = ThreadUsage(0, 0, 0) if self._overflow is None else self._overflow.usage
        outstanding = len(self._outstanding)
        return ThreadUsage(others.busy + bool(outstanding), others.queued + max(0, outstanding - 1), others.abandoned)

    async def wait_idle(self) -> None:
        """Wait until no function runs here."""
        await self._idle_event.wait()

    def call(self, work: Callable[[], T]) -> T:
        """Run ``work`` in the main thread and return its result. Blocks the event loop; for imports."""
        outcome: concurrent.futures.Future[T] = concurrent.futures.Future()

        def done() -> None:
            try:
                outcome.set_result(work())
            except BaseException as error:  # noqa: BLE001 - raised for the caller
                outcome.set_exception(error)

        self._wake.put(done)
        return outcome.result()

    def stop(self) -> None:
        """Refuse further functions. A running function is not interrupted."""
        if self._timer is not None:
            self._timer.cancel()
        self._closed = True
        for job in self._take_back():
            job.fail(RuntimeError("the main thread takes no more functions"))
            job.resolve()
        if self._overflow is not None:
            self._overflow.stop()

    def run_with_loop(self, work: Callable[[], T], exit_process: Callable[[T], NoReturn]) -> T:
        """Run the event loop in another thread and functions in this one. Return the result of ``work``.

        Args:
            work: Runs the event loop until the process has to end.
            exit_process: Called in the thread of the loop with the result, if a function still blocks this thread.
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
                exit_process(outcome.result())
            traceback.print_exception(wrong)
            os._exit(1)

        threading.Thread(target=loop, name="event loop", daemon=True).start()
        while not self._closed:
            try:
                self._serve()
            except BaseException as error:  # noqa: BLE001 - as in _serve, right after an exception there
                self._signal_error = error
        return outcome.result()

    # -- in the main thread: an exception may come anywhere, and a started job is never started twice --

    def _serve(self) -> None:
        while not self._closed:
            try:
                self._step()
            except BaseException as error:  # noqa: BLE001 - of a signal handler that a function has set
                self._signal_error = error

    def _step(self) -> None:
        if self._signal_error is not None:
            self._handle_signal_error()
        job = self._next
        if job is None:
            try:
                self._next = self._queue[0]
            except IndexError:  # the queue is empty, or the loop has just taken the job back
                self._wait_for_work()
            return
        if job is not self._started:
            try:
                self._queue.remove(job)
            except ValueError:
                if job.taken_back:
                    self._next = None
                    return
                # else this thread took it, and a signal handler raised before the next line
            self._started = job
            self._since = monotonic()
            job.run()
            self._average_seconds += (monotonic() - self._since - self._average_seconds) / _AVERAGED_CALLS
        self._complete(job)
        self._next = None

    def _wait_for_work(self) -> None:
        """Wait for a job or for other work, unless a job was queued since the last look."""
        self._idle = True
        if self._queue:
            return
        work = self._wake.get()
        if work is not None:
            work()
            self._restore_signals()

    def _complete(self, job: Job) -> None:
        with contextlib.suppress(Exception):
            self._restore_signals()
        self._done.append(job)
        if not self._delivery_scheduled:
            self._delivery_scheduled = True
            with contextlib.suppress(RuntimeError):  # the event loop is closed
                job.loop.call_soon_threadsafe(self._deliver)
        self._finished = job

    def _handle_signal_error(self) -> None:
        """Fail the running function with the exception of a signal handler, or log it if no function runs."""
        error, job = self._signal_error, self._started
        if job is not None:
            with contextlib.suppress(RuntimeError):  # as in _complete; the exception may have come between its lines
                job.loop.call_soon_threadsafe(self._deliver)
            if error is not None and job is not self._finished:
                job.fail(error)
                error = None
        self._signal_error = None
        if error is not None:
            log.warning("a signal handler raised while no function ran: %r", error)

    # -- in the loop's thread --

    def _enqueue(self, job: Job) -> None:
        if not self._outstanding:
            self._since = monotonic()  # the job starts at once
        self._outstanding.add(job)
        self._idle_event.clear()
        self._queue.append(job)
        if self._idle:
            self._idle = False
            self._wake.put(None)

    def _deliver(self) -> None:
        self._delivery_scheduled = False
        while self._done:
            job = self._done.popleft()
            self._outstanding.discard(job)
            job.resolve()
        if not self._outstanding:
            self._idle_event.set()

    def _check_progress(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        if not self._queue or self._overflow is None:
            return
        if monotonic() - self._since < HANDOFF_DELAY:
            self._timer = loop.call_later(HANDOFF_DELAY, self._check_progress, loop)
            return
        for job in self._take_back():
            try:
                self._overflow.take(job.copy_context())
            except (RuntimeError, ResourceExhausted) as error:  # the system, or the pool, starts no thread
                job.fail(error)
                job.resolve()

    def _take_back(self) -> list[Job]:
        """Remove and return the queued jobs, in order of arrival."""
        found: list[Job] = []
        while True:
            try:
                job = self._queue[-1]
            except IndexError:
                return found[::-1]
            job.taken_back = True
            try:
                self._queue.remove(job)
            except ValueError:  # the main thread was faster
                job.taken_back = False
                continue
            self._outstanding.discard(job)
            found.append(job)


def ignore_signal(*_: object) -> None:
    """Ignore a signal. Programs that a function starts inherit SIG_IGN, but not this handler."""


def ignore_stop_signals() -> None:
    """Ignore the stop signals again after a function has reset them to their defaults."""
    for number in STOP_SIGNALS:
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, ignore_signal)
