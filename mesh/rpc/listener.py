"""A listening socket that serves an ASGI application: h2corn, embedded in the running loop.

The only module that knows h2corn. What it does was measured (2.0.0) and is what the configuration below rests on; see
docs/servers.md.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import h2corn
import h2corn._lib

__all__ = ["Listener", "ListenError"]

GRACE = 2.0
"""Seconds that calls get to end after the drain time has passed and they were cancelled."""

MAX_STREAMS = 4096
"""Calls at once on one connection. A mesh has few connections and many calls; the gate is the real limit."""

STREAM_WINDOW = 2**20
CONNECTION_WINDOW = 2**24
"""Bytes that a peer may send before they are read. The connection's bound the memory of one peer; a stream's are less,
so that one call that does not read cannot stop the others."""

IDLE = 3600.0
"""Seconds after which a connection without calls is closed (with GOAWAY). gRPC channels idle for long; this only
collects what a vanished peer left behind."""


class ListenError(Exception):
    """The address cannot be listened on. ``str()`` names it and says why."""


class Listener:
    """Serves an application on one address.

    Args:
        app: The ASGI application.
        listen: ``host:port``; port 0 picks a free one.
        fd: A listening socket to adopt instead; ``listen`` then only names it in errors.
        grpc: Whether it serves gRPC: no limits of size or time on a request's body (the application has its own).
            False: HTTP/1.1 and HTTP/2 with ``max_body``.
        drain: Seconds that ``stop`` waits for what is in flight.
        max_body: Largest request body in bytes, with ``grpc=False``.
        expire: Called when the drain time is over and calls are still in flight: to end them in the application's own
            terms. What is left ``GRACE`` seconds later is cut off.
    """

    def __init__(
        self,
        app: Any,
        listen: str,
        *,
        fd: int | None = None,
        grpc: bool,
        drain: float,
        max_body: int = 4 * 2**20,
        expire: Any = None,
    ) -> None:
        self.listen = listen
        self._drain = drain
        self._expire = expire
        self._task: asyncio.Task[None] | None = None
        limits: dict[str, Any] = (
            {"timeout_keep_alive": IDLE, "h2_timeout_response_stall": 0.0, "http1": False, "date_header": False}
            if grpc
            else {"max_request_body_size": max_body}
        )
        self._server = h2corn.Server(
            app,
            h2corn.Config(
                bind=(f"fd://{fd}" if fd is not None else listen,),
                grpc=grpc,
                access_log=False,
                lifespan="off",
                max_concurrent_streams=MAX_STREAMS,
                h2_initial_stream_window_size=STREAM_WINDOW,
                h2_initial_connection_window_size=CONNECTION_WINDOW,
                timeout_graceful_shutdown=drain + GRACE,
                **limits,
            ),
        )

    async def start(self) -> str:
        """Listen; returns the bound ``host:port``.

        Raises:
            ListenError: The address is taken, not of this machine, or not allowed.
        """
        self._task = asyncio.create_task(self._server.serve())
        try:
            await self._server.wait_started()
        except OSError as error:
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
            raise ListenError(f"cannot listen on {self.listen}: {error.strerror or error}") from None
        return self._server.addresses[0]

    async def stop(self) -> None:
        """Stop accepting, tell every connection (GOAWAY), wait for what is in flight, cut off what does not end."""
        task, self._task = self._task, None
        if task is None:
            return
        self._server.shutdown()
        done, _ = await asyncio.wait({task}, timeout=self._drain)
        if not done and self._expire is not None:
            self._expire()
        with contextlib.suppress(RuntimeError):  # calls that ignore cancellation: h2corn has cut them off
            await task
