"""Thread pool for ``def`` functions: as few threads as the functions need, and none left after the end."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextvars import ContextVar
from functools import partial
from typing import Any

import pytest
import pytest_asyncio
from google.protobuf.empty_pb2 import Empty

from mesh import threads as module
from mesh.boundary import EscapedError
from mesh.call import Call, Metadata, current
from mesh.contract.model import Method
from mesh.errors import ResourceExhausted
from mesh.threads import Block, ThreadPool

LIMIT = 8


@pytest_asyncio.fixture
async def threads() -> AsyncIterator[ThreadPool]:
    made = ThreadPool(LIMIT)
    yield made
    made.stop()


def of(work: Callable[[], Any]) -> Callable[[Block], Any]:
    return lambda _: work()


async def test_quick_functions_are_run_by_one_thread(threads: ThreadPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HANDOFF_DELAY", 60.0)  # whatever else the machine does
    used = [await asyncio.gather(*(threads.run(of(threading.get_ident)) for _ in range(50))) for _ in range(5)]
    assert len({ident for round_ in used for ident in round_}) == 1


async def test_functions_that_wait_run_side_by_side_up_to_the_limit(threads: ThreadPool) -> None:
    together = threading.Barrier(LIMIT, timeout=20)
    running, most, lock = 0, 0, threading.Lock()

    def meet() -> int:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        try:
            return together.wait()
        finally:
            with lock:
                running -= 1

    places = await asyncio.gather(*(threads.run(of(meet)) for _ in range(3 * LIMIT)))
    assert sorted(places) == sorted([*range(LIMIT)] * 3)
    assert most == LIMIT


async def test_a_quick_function_does_not_wait_for_a_slow_one(threads: ThreadPool) -> None:
    release = threading.Event()
    await threads.run(of(int))
    slow = asyncio.ensure_future(threads.run(of(lambda: release.wait(20))))
    assert await asyncio.wait_for(threads.run(of(lambda: "quick")), 10) == "quick"
    assert not slow.done()
    release.set()
    assert await slow is True


async def test_functions_that_usually_wait_get_threads_at_once(
    threads: ThreadPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HANDOFF_DELAY", 0.5)
    monkeypatch.setattr(module, "_AVERAGED_CALLS", 1)
    await threads.run(of(lambda: time.sleep(0.6)))  # what the pool learns from
    together = threading.Barrier(LIMIT, timeout=20)
    began = time.monotonic()
    await asyncio.gather(*(threads.run(of(together.wait)) for _ in range(LIMIT)))
    assert time.monotonic() - began < 0.5


async def test_no_call_is_lost_between_resting_and_waking(threads: ThreadPool) -> None:
    async def client(number: int) -> list[int]:
        return [await threads.run(of(lambda: number)) for _ in range(200)]

    async with asyncio.timeout(30):
        found = await asyncio.gather(*(client(number) for number in range(20)))
        assert found == [[number] * 200 for number in range(20)]
        for _ in range(300):  # one after the other: the thread rests before each
            await threads.run(of(int))


def throw(kind: type[BaseException]) -> None:
    raise kind


async def test_what_the_function_raises_is_raised(threads: ThreadPool) -> None:
    with pytest.raises(ZeroDivisionError):
        await threads.run(of(lambda: 1 / 0))
    with pytest.raises(RuntimeError, match="the function raised StopIteration") as caught:  # which no future takes
        await threads.run(of(partial(throw, StopIteration)))
    assert isinstance(caught.value.__cause__, StopIteration)
    for kind in (SystemExit, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError):
        with pytest.raises(EscapedError) as escaped:
            await threads.run(of(partial(throw, kind)))
        assert isinstance(escaped.value.__cause__, kind)
    assert await threads.run(of(lambda: "well")) == "well"


async def test_the_context_variables_are_the_callers(threads: ThreadPool) -> None:
    variable: ContextVar[str] = ContextVar("variable")
    variable.set("outer")

    def change() -> str:
        found = variable.get()
        variable.set("inner")
        return found

    assert [await threads.run(of(change)) for _ in range(2)] == ["outer", "outer"]
    assert variable.get() == "outer"


async def test_a_call_that_ended_while_it_waited_is_not_begun(threads: ThreadPool) -> None:
    release, begun = threading.Event(), []
    busy = [asyncio.ensure_future(threads.run(of(lambda: release.wait(20)))) for _ in range(LIMIT)]
    late = asyncio.ensure_future(threads.run(of(lambda: begun.append("late"))))
    await asyncio.sleep(0)
    late.cancel()
    with pytest.raises(asyncio.CancelledError):
        await late
    release.set()
    assert await asyncio.gather(*busy) == [True] * LIMIT
    await threads.run(of(int))
    assert begun == []


async def test_work_for_which_there_is_no_thread_is_not_done_later(
    threads: ThreadPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")  # as Thread.start does when clone(2) fails

    with monkeypatch.context() as full:
        full.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            await threads.run(of(lambda: done.append("refused")))
    assert not threads._waiting
    await threads.run(of(lambda: done.append("next")))
    assert done == ["next"]


async def test_stop_ends_the_threads_and_those_who_wait() -> None:
    pool = ThreadPool(1)
    release, inside = threading.Event(), threading.Event()
    runner: list[threading.Thread] = []

    def hold() -> str:
        runner.append(threading.current_thread())
        inside.set()
        release.wait(20)
        return "finished"

    running = asyncio.ensure_future(pool.run(of(hold)))
    await asyncio.to_thread(inside.wait, 20)
    waiting = asyncio.ensure_future(pool.run(of(int)))
    await asyncio.sleep(0)
    pool.stop()
    with pytest.raises(RuntimeError, match="stopped"):
        await waiting
    with pytest.raises(RuntimeError, match="stopped"):
        await pool.run(of(int))
    release.set()
    assert await running == "finished"
    await asyncio.to_thread(runner[0].join, 20)
    assert not runner[0].is_alive()


async def test_a_thread_that_rests_ends_with_the_pool() -> None:
    pool = ThreadPool(1)
    thread: threading.Thread = await pool.run(of(threading.current_thread))
    pool.stop()
    await asyncio.to_thread(thread.join, 20)
    assert not thread.is_alive()


class Held:
    """Functions of one method that go on until they are released, whatever becomes of their calls."""

    def __init__(self, threads: ThreadPool, path: str) -> None:
        self.started = 0
        self.release = threading.Event()
        self._threads = threads
        self._method = Method(path.rpartition("/")[2], "test.v1.Test", path, Empty, Empty)

    def call(self) -> asyncio.Task[Any]:
        """Start a call."""

        def hold() -> bool:
            self.started += 1
            return self.release.wait(30)

        return asyncio.ensure_future(self.run(hold))

    async def run(self, work: Callable[[], Any]) -> Any:
        current.set(Call(self._method, Metadata()))
        return await self._threads.run(of(work))

    async def abandon(self, count: int) -> None:
        """Start calls, and cancel them once their functions run."""
        calls = [self.call() for _ in range(count)]
        async with asyncio.timeout(20):
            while self.started < count:  # noqa: ASYNC110 - a thread counts
                await asyncio.sleep(0.001)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)


async def test_functions_that_ignore_the_end_of_their_calls_take_no_thread_from_other_methods(
    threads: ThreadPool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "ABANDONED_DELAY", 0.0)
    monkeypatch.setattr(module, "FULL_CHECK_INTERVAL", 0.01)
    deaf, other = Held(threads, "/test.v1.Test/Deaf"), Held(threads, "/test.v1.Test/Other")
    await deaf.abandon(LIMIT)
    assert threads.usage == (LIMIT, 0, LIMIT)
    assert await asyncio.wait_for(other.run(lambda: "goes on"), 20) == "goes on"
    with pytest.raises(ResourceExhausted, match=r"8 earlier calls of /test.v1.Test/Deaf have ended, and"):
        await deaf.run(int)
    (record,) = caplog.records
    assert "further calls are refused until some have ended" in record.message
    assert "in hold" in (record.stack_info or ""), "the stack of an abandoned function"
    deaf.release.set()
    async with asyncio.timeout(20):
        while threads.usage.abandoned:  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.001)
    assert await deaf.run(lambda: "again") == "again"
    assert len(threads._runners) <= LIMIT, "the replaced threads have ended"


async def test_functions_that_end_soon_after_their_calls_are_not_abandoned(threads: ThreadPool) -> None:
    slow = Held(threads, "/test.v1.Test/Slow")
    await slow.abandon(LIMIT)
    assert threads.usage == (LIMIT, 0, 0)
    waiting = slow.call()
    slow.release.set()
    assert await asyncio.wait_for(waiting, 20) is True


async def test_the_replaced_threads_have_a_limit(threads: ThreadPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ABANDONED_DELAY", 0.0)
    monkeypatch.setattr(module, "FULL_CHECK_INTERVAL", 0.01)
    methods = [Held(threads, f"/test.v1.Test/Deaf{index}") for index in range(4)]
    for method in methods:
        await method.abandon(LIMIT)
    last = asyncio.ensure_future(Held(threads, "/test.v1.Test/Last").run(int))
    await asyncio.sleep(0.1)
    assert len(threads._runners) == 4 * LIMIT
    assert not last.done()
    for method in methods:
        method.release.set()
    assert await asyncio.wait_for(last, 20) == 0


async def test_a_full_pool_is_reported_with_the_methods_that_hold_it(
    threads: ThreadPool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "FULL_CHECK_INTERVAL", 0.01)
    slow = Held(threads, "/test.v1.Test/Slow")
    calls = [slow.call() for _ in range(LIMIT + 2)]
    async with asyncio.timeout(20):
        while not caplog.records:  # noqa: ASYNC110 - the report is the event
            await asyncio.sleep(0.001)
    assert threads.usage == (LIMIT, 2, 0)
    slow.release.set()
    await asyncio.gather(*calls)
    (record,) = caplog.records
    assert record.message == "all threads for functions are busy, and 2 calls wait: 8 of /test.v1.Test/Slow"
    assert "/test.v1.Test/Slow, for " in (record.stack_info or "")
    assert "in hold" in (record.stack_info or "")
    assert threads.usage == (0, 0, 0)


async def _nothing() -> None:
    pass


LEAVING: dict[str, Callable[[], Any]] = {
    "runs another": lambda: asyncio.run(_nothing()),
    "has none": lambda: asyncio.set_event_loop(None),
    "has closed it": lambda: asyncio.get_event_loop().close(),
}


@pytest.mark.parametrize("how", LEAVING)
async def test_a_thread_has_its_event_loop_whatever_the_function_before_has_done(how: str) -> None:
    pool = ThreadPool(1)
    for _ in range(2):
        await pool.run(of(LEAVING[how]))
        assert (
            await pool.run(of(lambda: asyncio.get_event_loop().run_until_complete(asyncio.sleep(0, "slept"))))
            == "slept"
        )
    pool.stop()


async def test_a_call_that_would_wait_for_a_thread_until_its_deadline_is_refused() -> None:
    pool, go, begun = ThreadPool(1), threading.Event(), threading.Event()

    def work(_: Block) -> None:
        begun.set()
        go.wait(10)

    pool._average_seconds = 5.0
    first = asyncio.ensure_future(pool.run(work))
    await asyncio.to_thread(begun.wait, 10)
    loop = asyncio.get_running_loop()
    second = asyncio.ensure_future(pool.run(lambda _: "second"))
    await asyncio.sleep(0)
    token = current.set(Call(None, Metadata(), loop.time() + 8))
    try:
        with pytest.raises(ResourceExhausted, match="1 calls wait for a thread") as refused:
            await pool.run(lambda _: "third")
    finally:
        current.reset(token)
    assert refused.value.details
    go.set()
    assert (await first, await second) == (None, "second")
    pool.stop()
