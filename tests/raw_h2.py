"""A raw HTTP/2 client (libnghttp2): for requests that no gRPC library would make."""

from __future__ import annotations

import asyncio
import ssl
import struct
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

import ngh2

Pairs = tuple[tuple[bytes, bytes], ...]


def frame(message: bytes, flag: int = 0) -> bytes:
    return struct.pack(">BI", flag, len(message)) + message


class Answer:
    """What came back on one stream."""

    def __init__(self, events: list[Any]) -> None:
        heads = [event for event in events if isinstance(event, ngh2.ResponseReceived)]
        tails = [event for event in events if isinstance(event, ngh2.TrailersReceived)]
        self.headers: dict[bytes, bytes] = dict(heads[0].headers) if heads else {}
        self.trailers_only = bool(heads) and heads[0].end_stream
        self.trailers: dict[bytes, bytes] = dict(tails[0].headers) if tails else self.headers
        self.body = b"".join(event.data for event in events if isinstance(event, ngh2.DataReceived))
        self.http = int(self.headers.get(b":status", b"0"))
        self.status = int(self.trailers.get(b"grpc-status", b"-1"))
        self.message = self.trailers.get(b"grpc-message", b"").decode()


class RawClient(asyncio.Protocol):
    def __init__(self) -> None:
        self.events: list[Any] = []
        self._waiting: list[tuple[Callable[[], Any], asyncio.Future[Any]]] = []
        self.lost = False

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.h2 = ngh2.Connection(ngh2.Role.CLIENT)
        self.h2.initiate_connection()
        self.flush()

    def data_received(self, data: bytes) -> None:
        self.h2.receive_data(data)
        self.events += self.h2.events()
        self.flush()
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self.lost = True
        self._wake()

    def _wake(self) -> None:
        for found, future in self._waiting:
            if not future.done() and found():
                future.set_result(None)

    def flush(self) -> None:
        data = self.h2.data_to_send()
        if data:
            self.transport.write(data)

    def request(
        self,
        path: str = "/conformance.v1.Echo/Unary",
        *,
        method: bytes = b"POST",
        content_type: bytes | None = b"application/grpc",
        headers: Iterable[tuple[bytes, bytes]] = (),
        te: bytes | None = b"trailers",
        end: bool = False,
    ) -> int:
        pairs = [
            (b":method", method), (b":scheme", b"http"), (b":path", path.encode()), (b":authority", b"test"), *headers,
        ]  # fmt: skip
        if te is not None:
            pairs.append((b"te", te))
        if content_type is not None:
            pairs.append((b"content-type", content_type))
        stream: int = self.h2.send_request(pairs, end_stream=end)
        self.flush()
        return stream

    def data(self, stream: int, data: bytes, *, end: bool = False) -> None:
        self.h2.send_data(stream, data, end_stream=end)
        self.flush()

    def reset(self, stream: int) -> None:
        self.h2.reset_stream(stream)
        self.flush()

    async def until(self, found: Callable[[], Any]) -> None:
        if not found():
            future = asyncio.get_running_loop().create_future()
            self._waiting.append((found, future))
            await asyncio.wait_for(future, 10)

    def of(self, stream: int) -> list[Any]:
        return [event for event in self.events if getattr(event, "stream_id", None) == stream]

    def body(self, stream: int) -> bytes:
        return b"".join(event.data for event in self.of(stream) if isinstance(event, ngh2.DataReceived))

    async def answer(self, stream: int) -> Answer:
        await self.until(lambda: self.lost or any(isinstance(event, ngh2.StreamClosed) for event in self.of(stream)))
        return Answer(self.of(stream))

    async def call(self, data: bytes, *, path: str = "/conformance.v1.Echo/Unary", **options: Any) -> Answer:
        stream = self.request(path, **options)
        self.data(stream, data, end=True)
        return await self.answer(stream)


@asynccontextmanager
async def raw_client(
    address: str, tls: ssl.SSLContext | None = None, name: str | None = None
) -> AsyncIterator[RawClient]:
    host, _, port = address.rpartition(":")
    transport, client = await asyncio.get_running_loop().create_connection(
        RawClient, host, int(port), ssl=tls, server_hostname=name
    )
    try:
        yield client
    finally:
        transport.abort()
