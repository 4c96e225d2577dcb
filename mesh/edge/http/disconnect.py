"""Notices that the client of a call has gone, and cancels what answers it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from mesh.boundary import cancel_task

if TYPE_CHECKING:
    from mesh.edge.call import HttpCall

__all__ = ["Watch"]


class Watch:
    """Cancels the task that answers a call when its client goes away.

    As ASGI tells it; h2corn also cancels the task by itself, for HTTP/2. It takes what the client still sends, so it is
    for when the request has been read.
    """

    __slots__ = ("_answering", "_call", "_task")

    def __init__(self, call: HttpCall) -> None:
        self._call = call
        self._answering = call.task
        self._task: asyncio.Task[None] | None = None

    def expire(self) -> None:
        """Begin, as the call takes its time (``mesh.layers.timer_wheel.Expirable``)."""
        self.start()

    def start(self) -> None:
        """Begin."""
        self._task = asyncio.get_running_loop().create_task(self._watch())

    def stop(self) -> None:
        """End."""
        if self._task is not None:
            self._task.cancel()

    async def _watch(self) -> None:
        await self._call.gone()
        if self._answering is not None:
            cancel_task(self._answering)
