"""Limiter of RST_STREAM frames: keeps a connection below the rate at which servers close it.

h2corn answers more than 200 RST_STREAM frames within ten seconds with GOAWAY (ENHANCE_YOUR_CALM) and drops every call
on the connection. Since "rapid reset" (CVE-2023-44487) other servers have limits of their own. A token bucket therefore
limits the resets. A reset beyond it is delayed, and is not sent if the server ends the stream first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

__all__ = ["ResetLimiter"]

MAX_BURST = 100
RESETS_PER_SECOND = 5.0
"""Size and refill rate of the bucket: at most 150 resets in any ten seconds."""
MAX_PARTIAL_RESETS = 128
"""Resets of streams whose response was being received, after which the connection is replaced. libnghttp2 drops the
beginning of a DATA frame that such a reset cuts in two, so the connection's window stays short by these bytes
(at most 16 KiB each)."""
RESET_DELAY = 0.25
"""Seconds after a deadline in which the server can end the call itself; it has the same deadline."""


class ResetLimiter:
    """Resets of the streams of one connection.

    Args:
        send: Sends RST_STREAM for a stream id.

    Attributes:
        delayed: Streams whose reset is delayed, oldest first.
    """

    __slots__ = (
        "_loop", "_partial_resets", "_refilled_at", "_requested", "_send", "_timer", "_tokens", "delayed",
    )  # fmt: skip

    def __init__(self, send: Callable[[int], None]) -> None:
        self.delayed: dict[int, None] = {}
        self._send = send
        self._loop = asyncio.get_running_loop()
        self._requested: set[int] = set()
        self._partial_resets = 0
        self._tokens = float(MAX_BURST)
        self._refilled_at = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None

    def reset(self, stream_id: int, *, partial: bool = False) -> bool:
        """Reset a stream now, or as soon as the limit allows. A second request for the same stream has no effect.

        Args:
            stream_id: The stream.
            partial: Its response is being received.

        Returns:
            Whether the connection may take new streams.
        """
        if stream_id not in self._requested:
            self._requested.add(stream_id)
            self._partial_resets += partial
            self.delayed[stream_id] = None
            self._send_allowed()
        return not self.delayed and self._partial_resets < MAX_PARTIAL_RESETS

    def reset_after_delay(self, stream_id: int, callback: Callable[[], None]) -> None:
        """Call ``callback``, which may reset the stream, after ``RESET_DELAY`` if the stream is still open then."""
        if stream_id not in self._requested:
            self._requested.add(stream_id)
            self._loop.call_later(RESET_DELAY, self._delay_over, stream_id, callback)

    def closed(self, stream_id: int) -> None:
        """Forget a stream that has ended."""
        if self._requested:
            self._requested.discard(stream_id)
            self.delayed.pop(stream_id, None)

    def stop(self) -> None:
        """Forget all streams: the connection is lost."""
        self._requested.clear()
        self.delayed.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _delay_over(self, stream_id: int, callback: Callable[[], None]) -> None:
        if stream_id in self._requested:
            self._requested.discard(stream_id)
            callback()

    def _send_allowed(self) -> None:
        now = self._loop.time()
        self._tokens = min(float(MAX_BURST), self._tokens + (now - self._refilled_at) * RESETS_PER_SECOND)
        self._refilled_at = now
        while self.delayed and self._tokens >= 1:
            self._tokens -= 1
            stream_id = next(iter(self.delayed))
            del self.delayed[stream_id]
            self._send(stream_id)
        if self.delayed and self._timer is None:
            self._timer = self._loop.call_later((1 - self._tokens) / RESETS_PER_SECOND, self._timer_fired)

    def _timer_fired(self) -> None:
        self._timer = None
        self._send_allowed()
