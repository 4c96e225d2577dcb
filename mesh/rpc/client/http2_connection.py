"""One HTTP/2 connection to a server, on libnghttp2. Only this module and ``health_check`` import ``ngh2``.

``ngh2`` is the protocol without I/O. This module drives it from an asyncio transport: one write per turn of the loop,
and flow-control windows that reopen only for data that were consumed. A broken connection fails the streams on it and
nothing else. Reconnecting and picking are the pool's work (``mesh.rpc.client.connection_pool``).

Sources: RFC 9113 (HTTP/2); keepalive as in gRPC's proposal A8, slow enough for every stock server.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from ssl import SSLEOFError, SSLError, SSLObject
from typing import Any, Protocol, cast

import ngh2
from ngh2 import Configuration, ErrorCode, Role, Setting

from mesh.errors import Unavailable
from mesh.rpc.client.endpoint_health import EndpointHealth
from mesh.rpc.client.http2_stream import Stream
from mesh.rpc.client.reset_limiter import ResetLimiter
from mesh.rpc.client.resolver import Endpoint, split
from mesh.rpc.client.service_tls import ServiceTls
from mesh.rpc.client.tls_errors import HANDSHAKE_ENDED, SpeaksTlsError, is_tls_alert, reason_of

__all__ = ["Connection", "ConnectionOwner", "connect"]

STREAM_WINDOW_BYTES = 2**16
CONNECTION_WINDOW_BYTES = 2**21
"""Bytes that the server may send before they are consumed, for one stream and for all. What nobody reads stays at its
source, which has a budget for it, and does not pile up in the process of the reader."""
WRITE_CHUNK_BYTES = 256 * 2**10
"""Bytes given to the transport at once, so that its own limit takes effect."""
HIGH_WATER_BYTES = 64 * 2**10
"""Bytes queued for a stream beyond which its writer waits."""
LOW_WATER_BYTES = 16 * 2**10
"""Bytes still queued for a stream when its writer continues."""
LAST_STREAM_ID = 2**31 - 2**16
"""Stream id after which the connection is replaced; ids run out at 2**31."""
CHECK_INTERVAL = 0.2
"""Seconds between two checks of a connection that has calls in progress."""
SILENCE_DELAY = 0.4
"""Seconds without data, while calls are in progress, after which the owner is told. A health check follows, so that a
frozen server is known to be one within two seconds."""
MAX_CHECK_DELAY = 0.3
"""Delay of a check in seconds from which this side's event loop counts as blocked: what arrived was not read."""
IDLE_CHECK_INTERVAL = 2.0
"""The same interval after ``PING_DELAYS[0]`` without data: a stream may be silent for hours."""
PING_DELAYS = (10.0, 20.0, 300.0)
"""Seconds of silence before a first PING, and from there to the second and to each further one. The first is sent at
once when the server does not respond to health checks. grpc's servers tolerate three within five minutes."""
PING_TIMEOUT = 10.0
"""Seconds that the server has to acknowledge a PING."""

_CONFIGURATION = Configuration(auto_window_update=False, peer_max_concurrent_streams=100)
_SETTINGS = {
    Setting.ENABLE_PUSH: 0,
    Setting.INITIAL_WINDOW_SIZE: STREAM_WINDOW_BYTES,
    Setting.MAX_HEADER_LIST_SIZE: 2**16,
}


class ConnectionOwner(Protocol):
    """Owner of connections: it is told of their changes."""

    def on_stream_available(self) -> None:
        """Handle the end of a stream, or a higher limit of the server."""

    def on_draining(self, connection: Connection) -> None:
        """Handle a connection that takes no new streams; its open streams go on."""

    def on_lost(self, connection: Connection, reason: str) -> None:
        """Handle the end of a connection."""

    def on_silent(self, connection: Connection) -> None:
        """Handle a connection that has received nothing for a while; called again until it does."""


class Connection(asyncio.Protocol):
    """One connection; ``connect`` makes it.

    Attributes:
        address: The endpoint, for messages.
        peer: The ``host:port`` that the pool was given.
        loop: The event loop that it runs on.
        streams: The open streams by id.
        max_streams: Most open streams at once (the server's SETTINGS_MAX_CONCURRENT_STREAMS, or ``limit_streams``).
        draining: Whether it takes no new streams.
        health: Health of the server, shared by all connections to it.
        has_responded: Whether the server has sent at least one response on it.
        plain_headers: Response headers without metadata, as this server writes them. Nearly every response has them.
        ready: Done when the server's SETTINGS have arrived; fails if the connection is lost before.
    """

    def __init__(self, endpoint: Endpoint, owner: ConnectionOwner) -> None:
        self.address = str(endpoint)
        self.peer = endpoint.address
        self.streams: dict[int, Stream] = {}
        self.max_streams = self._server_max_streams = 2**32 - 1  # unlimited until SETTINGS arrive (RFC 9113, 6.5.2)
        self._own_max_streams: int | None = None
        self.draining = self.has_responded = False
        self.health = EndpointHealth()
        self.plain_headers: Sequence[tuple[bytes, bytes]] | None = None
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._owner = owner
        self.loop = self.ready.get_loop()
        self._h2 = ngh2.Connection(Role.CLIENT, _CONFIGURATION)
        self._transport: asyncio.Transport | None = None
        self._scheduled = self._paused = False
        self._writers: dict[int, Stream] = {}
        self._resets = ResetLimiter(self._reset)
        self._last_stream_id = self._last_written_id = 0
        self._last_received, self._ping_count = 0.0, 0
        self._pinged_at = 0.0  # or the time of the last data
        self._check_at = 0.0
        self._ping_sent_at: float | None = None
        self._keepalive_timer: asyncio.TimerHandle | None = None
        self._expiry_timer: asyncio.TimerHandle | None = None
        self._received = False
        self._close_reason = ""

    @property
    def available_streams(self) -> int:
        """Number of streams that may be opened now; negative after the server has lowered its limit."""
        return 0 if self.draining else self.max_streams - len(self.streams)

    @property
    def is_full(self) -> bool:
        """Whether the server takes no further stream now, whatever ``limit_streams`` says."""
        return self.draining or len(self.streams) >= self._server_max_streams

    @property
    def close_reason(self) -> str:
        """Reason why the connection takes no new streams."""
        return self._close_reason or "the server closed the connection"

    # -- streams --

    def open(self, headers: Sequence[tuple[bytes, bytes]], stream: Stream, body: bytes | None = None) -> bool:
        """Open a stream. With ``body`` its request is complete.

        Returns:
            False if the connection cannot take it after all; then nothing was sent.
        """
        try:
            stream_id = self._h2.send_request(headers)
        except ngh2.NGH2Error:
            self.drain()
            return False
        stream.id = stream_id
        stream.connection = self
        self.streams[stream_id] = stream
        self._last_stream_id = stream_id
        if body is not None:
            self._h2.send_data(stream_id, body, end_stream=True)
        self._schedule()
        if self._keepalive_timer is None:
            self._last_received = self._pinged_at = now = self.loop.time()
            self._ping_count = 0
            self._schedule_check(now + CHECK_INTERVAL)
        if stream_id > LAST_STREAM_ID:
            self.drain()
        return True

    def write(self, stream: Stream, data: bytes, *, end: bool = False) -> None:
        """Queue bytes of a stream's request."""
        with suppress(ngh2.StreamProtocolError, ngh2.ConnectionStateError):  # it has ended; its events give the reason
            self._h2.send_data(stream.id, data, end_stream=end)
            self._schedule()

    def is_queue_full(self, stream: Stream) -> bool:
        """Whether the writer of a stream should wait; ``Stream.wake_writer`` is called when the queue is short."""
        if self._h2.queued_body_size(stream.id) <= HIGH_WATER_BYTES:
            return False
        self._writers[stream.id] = stream
        return True

    def acknowledge(self, stream_id: int, size: int) -> None:
        """Let the server send ``size`` more bytes: they were consumed."""
        if size and self._transport is not None:
            try:
                self._h2.acknowledge_received_data(size, stream_id)
            except ngh2.ConnectionStateError:
                return  # the connection has ended within the bytes that are being handled
            self._schedule()

    def reset(self, stream: Stream) -> None:
        """End a stream from this side (RST_STREAM CANCEL); beyond the limit on resets the connection drains."""
        if stream.id not in self.streams or self._transport is None:
            return
        if not self._resets.reset(stream.id, partial=stream.headers is not None and stream.trailers is None):
            self.has_responded = True  # it is replaced because of this side's resets; the server has not failed
            self.drain()

    def reset_later(self, stream: Stream) -> None:
        """End a stream whose deadline has passed, after a delay in which the server can end it itself."""
        if stream.id in self.streams:
            self._resets.reset_after_delay(stream.id, partial(self.reset, stream))

    def _reset(self, stream_id: int) -> None:
        with suppress(ngh2.ConnectionStateError):  # the connection has ended within the bytes that are being handled
            self._h2.reset_stream(stream_id, ErrorCode.CANCEL)
            self._schedule()

    def limit_streams(self, more: int | None) -> None:
        """Limit the open streams to those that are open now and ``more``; None ends the limit."""
        if more is None:
            if self._own_max_streams is None:
                return
            self._own_max_streams = None
        elif self._own_max_streams is None:
            self._own_max_streams = len(self.streams) + more
        self._set_max_streams()

    def _set_max_streams(self) -> None:
        own = self._own_max_streams
        self.max_streams = self._server_max_streams if own is None else min(own, self._server_max_streams)
        self._owner.on_stream_available()

    def fail_over(self) -> None:
        """Fail the calls that declare retry safety and have received nothing, so that they are retried elsewhere."""
        failed = [stream for stream in self.streams.values() if stream.movable and stream.headers is None]
        for stream in failed:
            stream.fail(
                Unavailable("the service does not respond").at(f"{self.address}: no response to a health check")
            )

    # -- end of the connection --

    def drain(self) -> None:
        """Take no new streams, and close when the last stream has ended."""
        if not self.draining:
            self.draining = True
            self._owner.on_draining(self)
        if len(self.streams) == len(self._resets.delayed):  # closing ends the streams whose reset is delayed
            self.close()

    def close(self, reason: str = "closed here") -> None:
        """Send GOAWAY and close; open streams fail with UNAVAILABLE."""
        self.draining = True
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        self._close_reason = self._close_reason or reason
        with suppress(ngh2.NGH2Error, RuntimeError):  # the protocol may have failed before, or uvloop's transport
            self._h2.terminate_connection(ErrorCode.NO_ERROR)
            transport.write(self._h2.data_to_send())
        transport.close()

    def abort(self, reason: str) -> None:
        """Close at once, without GOAWAY."""
        self.draining = True
        self._close_reason = self._close_reason or reason
        if self._transport is not None:
            self._transport.abort()

    def secure(self, tls: ServiceTls) -> None:
        """Check the server after the handshake, and close the connection when a certificate of it expires.

        Raises:
            ConnectionError: It is another service, or does not speak HTTP/2.
        """
        secured: SSLObject | None = self._transport.get_extra_info("ssl_object") if self._transport else None
        if secured is None:  # lost meanwhile; ``ready`` has the reason
            return
        if secured.selected_alpn_protocol() != "h2":
            raise ConnectionError("it does not speak HTTP/2 (ALPN)")
        seconds = tls.check(secured)
        self._expiry_timer = self.loop.call_later(seconds, self._expire)

    def _expire(self) -> None:
        """Close, but not before the server has decided about the caller's certificate: its alert says more."""
        if self.ready.done():
            self.close("a certificate of the connection has expired")
        else:
            self.ready.add_done_callback(lambda _: self._expire())

    # -- asyncio.Protocol --

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the preface, SETTINGS and the connection's window."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's class does not inherit from it
        self._h2.initiate_connection(_SETTINGS)
        self._h2.set_local_window_size(CONNECTION_WINDOW_BYTES)
        self._flush()

    def data_received(self, data: bytes) -> None:
        """Handle bytes from the server."""
        if not self._received:
            self._received = True
            if is_tls_alert(data):
                self.abort(str(SpeaksTlsError()))
                return
        try:
            self._h2.receive_data(data)
        except (ngh2.NGH2Error, ValueError) as error:
            self._handle_events()
            self.abort(f"it broke the HTTP/2 protocol ({error})")
            return
        self._handle_events()
        self._schedule()

    def pause_writing(self) -> None:
        """Stop writing: the transport's buffer is full."""
        self._paused = True

    def resume_writing(self) -> None:
        """Continue writing."""
        self._paused = False
        self._flush()

    def connection_lost(self, error: Exception | None) -> None:
        """Fail the open streams."""
        self._transport = None
        self.draining = True
        if self._keepalive_timer is not None:
            self._keepalive_timer.cancel()
            self._keepalive_timer = None
        if self._expiry_timer is not None:
            self._expiry_timer.cancel()
        reason = self._close_reason or _lost_text(error)
        streams, self.streams = self.streams, {}
        self._writers.clear()
        self._resets.stop()
        for stream_id, stream in streams.items():
            stream.fail(
                Unavailable("the connection to the service was lost").at(f"{self.address}: {reason}"),
                unprocessed=stream_id > self._last_written_id,
            )
        if not self.ready.done():
            self.ready.set_exception(ConnectionError(reason))
            self.ready.exception()  # retrieved, whether or not a task awaits it
        self._owner.on_lost(self, reason)

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self.loop.call_soon(self._flush)

    def _flush(self) -> None:
        """Write everything that this turn of the loop has queued."""
        self._scheduled = False
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        try:
            while not self._paused:
                self._last_written_id = self._last_stream_id  # the server may see any of them from here on
                data = self._h2.data_to_send(WRITE_CHUNK_BYTES)
                if data:
                    transport.write(data)
                if len(data) < WRITE_CHUNK_BYTES:
                    break
        except ngh2.NGH2Error as error:
            self.abort(f"the HTTP/2 engine failed ({error})")
            return
        except RuntimeError:  # uvloop: connecting was cancelled in the turn in which it succeeded; no callback follows
            self.connection_lost(None)
            return
        self._handle_events()
        if self._writers:
            for stream_id, stream in list(self._writers.items()):
                if self._h2.queued_body_size(stream_id) <= LOW_WATER_BYTES:
                    del self._writers[stream_id]
                    stream.wake_writer()

    def _handle_events(self) -> None:  # noqa: C901, PLR0912 - one branch for each event, most frequent first
        streams = self.streams
        event: Any  # its class decides which attributes it has
        for event in self._h2.events():
            kind = type(event)
            if kind is ngh2.DataReceived:
                self._last_received = 0.0  # "now", set by the next keepalive check: no clock is read per packet
                stream = streams.get(event.stream_id)
                data = event.data
                if stream is not None:
                    stream.on_data(data, event.end_stream)
                elif data:  # its stream was reset here before it arrived
                    self.acknowledge(event.stream_id, len(data))
            elif kind is ngh2.TrailersReceived:
                stream = streams.get(event.stream_id)
                if stream is not None:
                    stream.on_trailers(event.headers)
            elif kind is ngh2.ResponseReceived:
                self._last_received = 0.0
                self.has_responded = True
                stream = streams.get(event.stream_id)
                if stream is not None:
                    stream.on_headers(event.headers, event.end_stream)
            elif kind is ngh2.StreamClosed:
                self._stream_closed(event)
            elif kind is ngh2.SettingsReceived:
                self._settings_received(event.settings)
            elif kind is ngh2.GoAwayReceived:
                self._goaway_received(event)
            elif kind is ngh2.PingAcknowledged:
                self._ping_sent_at = None
            elif kind is ngh2.ConnectionClosed and self._transport is not None:
                self._close_reason = self._close_reason or _goaway_text(event.error_code, event.debug_data)
                self._transport.close()

    def _stream_closed(self, event: Any) -> None:
        stream = self.streams.pop(event.stream_id, None)
        if stream is None:
            return
        self._writers.pop(event.stream_id, None)
        self._resets.closed(event.stream_id)
        local = event.local_error
        closing = isinstance(local, ngh2.ConnectionClosingError)  # GOAWAY arrived before the request was sent
        stream.on_closed(
            event.error_code,
            None if closing else local,
            never_sent=closing or event.stream_id > self._last_written_id,
        )
        self._owner.on_stream_available()
        if self.draining and len(self.streams) == len(self._resets.delayed):
            self.loop.call_soon(self.close)

    def _settings_received(self, settings: Any) -> None:
        self._server_max_streams = settings.get(Setting.MAX_CONCURRENT_STREAMS, self._server_max_streams)
        self._set_max_streams()
        if not self.ready.done():
            self.ready.set_result(None)

    def _goaway_received(self, event: Any) -> None:
        self._close_reason = _goaway_text(event.error_code, event.debug_data)
        for stream_id, stream in self.streams.items():
            if stream_id > event.last_stream_id:  # their StreamClosed follows
                stream.unprocessed = True
        self.loop.call_soon(self.drain)

    def _check_keepalive(self) -> None:
        """Tell the owner of silence, send PINGs, and close if one is not acknowledged; runs while there are streams."""
        self._keepalive_timer = None
        if not self.streams or self._transport is None:
            return
        now = self.loop.time()
        interval = CHECK_INTERVAL
        if not self._last_received or now - self._check_at > MAX_CHECK_DELAY:
            self._last_received = self._pinged_at = now
            self._ping_count, self._ping_sent_at = 0, None
        elif now - self._last_received >= SILENCE_DELAY:
            self._owner.on_silent(self)
            interval = CHECK_INTERVAL if now - self._last_received < PING_DELAYS[0] else IDLE_CHECK_INTERVAL
        if self._ping_sent_at is not None:
            if now - self._ping_sent_at >= PING_TIMEOUT:
                self.abort(f"it was silent and did not answer a PING within {PING_TIMEOUT:g} s")
                return
        elif now - self._pinged_at >= PING_DELAYS[min(self._ping_count, len(PING_DELAYS) - 1)] or (
            self.health.unresponsive and not self._ping_count
        ):
            self._ping_count += 1
            self._ping_sent_at = self._pinged_at = now
            self._h2.ping()
            self._schedule()
        self._schedule_check(now + interval)

    def _schedule_check(self, when: float) -> None:
        self._check_at = when
        self._keepalive_timer = self.loop.call_at(when, self._check_keepalive)


def _lost_text(error: Exception | None) -> str:
    """Return why a connection was lost. With TLS 1.3 the refusal of a client's certificate comes this way."""
    if isinstance(error, SSLError) and not isinstance(error, SSLEOFError):
        return reason_of(error)
    return str(error).lower() if error else "closed by the server"


def _goaway_text(error_code: int, debug: bytes) -> str:
    name = ErrorCode(error_code).name if error_code in ErrorCode.__members__.values() else str(error_code)
    return f"the server closed it with {name}" + (f": {debug[:200].decode('utf-8', 'replace')}" if debug else "")


async def connect(endpoint: Endpoint, owner: ConnectionOwner, tls: ServiceTls | None) -> Connection:
    """Return a connection that has received the server's SETTINGS.

    Args:
        endpoint: The endpoint to connect to.
        owner: Is told of the connection's changes.
        tls: TLS to the service, or None for plain text.

    Raises:
        OSError: There is no connection, TLS fails, the server is another service, or it does not speak HTTP/2.
    """
    loop = asyncio.get_running_loop()
    name = split(endpoint.address)[0] if tls else None
    try:
        _, connection = await loop.create_connection(
            lambda: Connection(endpoint, owner),
            endpoint.host,
            endpoint.port,
            ssl=tls.context() if tls else None,
            server_hostname=name,
        )
    except SSLError as error:
        raise ConnectionError(reason_of(error)) from error
    except (ConnectionResetError, ConnectionAbortedError) as error:
        if tls is None:
            raise
        raise ConnectionError(HANDSHAKE_ENDED) from error
    try:
        if tls is not None:
            connection.secure(tls)
        await connection.ready
    except BaseException:
        connection.abort("given up")
        raise
    return connection
