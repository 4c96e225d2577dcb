"""An edge in front of stream.v1.Streams: its functions in this process, or behind a real sidecar."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from apps import streams
from hosting import open_layer

from mesh.call import Call, Handler, Identity
from mesh.contract.model import Contract
from mesh.edge import Edge, EdgeApp
from mesh.edge.https import HttpsApp
from mesh.errors import StatusError, Unauthenticated
from mesh.function import Functions
from mesh.layers.concurrency import ConcurrencyLimit
from mesh.rpc.client.target import Target
from mesh.rpc.server.listener import Listener
from mesh.sidecar import ServiceContext, Sidecar
from mesh.threads import ThreadPool

SERVICE = "stream.v1.Streams"
LIMIT = 100_000


class Running:
    """The edge, and what happened behind it."""

    def __init__(
        self, door: Edge, address: str, seen: streams.Seen, ended: list[BaseException | None], calls: list[Any]
    ) -> None:
        self.door = door
        self.address = address
        self.seen = seen
        self.ended = ended
        self.calls = calls
        self.finished = asyncio.Event()

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        host, _, port = self.address.rpartition(":")
        return await asyncio.open_connection(host, int(port))

    async def ask(self, verb: str, path: str, body: bytes | None = None, **headers: str) -> Reply:
        """Make one request over HTTP/1.1."""
        reader, writer = await self.connect()
        try:
            writer.write(head(verb, path, body, **headers) + (body or b""))
            return await read(reader, verb)
        finally:
            writer.close()
            await writer.wait_closed()


class Reply:
    """One response; ``whole`` says whether its body was complete."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes, *, whole: bool) -> None:
        self.status = status
        self.headers = headers
        self.body = body
        self.whole = whole


def head(verb: str, path: str, body: bytes | None = None, **headers: str) -> bytes:
    """Return the head of a request."""
    lines = [f"{verb} {path} HTTP/1.1", "host: test"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    if body is not None:
        lines.append(f"content-length: {len(body)}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


async def read(reader: asyncio.StreamReader, verb: str = "GET") -> Reply:
    """Read one response."""
    status, headers = await read_head(reader)
    if verb == "HEAD" or status == 204:
        return Reply(status, headers, b"", whole=True)
    if "content-length" in headers:
        return Reply(status, headers, await reader.readexactly(int(headers["content-length"])), whole=True)
    body = b""
    while (piece := await read_chunk(reader)) is not None:
        if not piece:
            return Reply(status, headers, body, whole=True)
        body += piece
    return Reply(status, headers, body, whole=False)


async def read_head(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    first, *rest = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers: dict[str, str] = {}
    for line in rest:
        name, colon, value = line.partition(": ")
        if colon:
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return int(first.split()[1]), headers


async def read_chunk(reader: asyncio.StreamReader) -> bytes | None:
    """Return a piece of a chunked body; empty for the last, None if the connection ended."""
    try:
        size = int(await reader.readuntil(b"\r\n"), 16)
        return (await reader.readexactly(size + 2))[:-2]
    except asyncio.IncompleteReadError:
        return None


async def authenticate(call: Call, next: Handler) -> None:
    credentials = call.metadata.wire(b"authorization")
    if credentials is not None:
        kind, _, who = credentials.decode().partition(" ")
        if kind != "Bearer" or who == "forged":
            raise Unauthenticated("the token is not valid")
        call.identity = Identity(who, frozenset({who}))
    await next(call)


@asynccontextmanager
async def edge(contract: Contract, behind: str, **options: Any) -> AsyncIterator[Running]:
    """Run an edge; ``behind`` it "process" or "sidecar"; ``tls`` are the certificates of its listener."""
    seen = streams.seen
    seen.reset()
    ended: list[BaseException | None] = []
    calls: list[Any] = []

    async def trace(call: Call, next: Handler) -> None:
        calls.append(call)
        try:
            await next(call)
        except BaseException as error:
            ended.append(error)
            raise
        else:
            ended.append(None)
        finally:
            running.finished.set()

    tls = options.pop("tls", None)

    def listen(app: EdgeApp) -> Listener:
        served = app if tls is None else HttpsApp(app, 60.0)
        return Listener(served, "127.0.0.1:0", grpc=False, drain=0.0, max_body=0, expire=app.expire, tls=tls)

    async with _handler(contract, behind) as handler:
        door = Edge(
            contract, handler=handler, trace=trace, authenticate=authenticate,
            concurrency_limit=ConcurrencyLimit(100, 0),
            max_body=LIMIT, timeout=5.0, listen=listen, **{"stream_limit": ConcurrencyLimit(100, 0), **options},
        )  # fmt: skip
        running = Running(door, await door.start(), seen, ended, calls)
        try:
            yield running
        finally:
            await door.stop()


@asynccontextmanager
async def _handler(contract: Contract, behind: str) -> AsyncIterator[Handler]:
    functions = Functions("apps.streams", [contract.services[SERVICE]])
    service = ServiceContext("streams", channel=None, blocking=None)
    if behind == "process":
        handlers = functions.handlers(service, ThreadPool(4))

        async def handler(call: Call) -> None:
            await handlers[call.method.path][1](call)

        yield handler
        return
    layers = dict.fromkeys(("trace", "authenticate", "authorize"), open_layer)
    sidecar = Sidecar(
        contract, [SERVICE], functions, service, **layers, concurrency_limit=ConcurrencyLimit(100, 100), drain=0.0
    )
    target = Target([await sidecar.start()], max_message=LIMIT)
    try:
        yield target
    finally:
        await target.close()
        await sidecar.stop()


def codes(errors: list[BaseException | None]) -> list[str]:
    return [error.code.name if isinstance(error, StatusError) else type(error).__name__ for error in errors]
