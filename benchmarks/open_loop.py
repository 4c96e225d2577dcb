"""Open-loop load generator: gRPC calls at given rates, whether or not earlier ones have ended.

A closed loop waits for responses, so it slows down with the server and hides the overload. Here calls begin at random
times of a given rate (Poisson), a latency counts from that time, and a caller gives up at its deadline with
RST_STREAM, as gRPC clients do. It runs as a process of its own (``open_loop`` starts it).

The generator speaks HTTP/2 by libnghttp2 and knows nothing of the mesh's own channel, so retries, hedges and circuit
breakers do not change the load.
"""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import ngh2
import uvloop

from benchmarks import load

TICK = 0.002
"""Seconds between two looks at the clock; calls that are due begin together."""
SLACK = 0.005
"""Seconds by which a caller gives up later than the deadline that it sent, so that the server's status can arrive."""


@dataclass(frozen=True)
class Source:
    """Calls of one method.

    Attributes:
        path: ``/package.Service/Method``.
        message: The request message, hexadecimal.
        rate: Calls that begin each second.
        seconds: Time in which calls begin.
        timeout: Seconds from the beginning of a call to its deadline.
        warm: Seconds at the beginning that are not counted.
        connections: Connections that take turns.
        callers: Instead of the rate: this many callers, each of which calls again when its call has ended.
    """

    path: str
    message: str
    rate: float
    seconds: float
    timeout: float
    warm: float = 0.0
    connections: int = 16
    callers: int = 0


@dataclass
class Outcome:
    """Results of the counted calls of one source.

    Attributes:
        sent: Calls that began.
        took: Seconds of each call that ended OK in time, sorted.
        statuses: Number of calls by gRPC status; ``late``: the caller gave up.
        refused: Seconds of each call that was refused with RESOURCE_EXHAUSTED or UNAVAILABLE, sorted.
        counted: Seconds of the counted time.
    """

    sent: int
    took: list[float]
    statuses: dict[str, int]
    refused: list[float]
    counted: float

    @property
    def goodput(self) -> float:
        """Calls a second that ended OK in time."""
        return len(self.took) / self.counted

    def quantile(self, share: float) -> float:
        """Return a quantile of the latency of what ended OK, in milliseconds."""
        return self.took[min(len(self.took) - 1, int(share * len(self.took)))] * 1000 if self.took else float("nan")


def open_loop(address: str, sources: Sequence[Source]) -> list[Outcome]:
    """Load a server at ``host:port`` with all sources at once, from another process."""
    text = json.dumps({"address": address, "sources": [asdict(source) for source in sources]})
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.open_loop"], input=text, capture_output=True, text=True, cwd=load.ROOT,
        check=False, timeout=60 + max(source.seconds + source.timeout for source in sources),
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"the load generator failed:\n{done.stderr}")
    return [Outcome(**found) for found in json.loads(done.stdout)]


def closed_loop(address: str, path: str, message: str, *, callers: int, seconds: float) -> Outcome:
    """Load a server with callers that wait for their responses: what it can do, and how fast it is without a queue."""
    source = Source(path, message, 1, seconds, 10, 0.2, connections=callers, callers=callers)
    return open_loop(address, [source])[0]


class _Connection(asyncio.Protocol):
    """HTTP/2 connection to the server."""

    def __init__(self) -> None:
        self._h2 = ngh2.Connection(ngh2.Role.CLIENT)
        self._transport: Any = None
        self._calls: dict[int, tuple[_Sender, float]] = {}
        self._statuses: dict[int, str] = {}

    @property
    def busy(self) -> bool:
        """Whether a call has not ended."""
        return bool(self._calls)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._h2.initiate_connection({ngh2.Setting.ENABLE_PUSH: 0})
        self._h2.set_local_window_size(2**24)
        self.flush()

    def data_received(self, data: bytes) -> None:
        now = asyncio.get_running_loop().time()
        self._h2.receive_data(data)
        for event in self._h2.events():
            kind = type(event)
            if kind is ngh2.TrailersReceived or kind is ngh2.ResponseReceived:
                for name, value in event.headers:
                    if name == b"grpc-status":
                        self._statuses[event.stream_id] = value.decode()
                    elif name == b":status" and value != b"200":
                        self._statuses[event.stream_id] = f"HTTP {value.decode()}"
            elif kind is ngh2.StreamClosed:
                sender, began = self._calls.pop(event.stream_id, (None, 0.0))
                status = self._statuses.pop(event.stream_id, "reset")
                if sender is not None:
                    sender.ended(began, now, status)
        self.flush()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._transport = None
        for sender, began in self._calls.values():
            sender.ended(began, began, "connection lost")
        self._calls.clear()

    def call(self, sender: _Sender, headers: list[tuple[bytes, bytes]], body: bytes, began: float) -> int:
        """Begin a call and return its stream's id; 0 without a connection."""
        try:
            if self._transport is None:
                raise ConnectionError  # noqa: TRY301
            stream: int = self._h2.send_request(headers)
        except (ConnectionError, ngh2.NGH2Error):  # the server has sent GOAWAY, after too many resets
            sender.ended(began, began, "connection lost")
            return 0
        self._h2.send_data(stream, body, end_stream=True)
        self._calls[stream] = (sender, began)
        return stream

    def give_up(self, stream: int) -> None:
        """End a call at its deadline, unless it has ended."""
        sender, began = self._calls.pop(stream, (None, 0.0))
        if sender is not None:
            sender.ended(began, began, "late")
            self._h2.reset_stream(stream, ngh2.ErrorCode.CANCEL)

    def flush(self) -> None:
        """Write everything that is queued."""
        if self._transport is not None and (data := self._h2.data_to_send()):
            self._transport.write(data)


class _Sender:
    """Sends the calls of one source."""

    def __init__(self, source: Source, connections: list[_Connection], address: str) -> None:
        self._source = source
        self._connections = connections
        message = bytes.fromhex(source.message)
        self._body = b"\0" + len(message).to_bytes(4, "big") + message
        self._headers = [
            (b":method", b"POST"), (b":scheme", b"http"), (b":path", source.path.encode()),
            (b":authority", address.encode()), (b"content-type", b"application/grpc"), (b"te", b"trailers"),
        ]  # fmt: skip
        self._began = 0.0
        self._turn = 0
        self._pending: deque[tuple[float, _Connection, int]] = deque()
        self._sent = 0
        self._took: list[float] = []
        self._refused: list[float] = []
        self._statuses: Counter[str] = Counter()

    def ended(self, began: float, now: float, status: str) -> None:
        """Count a call. A caller of a closed loop calls again."""
        if self._source.callers:
            asyncio.get_running_loop().call_soon(self._call_again)
        if began < self._began + self._source.warm:
            return
        took = now - began
        if status == "0" and took > self._source.timeout:
            status = "late"
        self._statuses[status] += 1
        if status == "0":
            self._took.append(took)
        elif status in ("8", "14", "HTTP 503"):
            self._refused.append(took)

    async def run(self) -> Outcome:
        """Send all calls and wait for the last deadline."""
        source, loop = self._source, asyncio.get_running_loop()
        chance = random.Random(source.path)  # noqa: S311 - the same arrivals each time
        began = due = self._began = loop.time()
        for _ in range(source.callers):
            self._call_again()
        while (now := loop.time()) < began + source.seconds or self._pending:
            used = set()
            while due <= now and due < began + source.seconds and not source.callers:
                used.add(self._call(due, now))
                due += chance.expovariate(source.rate)
            while self._pending and self._pending[0][0] <= now:
                _, connection, stream = self._pending.popleft()
                connection.give_up(stream)
                used.add(connection)
            for connection in used:
                connection.flush()
            if now >= began + source.seconds and (source.callers or not any(one.busy for one in self._connections)):
                break
            await asyncio.sleep(TICK)
        counted = source.seconds - source.warm
        return Outcome(self._sent, sorted(self._took), dict(self._statuses), sorted(self._refused), counted)

    def _call(self, due: float, now: float) -> _Connection:
        """Begin a call that was due at a time."""
        connection = self._connections[self._turn % len(self._connections)]
        self._turn += 1
        left = max(1, int((due + self._source.timeout - now) * 1000))
        stream = connection.call(self, [*self._headers, (b"grpc-timeout", b"%dm" % left)], self._body, due)
        self._pending.append((due + self._source.timeout + SLACK, connection, stream))
        self._sent += due >= self._began + self._source.warm
        return connection

    def _call_again(self) -> None:
        now = asyncio.get_running_loop().time()
        if now < self._began + self._source.seconds:
            self._call(now, now).flush()


async def _run(address: str, sources: Sequence[Mapping[str, Any]]) -> list[Outcome]:
    loop = asyncio.get_running_loop()
    host, _, port = address.rpartition(":")
    running = []
    for fields in sources:
        source = Source(**fields)
        made = [(await loop.create_connection(_Connection, host, int(port)))[1] for _ in range(source.connections)]
        running.append(_Sender(source, made, address).run())
    return await asyncio.gather(*running)


if __name__ == "__main__":
    given = json.load(sys.stdin)
    json.dump([asdict(found) for found in uvloop.run(_run(given["address"], given["sources"]))], sys.stdout)
