"""Connections that carry one streaming call each, so that a stream which nobody reads holds up no other call.

HTTP/2 has flow control for each stream, but a server may bound what it keeps for a whole connection: h2corn keeps
2 MiB, and then every answer on that connection waits for the one stream that is not read. Unary calls are always read,
so they share the pool's connections; a streaming call gets its own, kept for the next one when it ends.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import TYPE_CHECKING

from mesh.errors import DeadlineExceeded, Unavailable
from mesh.rpc.client.connection import Connection, connect

if TYPE_CHECKING:
    from mesh.call import Call
    from mesh.rpc.client.connection_pool import Pool

__all__ = ["Lanes"]

KEPT = 32
"""Idle connections kept for the next streaming calls."""
CONNECT_TIMEOUT = 20.0
CLOSE_TIMEOUT = 1.0
"""As for the pool's connections."""


class Lanes:
    """The connections of the streaming calls to one target. Balancing, backoff and resolving stay the pool's.

    Args:
        pool: Says which server takes the next call.
        tls: TLS context, or None for plain text.
    """

    def __init__(self, pool: Pool, tls: ssl.SSLContext | None = None) -> None:
        self._pool = pool
        self._tls = tls
        self._idle: list[Connection] = []
        self._open: set[Connection] = set()
        self._gone: asyncio.Future[None] | None = None
        self._closed = False

    async def acquire(self, call: Call) -> Connection:
        """Return a connection that carries nothing, to the server that the pool picks.

        Raises:
            Unavailable: There is no server to be had.
            DeadlineExceeded: The deadline passed first.
        """
        chosen = self._pool.pick() or await self._pool.acquire(call)
        for index in range(len(self._idle) - 1, -1, -1):
            if self._idle[index].address == chosen.address:
                return self._idle.pop(index)
        try:
            async with asyncio.timeout_at(call.deadline) as limit, asyncio.timeout(CONNECT_TIMEOUT):
                lane = await connect(self._pool.endpoint_of(chosen), self, self._tls)
        except OSError as error:
            if isinstance(error, TimeoutError) and limit.expired():
                raise DeadlineExceeded("the deadline passed while a stream was being connected") from None
            raise Unavailable("no connection for a stream to the service").at(str(self._pool)) from error
        self._open.add(lane)
        if self._closed:  # meanwhile
            lane.close()
            raise Unavailable("the channel to the service is closed").at(str(self._pool))
        chosen.answered = True  # its server serves: losing the idle connection is no sign of one that drops them all
        return lane

    def release(self, lane: Connection) -> None:
        """Take a connection back when its call has ended."""
        if lane.draining or lane.streams or len(self._idle) >= KEPT:
            if lane in self._open:
                lane.drain()
        else:
            self._idle.append(lane)

    async def close(self) -> None:
        """Close every connection; what runs on them fails with UNAVAILABLE."""
        self._closed = True
        reason = "the channel was closed"
        for lane in list(self._open):
            lane.close(reason)
        if self._open:
            self._gone = asyncio.get_running_loop().create_future()
            await asyncio.wait([self._gone], timeout=CLOSE_TIMEOUT)
            for lane in list(self._open):  # its server does not read: GOAWAY cannot go out, nor the end of its stream
                lane.abort(reason)

    # -- mesh.rpc.client.connection.Owner --

    def freed(self) -> None:
        """Nobody waits for room on a lane."""

    def draining(self, connection: Connection) -> None:
        """Give it no more calls."""
        if connection in self._idle:
            self._idle.remove(connection)

    def lost(self, connection: Connection, reason: str) -> None:  # noqa: ARG002 - the owner's shape
        """Forget it."""
        self.draining(connection)
        self._open.discard(connection)
        if self._gone is not None and not self._open and not self._gone.done():
            self._gone.set_result(None)
