"""Ends a test that takes too long, whatever its loop, and says where it stands: its name, its threads, its tasks.

pytest-timeout keeps the time. Its own ways do not do here: a signal is not seen while uvloop waits in C, and neither
that nor its thread says where a coroutine waits. The worker ends; xdist names the test and starts another one.
"""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import threading
import traceback
from collections.abc import Iterator
from types import FrameType
from typing import Any

import pytest

_STDERR = pytest.StashKey[int]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_STDERR] = os.dup(2)  # not captured yet
    config.add_cleanup(lambda: os.close(config.stash[_STDERR]))


def pytest_timeout_set_timer(item: pytest.Item, settings: Any) -> bool:
    """Replace pytest-timeout's timer (its hook); ``item.cancel_timeout`` is what it calls at the end."""
    timer = threading.Timer(settings.timeout, _end, (item, settings.timeout))
    timer.daemon = True
    timer.start()

    def cancel() -> None:
        timer.cancel()
        timer.join()

    item.cancel_timeout = cancel  # type: ignore[attr-defined]
    return True


def _end(item: pytest.Item, seconds: float) -> None:
    try:
        os.write(item.config.stash[_STDERR], "\n".join(_lines(item.nodeid, seconds)).encode())
    finally:
        os._exit(1)


def _lines(name: str, seconds: float) -> Iterator[str]:
    yield f"\n++++ {name} has not ended within {seconds:g} s"
    for thread, frame in sys._current_frames().items():
        if thread != threading.get_ident():
            yield f"-- thread {thread}"
            yield from traceback.format_stack(frame)[-10:]
    for task in [found for found in gc.get_objects() if isinstance(found, asyncio.Task)]:
        if not task.done():
            yield f"-- {task!r}"
            for frame in awaited(task.get_coro()):
                yield from traceback.format_stack(frame, 1)
    yield "++++\n"


def awaited(coroutine: Any) -> Iterator[FrameType]:
    """Yield the frames of a coroutine that waits, and of what it waits for, as far as it can be followed."""
    while coroutine is not None:
        for kind in ("cr", "gi", "ag"):
            frame = getattr(coroutine, f"{kind}_frame", None)
            if frame is not None:
                yield frame
                coroutine = getattr(coroutine, f"{kind}_await" if kind != "gi" else "gi_yieldfrom", None)
                break
        else:
            return
