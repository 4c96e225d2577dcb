"""Dedicated connections for streaming calls, so that a stream whose responses are not read blocks no other call.

HTTP/2 has flow control for each stream, but a server may limit what it buffers for a whole connection. h2corn buffers
2 MiB; once they are full, every response on that connection waits for the stream that is not read. Unary responses are
always read, so unary calls share the pool's connections. A streaming call gets a connection of its own, which is kept
for the next streaming call when it ends.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from mesh.errors import DeadlineExceeded, Unavailable
from mesh.rpc.client.connection_pool import CLOSE_TIMEOUT, CONNECT_TIMEOUT, ConnectionPool
from mesh.rpc.client.http2_connection import SILENCE_DELAY, Connection, connect

if TYPE_CHECKING:
    from mesh.call import Call
    from mesh.rpc.client.service_tls import ServiceTls

__all__ = ["StreamConnections"]

MAX_IDLE = 32
"""Idle connections that are kept for the next streaming calls."""


class StreamConnections:
    """The connections of the streaming calls to one target. The pool does the balancing, backoff and resolving.

    Args:
        pool: Picks the server for the next call.
        tls: TLS to the service, or None for plain text.
    """

    def __init__(self, pool: ConnectionPool, tls: ServiceTls | None = None) -> None:
        self._pool = pool
        self._tls = tls
        self._idle: list[Connection] = []
        self._open: set[Connection] = set()
        self._all_closed: asyncio.Future[None] | None = None
        self._closed = False
        if tls is not None:
            tls.subscribe(self._renew)

    def _renew(self) -> None:
        """Close the connections with old certificates, when their streams have ended."""
        for connection in list(self._open):
            connection.drain()

    async def acquire(self, call: Call) -> Connection:
        """Return a connection without streams to the server that the pool picks.

        Raises:
            Unavailable: No server can be reached.
            DeadlineExceeded: The deadline passed first.
        """
        picked = self._pool.pick(call.tried) or await self._pool.acquire(call)
        for index in range(len(self._idle) - 1, -1, -1):
            if self._idle[index].address == picked.address:
                return self._idle.pop(index)
        # A server that does not respond accepts connections in its backlog.
        silence = asyncio.get_running_loop().call_later(SILENCE_DELAY, self._pool.check, picked.health)
        try:
            async with asyncio.timeout_at(call.deadline) as limit, asyncio.timeout(CONNECT_TIMEOUT):
                connection = await connect(self._pool.endpoint_of(picked), self, self._tls)
        except OSError as error:
            if isinstance(error, TimeoutError) and limit.expired():
                raise DeadlineExceeded("the deadline passed while a stream was being connected") from None
            raise Unavailable("no connection for a stream to the service").at(str(self._pool)) from error
        finally:
            silence.cancel()
        connection.health = picked.health
        self._open.add(connection)
        if self._closed:  # while it connected
            connection.close()
            raise Unavailable("the channel to the service is closed").at(str(self._pool))
        picked.has_responded = True  # the server works; losing the idle pool connection does not mean that it drops all
        return connection

    def release(self, connection: Connection) -> None:
        """Take back the connection of a call that has ended."""
        if connection.draining or connection.streams or len(self._idle) >= MAX_IDLE:
            if connection in self._open:
                connection.drain()
        else:
            self._idle.append(connection)

    async def close(self) -> None:
        """Close every connection; calls in progress fail with UNAVAILABLE."""
        self._closed = True
        reason = "the channel was closed"
        for connection in list(self._open):
            connection.close(reason)
        if self._open:
            self._all_closed = asyncio.get_running_loop().create_future()
            await asyncio.wait([self._all_closed], timeout=CLOSE_TIMEOUT)
            for connection in list(self._open):  # its server does not read, so neither GOAWAY nor the last data go out
                connection.abort(reason)

    # -- mesh.rpc.client.http2_connection.ConnectionOwner --

    def on_stream_available(self) -> None:
        """Do nothing: no call waits here."""

    def on_draining(self, connection: Connection) -> None:
        """Give the connection no more calls."""
        if connection in self._idle:
            self._idle.remove(connection)

    def on_silent(self, connection: Connection) -> None:
        """Check the health of its server, over the pool's connection."""
        self._pool.check(connection.health)

    def on_lost(self, connection: Connection, reason: str) -> None:  # noqa: ARG002 - ConnectionOwner's signature
        """Forget the connection."""
        self.on_draining(connection)
        self._open.discard(connection)
        if self._all_closed is not None and not self._open and not self._all_closed.done():
            self._all_closed.set_result(None)
