"""Deadline layer: caps the caller's deadline by the method's timeout and cancels the call when it passes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from time import monotonic  # the clock of the event loops
from typing import TYPE_CHECKING

from mesh.errors import DeadlineExceeded, StatusError, is_own
from mesh.layers.timer_wheel import TaskTimeout, timer_wheel

if TYPE_CHECKING:
    from mesh.call import Call, Handler

__all__ = ["cancel_at", "cancel_with", "deadline"]


def deadline(call: Call, next: Handler) -> Awaitable[None]:
    """Cap ``call.deadline`` by ``call.method.timeout`` and cancel the rest of the chain when it passes.

    A response or a status of the function counts even after the deadline. A cancellation with another cause (the caller
    disconnected) passes unchanged.

    Raises:
        DeadlineExceeded: The deadline passed, and the function ended with the cancellation or with another error.
    """
    timeout = call.method.timeout
    if timeout is not None:
        latest = monotonic() + timeout
        if call.deadline is None or call.deadline > latest:
            call.deadline = latest
    if call.deadline is None:
        return next(call)
    call.check_deadline()
    call.deadline_enforced = True
    return cancel_at(call.deadline, call, next, _passed)


def _passed() -> StatusError:
    return DeadlineExceeded("the deadline passed")


async def cancel_at(until: float, call: Call, next: Handler, status: Callable[[], StatusError]) -> None:
    """Run the rest of the chain and cancel it at a time.

    A response or a status of the function counts even after that time. A cancellation with another cause passes
    unchanged.

    Args:
        until: Loop time, seconds.
        call: The call.
        next: The rest of the chain.
        status: Makes the status of a call that ended with the cancellation, or with another error after it.

    Raises:
        StatusError: That of ``status``, or of the function.
    """
    task = call.task or asyncio.current_task()
    assert task is not None  # noqa: S101 - a coroutine always runs in a task here
    timeout = TaskTimeout(task)
    slot = timer_wheel(task).add(until, timeout)
    try:
        await cancel_with(timeout, call, next, status)
    finally:
        slot.discard(timeout)


async def cancel_with(expiry: TaskTimeout, call: Call, next: Handler, status: Callable[[], StatusError]) -> None:
    """Run the rest of the chain, which ``expiry.expire()`` cancels.

    A response or a status of the function counts even after the expiry. A cancellation with another cause passes
    unchanged.

    Args:
        expiry: A timeout of the call's task.
        call: The call.
        next: The rest of the chain.
        status: Makes the status of a call that ended with the cancellation, or with another error after it.

    Raises:
        StatusError: That of ``status``, or of the function.
    """
    try:
        await next(call)
    except asyncio.CancelledError:
        # A cancellation by the timeout alone becomes a status. One with another cause as well passes.
        if expiry.sole_cause:
            raise status() from None
        raise
    except Exception as error:
        if expiry.sole_cause and not is_own(error):
            raise status() from error
        raise
    finally:
        expiry.uncancel()
