"""The deadline layer: the caller's deadline capped by the method's own timeout, kept by cancelling what runs."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from mesh.errors import DeadlineExceeded

if TYPE_CHECKING:
    from mesh.call import Call, Handler

__all__ = ["deadline"]


async def deadline(call: Call, next: Handler) -> None:
    """Cap ``call.deadline`` by ``call.method.timeout`` and cancel the rest of the chain when it passes.

    Raises:
        DeadlineExceeded: Time ran out. A cancellation from elsewhere (the caller went away) passes through as it is.
    """
    loop = asyncio.get_running_loop()
    timeout = call.method.timeout
    if timeout is not None:
        latest = loop.time() + timeout
        if call.deadline is None or call.deadline > latest:
            call.deadline = latest
    if call.deadline is None:
        await next(call)
        return
    call.check_deadline()
    task = asyncio.current_task()
    assert task is not None  # noqa: S101 - a coroutine always runs in a task here
    fired = False

    def expire() -> None:
        nonlocal fired
        fired = True
        task.cancel()

    timer = loop.call_at(call.deadline, expire)
    try:
        await next(call)
    except asyncio.CancelledError:
        # Cancelled by the timer alone: it becomes a status. Cancelled by someone else as well: they win.
        if fired and task.cancelling() <= 1:
            raise DeadlineExceeded("the deadline passed") from None
        raise
    finally:
        timer.cancel()
        if fired:  # however it ended, this cancellation must not hit what follows
            task.uncancel()
