"""How often streams may be reset: servers count, and close the connection of a client that does it too often.

h2corn answers more than 200 RST_STREAM within ten seconds with GOAWAY (ENHANCE_YOUR_CALM) and drops every call on the
connection; others count in their own ways since "rapid reset" (CVE-2023-44487). So resets have a rhythm here: what is
beyond it waits, and goes out one by one for as long as the server has not ended the stream itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

__all__ = ["Resets"]

BURST = 100
RATE = 5.0
"""Resets at once, and each second: at most 150 in any ten seconds."""
CUTS = 128
"""Streams reset while their answer came in, after which a connection is replaced: libnghttp2 drops the beginning of a
DATA frame that such a reset cut in two, and the connection's window is short by these bytes (≤ 16 KiB) for good."""
GRACE = 0.25
"""Seconds after a deadline that the server has to end the call itself: it was told the same deadline."""


class Resets:
    """The resets of one connection.

    Args:
        send: Resets a stream.

    Attributes:
        late: Streams that are to be reset and have to wait, oldest first.
    """

    __slots__ = ("_asked", "_at", "_cuts", "_left", "_loop", "_send", "_timer", "late")

    def __init__(self, send: Callable[[int], None]) -> None:
        self.late: dict[int, None] = {}
        self._send = send
        self._loop = asyncio.get_running_loop()
        self._asked: set[int] = set()
        self._cuts = 0
        self._left = float(BURST)
        self._at = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None

    def ask(self, stream_id: int, *, cut: bool = False) -> bool:
        """Reset a stream, now or when there is room for it. Asking again changes nothing.

        Args:
            stream_id: Which.
            cut: Its answer is coming in.

        Returns:
            Whether the connection is still good; if not, it should take no new streams.
        """
        if stream_id not in self._asked:
            self._asked.add(stream_id)
            self._cuts += cut
            self.late[stream_id] = None
            self._next()
        return not self.late and self._cuts < CUTS

    def ask_later(self, stream_id: int, then: Callable[[], None]) -> None:
        """Do nothing for ``GRACE`` seconds; then, if the stream is still open, call ``then``, which may ask."""
        if stream_id not in self._asked:
            self._asked.add(stream_id)
            self._loop.call_later(GRACE, self._graced, stream_id, then)

    def closed(self, stream_id: int) -> None:
        """Forget a stream that has ended."""
        if self._asked:
            self._asked.discard(stream_id)
            self.late.pop(stream_id, None)

    def stop(self) -> None:
        """Forget everything: the connection is gone."""
        self._asked.clear()
        self.late.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _graced(self, stream_id: int, then: Callable[[], None]) -> None:
        if stream_id in self._asked:
            self._asked.discard(stream_id)
            then()

    def _next(self) -> None:
        now = self._loop.time()
        self._left = min(float(BURST), self._left + (now - self._at) * RATE)
        self._at = now
        while self.late and self._left >= 1:
            self._left -= 1
            stream_id = next(iter(self.late))
            del self.late[stream_id]
            self._send(stream_id)
        if self.late and self._timer is None:
            self._timer = self._loop.call_later((1 - self._left) / RATE, self._again)

    def _again(self) -> None:
        self._timer = None
        self._next()
