"""One HTTP/2 connection to a server, on libnghttp2. It and the probe alone import ``ngh2``.

``ngh2`` is the protocol without I/O; this drives it from an asyncio transport: bytes in, one write per turn of the
loop, windows that reopen only for what was consumed. A broken connection fails the streams that it carried and nothing
else. It makes no connection again and chooses nothing: that is the pool's work (``mesh.rpc.client.connection_pool``).

Sources: RFC 9113 (HTTP/2); keepalive as in gRPC's proposal A8, slowed so that no stock server ever counts a strike.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from ssl import SSLContext, SSLObject
from typing import Any, Protocol, cast

import ngh2
from ngh2 import Configuration, ErrorCode, Role, Setting

from mesh.errors import Unavailable
from mesh.rpc.client.http2_stream import Stream
from mesh.rpc.client.reset_limiter import Resets
from mesh.rpc.client.resolver import Endpoint, split

__all__ = ["Connection", "Owner", "connect"]

STREAM_WINDOW = 4 * 2**20
CONNECTION_WINDOW = 8 * 2**20
"""Bytes that the server may send ahead of what was consumed."""
WRITE_CHUNK = 256 * 2**10
"""Bytes handed to the transport at once, so that its own limit is noticed."""
HIGH_WATER = 64 * 2**10
"""Bytes queued for a stream beyond which its writer waits."""
LOW_WATER = 16 * 2**10
"""Bytes still queued for a stream when its writer goes on."""
LAST_STREAM_ID = 2**31 - 2**16
"""Stream ids run out at 2**31; a connection that comes near is replaced."""
PING_AFTER = (10.0, 20.0, 300.0)
"""Seconds of silence before a first, a second and each further PING; grpcio's server bears two in five minutes."""
PING_TIMEOUT = 20.0
"""Seconds that the peer has to answer one."""

_CONFIGURATION = Configuration(auto_window_update=False, peer_max_concurrent_streams=100)
_SETTINGS = {Setting.ENABLE_PUSH: 0, Setting.INITIAL_WINDOW_SIZE: STREAM_WINDOW, Setting.MAX_HEADER_LIST_SIZE: 2**16}


class Owner(Protocol):
    """Whoever keeps the connection."""

    def freed(self) -> None:
        """A stream has ended, or the server allows more of them."""

    def draining(self, connection: Connection) -> None:
        """It takes no new streams; those that run go on."""

    def lost(self, connection: Connection, reason: str) -> None:
        """The connection is gone."""


class Connection(asyncio.Protocol):
    """One connection. Made by ``connect``.

    Attributes:
        address: Where it leads, for messages.
        peer: The ``host:port`` that the pool was given.
        loop: Where it runs.
        streams: The open streams by id.
        limit: How many there may be at once (the server's SETTINGS_MAX_CONCURRENT_STREAMS).
        draining: It takes no new streams.
        answered: It has carried at least one answer.
        usual: Headers of an answer without metadata, as this server writes them: those of nearly every answer.
    """

    def __init__(self, endpoint: Endpoint, owner: Owner) -> None:
        self.address = str(endpoint)
        self.peer = endpoint.address
        self.streams: dict[int, Stream] = {}
        self.limit = 2**32 - 1  # unlimited until it says otherwise (RFC 9113, 6.5.2)
        self.draining = self.answered = False
        self.usual: Sequence[tuple[bytes, bytes]] | None = None
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._owner = owner
        self.loop = self.ready.get_loop()
        self._h2 = ngh2.Connection(Role.CLIENT, _CONFIGURATION)
        self._transport: asyncio.Transport | None = None
        self._scheduled = self._paused = False
        self._writers: dict[int, Stream] = {}
        self._resets = Resets(self._reset)
        self._last_id = self._written_id = 0
        self._heard, self._pings = 0.0, 0
        self._pinged: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._why = ""

    @property
    def room(self) -> int:
        """How many more streams may be opened now."""
        return 0 if self.draining else self.limit - len(self.streams)

    # -- streams --

    def open(self, headers: Sequence[tuple[bytes, bytes]], stream: Stream, body: bytes | None = None) -> bool:
        """Begin a stream; with ``body`` that is all it sends.

        Returns:
            False if the connection cannot take it after all; nothing was sent then.
        """
        try:
            stream_id = self._h2.send_request(headers)
        except ngh2.NGH2Error:
            self.drain()
            return False
        stream.id = stream_id
        stream.connection = self
        self.streams[stream_id] = stream
        self._last_id = stream_id
        if body is not None:
            self._h2.send_data(stream_id, body, end_stream=True)
        self._schedule()
        if self._timer is None:
            self._heard = self.loop.time()
            self._timer = self.loop.call_later(PING_AFTER[0], self._watch)
        if stream_id > LAST_STREAM_ID:
            self.drain()
        return True

    def write(self, stream: Stream, data: bytes, *, end: bool = False) -> None:
        """Queue bytes of a stream's body."""
        with suppress(ngh2.StreamProtocolError, ngh2.ConnectionStateError):  # it has ended: its events say how
            self._h2.send_data(stream.id, data, end_stream=end)
            self._schedule()

    def crowded(self, stream: Stream) -> bool:
        """Whether so much of a stream's body waits that its writer should; it is woken when the queue has run low."""
        if self._h2.queued_body_size(stream.id) <= HIGH_WATER:
            return False
        self._writers[stream.id] = stream
        return True

    def acknowledge(self, stream_id: int, size: int) -> None:
        """Let the server send so many bytes more: they were consumed."""
        if size and self._transport is not None:
            try:
                self._h2.acknowledge_received_data(size, stream_id)
            except ngh2.ConnectionStateError:
                return  # the connection has ended within the bytes being handled now
            self._schedule()

    def reset(self, stream: Stream) -> None:
        """End a stream from this side (RST_STREAM CANCEL); too many of them end the connection, slowly."""
        if stream.id not in self.streams or self._transport is None:
            return
        if not self._resets.ask(stream.id, cut=stream.headers is not None and stream.trailers is None):
            self.answered = True  # that it is replaced is our doing, no failure of the server's
            self.drain()

    def reset_later(self, stream: Stream) -> None:
        """End a stream whose deadline has passed; the server has the same deadline, and a moment to end it itself."""
        if stream.id in self.streams:
            self._resets.ask_later(stream.id, partial(self.reset, stream))

    def _reset(self, stream_id: int) -> None:
        with suppress(ngh2.ConnectionStateError):  # the connection has ended within the bytes being handled now
            self._h2.reset_stream(stream_id, ErrorCode.CANCEL)
            self._schedule()

    # -- the connection's end --

    def drain(self) -> None:
        """Take no new streams and close when the last has ended."""
        if not self.draining:
            self.draining = True
            self._owner.draining(self)
        if len(self.streams) == len(self._resets.late):  # what only waits to be reset, the end of it all resets too
            self.close()

    def close(self, reason: str = "closed here") -> None:
        """Say GOAWAY and close; open streams fail with UNAVAILABLE."""
        self.draining = True
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        self._why = self._why or reason
        with suppress(ngh2.NGH2Error, RuntimeError):  # the protocol may have failed already, or uvloop's transport
            self._h2.terminate_connection(ErrorCode.NO_ERROR)
            transport.write(self._h2.data_to_send())
        transport.close()

    def abort(self, reason: str) -> None:
        """Break the connection at once."""
        self.draining = True
        self._why = self._why or reason
        if self._transport is not None:
            self._transport.abort()

    # -- asyncio.Protocol --

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the preface, SETTINGS and the connection's window."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by inheritance
        self._h2.initiate_connection(_SETTINGS)
        self._h2.set_local_window_size(CONNECTION_WINDOW)
        self._flush()

    def data_received(self, data: bytes) -> None:
        """Take bytes from the server."""
        try:
            self._h2.receive_data(data)
        except (ngh2.NGH2Error, ValueError) as error:
            self._handle_events()
            self.abort(f"it broke the HTTP/2 protocol ({error})")
            return
        self._handle_events()
        self._schedule()

    def pause_writing(self) -> None:
        """Stop: the transport holds enough."""
        self._paused = True

    def resume_writing(self) -> None:
        """Go on."""
        self._paused = False
        self._flush()

    def connection_lost(self, error: Exception | None) -> None:
        """Fail what the connection carried."""
        self._transport = None
        self.draining = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        reason = self._why or (str(error).lower() if error else "closed by the server")
        streams, self.streams = self.streams, {}
        self._writers.clear()
        self._resets.stop()
        for stream_id, stream in streams.items():
            stream.fail(
                Unavailable("the connection to the service was lost").at(f"{self.address}: {reason}"),
                unprocessed=stream_id > self._written_id,
            )
        if not self.ready.done():
            self.ready.set_exception(ConnectionError(reason))
            self.ready.exception()  # seen, whether or not somebody waits
        self._owner.lost(self, reason)

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self.loop.call_soon(self._flush)

    def _flush(self) -> None:
        """Write what is ready, once for all that happened in this turn of the loop."""
        self._scheduled = False
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        try:
            while not self._paused:
                self._written_id = self._last_id  # from here on the server may have seen any of them
                data = self._h2.data_to_send(WRITE_CHUNK)
                if data:
                    transport.write(data)
                if len(data) < WRITE_CHUNK:
                    break
        except ngh2.NGH2Error as error:
            self.abort(f"the HTTP/2 engine failed ({error})")
            return
        except RuntimeError:  # uvloop: connecting was given up in the turn in which it succeeded; nobody will say so
            self.connection_lost(None)
            return
        self._handle_events()
        if self._writers:
            for stream_id, stream in list(self._writers.items()):
                if self._h2.queued_body_size(stream_id) <= LOW_WATER:
                    del self._writers[stream_id]
                    stream.wake_writer()

    def _handle_events(self) -> None:  # noqa: C901, PLR0912 - one branch for each event, most frequent first
        streams = self.streams
        event: Any  # its class says which attributes it has
        for event in self._h2.events():
            kind = type(event)
            if kind is ngh2.DataReceived:
                self._heard = 0.0  # "now", as the next tick of the watch will say: no clock is read per packet
                stream = streams.get(event.stream_id)
                data = event.data
                if stream is not None:
                    stream.on_data(data, event.end_stream)
                elif data:  # reset here before it came
                    self.acknowledge(event.stream_id, len(data))
            elif kind is ngh2.TrailersReceived:
                stream = streams.get(event.stream_id)
                if stream is not None:
                    stream.on_trailers(event.headers)
            elif kind is ngh2.ResponseReceived:
                self._heard = 0.0
                self.answered = True
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
                self._pinged = None
            elif kind is ngh2.ConnectionClosed and self._transport is not None:
                self._why = self._why or _goaway_text(event.error_code, event.debug_data)
                self._transport.close()

    def _stream_closed(self, event: Any) -> None:
        stream = self.streams.pop(event.stream_id, None)
        if stream is None:
            return
        self._writers.pop(event.stream_id, None)
        self._resets.closed(event.stream_id)
        local = event.local_error
        stopped = isinstance(local, ngh2.ConnectionClosingError)  # GOAWAY came before the request went
        stream.on_closed(
            event.error_code,
            None if stopped else local,
            never_sent=stopped or event.stream_id > self._written_id,
        )
        self._owner.freed()
        if self.draining and len(self.streams) == len(self._resets.late):
            self.loop.call_soon(self.close)

    def _settings_received(self, settings: Any) -> None:
        self.limit = settings.get(Setting.MAX_CONCURRENT_STREAMS, self.limit)
        if self.ready.done():
            self._owner.freed()
        else:
            self.ready.set_result(None)

    def _goaway_received(self, event: Any) -> None:
        self._why = _goaway_text(event.error_code, event.debug_data)
        for stream_id, stream in self.streams.items():
            if stream_id > event.last_stream_id:  # their StreamClosed follows
                stream.unprocessed = True
        self.loop.call_soon(self.drain)

    def _watch(self) -> None:
        """Look at the silence, while there are streams."""
        self._timer = None
        if not self.streams or self._transport is None:
            return
        now = self.loop.time()
        if not self._heard:
            self._heard = now
            self._pings = 0
        elif self._pinged is not None:
            if now - self._pinged >= PING_TIMEOUT:
                self.abort(f"it was silent and did not answer a PING within {PING_TIMEOUT:g} s")
                return
        elif now - self._heard >= PING_AFTER[min(self._pings, len(PING_AFTER) - 1)]:
            self._pings += 1
            self._pinged = now
            self._h2.ping()
            self._schedule()
        self._timer = self.loop.call_later(PING_AFTER[0], self._watch)


def _goaway_text(error_code: int, debug: bytes) -> str:
    name = ErrorCode(error_code).name if error_code in ErrorCode.__members__.values() else str(error_code)
    return f"the server closed it with {name}" + (f": {debug[:200].decode('utf-8', 'replace')}" if debug else "")


async def connect(endpoint: Endpoint, owner: Owner, tls: SSLContext | None) -> Connection:
    """Return a connection that has the server's SETTINGS.

    Args:
        endpoint: Where to.
        owner: Is told what becomes of it.
        tls: The TLS context (ALPN ``h2`` is set here), or None for plain text.

    Raises:
        OSError: No connection, no TLS, or no HTTP/2 on the other side.
    """
    loop = asyncio.get_running_loop()
    if tls is not None:
        tls.set_alpn_protocols(["h2"])
    name = split(endpoint.address)[0] if tls else None
    _, connection = await loop.create_connection(
        lambda: Connection(endpoint, owner), endpoint.host, endpoint.port, ssl=tls, server_hostname=name
    )
    try:
        transport = connection._transport  # noqa: SLF001 - same module
        secured: SSLObject | None = transport.get_extra_info("ssl_object") if transport else None
        if secured is not None and secured.selected_alpn_protocol() != "h2":
            raise ConnectionError("it does not speak HTTP/2 (ALPN)")  # noqa: TRY301 - ends as every failure does
        await connection.ready
    except BaseException:
        connection.abort("given up")
        raise
    return connection
