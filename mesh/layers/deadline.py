"""The deadline layer: the caller's deadline capped by the method's own timeout, kept by cancelling what runs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from time import monotonic  # what the loops' own clocks are
from typing import TYPE_CHECKING

from mesh.errors import DeadlineExceeded, StatusError
from mesh.layers.timer_wheel import Limit, wheel

if TYPE_CHECKING:
    from mesh.call import Call, Handler

__all__ = ["deadline"]


def deadline(call: Call, next: Handler) -> Awaitable[None]:
    """Cap ``call.deadline`` by ``call.method.timeout`` and cancel the rest of the chain when it passes.

    Raises:
        DeadlineExceeded: Time ran out, and the function ended with that, or with an error that it made of it. What it
            answers, or says by a status, counts. A cancellation from elsewhere (the caller went away) passes as it is.
    """
    timeout = call.method.timeout
    if timeout is not None:
        latest = monotonic() + timeout
        if call.deadline is None or call.deadline > latest:
            call.deadline = latest
    if call.deadline is None:
        return next(call)
    call.check_deadline()
    return _limited(call, call.deadline, next)


async def _limited(call: Call, until: float, next: Handler) -> None:
    task = call.task or asyncio.current_task()
    assert task is not None  # noqa: S101 - a coroutine always runs in a task here
    limit = Limit(task)
    slot = wheel(task).add(until, limit)
    call.deadline_enforced = True
    try:
        await next(call)
    except asyncio.CancelledError:
        # Cancelled by the limit alone: it becomes a status. Cancelled by someone else as well: they win.
        if limit.alone:
            raise DeadlineExceeded("the deadline passed") from None
        raise
    except StatusError:
        raise
    except Exception as error:
        if limit.alone:
            raise DeadlineExceeded("the deadline passed") from error
        raise
    finally:
        slot.discard(limit)
        limit.lift()
