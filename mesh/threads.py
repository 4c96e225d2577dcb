"""Threads for ``def`` functions: bounded, with the call's context variables, and a way back to the event loop.

As few as the functions need. A thread that has answered takes the next call by itself, so functions that take
microseconds are run one after the other by one thread, which is woken once for many, instead of by many that fight for
the interpreter. Functions that wait get a thread each: at once when they usually do, and else as soon as the first of
them has not returned within ``BRISK``.

A thread cannot be stopped from outside. When its call ends early (deadline, caller gone) the call is answered at once
and the thread finds out at its next message: whatever it waits for, or asks for next, raises ``Cancelled``.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context, copy_context
from time import monotonic
from typing import Any, Protocol

from mesh.boundary import wrap_escaped
from mesh.context_variables import copy_of
from mesh.errors import Cancelled

__all__ = ["BRISK", "THREADS", "Block", "Job", "OwnLoop", "Runs", "Threads", "wait"]

Block = Callable[[Coroutine[Any, Any, Any]], Any]

THREADS = 32
"""``def`` functions that run at once in one process; they mostly wait, and more threads than this only fight for the
interpreter."""
BRISK = 0.005
"""Seconds that a function may take before those behind it get other threads: a thread may have to wait for the
interpreter as long as that (``sys.getswitchinterval``)."""
_LATEST = 8
"""Calls that say how long the functions usually take."""


def wait(coroutine: Coroutine[Any, Any, Any], loop: asyncio.AbstractEventLoop) -> Any:
    """Run a coroutine on a loop, with this thread's context variables, and return its result.

    In a thread of ``Threads`` it goes on no longer than the call that the thread answers.

    Raises:
        Cancelled: That call has ended.
        asyncio.CancelledError: The coroutine was cancelled for another reason.
    """
    job = _here.job
    if job is not None:
        return job.wait(coroutine, loop)
    future = asyncio.run_coroutine_threadsafe(coroutine, loop)
    try:
        return future.result()
    except concurrent.futures.CancelledError:
        raise asyncio.CancelledError from None
    except BaseException:
        future.cancel()
        raise


class _Here(threading.local):
    """Of each thread: the job that it does, if it is one of ``Threads``."""

    job: Job | None = None


_here = _Here()


class Runs(Protocol):
    """Where ``def`` functions run: threads (``Threads``), or the main thread (``mesh.main_thread``)."""

    async def run(self, work: Callable[[Block], Any], context: Context | None = None) -> Any:
        """Return ``work(block)``; ``block(coroutine)`` waits there for what the event loop does.

        Args:
            work: The function.
            context: The context that it begins with; None: the caller's.
        """


class Threads:
    """A bounded pool of threads, for calls of one event loop.

    Args:
        limit: Threads at most; they are started as they are needed. Calls beyond that wait their turn.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._waiting: deque[Job] = deque()
        self._done: deque[Job] = deque()
        self._runners: list[_Runner] = []
        self._idle: list[_Runner] = []
        self._timer: asyncio.TimerHandle | None = None
        self._told = False
        self._usual = 0.0

    async def run(self, work: Callable[[Block], Any], context: Context | None = None) -> Any:
        """Return ``work(block)``, run in a thread; ``block(coroutine)`` waits there for what the event loop does.

        Args:
            work: The function.
            context: The context variables that it begins with, of which it gets a copy; None: the caller's.

        Raises:
            RuntimeError: The pool has been stopped, or the machine gives no thread.
        """
        job = Job(asyncio.get_running_loop(), work, None if context is None else copy_of(context))
        self.take(job)
        try:
            return await job.future
        finally:
            job.end()

    def take(self, job: Job) -> None:
        """Have a thread do a job.

        Raises:
            RuntimeError: The pool has been stopped, or the machine gives no thread.
        """
        if not self._limit:
            raise RuntimeError("the threads have been stopped")
        self._waiting.append(job)
        try:
            self._attend(job.loop)
        except RuntimeError:  # the machine gives no thread
            with contextlib.suppress(ValueError):  # but one that there is may have taken it
                self._waiting.remove(job)
                raise

    def stop(self) -> None:
        """Take no more work; threads that still run are left to end by themselves."""
        if self._timer is not None:
            self._timer.cancel()
        self._limit = 0
        while self._waiting:
            self._waiting.popleft().refuse()
        for runner in self._runners:
            runner.stopped = True
        while self._idle:
            self._idle.pop().wake.release()

    # -- in the loop's thread --

    def _attend(self, loop: asyncio.AbstractEventLoop) -> None:
        """Wake a thread for what waits, or see to it later, if one is likely to take it soon."""
        now = monotonic()
        if self._usual < BRISK:
            for runner in self._runners:
                if now - runner.since < BRISK:
                    if self._timer is None:
                        self._timer = loop.call_later(BRISK, self._held_up, loop)
                    return
        self._wake(now)

    def _held_up(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        if self._waiting:
            now = monotonic()
            if all(now - runner.since >= BRISK for runner in self._runners):
                for _ in range(len(self._waiting)):
                    self._wake(now)
            else:
                self._timer = loop.call_later(BRISK, self._held_up, loop)

    def _wake(self, now: float) -> None:
        if self._idle:
            runner = self._idle.pop()
            runner.since = now
            runner.wake.release()
        elif len(self._runners) < self._limit:
            runner = _Runner(now)
            threading.Thread(target=self._run, args=(runner,), name="function", daemon=True).start()
            self._runners.append(runner)

    def _deliver(self) -> None:
        self._told = False
        while self._done:
            self._done.popleft().settle()

    # -- in a thread --

    def _run(self, runner: _Runner) -> None:
        own = OwnLoop()
        try:
            self._work(runner, own)
        finally:
            own.close()

    def _work(self, runner: _Runner, own: OwnLoop) -> None:
        waiting, done = self._waiting, self._done
        while not runner.stopped:
            try:
                job = waiting.popleft()
            except IndexError:
                self._rest(runner)
                continue
            began = runner.since = monotonic()
            job.do()
            own.keep()
            self._usual += (monotonic() - began - self._usual) / _LATEST
            done.append(job)
            if not self._told:
                self._told = True
                with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                    job.loop.call_soon_threadsafe(self._deliver)

    def _rest(self, runner: _Runner) -> None:
        """Wait until there is work, or none will come."""
        runner.since = 0.0
        self._idle.append(runner)
        if self._waiting or runner.stopped:  # since it was looked for
            try:
                self._idle.remove(runner)
            except ValueError:  # the loop has seen to it
                pass
            else:
                return
        runner.wake.acquire()


class OwnLoop:
    """The event loop of a thread, for functions that ask for one outside of a coroutine; made there.

    ``asyncio.get_event_loop()`` makes none but in the main thread, and from Python 3.14 on not there either. A function
    that runs another one (``asyncio.run``) leaves its thread without any, and one may close it.
    """

    __slots__ = ("_loop",)

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._set()

    def keep(self) -> None:
        """Have the thread have it again, after each function."""
        try:
            if asyncio.get_event_loop() is self._loop and not self._loop.is_closed():
                return
        except Exception:  # noqa: BLE001, S110 - it has none, or a policy of a function's gives none
            pass
        with contextlib.suppress(Exception):  # as above
            self._set()

    def close(self) -> None:
        """Close it."""
        if self._loop is not None:
            self._loop.close()

    def _set(self) -> None:
        if self._loop is None or self._loop.is_closed():
            try:
                self._loop = asyncio.new_event_loop()
            except OSError:  # no descriptor is left; most functions ask for none
                return
        asyncio.set_event_loop(self._loop)


class _Runner:
    """One thread.

    Attributes:
        since: When it took its call, or was woken for one; 0 while it rests.
        wake: Held while there is nothing to do.
        stopped: It is to end.
    """

    __slots__ = ("since", "stopped", "wake")

    def __init__(self, since: float) -> None:
        self.since = since
        self.wake = threading.Lock()
        self.wake.acquire()
        self.stopped = False


class Job:
    """The work of one call, and its way from the thread to the loop, until the call ends.

    Args:
        loop: The event loop of the call.
        work: The function.
        context: The context that it runs in; None: a copy of the caller's.

    Attributes:
        loop: The event loop of the call.
        future: Done with what the work comes to.
        elsewhere: It was taken from who should have done it.
    """

    __slots__ = ("_context", "_ended", "_error", "_result", "_waiting", "_work", "elsewhere", "future", "loop")

    def __init__(
        self, loop: asyncio.AbstractEventLoop, work: Callable[[Block], Any], context: Context | None = None
    ) -> None:
        self.loop = loop
        self.future: asyncio.Future[Any] = loop.create_future()
        self._work = work
        self._context = copy_context() if context is None else context
        self.elsewhere = False
        self._ended = False
        self._waiting: concurrent.futures.Future[Any] | None = None
        self._result: Any = None
        self._error: BaseException | None = None

    def do(self) -> None:
        """Do it, in the thread; one that nobody waits for any more is not begun."""
        if self._ended:
            return
        _here.job = self
        try:
            self._result = self._context.run(self._work, self._block)
        except BaseException as error:  # noqa: BLE001 - it is the caller's
            self._error = error
        finally:
            _here.job = None

    def apart(self) -> Job:
        """Have the work run in a copy of its context, which is another thread's; returns the job."""
        self._context = copy_of(self._context)
        return self

    def interrupt(self, error: BaseException) -> None:
        """Note what ended it from outside of the function, unless it has an end."""
        if self._error is None and self._result is None:
            self._error = error

    def settle(self) -> None:
        """Tell who waits for it, in the loop."""
        error, self._error = self._error, None
        if self.future.done():
            return
        if error is None:
            self.future.set_result(self._result)
        elif isinstance(error, StopIteration):  # which no future takes, and no coroutine raises (PEP 479)
            raised = RuntimeError("the function raised StopIteration")
            raised.__cause__ = error
            self.future.set_exception(raised)
        elif isinstance(error, Exception):
            self.future.set_exception(error)
        else:  # a GeneratorExit, for one, would close every coroutine that waits, instead of being raised there
            self.future.set_exception(wrap_escaped(error))

    def _block(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return self.wait(coroutine, self.loop)

    def wait(self, coroutine: Coroutine[Any, Any, Any], loop: asyncio.AbstractEventLoop) -> Any:
        """Wait in the thread for a coroutine (see ``wait``)."""
        if self._ended:
            coroutine.close()
            raise Cancelled("the call has ended")
        waiting = None
        try:
            self._waiting = waiting = asyncio.run_coroutine_threadsafe(coroutine, loop)
            if self._ended:  # since it was asked
                waiting.cancel()
            return waiting.result()
        except concurrent.futures.CancelledError:
            if self._ended:
                raise Cancelled("the call has ended") from None
            raise asyncio.CancelledError from None
        except BaseException:  # also what a signal handler raises in the main thread; the function may outlive it
            if waiting is not None:
                waiting.cancel()
            raise

    def refuse(self) -> None:
        """End it before it has begun: there are no threads any more."""
        if not self.future.done():
            self.future.set_exception(RuntimeError("the threads have been stopped"))

    def end(self) -> None:
        """Note that nobody waits for it any more."""
        self._ended = True
        if self._waiting is not None:
            self._waiting.cancel()
