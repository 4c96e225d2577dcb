"""Finds out that a caller has gone, under ASGI servers that say so only to those who ask.

h2corn cancels the task that answers a vanished caller, and needs nothing of this. Others (pyvoy) answer ``receive()``
with ``http.disconnect``, and a function that is not reading would run on for nobody. This wrapper asks in its place,
now and then and for all open requests at once, so that a fast call costs no task and no timer of its own.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import MutableMapping
from typing import Any

from mesh.boundary import cancel_task
from mesh.rpc.server.inbound_call import Receive, Send

__all__ = ["Watched"]

INTERVAL = 0.1
"""Seconds between two looks: how long a function may run on for nobody."""


class Watched:
    """An ASGI application whose task is cancelled when its caller has gone.

    Args:
        app: The application.
    """

    def __init__(self, app: Any) -> None:
        self._app = app
        self._open: set[_Request] = set()
        self._sweeping: asyncio.Task[None] | None = None

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer one ASGI connection scope."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = _Request(receive)
        self._open.add(request)
        if self._sweeping is None:
            self._sweeping = asyncio.create_task(self._sweep())
        try:
            await self._app(scope, request.receive, send)
        finally:
            self._open.discard(request)
            request.close()

    async def _sweep(self) -> None:
        """Look after every open request; ends when there is none."""
        try:
            while self._open:
                await asyncio.sleep(INTERVAL)
                for request in self._open:
                    request.look()
        finally:
            self._sweeping = None


class _Request:
    """One open request: what was read ahead of the application, and who reads now."""

    __slots__ = ("_ahead", "_looking", "_reading", "_receive", "_task")

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._task = asyncio.current_task()
        self._ahead: deque[MutableMapping[str, Any]] = deque()
        self._reading = False
        self._looking: asyncio.Task[None] | None = None

    async def receive(self) -> MutableMapping[str, Any]:
        """ASGI ``receive`` for the application."""
        while not self._ahead:
            if self._looking is not None:
                await asyncio.wait({self._looking})
                continue
            self._reading = True
            try:
                return await self._receive()
            finally:
                self._reading = False
        return self._ahead.popleft()

    def look(self) -> None:
        """Read one event ahead, unless the application reads by itself or has not taken the last one yet."""
        if not self._reading and not self._ahead and self._looking is None:
            self._looking = asyncio.create_task(self._look())

    async def _look(self) -> None:
        try:
            event = await self._receive()
        finally:
            self._looking = None
        if event["type"] == "http.disconnect":
            self._ahead.append(event)
            if self._task is not None:
                cancel_task(self._task)
        elif event.get("body") or event.get("more_body"):
            self._ahead.append(event)
        # Else the end of the request: seen already (pyvoy repeats it), or to be seen again by whoever asks.

    def close(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
