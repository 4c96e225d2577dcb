"""Caller-disconnect watcher for ASGI servers that report a disconnect through ``receive()`` only: cancels the handler.

h2corn cancels the task of a call whose caller has gone and does not need this. Other servers (pyvoy) return
``http.disconnect`` from ``receive()``, so a function that does not read would run on without a caller. The watcher
wraps the application and polls ``receive()`` of all open requests with one task and one timer. A fast call costs
neither a task nor a timer of its own.

``mesh.edge.http.disconnect`` watches one HTTP request whose body has been read: it waits for the disconnect, and there
are no other events. This watcher polls while the application may still read the request, so it keeps the events that
it reads ahead.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

from mesh.asgi import AsgiEvent, Receive, Scope, Send
from mesh.boundary import cancel_task

__all__ = ["CallerDisconnectWatcher"]

POLL_INTERVAL = 0.1
"""Seconds between two polls: how long a function may run on after its caller has gone."""


class CallerDisconnectWatcher:
    """ASGI application that cancels the task of a request when its caller has gone.

    Args:
        app: The application.
    """

    def __init__(self, app: Any) -> None:
        self._app = app
        self._requests: set[_PolledRequest] = set()
        self._polling: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection scope."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = _PolledRequest(receive)
        self._requests.add(request)
        if self._polling is None:
            self._polling = asyncio.create_task(self._poll())
        try:
            await self._app(scope, request.receive, send)
        finally:
            self._requests.discard(request)
            request.close()

    async def _poll(self) -> None:
        """Poll every open request at each interval; end when there is none."""
        try:
            while self._requests:
                await asyncio.sleep(POLL_INTERVAL)
                for request in self._requests:
                    request.poll()
        finally:
            self._polling = None


class _PolledRequest:
    """One open request with the events that were read ahead of the application."""

    __slots__ = ("_application_reads", "_events", "_polling", "_receive", "_task")

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._task = asyncio.current_task()
        self._events: deque[AsgiEvent] = deque()
        self._application_reads = False
        self._polling: asyncio.Task[None] | None = None

    async def receive(self) -> AsgiEvent:
        """ASGI ``receive`` for the application."""
        while not self._events:
            if self._polling is not None:
                await asyncio.wait({self._polling})
                continue
            self._application_reads = True
            try:
                return await self._receive()
            finally:
                self._application_reads = False
        return self._events.popleft()

    def poll(self) -> None:
        """Start to read one event ahead, unless the application reads now or has not taken the last event yet."""
        if not self._application_reads and not self._events and self._polling is None:
            self._polling = asyncio.create_task(self._read_ahead())

    async def _read_ahead(self) -> None:
        try:
            event = await self._receive()
        finally:
            self._polling = None
        if event["type"] == "http.disconnect":
            self._events.append(event)
            if self._task is not None:
                cancel_task(self._task)
        elif event.get("body") or event.get("more_body"):
            self._events.append(event)
        # The end of the request is dropped: the application has read it, or reads it later, since pyvoy repeats it.

    def close(self) -> None:
        """Stop a poll that is in progress."""
        if self._polling is not None:
            self._polling.cancel()
