"""A running edge over real sockets; what it calls are functions in this process, through the same Handler seam."""

from __future__ import annotations

import asyncio
import http.client
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import h2corn
import pytest
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2
from msgspec import convert

from mesh.auth import TokenVerifier, authenticate
from mesh.call import Call, Handler, Identity, current
from mesh.config.manifest import EdgeConfig
from mesh.contract.model import Contract
from mesh.edge import Edge, OptionalLayers
from mesh.edge.calls import UpstreamCall
from mesh.edge.layers.stack import NO_LAYERS
from mesh.errors import Code as StatusCode
from mesh.errors import (
    FailedPrecondition,
    InvalidArgument,
    ResourceExhausted,
    StatusError,
    Unauthenticated,
    Unavailable,
)
from mesh.layers.concurrency import ConcurrencyLimit
from mesh.message_methods import parser, serialize
from mesh.rpc.client.target import Target
from mesh.rpc.server.listener import Listener

TRACE = b"0af7651916cd43dd8448eb211c80319c"


class Served:
    """An h2corn server in the running loop."""

    def __init__(self, app: Any) -> None:
        self.server = h2corn.Server(
            app, h2corn.Config(bind=("127.0.0.1:0",), access_log=False, lifespan="off", timeout_graceful_shutdown=5)
        )

    async def start(self) -> str:
        self.task = asyncio.create_task(self.server.serve())
        await self.server.wait_started()
        return self.server.addresses[0]

    async def stop(self) -> None:
        self.server.shutdown()
        await self.task


class Library:
    """The functions behind the edge; remembers what happened to them."""

    def __init__(self, contract: Contract) -> None:
        self.contract = contract
        self.started = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.calls: list[Call] = []
        self.requests: list[Any] = []

    async def __call__(self, call: Call) -> None:
        self.calls.append(call)
        method = call.method
        request: Any = parser(method.input)(await call.receive_one())
        self.requests.append(request)
        answer = await getattr(self, method.name.lower(), self.echo)(request, call)
        await call.send(serialize(answer))

    async def echo(self, request: Any, call: Call) -> Any:
        return request if call.method.output is call.method.input else call.method.output()

    async def create(self, request: Any, call: Call) -> Any:
        call.headers.append((b"location", b"/things/" + request.text.encode()))
        return request

    async def refuse(self, _request: Any, _call: Call) -> Any:
        """Refuse with a detail of each sort: known here, of the contract only, of nobody, broken, of the inside."""
        reason = self.contract.message("transcode.v1.Reason")(why="too big", count=2**53 + 1)
        own = any_pb2.Any(type_url="type.googleapis.com/transcode.v1.Reason", value=reason.SerializeToString())
        nobody = any_pb2.Any(type_url="type.googleapis.com/nobody.v1.Knows", value=b"\x08\x01")
        broken = any_pb2.Any(type_url="type.googleapis.com/transcode.v1.Reason", value=b"\xff")
        info = error_details_pb2.ErrorInfo(reason="STOCKOUT", domain="shop.example", metadata={"zone": "a"})
        inside = error_details_pb2.DebugInfo(stack_entries=["mesh/secret.py:1"], detail="secret")
        span = duration_pb2.Duration(seconds=3)
        raise FailedPrecondition("no", details=[info, own, nobody, broken, inside, span])

    async def updatebook(self, request: Any, _call: Call) -> Any:
        assert request.book.name.startswith("books/")
        return request.book

    async def tagbook(self, request: Any, call: Call) -> Any:
        answer = call.method.output()
        for tag in request.tags:
            answer.books.add(name=request.name, title=tag)
        return answer

    async def slow(self, _request: Any, _call: Call) -> Any:
        self.started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise

    async def behave(self, request: Any, call: Call) -> Any:
        match request.title:
            case "bug":
                raise RuntimeError("secret of the inside")
            case "sleep":
                return await self.slow(request, call)
            case "headers":
                call.headers += [(b"location", b"/v1/books/1"), (b"set-cookie", b"a=1"), (b"set-cookie", b"b=2")]
                call.headers += [(b"x-mine", b"yes"), (b"server-secret", b"no"), (b"x-raw-bin", b"AAE")]
                return request
            case "violations":
                raise InvalidArgument("two things are wrong", violations={"name": "must be short", "tags[0]": "bad"})
            case "busy":
                raise ResourceExhausted("too many", retry_after=2.5)
            case "closed":
                raise Unavailable("we are closed")
            case "unreached":
                target = Target(["127.0.0.1:1"])  # where nothing listens
                try:
                    await target(UpstreamCall(current.get(), b"", asyncio.get_running_loop().time() + 5))
                finally:
                    await target.close()
            case "later":
                call.headers += [(b"retry-after", b"77"), (b"x-mine", b"yes"), (b"x-trace-id", b"forged")]
                raise Unavailable("later")
            case "nan":
                return call.method.output(published={"seconds": 10**15})
            case code:
                raise StatusError.of(StatusCode[code], f"it is {code}")


class Tokens(TokenVerifier):
    """Takes ``Bearer NAME`` for a user of that name and role."""

    def __init__(self) -> None:
        """Need no keys."""

    def known(self, credentials: bytes) -> Identity | None:  # noqa: ARG002 - its signature
        return None

    async def verify(self, credentials: bytes) -> Identity:
        kind, _, who = credentials.decode().partition(" ")
        if kind != "Bearer" or who == "forged":
            raise Unauthenticated("the token is not valid")
        return Identity(who, frozenset({who}))


class Running:
    """The edge, and a client of it."""

    def __init__(
        self,
        edge: Edge,
        library: Library,
        address: str,
        concurrency_limit: ConcurrencyLimit,
        seen: list[Any],
        ended: Any,
    ) -> None:
        self.edge = edge
        self.library = library
        self.address = address
        self.concurrency_limit = concurrency_limit
        self.seen = seen
        self.ended = ended

    async def request(self, verb: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Reply:
        return await asyncio.to_thread(self._request, verb, path, body, headers or {})

    async def json(self, verb: str, path: str, value: Any = None, **headers: str) -> Reply:
        body = None if value is None else json.dumps(value).encode()
        sent = {"content-type": "application/json"} if body is not None else {}
        return await self.request(verb, path, body, {**sent, **headers})

    def _request(self, verb: str, path: str, body: Any, headers: dict[str, str]) -> Reply:
        host, port = self.address.rsplit(":", 1)
        connection = http.client.HTTPConnection(host, int(port), timeout=10)
        try:
            connection.request(verb, path, body=body, headers=headers)
            response = connection.getresponse()
            return Reply(response.status, response.headers, response.read())
        finally:
            connection.close()


class Reply:
    """One response."""

    def __init__(self, status: int, headers: Any, body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@asynccontextmanager
async def open_edge(
    contract: Contract, layers: OptionalLayers = NO_LAYERS, listen: Any = Served
) -> AsyncIterator[Running]:
    """An edge in front of the library; bodies up to 10,000 bytes, 5 s a request, 4 at once and none waiting."""
    seen: list[Any] = []
    ended = asyncio.Event()

    async def trace(call: Call, next: Handler) -> None:
        call.headers.append((b"x-trace-id", TRACE))
        try:
            await next(call)
        finally:
            seen.append(call)
            ended.set()

    library = Library(contract)
    concurrency_limit = ConcurrencyLimit(4, 0)
    edge = Edge(
        contract, handler=library, trace=trace, authenticate=authenticate(Tokens(), None),
        concurrency_limit=concurrency_limit, stream_limit=ConcurrencyLimit(4, 0),
        max_body=10_000, timeout=5.0, listen=listen, layers=layers,
    )  # fmt: skip
    address = await edge.start()
    try:
        yield Running(edge, library, address, concurrency_limit, seen, ended)
    finally:
        await edge.stop()


@pytest.fixture
async def running(contract: Contract) -> AsyncIterator[Running]:
    """An edge as it is when mesh.toml says nothing."""
    async with open_edge(contract) as edge:
        yield edge


@pytest.fixture(scope="module")
def threaded(contract: Contract) -> Iterator[Running]:
    """An edge on a loop in a thread of its own, for tests that are not asynchronous."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    opened = open_edge(contract)
    try:
        yield asyncio.run_coroutine_threadsafe(opened.__aenter__(), loop).result(20)
        asyncio.run_coroutine_threadsafe(opened.__aexit__(None, None, None), loop).result(20)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@pytest.fixture
def edge_of() -> Callable[..., AbstractAsyncContextManager[Running]]:
    """Opens an edge of a given contract, with given layers."""
    return open_edge


@pytest.fixture
def opened(contract: Contract) -> Callable[..., AbstractAsyncContextManager[Running]]:
    """Opens an edge whose ``[edge]`` table has the given keys, on the listener that a user has."""

    def of(**table: Any) -> AbstractAsyncContextManager[Running]:
        layers = OptionalLayers.of(convert(table, EdgeConfig, dec_hook=lambda kind, value: kind.parse(value)))
        return open_edge(contract, layers, lambda app: Listener(app, "127.0.0.1:0", grpc=False, drain=5))

    return of
