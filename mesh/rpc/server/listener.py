"""A listening socket that serves an ASGI application: h2corn, embedded in the running loop.

The only module that knows h2corn. What it does was measured (2.0.0) and is what the configuration below rests on; see
docs/servers.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import socket
from time import monotonic  # what the loops' own clocks are
from typing import Any, cast

import h2corn
import h2corn._lib

from mesh.address import bind

__all__ = ["ListenError", "Listener"]


def _quiet(*_: object) -> None:
    """Take the place of h2corn's banner: it goes to stderr whatever is configured, among our log lines."""


h2corn._lib.emit_banner = _quiet  # type: ignore[assignment]  # noqa: SLF001 - there is no option for it (2.0.0)

GRACE = 2.0
"""Seconds that calls get to end after the drain time has passed and they were cancelled."""

CUT = 0.25
"""Seconds that h2corn gets after that to cut off what is left."""

LINGER = 0.25
"""Seconds that a connection stays open after its last answer when the server stops. h2corn closes it at once; a client
that is just writing then meets a broken pipe, and some (grpcio) throw away the answer unread."""

GONE = 0.25
"""Longest that a cancelled call waits for h2corn's own cancellation, seconds. h2corn tells ``receive`` that a client
has gone a moment before it cancels; a call that ends in between has failed, as h2corn sees it, with a traceback."""

MAX_STREAMS = 4096
"""Calls at once on one connection. A mesh has few connections and many calls; the concurrency limit is the real one."""

STREAM_WINDOW = 2**20
CONNECTION_WINDOW = 2**24
"""Bytes that a peer may send before they are read. The connection's bound the memory of one peer; a stream's are less,
so that one call that does not read cannot stop the others."""

MAX_BODY = 4 * 2**20
"""Largest request body, bytes, when nothing is said."""
_HEAD_LIMITS = (
    "limit_request_head_size", "limit_request_line", "limit_request_field_size", "h2_max_header_list_size",
    "h2_max_header_block_size",
)  # fmt: skip

BACKLOG = 1024
"""Connections that wait to be accepted."""

AGAIN = 1.0
"""Seconds after which a server that ended by itself is begun again."""

WITNESS = 1.0
"""Longest that a stop waits for its witness, seconds: twice, until it is connected and until it is told."""

_LOGGER = logging.getLogger(__name__)
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
"""What an HTTP/2 client says first, and its (empty) SETTINGS: RFC 9113, 3.4."""

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
        self._started = False
        self._stopping = False
        self._options: dict[str, Any] = {
            "grpc": grpc,
            "access_log": False,
            "lifespan": "off",
            "date_header": not grpc or max_body is not None,
            "max_concurrent_streams": MAX_STREAMS,
            "h2_initial_stream_window_size": STREAM_WINDOW,
            "h2_initial_connection_window_size": CONNECTION_WINDOW,
            "limit_connections": _most_connections(),
            "timeout_graceful_shutdown": drain + GRACE,
            "limit_request_fields": 0,  # the application counts them: h2corn answers 431, which is no status of gRPC
        }
        if grpc and max_body is None:
            self._options |= {"http1": False, "timeout_keep_alive": IDLE, "h2_timeout_response_stall": 0.0}
        else:
            # A request stream may be silent for long; what may not take long, the application times itself.
            body = MAX_BODY if max_body is None else max_body
            self._options |= {"max_request_body_size": body, "timeout_request_body_idle": 0.0}
            self._options |= {"timeout_keep_alive": KEEP_ALIVE, "timeout_request_header": KEEP_ALIVE}
            self._options |= dict.fromkeys(_HEAD_LIMITS, max_head)
        self._socket: socket.socket | None = None
        self._server: h2corn.Server | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> str:
        """Listen; returns the bound ``host:port``.

        Raises:
            ListenError: The address is taken, not of this machine, or not allowed.
        """
        fd = self._fd
        if fd is None:
            self._socket = _bind(self.listen)
            fd = self._socket.fileno()
        self._server = self._made(fd)
        self._task = asyncio.create_task(self._run(self._server, fd))
        try:
            await self._server.wait_started()
            self._started = True
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
        fresh = self._answered + self._linger - monotonic()
        if fresh > 0:  # from here on each answer lingers by itself; those just before this moment need the time too
            await asyncio.sleep(fresh)
        await self._leave(self._server)
        done, _ = await asyncio.wait({task}, timeout=self._drain)
        if not done and self._expire is not None:
            self._expire()
        # h2corn waits for calls that ignore cancellation once more as long; nobody else does.
        await asyncio.wait({task}, timeout=GRACE + CUT)
        if not task.done():
            task.cancel()
        elif not task.cancelled() and not isinstance(task.exception(), RuntimeError):  # h2corn's, of such calls
            task.result()

    def _made(self, fd: int) -> h2corn.Server:
        return h2corn.Server(self._serve, h2corn.Config(bind=(f"fd://{fd}",), **self._options))

    async def _run(self, server: h2corn.Server, fd: int) -> None:
        """Serve until the stop; again where h2corn gives up, which it does, with all connections, when accept fails."""
        while True:
            try:
                await server.serve()
            except OSError as error:
                if not self._started:
                    raise
                if not self._stopping:
                    _LOGGER.error("%s: no longer served (%s); it begins again", self.listen, error)  # noqa: TRY400
                    await asyncio.sleep(AGAIN)
            if self._stopping:
                return
            server = self._server = self._made(fd)

    async def _leave(self, server: h2corn.Server) -> None:
        """Have h2corn stop accepting, and refuse new connections from then on.

        It holds the socket open until the drain is over: callers would connect and wait for nothing. So the socket is
        shut down, but not before h2corn has left it, whose accept would fail, and all calls in flight with it. An idle
        connection of our own is the witness: it is told of the stop, and ends, when h2corn accepts no more.
        """
        if self._socket is None:
            server.shutdown()
            return
        witness = _Witness()
        with contextlib.suppress(OSError):  # TimeoutError is one; without a witness the stop is only later
            async with asyncio.timeout(WITNESS):
                address = self._socket.getsockname()[:2]
                await asyncio.get_running_loop().create_connection(lambda: witness, *address)
                await witness.accepted.wait()
        server.shutdown()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(WITNESS):
                await witness.ended.wait()
        witness.close()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._close()

    async def _serve(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await self._app(scope, receive, send)
        except asyncio.CancelledError:
            await asyncio.sleep(GONE)  # h2corn's own cancellation ends it
            raise
        self._answered = monotonic()
        if self._stopping:
            await asyncio.sleep(self._linger)  # h2corn holds the connection while the request's task runs

    def _close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


class _Witness(asyncio.Protocol):
    """An HTTP/2 connection without calls: ``accepted`` once the server has spoken, ``ended`` when it has closed it."""

    def __init__(self) -> None:
        self.accepted = asyncio.Event()
        self.ended = asyncio.Event()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.write(_PREFACE)

    def data_received(self, data: bytes) -> None:  # noqa: ARG002 - SETTINGS, later GOAWAY
        self.accepted.set()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self.accepted.set()
        self.ended.set()

    def close(self) -> None:
        """Close it, if it was ever open."""
        if self._transport is not None:
            self._transport.close()


def _most_connections() -> int:
    """Return how many connections may be open at once, 0 for any number: half of the descriptors.

    The others are for calls to other services, databases and files. Connections beyond wait to be accepted.
    """
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 0 if most == resource.RLIM_INFINITY else max(1, most // 2)


def _bind(listen: str) -> socket.socket:
    try:
        return bind(listen, BACKLOG)
    except OSError as error:
        reason = os.strerror(error.errno).lower() if error.errno and error.errno > 0 else error.strerror or error
        raise ListenError(f"cannot listen on {listen}: {reason}") from None
