"""An edge for gRPC over real sockets, in front of a real sidecar and of functions in this process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

from hosting import ECHO, hosted

from mesh.call import Call, Handler, Identity, chain
from mesh.contract.model import Contract
from mesh.edge import Edge
from mesh.edge.https import HttpsApp
from mesh.edge.layers.stack import NO_LAYERS
from mesh.errors import StatusError, Unauthenticated
from mesh.layers.concurrency import ConcurrencyLimit
from mesh.rpc.client.target import Target
from mesh.rpc.server.listener import Listener

MAX = 120_000
"""Largest request message, bytes."""


async def nothing(call: Call) -> None:
    await call.receive_one()
    await call.send(b"")


async def authenticate(call: Call, next: Handler) -> None:
    credentials = call.metadata.wire(b"authorization")
    if credentials is not None:
        who = credentials.decode().removeprefix("Bearer ")
        if who == "forged":
            raise Unauthenticated("the token is not valid")
        call.identity = Identity(who, frozenset({who}))
    await next(call)


@asynccontextmanager
async def grpc_edge(contract: Contract, *outbound: Any, **options: Any) -> AsyncIterator[SimpleNamespace]:
    """Run the edge; ``outbound`` are layers of its outbound calls, ``functions`` are the handler of edge.v1.Library.

    ``tls`` are the certificates of its listener, ``trace`` is another trace layer.

    Gives ``edge``, ``address``, ``received`` (metadata of each call at the sidecar), ``traced`` (method and code name
    of each call of the edge) and ``ended``, which is set with each of these.
    """
    received: list[Any] = []
    traced: list[tuple[str, str]] = []
    ended = asyncio.Event()
    functions: Handler = options.pop("functions", nothing)
    concurrency_limit = ConcurrencyLimit(options.pop("concurrency", 100), 0)
    tls = options.pop("tls", None)

    async def note(call: Call, next: Handler) -> None:
        received.append(call.metadata)
        await next(call)

    async def trace(call: Call, next: Handler) -> None:
        code = "OK"
        try:
            await next(call)
        except StatusError as error:
            code = error.code.name
            raise
        except asyncio.CancelledError:
            code = "CANCELLED"
            raise
        finally:
            traced.append((call.method.path if call.method else "", code))
            ended.set()

    async with hosted(contract, authenticate=note) as address:
        target = Target([options.pop("sidecar", address)], transport=options.pop("transport", "ngh2"))

        async def inside(call: Call) -> None:
            await (target if call.method.service == ECHO else functions)(call)

        edge = Edge(
            contract, handler=chain(*outbound, inside), trace=options.pop("trace", trace), authenticate=authenticate,
            concurrency_limit=concurrency_limit,
            stream_limit=ConcurrencyLimit(options.pop("streams", 100), 0), clients=options.pop("clients", None),
            layers=options.pop("layers", NO_LAYERS),
            max_body=MAX,
            timeout=options.pop("timeout", 10.0),
            listen=lambda app: Listener(
                app if tls is None else HttpsApp(app, 60.0), "127.0.0.1:0", grpc=True, drain=options.pop("drain", 0.0),
                max_body=MAX + 2**20, expire=app.grpc.app.expire, tls=tls,
            ),
        )  # fmt: skip
        bound = await edge.start()
        try:
            yield SimpleNamespace(edge=edge, address=bound, received=received, traced=traced, ended=ended)
        finally:
            await edge.stop()
            await target.close()
