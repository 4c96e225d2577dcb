"""Signals for an event loop beside the main thread: each counts once, whatever functions do to the ways it comes."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Iterator

import pytest

from mesh.control.component.signals import SignalReceiver

NUMBER = signal.SIGUSR1


@pytest.fixture
def signals() -> Iterator[tuple[SignalReceiver, Callable[[int], None]]]:
    """Receiver whose loop in a thread counts, and what waits until it has counted so many."""
    before = signal.getsignal(NUMBER)
    made = SignalReceiver([NUMBER])
    counted = threading.Semaphore(0)
    loop = asyncio.new_event_loop()
    added = threading.Event()

    async def run() -> None:
        made.add(NUMBER, counted.release)
        added.set()
        while not ended.is_set():  # noqa: ASYNC110 - of a thread
            await asyncio.sleep(0.01)

    ended = threading.Event()
    thread = threading.Thread(target=lambda: loop.run_until_complete(run()))
    thread.start()
    added.wait(10)

    def count(wanted: int) -> None:
        for _ in range(wanted):
            assert counted.acquire(timeout=10)
        assert not counted.acquire(timeout=0.05)

    try:
        yield made, count
    finally:
        ended.set()
        thread.join()
        loop.close()
        signal.set_wakeup_fd(-1)
        signal.signal(NUMBER, before)
        made._reading.close()
        made._writing.close()


def test_each_signal_counts_once(signals: tuple[SignalReceiver, Callable[[int], None]]) -> None:
    for _ in range(3):
        os.kill(os.getpid(), NUMBER)
        signals[1](1)


def test_with_a_handler_of_a_function_s_own(signals: tuple[SignalReceiver, Callable[[int], None]]) -> None:
    seen: list[int] = []
    signal.signal(NUMBER, lambda number, _: seen.append(number))
    signals[0].keep()
    os.kill(os.getpid(), NUMBER)
    signals[1](1)
    assert seen == [NUMBER]


def test_with_a_wakeup_descriptor_of_a_function_s_own(signals: tuple[SignalReceiver, Callable[[int], None]]) -> None:
    signal.set_wakeup_fd(-1)
    os.kill(os.getpid(), NUMBER)
    signals[1](1)
    signals[0].keep()
    os.kill(os.getpid(), NUMBER)
    signals[1](1)


def test_after_a_function_s_loop_has_given_it_back_its_default(
    signals: tuple[SignalReceiver, Callable[[int], None]],
) -> None:
    loop = asyncio.new_event_loop()
    loop.add_signal_handler(NUMBER, int)
    loop.close()
    assert signal.getsignal(NUMBER) is signal.SIG_DFL
    signals[0].keep()
    os.kill(os.getpid(), NUMBER)
    signals[1](1)
