"""Ways in which a function may end that are no plain exception, by name. The test suites use them too."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Callable, Coroutine
from typing import Any

from mesh import NotFound

__all__ = ["BUGS", "CANCELLATIONS", "GOOD", "Panic", "end", "end_anywhere", "end_at_last", "end_on_the_loop"]


class Panic(BaseException):
    """Stands for exceptions of Rust extensions (PyO3's ``PanicException``) and for ``gevent.Timeout``."""


class UnprintableError(Exception):
    """An exception whose text raises another exception."""

    def __str__(self) -> str:
        raise Panic("no text either")

    __repr__ = __str__


def _recurse() -> None:
    _recurse()


def _raising(error: Callable[[], BaseException]) -> Callable[[], None]:
    def throw() -> None:
        raise error()

    return throw


def _next_of_nothing() -> None:
    next(iter([]))


def _wait_for_a_cancelled_future() -> None:
    future: concurrent.futures.Future[None] = concurrent.futures.Future()
    future.cancel()
    future.result()


BUGS: dict[str, Callable[[], None]] = {
    "exit": _raising(lambda: SystemExit(3)),
    "interrupt": _raising(KeyboardInterrupt),
    "generator exit": _raising(GeneratorExit),
    "panic": _raising(lambda: Panic("secret")),
    "group with a panic": _raising(lambda: BaseExceptionGroup("secret", [Panic("secret"), ValueError("secret")])),
    "group of statuses": _raising(lambda: ExceptionGroup("secret", [NotFound("secret")])),
    "unprintable": _raising(UnprintableError),
    "out of memory": _raising(MemoryError),
    "recursion": _recurse,
    "stop iteration": _next_of_nothing,
    "stop async iteration": _raising(StopAsyncIteration),
    "cancelled future of a thread": _wait_for_a_cancelled_future,
}
"""Ways that give INTERNAL to the caller. ``concurrent.futures.CancelledError`` is an ordinary exception."""


async def _cancelled_task() -> None:
    task = asyncio.ensure_future(asyncio.sleep(60))
    await asyncio.sleep(0)
    task.cancel()
    await task


async def _cancelled_future() -> None:
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    future.cancel()
    await future


def _itself() -> asyncio.Task[None]:
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 - a coroutine always runs in a task here
    return task


async def _cancels_itself() -> None:
    _itself().cancel()
    await asyncio.sleep(60)


async def _is_cancelled_by_a_task() -> None:
    asyncio.get_running_loop().call_later(0.01, _itself().cancel)
    await asyncio.sleep(60)


async def _raises_one() -> None:
    raise asyncio.CancelledError("by hand")


CANCELLATIONS: dict[str, Callable[[], Coroutine[Any, Any, None]]] = {
    "cancelled task": _cancelled_task,
    "cancelled future": _cancelled_future,
    "cancels itself": _cancels_itself,
    "is cancelled by a task": _is_cancelled_by_a_task,
    "raises a cancellation": _raises_one,
}
"""Ways that give CANCELLED to the caller."""


GOOD = ("cancels itself at last", "swallows its own")
"""Ways that give OK to the caller: the function has returned its response."""


def end(how: str) -> None:
    """End in a way of ``BUGS``; in a thread, of ``CANCELLATIONS`` too. Other names do nothing."""
    if how in BUGS:
        BUGS[how]()
    if how in CANCELLATIONS:
        asyncio.run(CANCELLATIONS[how]()) if how != "raises a cancellation" else _raising(asyncio.CancelledError)()


def end_at_last(how: str) -> None:
    """End in a way whose name begins with ``at last``, while a generator is closed."""
    if how == "at last: raises a cancellation":
        raise asyncio.CancelledError
    if how.startswith("at last: "):
        BUGS[how.removeprefix("at last: ")]()


async def end_on_the_loop(how: str) -> None:
    """End in a way of ``CANCELLATIONS`` or of ``GOOD``. Other names do nothing."""
    if how in CANCELLATIONS:
        await CANCELLATIONS[how]()
    if how == "cancels itself at last":
        _itself().cancel()
    if how in ("swallows its own", "swallows its own and sleeps"):
        _itself().cancel()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            await asyncio.sleep(60 if how.endswith("sleeps") else 0)


async def end_anywhere(how: str) -> None:
    """End in a way of any kind on the event loop. "" and other names do nothing."""
    await end_on_the_loop(how)
    end(how)
