"""Worker lifecycle: starts, drains, replaces and kills worker processes.

A worker ends when it is not needed, has served ``max_requests`` calls, uses too much memory, runs old code, or when a
function overruns its call. It may finish the calls that it has, unless its event loop is blocked.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any

from mesh.liveness import ABORT_TIMEOUT
from mesh.sidecar.workers.spawner import Spawner
from mesh.sidecar.workers.worker import LoadError, SidecarBackend, Worker, WorkerState
from mesh.sidecar.workers.worker_calls import OVERRUN_TIMEOUT

if TYPE_CHECKING:
    from mesh.config.manifest import WorkersConfig

__all__ = ["WorkerLifecycle"]

log = logging.getLogger("mesh.workers")

_OVERRUN = "a function went on after its call had ended"
PING_TIMEOUT = 1.0
"""Seconds that a worker's event loop may take to respond to a ping, after a call was cancelled."""
EXIT_TIMEOUT = 10.0
"""Seconds that a worker without calls may take to end, its module's ``shutdown`` included."""
STOP_TIMEOUT = 3.0
"""Seconds that the workers may take to end when the sidecar shuts down; their calls have ended before."""
KILL_MEMORY_FACTOR = 1.5
"""Multiple of ``workers.memory`` from which on a worker may not finish the calls that it has."""
MIN_RESTART_DELAY, MAX_RESTART_DELAY = 0.5, 30.0
"""Seconds before the next attempt when a worker could not load its functions; the delay doubles each time."""
LOAD_TIMEOUT = 60.0
"""Seconds that a worker may take to load its functions."""


class WorkerLifecycle:
    """The workers of one service.

    Args:
        spawner: The client of the fork server.
        backend: The sidecar's services for workers.
        spec: ``workers`` of mesh.toml.
        liveness_timeout: Seconds after which a worker whose event loop does not turn is replaced; None: never.
        on_call_end: Called with its method when a call has left its worker.
        on_capacity: Called when there may be more free permits than before, or fewer workers than needed.
        on_death: Called with the methods that may be the reason why a worker died, or has to be killed.

    Attributes:
        ready: The workers that take calls.
        starting: Number of workers that are starting.
        alive: Every worker whose process has not ended.
    """

    def __init__(
        self,
        spawner: Spawner,
        backend: SidecarBackend,
        spec: WorkersConfig,
        *,
        liveness_timeout: float | None,
        on_call_end: Callable[[str], None],
        on_capacity: Callable[[], None],
        on_death: Callable[[list[str]], None],
    ) -> None:
        self.ready: list[Worker] = []
        self.starting = 0
        self.alive: set[Worker] = set()
        self._spawner = spawner
        self._backend = backend
        self._spec = spec
        self._liveness_timeout = liveness_timeout
        self._on_call_end = on_call_end
        self._on_capacity = on_capacity
        self._on_death = on_death
        self._generation = 0
        self._min_generation = 0  # generation of the code that the last reload loaded
        self._reloading = asyncio.Lock()
        self._restart_delay = 0.0
        self._restart_at = 0.0
        self._stopping = False
        self._tasks: set[asyncio.Task[Any]] = set()
        self._loop = asyncio.get_running_loop()
        # Workers are often started for a call; their callbacks must not run as part of it.
        self._context = contextvars.copy_context()

    @property
    def count(self) -> int:
        """Workers that take calls or are starting."""
        return len(self.ready) + self.starting

    @property
    def restart_delay(self) -> float:
        """Seconds until the next worker may be started, after one could not load its functions; 0 if none failed."""
        return max(0.0, self._restart_at - self._loop.time()) if self._restart_delay else 0.0

    async def start(self) -> None:
        """Start the fork server and the first worker.

        Raises:
            LoadError: The functions cannot be loaded.
            OSError: The fork server cannot be started.
        """
        self._spawner.on_lost = self._restart_fork_server
        await self._start_one()

    async def stop(self) -> None:
        """End every worker, and the fork server."""
        self._stopping = True
        for task in self._tasks:
            task.cancel()
        for worker in list(self.alive):
            self.retire(worker)
        ending = [worker.process.ended for worker in self.alive]
        if ending:
            await asyncio.wait(ending, timeout=STOP_TIMEOUT)
        await self._spawner.stop()

    def scale(self, wanted: int) -> None:
        """Start missing workers at once up to ``wanted``, or drain the least busy ones above it."""
        if self._stopping:
            return
        if self.count < wanted and not self.restart_delay:
            for _ in range(wanted - self.count):
                self.starting += 1
                self.background(self._start_counted())
        surplus = len(self.ready) - wanted
        if surplus > 0:
            for worker in sorted(self.ready, key=lambda worker: worker.busy)[:surplus]:
                self.retire(worker)

    def retire(self, worker: Worker) -> None:
        """Give a worker no more calls; it ends when it has finished those that it has."""
        if worker in self.ready:
            self.ready.remove(worker)
        worker.drain()
        self._end_if_idle(worker)

    def replace(self, worker: Worker, reason: str) -> None:
        """Retire a worker and kill it after ``EXIT_TIMEOUT``; ``reason`` is reported to its callers."""
        if worker.end_reason or worker.state is WorkerState.ENDED:
            return
        log.warning("worker %d is replaced: %s", worker.pid, reason)
        worker.end_reason = reason
        self.retire(worker)
        self._on_capacity()  # starts another worker, if one is needed
        self._loop.call_later(EXIT_TIMEOUT, self._spawner.kill, worker.process)
        self._end_if_idle(worker)

    def kill(self, worker: Worker, reason: str) -> None:
        """Kill a worker at once; ``reason`` is reported to its callers."""
        if worker.state is WorkerState.ENDED:
            return
        self._end(worker, reason)
        self._spawner.kill(worker.process)

    def _end(self, worker: Worker, reason: str) -> None:
        """Give a worker that is killed no more calls."""
        log.warning("worker %d is killed: %s", worker.pid, reason)
        worker.end_reason = reason
        if worker in self.ready:
            self.ready.remove(worker)
        worker.drain()

    def count_call(self, worker: Worker) -> None:
        """Count a call that a worker was given; the last one of ``max_requests`` retires the worker."""
        worker.calls_given += 1
        if worker.calls_given == self._spec.max_requests:
            worker.reserved += 1  # for this call, which the worker does not have yet
            self.retire(worker)
            worker.reserved -= 1
            self._on_capacity()

    def release_permit(self, worker: Worker) -> None:
        """Release a permit that was reserved for a call which does not come."""
        worker.reserved -= 1
        if worker.state is WorkerState.DRAINING:
            self._end_if_idle(worker)

    def check_workers(self) -> None:
        """Check progress, liveness and memory of the workers; replace or kill those that fail."""
        limit = int(self._spec.memory)
        timeout = self._liveness_timeout
        if timeout is not None:
            self._spawner.check_liveness(self._loop.time(), timeout)
        for worker in list(self.alive):
            worker.check_progress()
            if timeout is not None and worker.hangs(self._loop.time(), timeout):
                worker.abort()
                self._loop.call_later(ABORT_TIMEOUT, self._spawner.kill, worker.process)
                self._end(worker, f"its event loop has not turned for {timeout:g} s")
                continue
            size = worker.resident_bytes()
            if size <= limit:
                continue
            reason = f"it uses {_megabytes(size)} of memory; workers.memory is {_megabytes(limit)}"
            if size > KILL_MEMORY_FACTOR * limit:
                self._on_death(worker.started_methods())
                self.kill(worker, reason)
            else:
                self.replace(worker, reason)

    async def reload(self) -> None:
        """Replace every worker by one with the current code; the old workers finish the calls that they have.

        If the new code cannot be loaded, the old workers stay and the log gives the reason. No new worker takes a call
        before all have loaded. A second reload begins when the first one is over.
        """
        async with self._reloading:
            self._generation += 1
            self._restart_delay = 0.0
            results = await asyncio.gather(*(self._load() for _ in self.ready or (None,)), return_exceptions=True)
            new = [worker for worker in results if isinstance(worker, Worker)]
            errors = [error for error in results if isinstance(error, BaseException)]
            if errors:
                for worker in new:
                    self._discard(worker)
                if not isinstance(errors[0], (LoadError, OSError)):
                    raise errors[0]
                log.error("the new code of %s cannot be loaded, the old code stays: %s", self._spawner.name, errors[0])
                return
            self._min_generation = self._generation
            for worker in new:
                self._admit(worker)
            old = [worker for worker in self.ready if worker.generation < self._min_generation]
            for worker in old:
                self.retire(worker)
            log.info("reloaded: %d new workers; %d old ones finish their calls", len(new), len(old))

    def background(self, work: Coroutine[Any, Any, Any]) -> None:
        """Run a task that belongs to no call."""
        task = self._loop.create_task(work, context=self._context)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- one worker --

    async def _start_counted(self) -> None:
        try:
            await self._start_one()
        except (LoadError, OSError) as error:
            self._restart_delay = min(MAX_RESTART_DELAY, self._restart_delay * 2 or MIN_RESTART_DELAY)
            self._restart_at = self._loop.time() + self._restart_delay
            log.error(  # noqa: TRY400 - the error is its message; a traceback through this module tells nothing
                "no worker of %s can be started: %s; next attempt in %g s",
                self._spawner.name, error, self._restart_delay,
            )  # fmt: skip
            self._loop.call_later(self._restart_delay, self._on_capacity)
        finally:
            self.starting -= 1
            self._on_capacity()

    async def _start_one(self) -> None:
        """Start a worker and let it take calls.

        Raises:
            LoadError: It cannot load its functions.
            OSError: It cannot be forked.
        """
        self._admit(await self._load())

    async def _load(self) -> Worker:
        """Start a worker and wait until it is ready.

        Raises:
            LoadError: It cannot load its functions.
            OSError: It cannot be forked.
        """
        await self._spawner.ensure_running()
        generation = self._generation
        worker = Worker(await self._spawner.fork(), self._backend, self._spec.concurrency)
        worker.generation = generation
        worker.connection.on_call_end = partial(self._call_ended, worker)
        worker.connection.on_call_cancelled = lambda call: self._call_cancelled(worker, call)
        worker.on_overrun = lambda path: self._overrun(worker, path)
        worker.on_lost = lambda paths: None if worker.end_reason else self._on_death(paths)
        self.alive.add(worker)
        worker.process.ended.add_done_callback(lambda _: self._process_ended(worker))
        await worker.connect()
        try:
            async with asyncio.timeout(LOAD_TIMEOUT):
                await worker.loaded
        except BaseException as error:
            self._spawner.kill(worker.process)
            if isinstance(error, TimeoutError):
                raise LoadError([("", f"the functions were not loaded within {LOAD_TIMEOUT:g} s")]) from None
            raise
        if worker.state is WorkerState.ENDED:
            raise LoadError([("", "the worker ended as soon as it was ready")])
        return worker

    def _admit(self, worker: Worker) -> None:
        """Let a loaded worker take calls, unless it is not needed any more or its code is outdated by now."""
        self._restart_delay = 0.0
        if self._stopping or worker.generation < self._min_generation:
            self._discard(worker)
        elif worker.state is WorkerState.STARTING:  # else it has ended in the meantime
            worker.state = WorkerState.READY
            self.ready.append(worker)
            self._on_capacity()

    def _discard(self, worker: Worker) -> None:
        """End a loaded worker that must take no call."""
        if worker.state is WorkerState.STARTING:
            worker.state = WorkerState.READY
            self.retire(worker)

    def _call_ended(self, worker: Worker, path: str) -> None:
        """Pass on that a call has left the worker."""
        self._on_call_end(path)
        if worker.state is WorkerState.DRAINING:
            self._end_if_idle(worker)
        else:
            self._on_capacity()

    def _end_if_idle(self, worker: Worker) -> None:
        """End a draining worker when no caller waits for it any more."""
        worker.finish_drain()
        if not worker.busy:
            self._loop.call_later(EXIT_TIMEOUT, self._spawner.kill, worker.process)
        elif worker.end_reason and not worker.reserved and worker.all_cancelled():
            self._spawner.kill(worker.process)  # the cancelled calls do not end by themselves

    def _call_cancelled(self, worker: Worker, call: int) -> None:
        self._loop.call_later(PING_TIMEOUT, self._check_ping, worker, call, worker.ping())
        self._loop.call_later(OVERRUN_TIMEOUT, self._check_cancelled, worker, call)

    def _check_ping(self, worker: Worker, call: int, ping: int) -> None:
        if not worker.has_answered(ping) and call in worker.connection.pending_calls:
            self._on_death(worker.started_methods())
            self.kill(worker, "a function blocked the event loop after its call had ended")

    def _check_cancelled(self, worker: Worker, call: int) -> None:
        """Replace the worker if a call that was cancelled a while ago still runs."""
        if call in worker.connection.pending_calls and not worker.end_reason:
            self._overrun(worker, worker.connection.pending_calls[call].path)

    def _overrun(self, worker: Worker, path: str) -> None:
        self._on_death([path] if path else [])
        self.replace(worker, _OVERRUN)

    def _process_ended(self, worker: Worker) -> None:
        before, worker.state = worker.state, WorkerState.ENDED
        self.alive.discard(worker)
        if worker in self.ready:
            self.ready.remove(worker)
        # Frames from before its end may still be on the way. The connection closes by itself, or here a little later.
        self._loop.call_later(PING_TIMEOUT, worker.connection.close)
        worker.process.watermark.close()
        if before is WorkerState.READY and not worker.end_reason:
            log.warning("worker %d ended by itself: %s", worker.pid, worker.process.ended.result())
        self._on_capacity()

    def _restart_fork_server(self) -> None:
        if not self._stopping:
            log.warning("the fork server of %s ended, and its workers with it; it is restarted", self._spawner.name)
            self.background(self._spawner.prepare())
            self._on_capacity()


def _megabytes(size: float) -> str:
    return f"{size / 1e6:.0f} MB"
