"""Raw HTTP/2 server (libnghttp2's server role) that misbehaves as a test tells it to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import ngh2

HEADERS = [(b":status", b"200"), (b"content-type", b"application/grpc")]
OK = [(b"grpc-status", b"0")]
PATH = "/test.Service/Method"
HEALTH = b"/grpc.health.v1.Health/Check"


CONFIGURATION = ngh2.Configuration(stream_reset_rate_limit=(2**32, 2**32))  # the tests reset more than clients should


def silence(peer: Peer, stream_id: int) -> None:
    """Send no response."""


def framed(message: bytes, flag: int = 0) -> bytes:
    return bytes([flag]) + len(message).to_bytes(4, "big") + message


class Peer(asyncio.Protocol):
    """One accepted connection.

    Attributes:
        number: Number of the connection, from 1.
        h2: The protocol; call ``flush`` after a use.
        requests: Headers by stream id.
        bodies: Bytes received, by stream id.
        resets: Error codes by stream id.
        events: All events in order.
    """

    def __init__(self, server: FaultServer) -> None:
        self.server = server
        self.number = server.accepted
        self.h2 = ngh2.Connection(ngh2.Role.SERVER, CONFIGURATION)
        self.requests: dict[int, dict[bytes, bytes]] = {}
        self.bodies: dict[int, bytes] = {}
        self.resets: dict[int, int] = {}
        self.ended: set[int] = set()
        self.pings = 0
        self.begun = False
        self.early = b""
        self.transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.server.peers.append(self)
        if self.server.settings is not None:
            self.begin(self.server.settings)
        self.server.changed.set()

    def begin(self, settings: dict[int, int]) -> None:
        """Send SETTINGS and handle the bytes received so far; a test calls it for a server without settings."""
        self.begun = True
        self.h2.initiate_connection(settings)
        self.flush()
        self.data_received(self.early)

    def data_received(self, data: bytes) -> None:
        if not self.begun:
            self.early += data
            return
        self.h2.receive_data(data)
        complete = []
        for event in self.h2.events():
            if isinstance(event, ngh2.RequestReceived):
                self.requests[event.stream_id] = dict(event.headers)
                self.bodies[event.stream_id] = b""
            elif isinstance(event, ngh2.DataReceived):
                self.bodies[event.stream_id] += event.data
            elif isinstance(event, ngh2.StreamReset):
                self.resets[event.stream_id] = event.error_code
            elif isinstance(event, ngh2.PingReceived):
                self.pings += 1
            if getattr(event, "end_stream", False):
                self.ended.add(event.stream_id)
                complete.append(event.stream_id)
        for stream_id in complete:
            if stream_id not in self.resets:
                self.answer(stream_id)
        self.flush()
        self.server.changed.set()

    def answer(self, stream_id: int) -> None:
        if self.requests[stream_id][b":path"] == HEALTH and not hasattr(self.server.answer, "health_checks"):
            self.respond(stream_id, b"\x08\x01")
        else:
            self.server.answer(self, stream_id)

    def flush(self) -> None:
        data = self.h2.data_to_send()
        if data and not self.transport.is_closing():
            self.transport.write(data)

    def connection_lost(self, error: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        self.server.peers.remove(self)
        self.server.changed.set()

    def respond(self, stream_id: int, message: bytes = b"", trailers: Any = OK, headers: Any = HEADERS) -> None:
        self.h2.send_response(stream_id, headers)
        self.h2.send_data(stream_id, framed(message))
        self.h2.send_trailers(stream_id, trailers)


class FaultServer:
    """Server that responds to each complete request with ``answer(peer, stream_id)``.

    It responds to health checks by itself, unless ``answer`` has an attribute ``health_checks``.
    """

    def __init__(self, answer: Callable[[Peer, int], None], settings: dict[int, int] | None) -> None:
        self.answer = answer
        self.settings = settings
        self.peers: list[Peer] = []
        self.accepted = 0
        self.changed = asyncio.Event()
        self.server: Any = None

    async def start(self, port: int = 0, ssl: Any = None, host: str = "127.0.0.1") -> None:
        def accept() -> Peer:
            self.accepted += 1
            return Peer(self)

        self.server = await asyncio.get_running_loop().create_server(accept, host, port, ssl=ssl)
        self.port = self.server.sockets[0].getsockname()[1]
        self.address = f"{host}:{self.port}"

    async def stop(self) -> None:
        self.server.close()
        for peer in list(self.peers):
            peer.transport.abort()
        await self.until(lambda: not self.peers)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Return when the condition holds; it is checked whenever data arrive."""
        while not condition():
            self.changed.clear()
            await self.changed.wait()
