"""Client-disconnect watcher: cancels the task that answers the request."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from mesh.boundary import cancel_task

if TYPE_CHECKING:
    from mesh.edge.calls import HttpCall

__all__ = ["DisconnectWatcher"]


class DisconnectWatcher:
    """Watcher of one request: cancels the task that answers it when the client disconnects.

    It reads ASGI events, so it starts only when the request body has been read: it discards the rest of the request.
    For HTTP/2, h2corn also cancels the task itself.

    ``mesh.rpc.server.caller_disconnect`` is for gRPC under other servers than h2corn. It polls all open calls and keeps
    the events that it reads for the application.
    """

    __slots__ = ("_answering", "_call", "_task")

    def __init__(self, call: HttpCall) -> None:
        self._call = call
        self._answering = call.task
        self._task: asyncio.Task[None] | None = None

    def expire(self) -> None:
        """Start when a call takes long (``mesh.layers.timer_wheel.Expirable``)."""
        self.start()

    def start(self) -> None:
        """Start watching."""
        self._task = asyncio.get_running_loop().create_task(self._watch())

    def stop(self) -> None:
        """Stop watching."""
        if self._task is not None:
            self._task.cancel()

    async def _watch(self) -> None:
        await self._call.wait_for_disconnect()
        if self._answering is not None:
            cancel_task(self._answering)
