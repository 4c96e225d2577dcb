"""Overload of the concurrency limit on a virtual clock: it reaches the goodput aims, and refuses nobody wrongly.

The layer, its timers and the tasks are the real ones; the event loop skips the time in which nothing happens.
"""

from __future__ import annotations

import asyncio
import heapq
import random
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest
from limit_model import method

from mesh.call import Call, Metadata, current, note_wait
from mesh.errors import DeadlineExceeded, ResourceExhausted
from mesh.layers import concurrency
from mesh.layers.concurrency import ConcurrencyLimit
from mesh.layers.deadline import deadline as deadline_layer

START = 1e9


class VirtualLoop(asyncio.SelectorEventLoop):
    """Event loop whose clock jumps to the next timer when nothing is ready."""

    now = START  # later than the real clock, which only rejects deadlines that have passed

    def __init__(self) -> None:
        super().__init__()
        self._clock_resolution = 1e-6  # a float of this size knows no smaller differences

    def time(self) -> float:
        return self.now

    def _run_once(self) -> None:
        scheduled = self._scheduled  # type: ignore[attr-defined]
        while scheduled and scheduled[0]._cancelled:
            self._timer_cancelled_count -= 1
            heapq.heappop(scheduled)._scheduled = False
        if not self._ready and scheduled:  # type: ignore[attr-defined]
            self.now = max(self.now, scheduled[0]._when)
        super()._run_once()  # type: ignore[misc]


Noise = Callable[[float], float]


class Cores:
    """A pool of cores: work waits in order of arrival, as in a thread pool.

    Args:
        count: The cores.
        slowdown: Factor of the work's length by the time since the start: foreign load.
    """

    def __init__(self, count: int, slowdown: Noise = lambda _: 1.0) -> None:
        self._free = self._count = count
        self._queue: deque[asyncio.Future[None]] = deque()
        self._slowdown = slowdown
        self._chance = random.Random(7)  # noqa: S311
        self._start = 0.0

    async def work(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        self._start = self._start or loop.time()
        arrived = loop.time()
        call = current.get()
        assert call is not None
        expected = (len(self._queue) + 1) * seconds / self._count
        if self._free:
            self._free -= 1
            note_wait(0.0)
        elif call.deadline is not None and arrived + expected + seconds > call.deadline:
            note_wait(expected)
            raise ResourceExhausted("too late")
        else:
            turn = loop.create_future()
            self._queue.append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self._next()
                raise
            finally:
                note_wait(loop.time() - arrived)
        try:
            factor = self._slowdown(loop.time() - self._start) * self._chance.uniform(0.7, 1.4)
            await asyncio.sleep(seconds * factor)
        finally:
            self._next()

    def _next(self) -> None:
        while self._queue:
            turn = self._queue.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1


class World:
    """A method behind its limit, and its callers."""

    def __init__(self, function: Callable[[], Any], *, permits: int = 1000, queue: int = 1000) -> None:
        self.limit = ConcurrencyLimit(permits, queue, adaptive=True)
        self._function = function
        self._chance = random.Random(11)  # noqa: S311
        self.served: list[tuple[float, float]] = []
        self.refused: list[float] = []
        self.late: list[float] = []

    async def call(self, budget: float = 10.0, path: str = "/t.v1.S/Do") -> bool:
        loop = asyncio.get_running_loop()
        began = loop.time()
        call = Call(method(path), Metadata(), began + budget)
        call.task = asyncio.current_task()

        async def function(one: Call) -> None:
            token = current.set(one)
            try:
                await self._function()
            finally:
                current.reset(token)

        async def limited(one: Call) -> None:
            await self.limit(one, function)

        try:
            await deadline_layer(call, limited)
        except ResourceExhausted:
            self.refused.append(loop.time())
            return False
        except DeadlineExceeded:
            self.late.append(loop.time())
            return False
        self.served.append((loop.time(), loop.time() - began))
        return True

    async def open_loop(self, rate: float, seconds: float, budget: float = 10.0, path: str = "/t.v1.S/Do") -> None:
        loop = asyncio.get_running_loop()
        tasks, end = set(), loop.time() + seconds
        due = loop.time()
        while (due := due + self._chance.expovariate(rate)) < end:
            await asyncio.sleep(due - loop.time())
            task = asyncio.ensure_future(self.call(budget, path))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        await asyncio.gather(*tasks)

    async def closed_loop(self, callers: int, seconds: float, budget: float = 10.0) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds

        async def caller() -> None:
            while loop.time() < end:
                if not await self.call(budget):
                    await asyncio.sleep(0.1)

        await asyncio.gather(*(caller() for _ in range(callers)))

    async def burst(self, calls: int) -> None:
        """Make many calls at once, in a light load."""
        await self.open_loop(20, 3)
        await asyncio.gather(*(self.call() for _ in range(calls)))
        await self.open_loop(20, 3)

    def goodput(self, since: float, until: float) -> float:
        return sum(since <= at < until for at, _ in self.served) / (until - since)

    def quantile(self, share: float, since: float) -> float:
        took = sorted(took for at, took in self.served if at >= since)
        return took[int(share * len(took))]


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> Iterator[VirtualLoop]:
    """The virtual clock, also as the layer's."""
    loop = VirtualLoop()
    monkeypatch.setattr(concurrency, "monotonic", loop.time)
    yield loop
    loop.close()


Function = Callable[[], Coroutine[Any, Any, None]]
Load = Callable[[World], Coroutine[Any, Any, None]]


def simulate(loop: VirtualLoop, function: Function, load: Load, *, permits: int = 1000) -> World:
    """Return the method after a load."""
    world = World(function, permits=permits)
    loop.run_until_complete(load(world))
    return world


def hashing(cores: Cores, work: float) -> Function:
    """Return a method that reads from a database and then works on a core."""

    async def function() -> None:
        await asyncio.sleep(0.003)
        await cores.work(work)

    return function


def waiting(seconds: Noise) -> Function:
    """Return a method that waits for a dependency, which takes a time that depends on the time since the start."""
    chance = random.Random(3)  # noqa: S311

    async def function() -> None:
        elapsed = asyncio.get_running_loop().time() - START
        await asyncio.sleep(seconds(elapsed) * chance.uniform(0.5, 1.5))

    return function


COUNT, WORK = 2, 0.04
CAPACITY = COUNT / (WORK * 1.05)
"""Calls a second that two cores can serve; 1.05 is the mean of the noise."""
UNLOADED_P99 = WORK * 1.4 + 0.003


@pytest.mark.parametrize("factor", [2, 5, 10])
def test_goodput_and_latency_under_overload(loop: VirtualLoop, factor: int) -> None:
    world = simulate(loop, hashing(Cores(COUNT), WORK), lambda world: world.open_loop(CAPACITY * factor, 16, 2.0))
    steady = START + 6
    assert world.goodput(steady, START + 16) >= 0.9 * CAPACITY
    assert world.quantile(0.99, steady) <= 2.2 * UNLOADED_P99
    assert world.goodput(START, START + 16) >= 0.8 * CAPACITY, "also while the overload begins"


def test_goodput_of_a_cheap_method_under_overload(loop: VirtualLoop) -> None:
    world = simulate(loop, hashing(Cores(8), 0.02), lambda world: world.open_loop(2 * 8 / 0.021, 8, 2.0))
    assert world.goodput(START + 5, START + 8) >= 0.9 * 8 / 0.021
    assert world.quantile(0.99, START + 5) <= 2 * 0.031


NO_REFUSAL = {
    "a load of half of the capacity": (Cores(COUNT), lambda world: world.open_loop(CAPACITY / 2, 20)),
    "a load of nine tenths": (Cores(COUNT), lambda world: world.open_loop(0.9 * CAPACITY, 20)),
    "foreign load that halves the capacity for three seconds": (
        Cores(COUNT, lambda at: 2.0 if 3 < at < 6 else 1.0),
        lambda world: world.open_loop(0.45 * CAPACITY, 12),
    ),
    "the same for one second, near the capacity": (
        Cores(COUNT, lambda at: 2.0 if 3 < at < 4 else 1.0),
        lambda world: world.open_loop(0.9 * CAPACITY, 12),
    ),
    "callers that wait for their responses, and for 0.8 s in the queue": (
        Cores(COUNT),
        lambda world: world.closed_loop(40, 10),
    ),
    "such callers on a machine with foreign load": (
        Cores(COUNT, lambda at: 2.0 if 3 < at < 9 else 1.0),
        lambda world: world.closed_loop(16, 12),
    ),
    "a process that stands still for two seconds": (
        Cores(COUNT, lambda at: 50.0 if 3 < at < 3.1 else 1.0),
        lambda world: world.closed_loop(8, 10),
    ),
    "a burst of 1.3 s of work": (Cores(COUNT), lambda world: world.burst(60)),
}


@pytest.mark.parametrize("case", NO_REFUSAL)
def test_nobody_is_refused_without_a_standing_overload(loop: VirtualLoop, case: str) -> None:
    cores, load = NO_REFUSAL[case]
    world = simulate(loop, hashing(cores, WORK), load)
    assert world.served
    assert (world.refused, world.late) == ([], [])


def test_a_slow_dependency_is_no_reason_to_refuse(loop: VirtualLoop) -> None:
    """A dependency becomes fifteen times slower: with 300 calls in progress, and with callers that share 10 permits."""
    slow = waiting(lambda at: 0.1 if at < 4 else 1.5)
    world = simulate(loop, slow, lambda world: world.open_loop(200, 10))
    assert (world.refused, world.late) == ([], [])


def test_callers_that_share_few_permits_wait_for_a_slow_dependency(loop: VirtualLoop) -> None:
    slow = waiting(lambda at: 0.1 if at < 4 else 1.0)
    world = simulate(loop, slow, lambda world: world.closed_loop(30, 20), permits=10)
    assert (world.refused, world.late) == ([], [])


def test_nobody_is_refused_after_the_overload(loop: VirtualLoop) -> None:
    async def load(world: World) -> None:
        await world.open_loop(5 * CAPACITY, 6, 2.0)
        assert world.refused
        await asyncio.sleep(3)
        world.refused.clear()
        world.late.clear()
        await world.open_loop(0.8 * CAPACITY, 10)
        assert next(world.limit.usage()).limit == world.limit.limit

    world = simulate(loop, hashing(Cores(COUNT), WORK), load)
    assert (world.refused, world.late) == ([], [])


def test_a_limit_of_an_overload_follows_a_dependency_that_becomes_slow(loop: VirtualLoop) -> None:
    """The limit of an overload is three calls here; a dependency that takes a second then needs dozens."""
    cores, start = Cores(COUNT), START

    async def function() -> None:
        await asyncio.sleep(1.0 if loop.time() - start > 8 else 0.003)
        await cores.work(WORK)

    world = simulate(loop, function, lambda world: world.open_loop(3 * CAPACITY, 24, 4.0))
    assert world.goodput(START + 5, START + 8) >= 0.9 * CAPACITY
    assert world.goodput(START + 16, START + 24) >= 0.8 * CAPACITY


@pytest.mark.parametrize("factor", [2, 5, 10])
def test_a_method_that_shares_a_queue_with_an_overloaded_one_is_served(loop: VirtualLoop, factor: int) -> None:
    cores = Cores(COUNT)
    flooded = World(hashing(cores, WORK))
    other = World(hashing(cores, WORK / 8))
    other.limit = flooded.limit

    async def load() -> None:
        flood = asyncio.ensure_future(flooded.open_loop(factor * CAPACITY, 12, 2.0))
        await other.open_loop(8, 12, path="/t.v1.S/Other")
        await flood

    loop.run_until_complete(load())
    assert flooded.refused
    assert (other.refused, other.late) == ([], [])
    assert flooded.goodput(START + 6, START + 12) >= 0.8 * CAPACITY
