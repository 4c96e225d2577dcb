"""Listener: serves an ASGI application on one address by h2corn, embedded in the running event loop.

It is the only module that imports h2corn. The configuration below rests on the measured behaviour of h2corn 2.0.0
(docs/servers.md). The listener speaks plain text: it has no parameters for TLS.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import socket
from collections.abc import Callable
from time import monotonic  # the clock of the event loops
from typing import Any, cast

import h2corn
import h2corn._lib

from mesh.address import bind

__all__ = ["ListenError", "Listener"]


def _no_banner(*_: object) -> None:
    """Replace h2corn's banner, which goes to stderr among our log lines whatever is configured."""


h2corn._lib.emit_banner = _no_banner  # type: ignore[assignment]  # noqa: SLF001 - there is no option for it (2.0.0)

CANCELLATION_TIMEOUT = 2.0
"""Seconds that calls get to end after the drain time has passed and they were cancelled."""

CLOSE_TIMEOUT = 0.25
"""Seconds that h2corn gets after that to close the connections of calls that have not ended."""

LINGER_DELAY = 0.25
"""Seconds that a connection stays open after its last response during a stop. h2corn closes it at once. A client that
is writing at that moment meets a broken pipe, and some clients (grpcio) then discard a response that they received."""

DISCONNECT_DELAY = 0.25
"""Seconds that a cancelled call waits at most for h2corn's own cancellation. h2corn reports a disconnect in ``receive``
a moment before it cancels the task; a call that ends in between has failed for h2corn, which prints a traceback."""

MAX_STREAMS = 4096
"""Calls in progress on one connection at most. A mesh has few connections with many calls; the limit that counts is the
application's concurrency limit."""

STREAM_WINDOW_SIZE = 2**20
"""Bytes that a peer may send on one stream before they are read. Less than the connection's, so that one call that does
not read cannot stop the others."""
CONNECTION_WINDOW_SIZE = 2**24
"""Bytes that a peer may send on one connection before they are read: the bound of the memory that one peer takes."""

DEFAULT_MAX_BODY_SIZE = 4 * 2**20
"""Bytes of the largest request body, unless ``max_body`` of the listener is given."""
_HEAD_LIMITS = (
    "limit_request_head_size", "limit_request_line", "limit_request_field_size", "h2_max_header_list_size",
    "h2_max_header_block_size",
)  # fmt: skip

BACKLOG = 1024
"""Connections that wait to be accepted."""

RESTART_DELAY = 1.0
"""Seconds after which a server that ended by itself is started anew."""

PROBE_TIMEOUT = 1.0
"""Seconds that a stop waits for its probe connection at most: once until it is accepted, once until it is closed."""

IDLE_TIMEOUT = 3600.0
"""Seconds after which a connection without calls is closed (with GOAWAY), where only HTTP/2 is spoken. gRPC channels
are idle for long; the timeout only removes connections whose peer has vanished."""

HTTP1_IDLE_TIMEOUT = 75.0
"""Seconds after which an idle connection is closed where HTTP/1.1 is spoken. It is longer than clients and proxies keep
idle connections (commonly 60 s), so that the client closes first; else it may send a request into a connection that is
being closed. h2corn takes the smaller of this and of the time that a request's head may take, so both have this value.
"""

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
"""Connection preface of an HTTP/2 client with empty SETTINGS (RFC 9113, 3.4)."""

log = logging.getLogger(__name__)


class ListenError(Exception):
    """The address cannot be listened on; ``str()`` names the address and the reason."""


class Listener:
    """Server of one ASGI application on one address.

    Args:
        app: The ASGI application.
        listen: ``host:port``; port 0 picks a free one.
        fd: File descriptor of a listening socket to adopt; ``listen`` then only names it in errors.
        grpc: Whether the application serves gRPC. The body of a gRPC request has no limit of size or time here, because
            the application limits its messages.
        drain: Seconds that ``stop`` waits for calls in progress; 0 ends them at once.
        max_body: Bytes of the largest body of a request that is not gRPC; 0: no limit. None: with ``grpc`` there are no
            such requests, and HTTP/1.1 is not spoken; without ``grpc`` the limit is ``DEFAULT_MAX_BODY_SIZE``.
        max_head: Bytes of the largest request line and headers, where HTTP/1.1 is spoken.
        expire: Called when the drain time is over and calls are still in progress, to end them by a status of the
            application. A call that has not ended ``CANCELLATION_TIMEOUT`` later loses its connection.
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
        expire: Callable[[], None] | None = None,
    ) -> None:
        self.listen = listen
        self._app = app
        self._fd = fd
        self._drain = drain
        self._expire = expire
        self._linger_delay = min(LINGER_DELAY, drain)
        self._last_response = -LINGER_DELAY
        self._started = False
        self._stopping = False
        grpc_only = grpc and max_body is None
        self._options: dict[str, Any] = {
            "grpc": grpc,
            "access_log": False,
            "lifespan": "off",
            "date_header": not grpc_only,
            "max_concurrent_streams": MAX_STREAMS,
            "h2_initial_stream_window_size": STREAM_WINDOW_SIZE,
            "h2_initial_connection_window_size": CONNECTION_WINDOW_SIZE,
            "limit_connections": _max_connections(),
            "timeout_graceful_shutdown": drain + CANCELLATION_TIMEOUT,
            "limit_request_fields": 0,  # the application counts them: h2corn sends 431, which is not a gRPC status
        }
        if grpc_only:
            self._options |= {"http1": False, "timeout_keep_alive": IDLE_TIMEOUT, "h2_timeout_response_stall": 0.0}
        else:
            # A request stream may be silent for long. The application has timeouts for the bodies that it reads whole.
            body = DEFAULT_MAX_BODY_SIZE if max_body is None else max_body
            self._options |= {"max_request_body_size": body, "timeout_request_body_idle": 0.0}
            self._options |= {"timeout_keep_alive": HTTP1_IDLE_TIMEOUT, "timeout_request_header": HTTP1_IDLE_TIMEOUT}
            self._options |= dict.fromkeys(_HEAD_LIMITS, max_head)
        self._socket: socket.socket | None = None
        self._server: h2corn.Server | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> str:
        """Start to listen and return the bound ``host:port``.

        Raises:
            ListenError: The address is taken, not of this machine, or not allowed.
        """
        fd = self._fd
        if fd is None:
            self._socket = _bind(self.listen)
            fd = self._socket.fileno()
        self._server = self._new_server(fd)
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
        """Stop accepting, send GOAWAY on every connection, wait for calls in progress, end those that remain.

        An adopted socket goes on listening, because another process may hold it too.
        """
        task, self._task = self._task, None
        if task is None or self._server is None:
            return
        self._stopping = True
        remaining = self._last_response + self._linger_delay - monotonic()
        if remaining > 0:  # responses from now on wait in ``_serve``; this wait is for those just before now
            await asyncio.sleep(remaining)
        await self._stop_accepting(self._server)
        done, _ = await asyncio.wait({task}, timeout=self._drain)
        if not done and self._expire is not None:
            self._expire()
        # h2corn waits for calls that ignore cancellation for the same time once more; the listener does not.
        await asyncio.wait({task}, timeout=CANCELLATION_TIMEOUT + CLOSE_TIMEOUT)
        if not task.done():
            task.cancel()
        elif not task.cancelled() and not isinstance(task.exception(), RuntimeError):  # raised by h2corn for such calls
            task.result()

    def _new_server(self, fd: int) -> h2corn.Server:
        return h2corn.Server(self._serve, h2corn.Config(bind=(f"fd://{fd}",), **self._options))

    async def _run(self, server: h2corn.Server, fd: int) -> None:
        """Serve until the stop; start a new server when h2corn ends with all its connections because accept failed."""
        while True:
            try:
                await server.serve()
            except OSError as error:
                if not self._started:
                    raise
                if not self._stopping:
                    log.error("%s: the server ended (%s); it is started anew", self.listen, error)  # noqa: TRY400
                    await asyncio.sleep(RESTART_DELAY)
            if self._stopping:
                return
            server = self._server = self._new_server(fd)

    async def _stop_accepting(self, server: h2corn.Server) -> None:
        """Make h2corn stop accepting, and refuse new connections from then on.

        h2corn keeps the socket open until the drain is over, so callers would connect and get no response. The socket
        is therefore shut down here, but only after h2corn has stopped accepting: else its accept fails, and with it all
        calls in progress. A probe connection without calls shows the moment: h2corn closes it when it accepts no more.
        """
        if self._socket is None:
            server.shutdown()
            return
        probe = _ProbeConnection()
        with contextlib.suppress(OSError):  # TimeoutError is one; without the probe the stop only takes longer
            async with asyncio.timeout(PROBE_TIMEOUT):
                address = self._socket.getsockname()[:2]
                await asyncio.get_running_loop().create_connection(lambda: probe, *address)
                await probe.accepted.wait()
        server.shutdown()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PROBE_TIMEOUT):
                await probe.closed.wait()
        probe.close()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._close()

    async def _serve(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await self._app(scope, receive, send)
        except asyncio.CancelledError:
            await asyncio.sleep(DISCONNECT_DELAY)  # ended earlier by h2corn's own cancellation
            raise
        self._last_response = monotonic()
        if self._stopping:
            await asyncio.sleep(self._linger_delay)  # h2corn holds the connection while the request's task runs

    def _close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


class _ProbeConnection(asyncio.Protocol):
    """HTTP/2 connection without calls.

    Attributes:
        accepted: Set when the server has sent its first bytes.
        closed: Set when the connection is closed.
    """

    def __init__(self) -> None:
        self.accepted = asyncio.Event()
        self.closed = asyncio.Event()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.write(_PREFACE)

    def data_received(self, data: bytes) -> None:  # noqa: ARG002 - SETTINGS, later GOAWAY
        self.accepted.set()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self.accepted.set()
        self.closed.set()

    def close(self) -> None:
        """Close the connection if it was opened."""
        if self._transport is not None:
            self._transport.close()


def _max_connections() -> int:
    """Return the largest number of open connections, half of the file descriptors; 0 for any number.

    The other half is for calls to other services, databases and files. Further connections wait to be accepted.
    """
    soft_limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 0 if soft_limit == resource.RLIM_INFINITY else max(1, soft_limit // 2)


def _bind(listen: str) -> socket.socket:
    try:
        return bind(listen, BACKLOG)
    except OSError as error:
        reason = os.strerror(error.errno).lower() if error.errno and error.errno > 0 else error.strerror or error
        raise ListenError(f"cannot listen on {listen}: {reason}") from None
