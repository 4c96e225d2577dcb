"""The boundary around users' code: what it raises leaves as an ordinary exception, and each cancellation has an owner.

User code is functions, Lambda handlers, the hooks ``startup`` and ``shutdown``, migrations, and the requests that a
function streams to a stub. Whatever runs such code runs it inside of ``contain`` (or of ``boundary``, the same as a
layer), so that everything outside may rely on ``except Exception``:

======================================================== ===========================================================
user code raises                                          outside
======================================================== ===========================================================
an ``Exception``                                          the same
``CancelledError`` that the mesh asked for                the same
``CancelledError`` that the mesh did not ask for          ``OwnCancellationError`` (status CANCELLED, a failed try)
``SystemExit``, ``KeyboardInterrupt``, a panic of a       ``EscapedError`` (status INTERNAL, a failed try)
Rust extension, any other ``BaseException``
======================================================== ===========================================================

``SystemExit`` and ``KeyboardInterrupt`` end the event loop when a task raises them (asyncio's ``Task.__step``), and
with it every other call of the process.

A ``CancelledError`` does not say who asked for it: the mesh (a deadline, a caller who has gone, a stop), or the
function (a task of its own that was cancelled, ``asyncio.current_task().cancel()``). So the mesh writes down what it
asks for: a task in which user code may run is cancelled by ``revoke``, never by ``task.cancel()``.

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
    "boundary",
    "contain",
    "contained",
    "interrupted",
    "ordinary",
    "restore",
    "revoke",
    "revoked",
]

T = TypeVar("T")


class EscapedError(RuntimeError):
    """User code raised what is no ``Exception``; ``__cause__`` is that."""


class OwnCancellationError(EscapedError):
    """User code ended with a cancellation that the mesh did not ask for; ``__cause__`` is the ``CancelledError``."""


class Revocable(Protocol):
    """What the boundary asks of a call (``mesh.call.Call``)."""

    task: asyncio.Task[Any] | None

    async def caller_disconnected(self) -> bool:
        """Whether the server cancelled the task, because the caller has gone."""


# -- what the mesh asks for --

_asked: WeakKeyDictionary[asyncio.Task[Any], int] = WeakKeyDictionary()
"""Task → the cancellations that the mesh has asked for and not taken back."""


def revoke(task: asyncio.Task[Any]) -> None:
    """Cancel a task in which user code may run, on behalf of the mesh."""
    interrupted(task)
    task.cancel()


def interrupted(task: asyncio.Task[Any], times: int = 1) -> None:
    """Note that the mesh ends a task: a ``CancelledError`` that comes out of it is the mesh's."""
    _asked[task] = _asked.get(task, 0) + times


def restore(task: asyncio.Task[Any]) -> int:
    """Take one ``revoke`` back, whose reason is over; returns how many cancellations are left (``Task.uncancel``)."""
    left = _asked.get(task, 0) - 1
    if left > 0:
        _asked[task] = left
    else:
        _asked.pop(task, None)
    return task.uncancel()


def revoked(task: asyncio.Task[Any]) -> bool:
    """Whether the mesh has asked the task to end."""
    return task in _asked


# -- what user code raises --


def contained(error: BaseException) -> EscapedError:
    """Return the ordinary exception for what is none; its cause is the error, with the traceback."""
    name, text = type(error).__name__, text_of(error)
    if isinstance(error, asyncio.CancelledError):
        found: EscapedError = OwnCancellationError(f"it was cancelled, and not by the mesh{text and f': {text}'}")
    else:
        found = EscapedError(f"{name} was raised, which is no Exception{text and f': {text}'}")
    found.__cause__ = error
    return found


async def ordinary(error: BaseException, call: Revocable | None = None) -> Exception:
    """Return what goes on in place of an error that came out of user code: itself if it is an ``Exception``.

    To be awaited in the task that ran the code, in the handler of the exception.

    Raises:
        BaseException: The error as it is: the mesh has asked for it, or the coroutine is being closed.
    """
    if isinstance(error, Exception):
        return error
    task = _current()
    if task is None or (call is not None and call.task is not None and call.task is not task):
        raise error  # Python closes a coroutine that its task does not run any more, by a GeneratorExit
    if isinstance(error, asyncio.CancelledError) and (
        revoked(task) or (call is not None and task.cancelling() and await _left(call, task))
    ):
        await _settle(task)
        raise error
    return contained(error)


async def contain(running: Awaitable[T], call: Revocable | None = None) -> T:
    """Await user code, and raise whatever it raises as an ordinary exception.

    Args:
        running: What runs it, in this task.
        call: The call that it answers, if it answers one.

    Raises:
        Exception: What it raised; ``EscapedError`` in place of what is no ``Exception``.
        asyncio.CancelledError: The mesh has asked for it.
    """
    task = (call and call.task) or asyncio.current_task()
    assert task is not None  # noqa: S101 - a coroutine always runs in a task here
    try:
        result = await running
    except BaseException as error:
        if _current() is not task:  # as in ``ordinary``
            raise
        found = await ordinary(error, call)
        if task.cancelling():
            await _settle(task)
        if found is error:
            raise
        raise found from error
    if task.cancelling():
        await _settle(task)
    return result


def boundary(call: Any, next: Callable[[Any], CoroutineType[Any, Any, None]]) -> Awaitable[None]:
    """The innermost layer: ``contain`` for a handler that calls user code."""
    return contain(next(call), call)


def _current() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:  # no loop runs in this thread
        return None


async def _left(call: Revocable, task: asyncio.Task[Any]) -> bool:
    """Whether the server cancelled the task; what it asked for is written down as the mesh's then."""
    if not await call.caller_disconnected():
        return False
    interrupted(task, task.cancelling())
    return True


async def _settle(task: asyncio.Task[Any]) -> None:
    """Take back what user code asked for and left behind: its cancellation must not hit what follows.

    Raises:
        asyncio.CancelledError: The mesh asks for the end of the task meanwhile.
    """
    asked = _asked.get(task, 0)
    own = task.cancelling() - asked
    if own <= 0:
        return
    for _ in range(own):
        task.uncancel()
    try:
        await asyncio.sleep(0)  # what was asked for and has not been raised yet is raised here
    except asyncio.CancelledError:
        if _asked.get(task, 0) > asked:
            raise
