"""Exception boundary around user code: turns every ``BaseException`` into an ``Exception`` and tracks cancellations.

User code is functions, Lambda handlers, the hooks ``startup`` and ``shutdown``, migrations, and the requests that a
function streams to a stub. All of it runs inside of ``contain``, or of ``boundary``, which is the same as a layer. Code
outside can therefore rely on ``except Exception``:

======================================================== ===========================================================
user code raises                                          code outside gets
======================================================== ===========================================================
an ``Exception``                                          the same
``CancelledError`` requested by the mesh                  the same
``CancelledError`` not requested by the mesh              ``OwnCancellationError`` (status CANCELLED, a failed attempt)
``SystemExit``, ``KeyboardInterrupt``, a panic of a       ``EscapedError`` (status INTERNAL, a failed attempt)
Rust extension, any other ``BaseException``
======================================================== ===========================================================

``SystemExit`` and ``KeyboardInterrupt`` end the event loop when a task raises them (asyncio's ``Task.__step``), and
with it every other call of the process.

A ``CancelledError`` does not tell its origin. The mesh cancels (deadline, disconnect, shutdown), and so does a function
(it cancelled a task that it awaits, or called ``asyncio.current_task().cancel()``). So the mesh records its own
cancellations: it cancels a task in which user code may run with ``cancel_task``, never with ``task.cancel()``.

Source: https://docs.python.org/3/library/asyncio-task.html#task-cancellation (``cancelling``, ``uncancel``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Protocol, TypeVar
from weakref import WeakKeyDictionary

from mesh.text import text_of

if TYPE_CHECKING:
    from types import CoroutineType

__all__ = [
    "EscapedError",
    "OwnCancellationError",
    "as_exception",
    "boundary",
    "cancel_task",
    "cancelled_by_mesh",
    "contain",
    "record_cancellation",
    "uncancel_task",
    "wrap_escaped",
]

T = TypeVar("T")


class EscapedError(RuntimeError):
    """User code raised a ``BaseException`` that is no ``Exception``. ``__cause__`` holds it."""


class OwnCancellationError(EscapedError):
    """User code ended with a cancellation that the mesh did not request. ``__cause__`` holds the ``CancelledError``."""


class Cancellable(Protocol):
    """Part of ``mesh.call.Call`` that the boundary reads."""

    task: asyncio.Task[Any] | None

    async def caller_disconnected(self) -> bool:
        """Whether the server cancelled the task because the caller disconnected."""


# -- cancellations by the mesh --

_requested: WeakKeyDictionary[asyncio.Task[Any], int] = WeakKeyDictionary()
"""Task → number of cancellations that the mesh requested and did not take back."""


def cancel_task(task: asyncio.Task[Any]) -> None:
    """Cancel a task in which user code may run, on behalf of the mesh."""
    record_cancellation(task)
    task.cancel()


def record_cancellation(task: asyncio.Task[Any], times: int = 1) -> None:
    """Record that the mesh requested ``times`` cancellations of a task."""
    _requested[task] = _requested.get(task, 0) + times


def uncancel_task(task: asyncio.Task[Any]) -> int:
    """Take one ``cancel_task`` back. Return the number of cancellations left (``Task.uncancel``)."""
    left = _requested.get(task, 0) - 1
    if left > 0:
        _requested[task] = left
    else:
        _requested.pop(task, None)
    return task.uncancel()


def cancelled_by_mesh(task: asyncio.Task[Any]) -> bool:
    """Whether the mesh has requested a cancellation of the task."""
    return task in _requested


# -- exceptions of user code --


def wrap_escaped(error: BaseException) -> EscapedError:
    """Return an ``Exception`` whose cause is a ``BaseException`` that is none."""
    name, text = type(error).__name__, text_of(error)
    if isinstance(error, asyncio.CancelledError):
        found: EscapedError = OwnCancellationError(f"cancelled, but not by the mesh{text and f': {text}'}")
    else:
        found = EscapedError(f"{name} was raised, which is no Exception{text and f': {text}'}")
    found.__cause__ = error
    return found


async def as_exception(error: BaseException, call: Cancellable | None = None) -> Exception:
    """Return the ``Exception`` for an error that left user code: the error itself if it is one.

    The caller awaits it in the ``except`` block, in the task that ran the code.

    Raises:
        BaseException: The error itself, because the mesh requested it or the coroutine is being closed.
    """
    if isinstance(error, Exception):
        return error
    task = _current()
    if task is None or (call is not None and call.task is not None and call.task is not task):
        raise error  # Python closes a coroutine that no task runs any more with a GeneratorExit
    if isinstance(error, asyncio.CancelledError) and (
        cancelled_by_mesh(task) or (call is not None and task.cancelling() and await _disconnected(call, task))
    ):
        await _settle(task)
        raise error
    return wrap_escaped(error)


async def contain(running: Awaitable[T], call: Cancellable | None = None) -> T:
    """Await user code and raise its errors as an ``Exception``.

    Args:
        running: Awaitable that runs user code in this task.
        call: The call that the code answers, if any.

    Raises:
        Exception: The error of the code, or an ``EscapedError`` for a ``BaseException``.
        asyncio.CancelledError: The mesh requested the cancellation.
    """
    task = (call and call.task) or asyncio.current_task()
    assert task is not None  # noqa: S101 - a coroutine always runs in a task here
    try:
        result = await running
    except BaseException as error:
        if _current() is not task:  # as in ``as_exception``
            raise
        found = await as_exception(error, call)
        if task.cancelling():
            await _settle(task)
        if found is error:
            raise
        raise found from error
    if task.cancelling():
        await _settle(task)
    return result


def boundary(call: Any, next: Callable[[Any], CoroutineType[Any, Any, None]]) -> Awaitable[None]:
    """Innermost layer: ``contain`` for a handler that calls user code."""
    return contain(next(call), call)


def _current() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:  # no loop runs in this thread
        return None


async def _disconnected(call: Cancellable, task: asyncio.Task[Any]) -> bool:
    """Whether the server cancelled the task. If so, record its cancellations as the mesh's."""
    if not await call.caller_disconnected():
        return False
    record_cancellation(task, task.cancelling())
    return True


async def _settle(task: asyncio.Task[Any]) -> None:
    """Take back the cancellations that user code requested, so that they do not hit the code that follows.

    Raises:
        asyncio.CancelledError: The mesh requested a cancellation meanwhile.
    """
    requested = _requested.get(task, 0)
    own = task.cancelling() - requested
    if own <= 0:
        return
    for _ in range(own):
        task.uncancel()
    try:
        await asyncio.sleep(0)  # raises a cancellation that was requested and not raised yet
    except asyncio.CancelledError:
        if _requested.get(task, 0) > requested:
            raise
