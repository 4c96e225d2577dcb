"""Health probe of a server over a connection that is in use: one call of the standard health service.

Every response proves that the server works, also UNIMPLEMENTED of a server without that service. An HTTP/2 PING proves
less: the HTTP/2 stacks of h2corn and grpcio acknowledge it in threads of their own, even when the event loop that runs
the functions is blocked. Only UNAVAILABLE, a reset and silence are no response.

Source: grpc/health/v1/health.proto.
"""

from __future__ import annotations

import asyncio
from time import monotonic  # the clock of asyncio's and uvloop's event loops
from typing import TYPE_CHECKING

from mesh.address import authority
from mesh.rpc import framing
from mesh.rpc.client.http2_stream import Stream

if TYPE_CHECKING:
    from mesh.headers import Headers
    from mesh.rpc.client.http2_connection import Connection

__all__ = ["PROBE_TIMEOUT", "is_responsive", "probe_headers"]

PROBE_TIMEOUT = 0.8
"""Seconds that a server has to respond."""
MAX_LOOP_DELAY = 0.3
"""Delay of a timer in seconds from which this side's event loop counts as blocked. Its timers run before it reads."""
_REQUEST = framing.frame(b"")
"""An empty HealthCheckRequest asks for the server as a whole."""
_MAX_RESPONSE_BYTES = 4096
_UNAVAILABLE = (b"grpc-status", b"14")


def probe_headers(address: str, *, secure: bool) -> Headers:
    """Return the request headers of a probe.

    Args:
        address: ``host:port`` of the target.
        secure: Whether the connection uses TLS.
    """
    return [
        (b":method", b"POST"),
        (b":scheme", b"https" if secure else b"http"),
        (b":path", b"/grpc.health.v1.Health/Check"),
        (b":authority", authority(address).encode()),
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
    ]


async def is_responsive(connection: Connection, headers: Headers) -> bool:
    """Whether the server responds to a health check within ``PROBE_TIMEOUT``.

    A check during which this side's event loop was blocked shows nothing; it counts as a response.

    Args:
        connection: An open connection to it.
        headers: Request headers (``probe_headers``).
    """
    stream = Stream(_MAX_RESPONSE_BYTES, streaming=False)
    if connection.is_full or not connection.open(headers, stream, _REQUEST):
        return False
    timeout_at = monotonic() + PROBE_TIMEOUT
    try:
        async with asyncio.timeout_at(timeout_at):
            await stream.wait()
    except TimeoutError:
        return monotonic() - timeout_at > MAX_LOOP_DELAY
    finally:
        stream.close()
    return stream.trailers is not None and _UNAVAILABLE not in stream.trailers
