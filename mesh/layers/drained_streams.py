"""Drained-streams layer: ends streams when the drain begins, so that their callers go to another replica at once.

It is for streams that end only with their caller. Each would hold the drain up until its time is over.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from mesh.errors import StatusError, Unavailable
from mesh.layers.deadline import cancel_with
from mesh.layers.timer_wheel import TaskTimeout

if TYPE_CHECKING:
    from mesh.call import Call, Handler

__all__ = ["DrainedStreams"]


class DrainedStreams:
    """Layer, and the streams that pass it."""

    __slots__ = ("_draining", "_streams")

    def __init__(self) -> None:
        self._streams: set[TaskTimeout] = set()
        self._draining = False

    async def __call__(self, call: Call, next: Handler) -> None:
        """Run the rest of the chain, and cancel it when the drain begins.

        Raises:
            Unavailable: It has begun.
        """
        if self._draining:
            raise _stopping()
        task = call.task or asyncio.current_task()
        assert task is not None  # noqa: S101 - a coroutine always runs in a task here
        stream = TaskTimeout(task)
        self._streams.add(stream)
        try:
            await cancel_with(stream, call, next, _stopping)
        finally:
            self._streams.discard(stream)

    def drain(self) -> None:
        """End the streams, and refuse further ones."""
        self._draining = True
        while self._streams:
            self._streams.pop().expire()


def _stopping() -> StatusError:
    return Unavailable("this replica is shutting down")
