"""Honest client: sends requests at a steady rate on a connection of its own, and measures how it is served."""

from __future__ import annotations

import asyncio
import itertools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import monotonic

from mesh.chaos.people.attack_target import AttackTarget
from mesh.chaos.people.http2_client import Http2Client
from mesh.chaos.people.observed import Observed

__all__ = ["HonestCall", "HonestClient", "HonestRequest", "Served"]

RATE = 30.0
"""Requests a second."""
RETRY_DELAY = 0.1
"""Seconds before a failed request is sent again, doubled each time up to ``MAX_RETRY_DELAY``."""
MAX_RETRY_DELAY = 1.0
_RETRIED = frozenset({0, 429, 502, 503, 504})
"""HTTP statuses after which a request without side effects is sent again; 0: no response."""


@dataclass(frozen=True, slots=True)
class HonestRequest:
    """One kind of request of an honest client."""

    verb: str
    path: str
    headers: tuple[tuple[bytes, bytes], ...] = ()
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class HonestCall:
    """Outcome of one request.

    Attributes:
        start: Time at which it was due (``time.monotonic``).
        took: Seconds until its outcome.
        path: Its path.
        status: HTTP status of the response; 0: none came.
    """

    start: float
    took: float
    path: str
    status: int

    @property
    def succeeded(self) -> bool:
        """Whether the status is one of success."""
        return 200 <= self.status < 300  # noqa: PLR2004 - success


@dataclass(slots=True)
class Served:
    """Service that the honest client got.

    Attributes:
        calls: The outcome of each request.
    """

    calls: list[HonestCall] = field(default_factory=list)

    @property
    def times(self) -> list[float]:
        """Seconds of each successful request."""
        return [one.took for one in self.calls if one.succeeded]

    @property
    def failures(self) -> Counter[str]:
        """Outcome of each failed request (``"GET /a: HTTP 429"``, ``"GET /a: no response"``) → number."""
        return Counter(
            f"{one.path}: {f'HTTP {one.status}' if one.status else 'no response'}"
            for one in self.calls
            if not one.succeeded
        )

    @property
    def success(self) -> float:
        """Share of the requests that succeeded, in percent."""
        return 100.0 * len(self.times) / len(self.calls) if self.calls else 0.0

    def percentile(self, share: float) -> float:
        """Return a percentile of the times in milliseconds; 0 without a time."""
        ordered = sorted(self.times)
        return ordered[min(len(ordered) - 1, int(len(ordered) * share))] * 1000 if ordered else 0.0


class HonestClient:
    """Client that sends the given requests in turn, at a steady rate (open loop).

    Args:
        target: The server, with the client's own source address.
        requests: The requests to send.
        timeout: Seconds after which a request has failed.
        retry: Whether a request is sent again, within the timeout, when there was no response or one that asks for it.
            The requests must have no side effects then.
    """

    def __init__(
        self, target: AttackTarget, requests: Sequence[HonestRequest], *, timeout: float = 10.0, retry: bool = False
    ) -> None:
        self.served = Served()
        self._stopped = False
        self._target = target
        self._requests = requests
        self._timeout = timeout
        self._retry = retry
        self._client: Http2Client | None = None
        self._connecting = asyncio.Lock()
        self._waiting: dict[tuple[Http2Client, int], asyncio.Future[int]] = {}

    async def run(self, duration: float = math.inf, rate: float = RATE) -> Served:
        """Send requests for ``duration`` seconds or until ``stop``; wait for the responses.

        Returns:
            How it was served.
        """
        start = monotonic()
        try:
            async with asyncio.TaskGroup() as group:
                for number in itertools.count():
                    due = start + number / rate
                    if due >= start + duration:
                        break
                    await asyncio.sleep(max(0.0, due - monotonic()))
                    if self._stopped:
                        break
                    group.create_task(self._send(self._requests[number % len(self._requests)]))
        finally:
            if self._client is not None:
                self._client.close()
        return self.served

    def stop(self) -> None:
        """Send no further request."""
        self._stopped = True

    async def _send(self, request: HonestRequest) -> None:
        start, status, delay = monotonic(), 0, RETRY_DELAY
        try:
            async with asyncio.timeout(self._timeout):
                while True:
                    status = await self._attempt(request)
                    if not self._retry or status not in _RETRIED:
                        break
                    await asyncio.sleep(delay)
                    delay = min(2 * delay, MAX_RETRY_DELAY)
        except TimeoutError:
            status = 0
        self.served.calls.append(HonestCall(start, monotonic() - start, f"{request.verb} {request.path}", status))

    async def _attempt(self, request: HonestRequest) -> int:
        """Return the HTTP status of one attempt; 0: no response."""
        async with self._connecting:
            if self._client is None or not self._client.free_streams:
                self._client = await Http2Client.open(self._target, Observed())
                if self._client is not None:
                    self._client.on_end = self._ended(self._client)
            client = self._client
        if client is None or client.closed:
            return 0
        stream = client.request(self._target, request.verb, request.path, request.headers, end=not request.body)
        if request.body:
            client.data(stream, request.body, end=True)
        client.flush()
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting[client, stream] = future
        try:
            return await future
        finally:
            del self._waiting[client, stream]
            if not future.done() or future.cancelled():
                client.reset_if_open(stream)

    def _ended(self, client: Http2Client) -> Callable[[int, int, int], None]:
        def ended(stream: int, status: int, code: int) -> None:
            future = self._waiting.get((client, stream))
            if future is not None and not future.done():
                future.set_result(0 if code else status)

        return ended
