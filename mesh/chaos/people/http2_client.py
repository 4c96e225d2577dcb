"""HTTP/2 client connection (libnghttp2) that leaves streams, windows and pace to its user, hostile or honest."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable, Iterable
from typing import cast

import ngh2

from mesh.chaos.people.attack_target import AttackTarget
from mesh.chaos.people.observed import Observed

__all__ = ["CONNECT_TIMEOUT", "Http2Client", "grpc_frame"]

CONNECT_TIMEOUT = 5.0
"""Seconds until the server's SETTINGS frame must have arrived."""
_DEFAULT_WINDOW = 65_535
_GRPC = ((b"content-type", b"application/grpc"), (b"te", b"trailers"))


def grpc_frame(message: bytes) -> bytes:
    """Return a message with its length prefix (gRPC over HTTP2, Length-Prefixed-Message)."""
    return struct.pack(">BI", 0, len(message)) + message


class Http2Client(asyncio.Protocol):
    """One HTTP/2 connection.

    Args:
        observed: Counts responses, resets and the end of the connection.
        window: Bytes that the server may send on each stream before they are read; 0: no body at all.

    Attributes:
        closed: Whether the connection has ended.
        streams: Open streams → HTTP status of the response, 0 before it has come.
        on_end: Called at the end of each stream with its id, the HTTP status (0: none) and the error code of HTTP/2.
    """

    def __init__(self, observed: Observed, *, window: int = _DEFAULT_WINDOW) -> None:
        self.closed = False
        self.streams: dict[int, int] = {}
        self.on_end: Callable[[int, int, int], None] | None = None
        self._observed = observed
        self._window = window
        self._h2 = ngh2.Connection(ngh2.Role.CLIENT, ngh2.Configuration(max_outbound_ack=100_000))
        self._going_away = False
        self._settled = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()

    @classmethod
    async def open(
        cls, target: AttackTarget, observed: Observed, *, window: int = _DEFAULT_WINDOW
    ) -> Http2Client | None:
        """Return a connection whose server has sent its settings; None if it did not let the client in."""
        client = cls(observed, window=window)
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                await asyncio.get_running_loop().create_connection(
                    lambda: client,
                    target.host,
                    target.port,
                    local_addr=(target.source, 0) if target.source else None,
                )
                await client._settled.wait()
        except (OSError, TimeoutError):
            client.close()
            observed.note("connection refused")
            return None
        if client.closed:
            observed.note("connection refused")
            return None
        observed.note("connections")
        return client

    @property
    def free_streams(self) -> int:
        """Streams that may be opened now, by the server's limit."""
        if self.closed or self._going_away:
            return 0
        limit = self._h2.remote_settings.get(ngh2.Setting.MAX_CONCURRENT_STREAMS, 2**31)
        return max(0, int(limit) - len(self.streams))

    # -- frames --

    def request(
        self, target: AttackTarget, verb: str, path: str, headers: Iterable[tuple[bytes, bytes]] = (), *, end: bool
    ) -> int:
        """Open a stream by its HEADERS frame and return its id; ``flush`` sends it."""
        pseudo = (
            (b":method", verb.encode()), (b":scheme", b"http"), (b":path", path.encode()),
            (b":authority", target.authority.encode()),
        )  # fmt: skip
        stream: int = self._h2.send_request([*pseudo, *headers], end_stream=end)
        self.streams[stream] = 0
        self._observed.note("requests")
        return stream

    def ask(self, target: AttackTarget, path: str, message: bytes = b"") -> int:
        """Open a stream with a complete request: a GET, or at a gRPC server a call with ``message``."""
        if target.grpc:
            return self.grpc_request(target, path, grpc_frame(message), end=True)
        return self.request(target, "GET", path, end=True)

    def grpc_request(self, target: AttackTarget, path: str, data: bytes, *, end: bool) -> int:
        """Open a stream of a gRPC call and send the beginning of its body."""
        stream = self.request(target, "POST", path, _GRPC, end=False)
        if data or end:
            self.data(stream, data, end=end)
        return stream

    def data(self, stream: int, data: bytes, *, end: bool = False) -> None:
        """Send a part of a request's body, as far as the server's windows allow."""
        self._h2.send_data(stream, data, end_stream=end)

    def reset(self, stream: int) -> None:
        """Send RST_STREAM."""
        self._h2.reset_stream(stream)

    def reset_if_open(self, stream: int) -> None:
        """Send RST_STREAM for a stream that nobody waits for any more."""
        if not self.closed and stream in self.streams:
            self.reset(stream)
            self.flush()

    def ping(self) -> None:
        """Send PING."""
        self._h2.ping()

    def settings(self, window: int) -> None:
        """Send SETTINGS."""
        self._h2.update_settings({ngh2.Setting.INITIAL_WINDOW_SIZE: window})

    def held_back(self) -> bytes:
        """Return the bytes of the frames that wait, for a user who sends them at a pace of its own."""
        return bytes(self._h2.data_to_send())

    def write(self, data: bytes) -> None:
        """Write bytes of frames to the connection."""
        if not self.closed:
            self._transport.write(data)

    def flush(self) -> None:
        """Write the frames that wait."""
        data = self._h2.data_to_send()
        if data:
            self.write(bytes(data))

    async def drained(self) -> None:
        """Wait until the operating system takes more bytes."""
        await self._writable.wait()

    def stop_reading(self) -> None:
        """Read nothing from the connection from now on, not even frames of its control."""
        self._transport.pause_reading()

    def close(self) -> None:
        """Close the connection without a word."""
        if not self.closed and hasattr(self, "_transport"):
            self._on_closed()
            self._transport.abort()

    # -- asyncio --

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the preface and SETTINGS."""
        self._transport = cast("asyncio.Transport", transport)
        self._h2.initiate_connection({ngh2.Setting.INITIAL_WINDOW_SIZE: self._window, ngh2.Setting.ENABLE_PUSH: 0})
        self.flush()

    def data_received(self, data: bytes) -> None:
        """Take frames."""
        if self.closed:
            return
        try:
            self._h2.receive_data(data)
            events = self._h2.events()
        except ngh2.NGH2Error as error:
            self._observed.note(f"protocol error: {type(error).__name__}")
            self.close()
            return
        for event in events:
            self._take(event)
        self.flush()

    def pause_writing(self) -> None:
        """Make ``drained`` wait."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """End the wait of ``drained``."""
        self._writable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        """Count the end."""
        if not self.closed:
            self._observed.note("connection reset" if exc else "connection closed")
            self._on_closed()

    def _on_closed(self) -> None:
        self.closed = True
        self._settled.set()
        self._writable.set()
        for stream, status in list(self.streams.items()):
            self._end(stream, status, ngh2.ErrorCode.INTERNAL_ERROR)

    def _take(self, event: object) -> None:
        match event:
            case ngh2.SettingsReceived():
                self._settled.set()
            case ngh2.ResponseReceived() if event.stream_id in self.streams:
                status = next((int(value) for name, value in event.headers if name == b":status"), 0)
                self.streams[event.stream_id] = status
                code = next((value for name, value in event.headers if name == b"grpc-status"), None)
                self._observed.note(f"HTTP {status}" if code is None else f"gRPC {int(code)}")
            case ngh2.StreamReset():
                self._observed.note(f"reset {_name(event.error_code)}")
            case ngh2.StreamClosed():
                self._end(event.stream_id, self.streams.get(event.stream_id, 0), event.error_code)
            case ngh2.GoAwayReceived():
                self._going_away = True
                self._observed.note(f"GOAWAY {_name(event.error_code)}")

    def _end(self, stream: int, status: int, code: int) -> None:
        if self.streams.pop(stream, None) is not None and self.on_end is not None:
            self.on_end(stream, status, code)


def _name(code: int) -> str:
    try:
        return ngh2.ErrorCode(code).name
    except ValueError:
        return str(code)
