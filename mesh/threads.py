"""Thread pool for ``def`` functions: bounded, with the call's context variables, and with access to the event loop.

The pool uses as few threads as the functions need. A thread takes the next call by itself. So one thread, woken once
for many calls, runs functions of microseconds one after the other, and threads do not compete for the interpreter.
Functions that block get a thread each: at once if they usually block, otherwise after the running one has taken
``HANDOFF_DELAY``.

A thread cannot be stopped from outside. If a call ends early (deadline, disconnect), its caller gets the status at
once. The thread learns it at its next message: its current or next wait raises ``Cancelled``.

A function that goes on after the end of its call is abandoned. Its thread is replaced by a further one, so that it
takes none from other methods. A method with too many abandoned functions gets no more threads until some have ended.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import threading
from collections import Counter, deque
from collections.abc import Callable, Coroutine
from contextvars import Context, copy_context
from time import monotonic
from typing import Any, NamedTuple, Protocol

from mesh.boundary import wrap_escaped
from mesh.call import current, note_wait
from mesh.context_variables import isolated_copy
from mesh.errors import Cancelled, ResourceExhausted
from mesh.stacks import log_with_stack, stack_text, thread_frame

__all__ = [
    "HANDOFF_DELAY", "MAX_THREADS", "Block", "FunctionRunner", "Job", "ThreadEventLoop", "ThreadPool", "ThreadUsage",
    "wait",
]  # fmt: skip

log = logging.getLogger("mesh.functions")

Block = Callable[[Coroutine[Any, Any, Any]], Any]

MAX_THREADS = 32
"""``def`` functions that run at the same time in one process. They mostly wait, and more threads would only compete for
the interpreter."""
HANDOFF_DELAY = 0.005
"""Seconds that a function may take before queued calls get other threads. A thread may wait that long for the
interpreter (``sys.getswitchinterval``)."""
_AVERAGED_CALLS = 8
"""Calls in the moving average of the run time."""
MAX_QUEUED = 1000
"""Calls that wait for a thread at most."""
ABANDONED_DELAY = 1.0
"""Seconds that a function may go on after the end of its call, before it counts as abandoned."""
_METHOD_SHARE = 4
"""Part of the threads (a quarter) that the abandoned functions of one method may take before it gets no more."""
_MAX_REPLACED = 3
"""Abandoned threads that are replaced by further ones at most, as a multiple of the limit."""
FULL_CHECK_INTERVAL = 0.5
"""Seconds between two checks while all threads are busy and calls wait."""
REPORT_INTERVAL = 30.0
"""Seconds between two log records of the same kind."""


def wait(coroutine: Coroutine[Any, Any, Any], loop: asyncio.AbstractEventLoop) -> Any:
    """Run a coroutine on an event loop with the context variables of this thread, and return its result.

    In a thread of a ``ThreadPool`` the coroutine is cancelled when the call of the thread ends.

    Raises:
        Cancelled: The call has ended.
        asyncio.CancelledError: The coroutine was cancelled for another reason.
    """
    job = _thread_state.job
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


class _ThreadState(threading.local):
    """Job that the current thread runs, or None outside of a pool."""

    job: Job | None = None


_thread_state = _ThreadState()


class FunctionRunner(Protocol):
    """Executor of ``def`` functions: ``ThreadPool``, or the main thread (``mesh.main_thread``)."""

    async def run(self, work: Callable[[Block], Any], context: Context | None = None) -> Any:
        """Run ``work(block)`` and return its result. ``block(coroutine)`` runs a coroutine on the event loop.

        Args:
            work: The function.
            context: Context variables of the function; None: those of the caller.
        """


class ThreadUsage(NamedTuple):
    """Use of the threads of a pool.

    Attributes:
        busy: Threads that run a function, abandoned ones included.
        queued: Calls that wait for a thread.
        abandoned: Threads whose function goes on although its call has ended.
    """

    busy: int
    queued: int
    abandoned: int


class ThreadPool:
    """Bounded thread pool for the calls of one event loop.

    Args:
        limit: Threads at most, started on demand. Further calls are queued.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._waiting: deque[Job] = deque()
        self._done: deque[Job] = deque()
        self._runners: list[_PoolThread] = []
        self._idle: list[_PoolThread] = []
        self._timer: asyncio.TimerHandle | None = None
        self._delivery_scheduled = False
        self._average_seconds = 0.0
        self._full_timer: asyncio.TimerHandle | None = None
        self._reported: dict[str, float] = {}

    @property
    def usage(self) -> ThreadUsage:
        """Use of the threads, for metrics. It may be read in any thread."""
        busy = sum(runner.job is not None for runner in tuple(self._runners))
        return ThreadUsage(busy, len(self._waiting), self._abandoned().total())

    async def run(self, work: Callable[[Block], Any], context: Context | None = None) -> Any:
        """Run ``work(block)`` in a thread and return its result. ``block(coroutine)`` runs on the event loop.

        Args:
            work: The function.
            context: Context variables to copy for the function; None: those of the caller.

        Raises:
            RuntimeError: The pool was stopped, or the system can start no thread.
        """
        job = Job(asyncio.get_running_loop(), work, None if context is None else isolated_copy(context))
        self.take(job)
        try:
            return await job.future
        finally:
            job.end()
            note_wait(job.waited)

    def take(self, job: Job) -> None:
        """Queue a job for the threads.

        Raises:
            RuntimeError: The pool was stopped, or the system can start no thread.
            ResourceExhausted: Too many functions of its method go on although their calls have ended, or the queue is
                too long for the deadline of the current call, or full.
        """
        if not self._limit:
            raise RuntimeError("the thread pool was stopped")
        if self._waiting:
            self._check_queue()
        if (len(self._runners) - len(self._idle)) * _METHOD_SHARE >= self._limit:
            self._check_abandoned(job.method)
        self._waiting.append(job)
        try:
            self._dispatch(job.loop)
        except RuntimeError:  # the system can start no thread
            with contextlib.suppress(ValueError):  # unless a running thread has taken the job
                self._waiting.remove(job)
                raise

    def stop(self) -> None:
        """Refuse further jobs. Running functions are not interrupted."""
        for timer in (self._timer, self._full_timer):
            if timer is not None:
                timer.cancel()
        self._limit = 0
        while self._waiting:
            self._waiting.popleft().reject()
        for runner in self._runners:
            runner.stopped = True
        while self._idle:
            self._idle.pop().wake.release()

    # -- in the loop's thread --

    def _dispatch(self, loop: asyncio.AbstractEventLoop) -> None:
        """Wake a thread for the queue, or schedule a check if a running thread will probably take the job soon."""
        now = monotonic()
        if self._average_seconds < HANDOFF_DELAY:
            for runner in self._runners:
                if now - runner.since < HANDOFF_DELAY:
                    if self._timer is None:
                        self._timer = loop.call_later(HANDOFF_DELAY, self._check_progress, loop)
                    return
        self._wake(now, loop)

    def _check_progress(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        if self._waiting:
            now = monotonic()
            if all(now - runner.since >= HANDOFF_DELAY for runner in self._runners):
                for _ in range(len(self._waiting)):
                    self._wake(now, loop)
            else:
                self._timer = loop.call_later(HANDOFF_DELAY, self._check_progress, loop)

    def _wake(self, now: float, loop: asyncio.AbstractEventLoop) -> None:
        if self._idle:
            runner = self._idle.pop()
            runner.since = now
            runner.wake.release()
        elif len(self._runners) < self._limit or len(self._runners) < self._limit + self._replaceable():
            runner = _PoolThread(now)
            threading.Thread(target=self._run, args=(runner,), name="function", daemon=True).start()
            self._runners.append(runner)
        elif self._full_timer is None:
            self._full_timer = loop.call_later(FULL_CHECK_INTERVAL, self._check_full, loop)

    def _check_full(self, loop: asyncio.AbstractEventLoop) -> None:
        """Replace abandoned threads while calls wait, and report the methods that hold the threads."""
        self._full_timer = None
        if not self._waiting or not self._limit:
            return
        now = monotonic()
        for _ in range(len(self._waiting)):
            self._wake(now, loop)
        if self._full_timer is None:
            return
        jobs = [runner.job for runner in self._runners if runner.job is not None]
        methods = Counter(job.method or "no call" for job in jobs)
        busy = ", ".join(f"{count} of {method}" for method, count in methods.most_common())
        self._report("full", f"all threads for functions are busy, and {len(self._waiting)} calls wait: {busy}")

    def _replaceable(self) -> int:
        """Return the number of threads beyond the limit that may replace abandoned ones."""
        return min(self._abandoned().total(), _MAX_REPLACED * self._limit)

    def _abandoned(self) -> Counter[str]:
        """Return the number of abandoned functions of each method."""
        latest = monotonic() - ABANDONED_DELAY
        jobs = [runner.job for runner in tuple(self._runners)]
        return Counter(job.method for job in jobs if job is not None and 0.0 < job.ended_at < latest)

    def _check_queue(self) -> None:
        """Refuse a call that would wait for a thread until its deadline.

        Raises:
            ResourceExhausted: It would, or the queue is full.
        """
        waiting = len(self._waiting)
        seconds = (waiting + 1) * self._average_seconds / self._limit
        call = current.get()
        remaining = None if call is None else call.remaining()
        if waiting >= MAX_QUEUED or (remaining is not None and seconds > remaining):
            note_wait(seconds)
            text = f"{waiting} calls wait for a thread; try again later"
            raise ResourceExhausted(text, retry_after=max(1.0, seconds))

    def _check_abandoned(self, method: str) -> None:
        """Refuse a call of a method of which too many functions are abandoned.

        Raises:
            ResourceExhausted: There are too many.
        """
        count = self._abandoned()[method]
        if count * _METHOD_SHARE >= self._limit:
            text = f"{count} earlier calls of {method or 'this kind'} have ended, and their functions go on"
            self._report(method, f"{text}: further calls are refused until some have ended", method)
            raise ResourceExhausted(f"{text}; a thread cannot be stopped, so no more are started until some have ended")

    def _report(self, kind: str, message: str, method: str | None = None) -> None:
        """Log a warning with one stack for each method, or of one method, unless the same kind was logged recently."""
        now = monotonic()
        if now - self._reported.get(kind, -REPORT_INTERVAL) < REPORT_INTERVAL:
            return
        self._reported[kind] = now
        stacks: dict[str, str] = {}
        for runner in sorted(self._runners, key=lambda runner: runner.since):
            job, frame = runner.job, thread_frame(runner.ident)
            if job is not None and frame is not None and method in (None, job.method) and job.method not in stacks:
                stacks[job.method] = f"{job.method or 'no call'}, for {now - runner.since:.1f} s:\n{stack_text(frame)}"
        log_with_stack(log, message, "\n".join(stacks.values()))

    def _deliver(self) -> None:
        self._delivery_scheduled = False
        while self._done:
            self._done.popleft().resolve()

    # -- in a thread --

    def _run(self, runner: _PoolThread) -> None:
        runner.ident = threading.get_ident()
        own = ThreadEventLoop()
        try:
            self._work(runner, own)
        finally:
            own.close()

    def _work(self, runner: _PoolThread, own: ThreadEventLoop) -> None:
        waiting, done = self._waiting, self._done
        while not runner.stopped:
            try:
                job = waiting.popleft()
            except IndexError:
                self._wait_for_work(runner)
                continue
            began = runner.since = monotonic()
            runner.job = job
            job.run()
            runner.job = None
            own.restore()
            self._average_seconds += (monotonic() - began - self._average_seconds) / _AVERAGED_CALLS
            done.append(job)
            if not self._delivery_scheduled:
                self._delivery_scheduled = True
                with contextlib.suppress(RuntimeError):  # the event loop is closed
                    job.loop.call_soon_threadsafe(self._deliver)
            if job.ended_at and len(self._runners) > self._limit:  # it was replaced by another thread
                self._runners.remove(runner)
                return

    def _wait_for_work(self, runner: _PoolThread) -> None:
        """Wait for a job or for the end of the pool."""
        runner.since = 0.0
        self._idle.append(runner)
        if self._waiting or runner.stopped:  # since the last look at the queue
            try:
                self._idle.remove(runner)
            except ValueError:  # the loop has already woken this thread
                pass
            else:
                return
        runner.wake.acquire()


class ThreadEventLoop:
    """Event loop of a thread, for functions that call ``asyncio.get_event_loop()`` outside of a coroutine.

    ``asyncio.get_event_loop()`` creates a loop in the main thread only, and from Python 3.14 on nowhere. A function
    that uses ``asyncio.run`` leaves its thread without a loop, and a function may close the loop.
    """

    __slots__ = ("_loop",)

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._set()

    def restore(self) -> None:
        """Restore the event loop of the thread after a function."""
        try:
            if asyncio.get_event_loop() is self._loop and not self._loop.is_closed():
                return
        except Exception:  # noqa: BLE001, S110 - no loop is set, or a policy of a function raises
            pass
        with contextlib.suppress(Exception):  # as above
            self._set()

    def close(self) -> None:
        """Close the event loop."""
        if self._loop is not None:
            self._loop.close()

    def _set(self) -> None:
        if self._loop is None or self._loop.is_closed():
            try:
                self._loop = asyncio.new_event_loop()
            except OSError:  # no file descriptor is left; most functions need no loop
                return
        asyncio.set_event_loop(self._loop)


class _PoolThread:
    """State of one thread of the pool.

    Attributes:
        ident: Its identifier (``threading.get_ident``); 0 before it runs.
        job: The job that it runs, or None.
        since: Time at which it took its job or was woken for one; 0 while it is idle.
        wake: Lock that is held while the thread is idle.
        stopped: Whether the thread has to end.
    """

    __slots__ = ("ident", "job", "since", "stopped", "wake")

    def __init__(self, since: float) -> None:
        self.ident = 0
        self.job: Job | None = None
        self.since = since
        self.wake = threading.Lock()
        self.wake.acquire()
        self.stopped = False


class Job:
    """Function of one call that runs in a thread, with its result for the event loop.

    Args:
        loop: Event loop of the call.
        work: The function.
        context: Context to run in; None: a copy of the caller's.

    Attributes:
        loop: Event loop of the call.
        future: Result of the function.
        taken_back: Whether the job was taken back from the main thread's queue.
        ended_at: Time at which the call ended (``time.monotonic``); 0 before.
    """

    __slots__ = (
        "_began_at", "_context", "_error", "_queued_at", "_result", "_waiting", "_work", "ended_at", "future", "loop",
        "taken_back",
    )  # fmt: skip

    def __init__(
        self, loop: asyncio.AbstractEventLoop, work: Callable[[Block], Any], context: Context | None = None
    ) -> None:
        self.loop = loop
        self.future: asyncio.Future[Any] = loop.create_future()
        self._work = work
        self._context = copy_context() if context is None else context
        self.taken_back = False
        self._queued_at = monotonic()
        self._began_at = 0.0
        self.ended_at = 0.0
        self._waiting: concurrent.futures.Future[Any] | None = None
        self._result: Any = None
        self._error: BaseException | None = None

    @property
    def method(self) -> str:
        """Path of the method whose function it is; ``""`` outside of a call."""
        call = self._context.get(current)
        return "" if call is None or call.method is None else str(call.method.path)

    @property
    def waited(self) -> float:
        """Seconds that the job waited for a thread, until the call ended."""
        return (self._began_at or self.ended_at) - self._queued_at

    def run(self) -> None:
        """Run the function in this thread, unless the call has ended."""
        if self.ended_at:
            return
        self._began_at = monotonic()
        _thread_state.job = self
        try:
            self._result = self._context.run(self._work, self._block)
        except BaseException as error:  # noqa: BLE001 - raised for the caller
            self._error = error
        finally:
            _thread_state.job = None

    def copy_context(self) -> Job:
        """Replace the context, which belongs to another thread, by a copy. Return the job."""
        self._context = isolated_copy(self._context)
        return self

    def fail(self, error: BaseException) -> None:
        """Set an error from outside of the function, unless the job has a result."""
        if self._error is None and self._result is None:
            self._error = error

    def resolve(self) -> None:
        """Set the result of the future, in the event loop."""
        error, self._error = self._error, None
        if self.future.done():
            return
        if error is None:
            self.future.set_result(self._result)
        elif isinstance(error, StopIteration):  # no future accepts it and no coroutine raises it (PEP 479)
            raised = RuntimeError("the function raised StopIteration")
            raised.__cause__ = error
            self.future.set_exception(raised)
        elif isinstance(error, Exception):
            self.future.set_exception(error)
        else:  # a GeneratorExit would close each awaiting coroutine instead of being raised in it
            self.future.set_exception(wrap_escaped(error))

    def _block(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return self.wait(coroutine, self.loop)

    def wait(self, coroutine: Coroutine[Any, Any, Any], loop: asyncio.AbstractEventLoop) -> Any:
        """Run a coroutine on an event loop from the thread (see ``wait``)."""
        if self.ended_at:
            coroutine.close()
            raise Cancelled("the call has ended")
        waiting = None
        try:
            self._waiting = waiting = asyncio.run_coroutine_threadsafe(coroutine, loop)
            if self.ended_at:  # since the check above
                waiting.cancel()
            return waiting.result()
        except concurrent.futures.CancelledError:
            if self.ended_at:
                raise Cancelled("the call has ended") from None
            raise asyncio.CancelledError from None
        except BaseException:  # also from a signal handler in the main thread; the function may go on after it
            if waiting is not None:
                waiting.cancel()
            raise

    def reject(self) -> None:
        """Fail a queued job because the pool was stopped."""
        if not self.future.done():
            self.future.set_exception(RuntimeError("the thread pool was stopped"))

    def end(self) -> None:
        """Mark the call as ended, and cancel the coroutine that the thread waits for."""
        self.ended_at = monotonic()
        if self._waiting is not None:
            self._waiting.cancel()
