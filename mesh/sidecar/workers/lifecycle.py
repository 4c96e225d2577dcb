"""The crew: the workers that there are. Starts, drains, replaces and ends them, as many as the pool wants.

A worker goes when it is not needed, has answered ``max_requests``, takes too much memory, runs old code, or holds on to
a call whose time is over. What it still answers may end first, unless its loop does not turn any more.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any

from mesh.sidecar.workers.fork_setup import GRACE
from mesh.sidecar.workers.spawner import Nursery
from mesh.sidecar.workers.worker import LoadError, Rim, State, Worker

if TYPE_CHECKING:
    from mesh.config.manifest import WorkersConfig

__all__ = ["Crew"]

log = logging.getLogger("mesh.workers")

_WENT_ON = "a function went on after its call had ended"
ANSWER = 1.0
"""Seconds that a worker's loop may take to say that it turns, after a call was cancelled."""
LEAVE = 10.0
"""Seconds that a worker may take to end, its module's ``shutdown`` included, when it has no calls any more."""
STOP = 3.0
"""Seconds that the workers may take to end when the sidecar stops: what they answered has ended before."""
FAR = 1.5
"""Times the memory limit at which a worker is not left to finish what it has."""
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
"""Seconds before the next try when a worker could not load its functions."""
PATIENCE = 60.0
"""Seconds that a worker may take to load its functions."""


class Crew:
    """The workers of one service.

    Args:
        nursery: Where they come from.
        rim: What is behind them.
        spec: ``workers`` of mesh.toml.
        ended: Called with its method when a call has left its worker.
        room: Called when there may be more room than before.
        blamed: Called with the methods that may be why a worker ended, or has to.

    Attributes:
        ready: The workers that take calls.
        starting: How many are on their way.
        all: Every worker whose process has not ended.
    """

    def __init__(
        self,
        nursery: Nursery,
        rim: Rim,
        spec: WorkersConfig,
        *,
        ended: Callable[[str], None],
        room: Callable[[], None],
        blamed: Callable[[list[str]], None],
    ) -> None:
        self.ready: list[Worker] = []
        self.starting = 0
        self.all: set[Worker] = set()
        self._nursery = nursery
        self._rim = rim
        self._spec = spec
        self._call_ended = ended
        self._room = room
        self._blamed = blamed
        self._generation = 0
        self._oldest = 0  # generation of the code that the last reload has loaded
        self._reloading = asyncio.Lock()
        self._pause = 0.0
        self._not_before = 0.0
        self._stopping = False
        self._tasks: set[asyncio.Task[Any]] = set()
        self._loop = asyncio.get_running_loop()
        # Workers are often started for a call; their callbacks must not run as part of it.
        self._context = contextvars.copy_context()

    @property
    def count(self) -> int:
        """Workers that take calls, or are about to."""
        return len(self.ready) + self.starting

    @property
    def broken(self) -> float:
        """Seconds until the next worker may be tried, after one could not load its functions; 0 if nothing is wrong."""
        return max(0.0, self._not_before - self._loop.time()) if self._pause else 0.0

    async def start(self) -> None:
        """Start the fork server and the first worker.

        Raises:
            LoadError: The functions cannot be loaded.
            OSError: The fork server cannot be started.
        """
        self._nursery.on_lost = self._revive
        await self._start_one()

    async def stop(self) -> None:
        """End every worker, and the fork server."""
        self._stopping = True
        for task in self._tasks:
            task.cancel()
        for worker in list(self.all):
            self.retire(worker)
        ending = [worker.born.ended for worker in self.all]
        if ending:
            await asyncio.wait(ending, timeout=STOP)
        await self._nursery.stop()

    def scale(self, wanted: int) -> None:
        """Have so many workers: start what is missing at once, drain the least busy of what is too much."""
        if self._stopping:
            return
        if self.count < wanted and not self.broken:
            for _ in range(wanted - self.count):
                self.starting += 1
                self.background(self._start_counted())
        surplus = len(self.ready) - wanted
        if surplus > 0:
            for worker in sorted(self.ready, key=lambda worker: worker.busy)[:surplus]:
                self.retire(worker)

    def retire(self, worker: Worker) -> None:
        """Give a worker no more calls, and let it end when it has finished."""
        if worker in self.ready:
            self.ready.remove(worker)
        worker.drain()
        self._finish(worker)

    def evict(self, worker: Worker, why: str, patience: float) -> None:
        """Replace a worker: it may finish what it has, for ``patience`` seconds."""
        if worker.verdict or worker.state is State.ENDED:
            return
        log.warning("worker %d is replaced: %s", worker.pid, why)
        worker.verdict = why
        self.retire(worker)
        self._room()  # its replacement, if it is needed
        self._loop.call_later(patience, self._nursery.kill, worker.born)
        self._finish(worker)

    def kill(self, worker: Worker, why: str) -> None:
        """End a worker at once."""
        if worker.state is State.ENDED:
            return
        log.warning("worker %d is killed: %s", worker.pid, why)
        worker.verdict = why
        if worker in self.ready:
            self.ready.remove(worker)
        worker.drain()
        self._nursery.kill(worker.born)

    def given(self, worker: Worker) -> None:
        """Note that a worker was given a call."""
        worker.given += 1
        if worker.given == self._spec.max_requests:
            worker.reserved += 1  # this call, which it does not have yet
            self.retire(worker)
            worker.reserved -= 1
            self._room()

    def given_back(self, worker: Worker) -> None:
        """Note that a call does not take the place that was reserved for it."""
        worker.reserved -= 1
        if worker.state is State.DRAINING:
            self._finish(worker)

    def watch(self) -> None:
        """Look after every worker: ask those that seem to stand still, replace those that take too much memory."""
        limit = int(self._spec.memory)
        for worker in list(self.all):
            worker.watch()
            size = worker.memory()
            if size > FAR * limit:
                self._blamed(worker.begun())
                self.kill(worker, f"it took {_megabytes(size)} of memory, and may take {_megabytes(limit)}")
            elif size > limit:
                self.evict(worker, f"it took {_megabytes(size)} of memory, and may take {_megabytes(limit)}", LEAVE)

    async def reload(self) -> None:
        """Replace every worker by one with the code as it is now; the old ones finish what they have.

        If the new code cannot be loaded, the old workers stay; the log says why. None of the new ones takes a call
        before all have loaded. One reload begins when the one before it is over.
        """
        async with self._reloading:
            self._generation += 1
            self._pause = 0.0
            tries = await asyncio.gather(*(self._load() for _ in self.ready or (None,)), return_exceptions=True)
            new = [worker for worker in tries if isinstance(worker, Worker)]
            wrong = [error for error in tries if isinstance(error, BaseException)]
            if wrong:
                for worker in new:
                    self._dismiss(worker)
                if not isinstance(wrong[0], (LoadError, OSError)):
                    raise wrong[0]
                log.error("the new code of %s cannot be loaded, the old one stays: %s", self._nursery.name, wrong[0])
                return
            self._oldest = self._generation
            for worker in new:
                self._join(worker)
            old = [worker for worker in self.ready if worker.generation < self._oldest]
            for worker in old:
                self.retire(worker)
            log.info("reloaded: %d new workers, %d old ones finish what they have", len(new), len(old))

    def background(self, work: Coroutine[Any, Any, Any]) -> None:
        """Run something that belongs to no call."""
        task = self._loop.create_task(work, context=self._context)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- one worker --

    async def _start_counted(self) -> None:
        try:
            await self._start_one()
        except (LoadError, OSError) as error:
            self._pause = min(LONGEST_PAUSE, self._pause * 2 or FIRST_PAUSE)
            self._not_before = self._loop.time() + self._pause
            log.error("no worker of %s can be started: %s; next try in %g s", self._nursery.name, error, self._pause)  # noqa: TRY400 - as above
            self._loop.call_later(self._pause, self._room)
        finally:
            self.starting -= 1
            self._room()

    async def _start_one(self) -> None:
        """Start a worker and have it take calls.

        Raises:
            LoadError: It cannot load its functions.
            OSError: It cannot be forked.
        """
        self._join(await self._load())

    async def _load(self) -> Worker:
        """Start a worker and wait until it is ready.

        Raises:
            LoadError: It cannot load its functions.
            OSError: It cannot be forked.
        """
        await self._nursery.ready()
        generation = self._generation
        worker = Worker(await self._nursery.fork(), self._rim, self._spec.concurrency)
        worker.generation = generation
        worker.link.on_end = partial(self._left, worker)
        worker.link.on_revoked = lambda call: self._revoked(worker, call)
        worker.on_stuck = lambda path: self._stuck(worker, path)
        worker.on_lost = lambda paths: None if worker.verdict else self._blamed(paths)
        self.all.add(worker)
        worker.born.ended.add_done_callback(lambda _: self._ended(worker))
        await worker.connect()
        try:
            async with asyncio.timeout(PATIENCE):
                await worker.loaded
        except BaseException as error:
            self._nursery.kill(worker.born)
            if isinstance(error, TimeoutError):
                raise LoadError([("", f"the functions were not loaded within {PATIENCE:g} s")]) from None
            raise
        if worker.state is State.ENDED:
            raise LoadError([("", "the worker ended as soon as it was ready")])
        return worker

    def _join(self, worker: Worker) -> None:
        """Have a loaded worker take calls, unless it is not needed any more, or what it has loaded is old by now."""
        self._pause = 0.0
        if self._stopping or worker.generation < self._oldest:
            self._dismiss(worker)
        elif worker.state is State.STARTING:  # else it has ended since
            worker.state = State.READY
            self.ready.append(worker)
            self._room()

    def _dismiss(self, worker: Worker) -> None:
        """Let a loaded worker end that is to take no call."""
        if worker.state is State.STARTING:
            worker.state = State.READY
            self.retire(worker)

    def _left(self, worker: Worker, path: str) -> None:
        """A call has left the worker."""
        self._call_ended(path)
        if worker.state is State.DRAINING:
            self._finish(worker)
        else:
            self._room()

    def _finish(self, worker: Worker) -> None:
        """Let a draining worker end if nobody waits for anything from it any more."""
        worker.settle()
        if not worker.busy:
            self._loop.call_later(LEAVE, self._nursery.kill, worker.born)
        elif worker.verdict and not worker.reserved and all(one.revoked for one in worker.link.asked.values()):
            self._nursery.kill(worker.born)  # what is left does not end by itself

    def _revoked(self, worker: Worker, call: int) -> None:
        self._loop.call_later(ANSWER, self._check_loop, worker, call, worker.ping())
        self._loop.call_later(GRACE, self._check, worker, call)

    def _check_loop(self, worker: Worker, call: int, ping: int) -> None:
        if not worker.turned(ping) and call in worker.link.asked:
            self._blamed(worker.begun())
            self.kill(worker, "a function blocked its event loop, and its call was over")

    def _check(self, worker: Worker, call: int) -> None:
        """Its call was cancelled a while ago: if it still runs, the worker has to go."""
        if call in worker.link.asked and not worker.verdict:
            self._stuck(worker, worker.link.asked[call].path)

    def _stuck(self, worker: Worker, path: str) -> None:
        self._blamed([path] if path else [])
        self.evict(worker, _WENT_ON, LEAVE)

    def _ended(self, worker: Worker) -> None:
        before, worker.state = worker.state, State.ENDED
        self.all.discard(worker)
        if worker in self.ready:
            self.ready.remove(worker)
        # What it wrote before its end may still be on the way: the connection ends by itself, or a little later.
        self._loop.call_later(ANSWER, worker.link.close)
        worker.born.begun.close()
        if before is State.READY and not worker.verdict:
            log.warning("worker %d ended by itself: %s", worker.pid, worker.born.ended.result())
        self._room()

    def _revive(self) -> None:
        if not self._stopping:
            log.warning("the fork server of %s ended, and its workers with it; it is started again", self._nursery.name)
            self.background(self._nursery.prepare())
            self._room()


def _megabytes(size: float) -> str:
    return f"{size / 1e6:.0f} MB"
