"""Main thread as executor: one function at a time, and no job is lost to an exception of a signal handler."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import ContextVar, copy_context
from functools import partial
from typing import Any, NoReturn

import pytest

from mesh import main_thread as module
from mesh.main_thread import MainThread
from mesh.threads import Block, ThreadPool

variable: ContextVar[str] = ContextVar("variable", default="none")


def of(work: Callable[[], Any]) -> Callable[[Block], Any]:
    return lambda _: work()


def in_main() -> bool:
    return threading.current_thread() is threading.main_thread()


def beside(
    body: Callable[[MainThread], Coroutine[Any, Any, Any]],
    others: ThreadPool | None = None,
    main: MainThread | None = None,
) -> Any:
    """Run the coroutine on an event loop in a thread, and what it gives to the main thread here."""
    main = main or MainThread(others, restore_signals=lambda: None)

    async def stopped() -> Any:
        try:
            async with asyncio.timeout(30):
                return await body(main)
        finally:
            main.stop()

    def left(_: Any) -> NoReturn:
        raise AssertionError("a function does not leave the main thread")

    return main.run_with_loop(lambda: asyncio.run(stopped()), left)


@pytest.mark.parametrize("seconds", [0, 0.01])
def test_calls_that_do_not_overlap_run_in_the_main_thread(seconds: float) -> None:
    def work() -> bool:
        time.sleep(seconds)
        return in_main()

    async def body(main: MainThread) -> list[bool]:
        return [await main.run(of(work)) for _ in range(100)]

    assert beside(body, ThreadPool(4)) == [True] * 100


def test_quick_ones_wait_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HANDOFF_DELAY", 60.0)  # whatever else the machine does

    async def body(main: MainThread) -> list[bool]:
        return await asyncio.gather(*(main.run(of(in_main)) for _ in range(50)))

    assert beside(body, ThreadPool(4)) == [True] * 50


def test_those_behind_a_slow_one_get_threads() -> None:
    release = threading.Event()

    async def body(main: MainThread) -> list[bool]:
        slow = asyncio.ensure_future(main.run(of(lambda: release.wait(20))))
        await asyncio.sleep(0)
        quick = await asyncio.gather(*(main.run(of(in_main)) for _ in range(10)))
        assert not slow.done()
        release.set()
        assert await slow
        return quick

    assert beside(body, ThreadPool(4)) == [False] * 10


def test_without_threads_all_wait_their_turn() -> None:
    running = 0

    def work(number: int) -> int:
        nonlocal running
        running += 1
        time.sleep(0.01)
        running -= 1
        assert running == 0
        return number

    async def body(main: MainThread) -> list[int]:
        return await asyncio.gather(*(main.run(of(partial(work, number))) for number in range(10)))

    assert beside(body) == list(range(10))


def test_a_call_that_ended_while_it_waited_is_not_begun() -> None:
    release, begun = threading.Event(), []

    async def body(main: MainThread) -> None:
        busy = asyncio.ensure_future(main.run(of(lambda: release.wait(20))))
        late = asyncio.ensure_future(main.run(of(lambda: begun.append("late"))))
        await asyncio.sleep(0)
        late.cancel()
        await asyncio.wait([late])
        assert late.cancelled()
        release.set()
        await busy
        await main.run(of(int))
        await main.wait_idle()
        assert not main.busy

    beside(body)
    assert begun == []


def test_a_function_waits_for_the_loop_and_ends_with_its_call() -> None:
    ends: list[str] = []

    def work(block: Block) -> None:
        assert block(asyncio.sleep(0, "slept")) == "slept"
        try:
            block(asyncio.sleep(60))
        except Exception as error:
            ends.append(type(error).__name__)
            raise

    async def body(main: MainThread) -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(main.run(work), 0.2)
        await main.wait_idle()

    beside(body)
    assert ends == ["Cancelled"]


def test_the_context_is_the_one_given_here_and_a_copy_of_it_in_a_thread() -> None:
    context = copy_context()
    context.run(variable.set, "given")
    release = threading.Event()

    def change() -> str:
        found = variable.get()
        variable.set(f"{found} and changed")
        return found

    async def body(main: MainThread) -> list[str]:
        variable.set("of the caller")
        found = [await main.run(of(change)), await main.run(of(change))]
        found += [await main.run(of(change), context), await main.run(of(change), context)]
        slow = asyncio.ensure_future(main.run(of(lambda: release.wait(20))))
        await asyncio.sleep(0)
        found += [await main.run(of(change), context), await main.run(of(change), context)]
        release.set()
        await slow
        return found

    assert (
        beside(body, ThreadPool(4))
        == ["of the caller"] * 2 + ["given"] + ["given and changed"] + ["given and changed and changed"] * 2
    )


STORM = """
import asyncio, logging, signal
from mesh.boundary import EscapedError
from mesh.main_thread import MainThread

class Rung(BaseException):
    pass

def ring(*_):
    raise Rung

async def body(main):
    found = []
    await main.run(lambda _: None)  # it serves
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    for number in range(600):
        try:
            found.append(await main.run(lambda _, number=number: number + 0 * sum(range(2000))))
        except EscapedError as error:  # a Rung, as boundary has it
            assert isinstance(error.__cause__, Rung)
            found.append(number)
        if number % 100 == 0:
            await asyncio.sleep(0.005)
    signal.setitimer(signal.ITIMER_REAL, 0)
    return found

logging.disable()
signal.signal(signal.SIGALRM, ring)
main = MainThread(None)
assert main.run_with_loop(lambda: asyncio.run(body(main)), exit) == list(range(600))
"""


def test_what_a_signal_handler_raises_loses_no_call() -> None:
    """The handler raises every half millisecond: in functions, between them, and while the main thread waits."""
    done = subprocess.run([sys.executable, "-c", STORM], capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr


class Rung(Exception):
    """What a function's signal handler raises."""


def test_what_a_function_waits_for_ends_with_the_wait() -> None:
    """A handler of signals ends the wait and not the function, which goes on: as an alarm of its own does."""

    def ring(*_: object) -> None:
        raise Rung

    async def body(main: MainThread) -> str:
        begun, ended = asyncio.Event(), asyncio.Event()

        async def forever() -> None:
            begun.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

        def work(block: Block) -> str:
            try:
                block(forever())
            except Rung:
                block(ended.wait())
            return "goes on"

        running = asyncio.ensure_future(main.run(work))
        await begun.wait()
        while main._started is None or main._started._waiting is None:  # noqa: ASYNC110 - a line of the other thread
            await asyncio.sleep(0.001)
        os.kill(os.getpid(), signal.SIGUSR1)
        return str(await running)

    before = signal.signal(signal.SIGUSR1, ring)
    try:
        assert beside(body) == "goes on"
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_call_that_is_taken_back_as_the_main_thread_looks_for_it(caplog: pytest.LogCaptureFixture) -> None:
    class Fleeting(deque[Any]):
        """Has a call when it is first asked, which has gone when it is to be given."""

        asked = False

        def __bool__(self) -> bool:
            asked, self.asked = self.asked, True
            return not asked or len(self) > 0

    async def body(main: MainThread) -> bool:
        return bool(await main.run(of(in_main)))

    main = MainThread(None, restore_signals=lambda: None)
    main._queue = Fleeting()
    assert beside(body, main=main)
    assert caplog.text == ""


def test_what_the_loop_raises_is_raised() -> None:
    async def body(main: MainThread) -> None:
        assert main.call(in_main)
        with pytest.raises(ZeroDivisionError):
            main.call(lambda: 1 / 0)
        await main.run(of(int))
        raise LookupError("of the loop")

    with pytest.raises(LookupError, match="of the loop"):
        beside(body)


def test_signals_that_end_a_process_are_ignored_again_where_a_function_gave_them_up() -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        module.ignore_stop_signals()
        assert signal.getsignal(signal.SIGINT) is module.ignore_signal
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
