"""Listener: serves an ASGI application on one address by h2corn, embedded in the running event loop.

It is the only module that imports h2corn. The configuration below rests on the measured behaviour of h2corn 2.0.0
(docs/servers.md).

With ``CertificateFiles`` it speaks TLS 1.2 and 1.3 (rustls) and nothing else. ALPN offers ``h2``, and ``http/1.1``
where HTTP/1.1 is spoken. h2corn reads certificates only when a server starts, so ``renew`` starts a second server on
the same socket and retires the first: its connections get GOAWAY and finish their requests. Both accept meanwhile.
HTTP/2 loses no call that way, because a client sends a call again that GOAWAY excludes (RFC 9113, 6.8). HTTP/1.1
connections in use are told to close by a response before. h2corn closes those that are idle when the first server
stops, and those whose first request has not arrived. A request that is on its way to such a connection is lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import monotonic  # the clock of the event loops
from typing import Any, cast

import h2corn
import h2corn._lib

from mesh.address import bind
from mesh.rpc.server.clients.client_stream import CONNECTION_CLOSE, SERVER
from mesh.rpc.server.connection_guard import ConnectionGuard, PublicLimits, limit_unread, prepare

__all__ = ["CertificateFiles", "ListenError", "Listener"]


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

STREAM_WINDOW_SIZE = 2**18
"""Bytes that a peer may send on one stream before they are read. Less than the connection's, so that one call that does
not read cannot stop the others."""
CONNECTION_WINDOW_SIZE = 2**22
"""Bytes that a peer may send on one connection before they are read: the bound of the memory that one peer takes."""

PUBLIC_STREAM_WINDOW_SIZE = 2**18
"""The same for a stream of a listener whose clients are not trusted: 2.6 MB/s at a round trip of 100 ms."""
PUBLIC_CONNECTION_WINDOW_SIZE = 2**20
"""The same for a connection of a listener whose clients are not trusted (Envoy's advice for edges)."""

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

RETIRE_DELAY = 1.0
"""Seconds for which a server that ``renew`` replaces goes on, so that clients of HTTP/1.1 learn from a response to
close."""

RETIRED_TIMEOUT = 3600.0
"""Seconds that requests of a retired server may last after ``renew``. A certificate that is renewed at half of its life
of 24 hours is valid for longer than that."""

IDLE_TIMEOUT = 3600.0
"""Seconds after which a connection of HTTP/2 without calls is closed (with GOAWAY), where all requests are calls. gRPC
channels are idle for long; the timeout only removes connections whose peer has vanished."""

HTTP1_IDLE_TIMEOUT = 75.0
"""Seconds after which an idle connection is closed where HTTP/1.1 is spoken. It is longer than clients and proxies keep
idle connections (commonly 60 s), so that the client closes first; else it may send a request into a connection that is
being closed. h2corn takes the smaller of this and of the time that a request's head may take, so both have this value.
"""

HTTP1_HEAD_TIMEOUT = 2.0
"""Seconds that each byte of the head of a request over HTTP/1.1 may take, where all requests are calls. A caller that
speaks TLS to a listener of plain text waits for so long, because h2corn takes its first bytes for such a head. Idle
connections of HTTP/1.1 have the same timeout in h2corn, so each response closes its connection there."""

UNREAD_FACTOR = 2.0
"""Stall times after which the kernel closes a connection that is not read. h2corn resets streams of HTTP/2 before that.
Over HTTP/1.1 it has no timeout, and would keep the response and the connection for as long as the peer likes."""

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
"""Connection preface of an HTTP/2 client with empty SETTINGS (RFC 9113, 3.4)."""

log = logging.getLogger(__name__)


_HTTP1 = "1.1"
_H2CORN_TASK = "h2corn.request"
"""Name that h2corn gives to the task of a request."""


class ListenError(Exception):
    """The address cannot be listened on, or the TLS files cannot be used; ``str()`` names them and the reason."""


@dataclass(frozen=True, slots=True)
class CertificateFiles:
    """PEM files of a listener.

    Attributes:
        certificate: The certificate and the intermediate certificates behind it.
        private_key: Its private key, without a password.
        client_ca: Authorities of the certificates that clients must have. None: no client certificate is requested.
    """

    certificate: Path
    private_key: Path
    client_ca: Path | None = None


class Listener:
    """Server of one ASGI application on one address.

    Args:
        app: The ASGI application.
        listen: ``host:port``; port 0 picks a free one.
        fd: File descriptor of a listening socket to adopt; ``listen`` then only names it in errors.
        grpc: Whether the application serves gRPC. The body of a gRPC request has no limit of size or time here, because
            the application limits its messages.
        drain: Seconds that ``stop`` waits for calls in progress; 0 ends them at once.
        max_body: Bytes of the largest body of a request that is not gRPC; 0: no limit. None: with ``grpc`` all requests
            are calls, whose messages the application limits; without ``grpc`` it is ``DEFAULT_MAX_BODY_SIZE``.
        max_head: Bytes of the largest request line and headers, unless all requests are calls.
        expire: Called when the drain time is over and calls are still in progress, to end them by a status of the
            application. A call that has not ended ``CANCELLATION_TIMEOUT`` later loses its connection.
        tls: Certificates; None: plain text.
        stall: Seconds after which a stream is reset whose peer does not read its response, where all requests are
            calls; 0: never. A connection whose peer reads nothing at all is closed after ``UNREAD_FACTOR`` times this.
        public: Limits of a listener whose clients are not trusted; None: they are services of the mesh.
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
        tls: CertificateFiles | None = None,
        stall: float = 0.0,
        public: PublicLimits | None = None,
    ) -> None:
        self.listen = listen
        self._public = public
        self._guard = None if public is None else ConnectionGuard(public)
        self._app = app
        self._fd = fd
        self._drain = drain
        self._expire = expire
        self._linger_delay = min(LINGER_DELAY, drain)
        self._tls = tls
        calls_only = grpc and max_body is None
        self._options: dict[str, Any] = {
            "grpc": grpc,
            "access_log": False,
            "lifespan": "off",
            "date_header": not calls_only,
            "max_concurrent_streams": MAX_STREAMS,
            "h2_initial_stream_window_size": STREAM_WINDOW_SIZE,
            "h2_initial_connection_window_size": CONNECTION_WINDOW_SIZE,
            "limit_connections": _max_connections(),
            "timeout_graceful_shutdown": drain + CANCELLATION_TIMEOUT if tls is None else RETIRED_TIMEOUT,
            # A request stream may be silent for long. The application has timeouts for the bodies that it reads whole.
            "timeout_request_body_idle": 0.0,
            "limit_request_fields": 0,  # the application counts them: h2corn sends 431, which is not a gRPC status
        }
        if calls_only:
            self._options |= {"timeout_keep_alive": IDLE_TIMEOUT, "timeout_request_header": HTTP1_HEAD_TIMEOUT}
            self._options |= {"max_request_body_size": 0, "h2_timeout_response_stall": stall}
        else:
            body = DEFAULT_MAX_BODY_SIZE if max_body is None else max_body
            self._options |= {"timeout_keep_alive": HTTP1_IDLE_TIMEOUT, "timeout_request_header": HTTP1_IDLE_TIMEOUT}
            self._options["max_request_body_size"] = body
            self._options |= dict.fromkeys(_HEAD_LIMITS, max_head)
        if public is not None:
            self._options |= {
                "limit_connections": min(public.connections, _max_connections() or public.connections),
                "max_concurrent_streams": public.streams,
                "h2_initial_stream_window_size": PUBLIC_STREAM_WINDOW_SIZE,
                "h2_initial_connection_window_size": PUBLIC_CONNECTION_WINDOW_SIZE,
                "h2_timeout_response_stall": public.stall,
                "websocket_max_message_size": public.max_frame,
            }
        self._keeps_http1 = not calls_only
        self._stall = stall if calls_only else 0.0
        self._socket: socket.socket | None = None
        self._server: _Server | None = None
        self._retired: set[_Server] = set()
        self._renewing = asyncio.Lock()

    async def start(self) -> str:
        """Start to listen and return the bound ``host:port``.

        Raises:
            ListenError: The address is taken, not of this machine, or not allowed; or the TLS files cannot be used.
        """
        if self._fd is None:
            self._socket = _bind(self.listen)
        fd = self._fd if self._socket is None else self._socket.fileno()
        assert fd is not None  # noqa: S101 - one of the two is there
        if self._public is not None:
            prepare(fd, self._public.stall)
        elif self._stall:
            limit_unread(fd, UNREAD_FACTOR * self._stall)
        try:
            self._server = await self._start_server(self._tls)
        except ListenError:
            self._close()
            raise
        if self._guard is not None:
            self._guard.start(self._server.address)
        return self._server.address

    async def renew(self, tls: CertificateFiles) -> None:
        """Present other certificates, or the same files with new content, to new connections.

        Open connections get GOAWAY (HTTP/1.1: ``connection: close``) and have ``RETIRED_TIMEOUT`` to finish.

        Raises:
            ListenError: The files cannot be used. The listener goes on with the certificates that it has.
        """
        async with self._renewing:
            server = self._server
            if server is None:
                return
            self._server = await self._start_server(tls)
            self._tls = tls
            self._retired.add(server)
            server.task.add_done_callback(lambda _: self._retired.discard(server))
            server.retiring = True
            await asyncio.sleep(RETIRE_DELAY)
            await server.linger()
            server.shutdown()

    async def stop(self) -> None:
        """Stop accepting, send GOAWAY on every connection, wait for calls in progress, end those that remain.

        An adopted socket goes on listening, because another process may hold it too.
        """
        async with self._renewing:
            server, self._server = self._server, None
        if server is None:
            return
        if self._guard is not None:
            await self._guard.stop()
        await server.linger()
        await self._stop_accepting(server)
        servers = {server, *self._retired}
        tasks = {each.task for each in servers}
        _, pending = await asyncio.wait(tasks, timeout=self._drain)
        if pending and self._expire is not None:
            self._expire()
        if pending:  # h2corn waits for calls that ignore cancellation once more; the listener does not
            _, pending = await asyncio.wait(tasks, timeout=CANCELLATION_TIMEOUT)
        if pending:
            for each in servers:
                each.cancel_calls()
            await asyncio.wait(tasks, timeout=CLOSE_TIMEOUT)
        for task in tasks:
            if not task.done():
                task.cancel()
            elif not task.cancelled() and not isinstance(task.exception(), RuntimeError):  # raised for such calls
                task.result()

    async def _start_server(self, tls: CertificateFiles | None) -> _Server:
        """Return a server on the listening socket that has started.

        Raises:
            ListenError: It cannot start.
        """
        fd = self._socket.fileno() if self._socket is not None else self._fd
        options = self._options
        if tls is not None:
            options = options | {"certfile": tls.certificate, "keyfile": tls.private_key}
            if tls.client_ca is not None:
                options = options | {"ca_certs": tls.client_ca, "cert_reqs": "required"}
        config = h2corn.Config(bind=(f"fd://{fd}",), **options)
        server = _Server(self.listen, self._app, config, self._linger_delay, self._guard, keeps_http1=self._keeps_http1)
        try:
            await server.wait_started()
        except (OSError, ValueError) as error:
            what = self.listen if tls is None else f"{self.listen} with {tls.certificate} and {tls.private_key}"
            raise ListenError(f"cannot listen on {what}: {error}") from None
        return server

    async def _stop_accepting(self, server: _Server) -> None:
        """Make h2corn stop accepting, and refuse new connections from then on.

        h2corn keeps the socket open until the drain is over, so callers would connect and get no response. The socket
        is therefore shut down here, but only after h2corn has stopped accepting: else its accept fails, and with it all
        calls in progress. A probe connection without calls shows the moment: h2corn closes it when it accepts no more.
        Where the probe has no certificate that the listener accepts, the stop waits for ``PROBE_TIMEOUT`` instead.
        """
        if self._socket is None:
            server.shutdown()
            return
        probe = _ProbeConnection()
        with contextlib.suppress(OSError):  # TimeoutError is one; without the probe the stop only takes longer
            async with asyncio.timeout(PROBE_TIMEOUT):
                address = self._socket.getsockname()[:2]
                tls = None if self._tls is None else _probe_context(self._tls)
                await asyncio.get_running_loop().create_connection(lambda: probe, *address, ssl=tls)
                await probe.accepted.wait()
        server.shutdown()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PROBE_TIMEOUT):
                await probe.closed.wait()
        probe.close()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._close()

    def _close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


class _Server:
    """One h2corn server on the listening socket. A listener has one, and for each renewal of its certificates another.

    Args:
        listen: The address, for log lines.
        app: The ASGI application.
        config: The configuration.
        linger_delay: Seconds that a connection stays open after its last response while the server stops.
        guard: Is told of each request. The application tells clients of HTTP/1.1 itself that the server retires
            (``mesh.rpc.server.clients.client_stream.SERVER``). None: the clients are trusted.
        keeps_http1: Whether connections of HTTP/1.1 stay open after a response.

    Attributes:
        task: Ends when the server has stopped and its last connection is closed.
        retiring: Whether it tells clients of HTTP/1.1 to close their connections, because it will stop, or always.
    """

    def __init__(
        self,
        listen: str,
        app: Any,
        config: h2corn.Config,
        linger_delay: float,
        guard: ConnectionGuard | None,
        *,
        keeps_http1: bool,
    ) -> None:
        self.guard = guard
        self.retiring = not keeps_http1
        self._stopping = False
        self._listen = listen
        self._app = app
        self._config = config
        self._linger_delay = linger_delay
        self._last_response = -linger_delay
        self._started = False
        self._answer = self._serve if guard is None else self._serve_public
        self._server = h2corn.Server(self._answer, config)
        self.task = asyncio.create_task(self._run())

    @property
    def address(self) -> str:
        """The bound ``host:port``."""
        return self._server.addresses[0]

    async def wait_started(self) -> None:
        """Return when the server accepts connections.

        Raises:
            OSError: It cannot use the socket or the TLS files.
            ValueError: The same, detected by h2corn's checks.
        """
        try:
            await self._server.wait_started()
        except BaseException:
            await asyncio.gather(self.task, return_exceptions=True)
            raise
        self._started = True

    async def linger(self) -> None:
        """Let connections stay open after each response from now on, and wait until the last one is that old."""
        self.retiring = self._stopping = True
        remaining = self._last_response + self._linger_delay - monotonic()
        if remaining > 0:  # responses from now on wait in ``_serve``; this wait is for those just before now
            await asyncio.sleep(remaining)

    def shutdown(self) -> None:
        """Stop accepting, and send GOAWAY on every connection."""
        self._server.shutdown()

    def cancel_calls(self) -> None:
        """Cancel the tasks of the calls in progress."""
        for task in asyncio.all_tasks():
            frame = getattr(task.get_coro(), "cr_frame", None)
            if task.get_name() == _H2CORN_TASK and frame is not None and frame.f_locals.get("self") is self:
                task.cancel()

    async def _run(self) -> None:
        """Serve until the stop; start a new server when h2corn ends with all its connections because accept failed."""
        while True:
            try:
                await self._server.serve()
            except OSError as error:
                if not self._started:
                    raise
                if not self._stopping:
                    log.error("%s: the server ended (%s); it is started anew", self._listen, error)  # noqa: TRY400
                    await asyncio.sleep(RESTART_DELAY)
            if self._stopping:
                return
            self._server = h2corn.Server(self._answer, self._config)

    async def _serve(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            if scope["type"] == "http" and scope["http_version"] == _HTTP1:
                await self._app(scope, receive, partial(self._send_http1, send))
            else:
                await self._app(scope, receive, send)
        except asyncio.CancelledError:
            await asyncio.sleep(DISCONNECT_DELAY)  # ended earlier by h2corn's own cancellation
            raise
        self._last_response = monotonic()
        if self._stopping:
            await asyncio.sleep(self._linger_delay)  # h2corn holds the connection while the request's task runs

    async def _serve_public(self, scope: Any, receive: Any, send: Any) -> None:
        guard = self.guard
        assert guard is not None  # noqa: S101 - see ``__init__``
        peer = scope.get("client")
        requests = guard.requests.get(peer) or guard.add(peer, scope)
        scope[SERVER] = self
        requests.in_progress += 1
        try:
            await self._app(scope, receive, send)
        except asyncio.CancelledError:
            await asyncio.sleep(DISCONNECT_DELAY)  # as above
            raise
        finally:
            requests.in_progress -= 1
            self._last_response = requests.ended = monotonic()
        if self._stopping:
            await asyncio.sleep(self._linger_delay)  # as above

    def _send_http1(self, send: Any, event: Any) -> Any:
        """Send an event of a response, which tells the client to close the connection if the server retires."""
        if self.retiring and event["type"] == "http.response.start":
            event = {**event, "headers": [*event.get("headers", ()), CONNECTION_CLOSE]}
        return send(event)


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


def _probe_context(files: CertificateFiles) -> ssl.SSLContext:
    """Return the TLS context of the probe, which sends nothing and trusts the listener because it is its own.

    Raises:
        OSError: The files cannot be used any more.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    if files.client_ca is not None:
        context.load_cert_chain(files.certificate, files.private_key)
    return context


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
