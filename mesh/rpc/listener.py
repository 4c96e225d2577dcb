"""A listening socket that serves an ASGI application: h2corn, embedded in the running loop.

The only module that knows h2corn. What it does was measured (2.0.0) and is what the configuration below rests on; see
docs/servers.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from typing import Any

import h2corn
import h2corn._lib

__all__ = ["ListenError", "Listener"]


def _quiet(*_: object) -> None:
    """Take the place of h2corn's banner: it goes to stderr whatever is configured, among our log lines."""


h2corn._lib.emit_banner = _quiet  # type: ignore[assignment]  # noqa: SLF001 - there is no option for it (2.0.0)

GRACE = 2.0
"""Seconds that calls get to end after the drain time has passed and they were cancelled."""

LINGER = 0.25
"""Seconds that a connection stays open after its last answer when the server stops. h2corn closes it at once; a client
that is just writing then meets a broken pipe, and some (grpcio) throw away the answer unread."""

MAX_STREAMS = 4096
"""Calls at once on one connection. A mesh has few connections and many calls; the gate is the real limit."""

STREAM_WINDOW = 2**20
CONNECTION_WINDOW = 2**24
"""Bytes that a peer may send before they are read. The connection's bound the memory of one peer; a stream's are less,
so that one call that does not read cannot stop the others."""

MAX_BODY = 4 * 2**20
"""Largest request body, bytes, when nothing is said."""
FIELDS = 1000
"""Header fields of one request. The edge refuses far fewer, and says why."""
_HEAD_LIMITS = (
    "limit_request_head_size", "limit_request_line", "limit_request_field_size", "h2_max_header_list_size",
    "h2_max_header_block_size",
)  # fmt: skip

BACKLOG = 1024
"""Connections that wait to be accepted."""

IDLE = 3600.0
"""Seconds after which a connection without calls is closed (with GOAWAY). gRPC channels idle for long; this only
collects what a vanished peer left behind."""


KEEP_ALIVE = 75.0
"""The same where HTTP/1.1 is spoken; longer than clients and proxies keep what is idle (commonly 60 s), for who closes
first must be the client, or it sends a request into a connection that is being closed. h2corn takes the smaller of this
and the time that a request's head may take, so they are one."""


class ListenError(Exception):
    """The address cannot be listened on. ``str()`` names it and says why."""


class Listener:
    """Serves an application on one address.

    Args:
        app: The ASGI application.
        listen: ``host:port``; port 0 picks a free one.
        fd: A listening socket to adopt instead; ``listen`` then only names it in errors.
        grpc: Whether it serves gRPC: no limits of size or time on such a request's body (the application has its own).
        drain: Seconds that ``stop`` waits for what is in flight; 0 cuts everything off at once.
        max_body: Largest body of a request that is not gRPC, in bytes, 0 for no limit. None: with ``grpc`` there are no
            others, and HTTP/1.1 is not spoken; without it, ``MAX_BODY``.
        max_head: Largest request line and headers in bytes, where HTTP/1.1 is spoken.
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
        max_body: int | None = None,
        max_head: int = 2**20,
        expire: Any = None,
    ) -> None:
        self.listen = listen
        self._app = app
        self._fd = fd
        self._drain = drain
        self._expire = expire
        self._linger = min(LINGER, drain)
        self._answered = -LINGER
        self._stopping = False
        self._options: dict[str, Any] = {
            "grpc": grpc,
            "access_log": False,
            "lifespan": "off",
            "date_header": not grpc or max_body is not None,
            "max_concurrent_streams": MAX_STREAMS,
            "h2_initial_stream_window_size": STREAM_WINDOW,
            "h2_initial_connection_window_size": CONNECTION_WINDOW,
            "timeout_graceful_shutdown": drain + GRACE,
        }
        if grpc and max_body is None:
            self._options |= {"http1": False, "timeout_keep_alive": IDLE, "h2_timeout_response_stall": 0.0}
        else:
            # A request stream may be silent for long; what may not take long, the application times itself.
            body = MAX_BODY if max_body is None else max_body
            self._options |= {"max_request_body_size": body, "timeout_request_body_idle": 0.0}
            self._options |= {"timeout_keep_alive": KEEP_ALIVE, "timeout_request_header": KEEP_ALIVE}
            self._options |= {"limit_request_fields": FIELDS, **dict.fromkeys(_HEAD_LIMITS, max_head)}
        self._socket: socket.socket | None = None
        self._server: h2corn.Server | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> str:
        """Listen; returns the bound ``host:port``.

        Raises:
            ListenError: The address is taken, not of this machine, or not allowed.
        """
        if self._fd is None:
            self._socket = _bind(self.listen)
        fd = self._fd if self._socket is None else self._socket.fileno()
        self._server = h2corn.Server(self._serve, h2corn.Config(bind=(f"fd://{fd}",), **self._options))
        self._task = asyncio.create_task(self._server.serve())
        try:
            await self._server.wait_started()
        except (OSError, ValueError) as error:
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
            self._close()
            raise ListenError(f"cannot listen on {self.listen}: {error}") from None
        return self._server.addresses[0]

    async def stop(self) -> None:
        """Stop accepting, tell every connection (GOAWAY), wait for what is in flight, cut off what does not end.

        An adopted socket goes on listening: another process may hold it too.
        """
        task, self._task = self._task, None
        if task is None or self._server is None:
            return
        self._stopping = True
        fresh = self._answered + self._linger - asyncio.get_running_loop().time()
        if fresh > 0:  # from here on each answer lingers by itself; those just before this moment need the time too
            await asyncio.sleep(fresh)
        self._server.shutdown()
        self._close()
        done, _ = await asyncio.wait({task}, timeout=self._drain)
        if not done and self._expire is not None:
            self._expire()
        with contextlib.suppress(RuntimeError):  # calls that ignore cancellation: h2corn has cut them off
            await task

    async def _serve(self, scope: Any, receive: Any, send: Any) -> None:
        await self._app(scope, receive, send)
        self._answered = asyncio.get_running_loop().time()
        if self._stopping:
            await asyncio.sleep(self._linger)  # h2corn holds the connection while the request's task runs

    def _close(self) -> None:
        """Refuse new connections from now on.

        h2corn holds the socket open until the drain is over, so closing it is not enough: callers would connect and
        wait for nothing.
        """
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
            self._socket.close()
            self._socket = None


def _bind(listen: str) -> socket.socket:
    host, _, port = listen.rpartition(":")
    host = host.strip("[]")
    try:
        found = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = found[0]
        dual = family == socket.AF_INET6 and address[0] == "::"  # any address means IPv4 as well
        return socket.create_server(address[:2], family=family, backlog=BACKLOG, dualstack_ipv6=dual)
    except OSError as error:
        reason = os.strerror(error.errno).lower() if error.errno and error.errno > 0 else error.strerror or error
        raise ListenError(f"cannot listen on {listen}: {reason}") from None
