"""Lambda functions in a folder of their own, hosted in this process: behind a real edge, or in a real sidecar."""

from __future__ import annotations

import asyncio
import http.client
import itertools
import json
import textwrap
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from hosting import open_layer

from mesh.call import Call, Handler, Identity
from mesh.config import manifest
from mesh.contract import loader, protoc
from mesh.contract.model import Contract
from mesh.edge import Edge
from mesh.errors import StatusError
from mesh.lambdas.handlers import LambdaFunctions
from mesh.lambdas.service_descriptor import extend
from mesh.layers.concurrency import ConcurrencyLimit
from mesh.layers.deadline import deadline
from mesh.rpc.server.listener import Listener
from mesh.sidecar import ServiceContext, Sidecar
from mesh.threads import ThreadPool

ROOT = Path(__file__).parent.parent.parent
TEST_STUBS = ROOT / ".mesh" / "test-stubs"

_numbers = itertools.count()


class Project:
    """A mesh.toml with one function, ``hello``.

    Args:
        folder: Where to write it.
        code: The module of the handler.
        keys: What the entry says besides ``lambda``, as TOML.
        documents: Name → JSON of further files; with ``protos/…``, the contract is theirs.
    """

    def __init__(self, folder: Path, code: str, keys: str = "", documents: Mapping[str, Any] | None = None) -> None:
        module = f"handler_{next(_numbers)}"  # a module is imported once in a process
        (folder / f"{module}.py").write_text(textwrap.dedent(code))
        for name, document in (documents or {}).items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(document if isinstance(document, str) else json.dumps(document))
        file = folder / "mesh.toml"
        file.write_text(f'[services.hello]\nlambda = "{module}:handler"\n{textwrap.dedent(keys)}')
        self.module = module
        self.manifest = manifest.load(file, {})
        own = self.manifest.protos
        files = protoc.load(own, folder / "gen") if own else protoc.load([ROOT / "tests" / "protos"], TEST_STUBS)
        self.contract: Contract = loader.read(extend(files, self.manifest.lambdas.values()))

    def functions(self) -> LambdaFunctions:
        function = self.manifest.lambdas["hello"]
        return LambdaFunctions(function, [self.contract.services[function.service]])


class Reply:
    """One HTTP response."""

    def __init__(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.status = status
        self.headers = {name.lower(): value for name, value in headers}
        self.all = [(name.lower(), value) for name, value in headers]
        self.body = body

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """An HTTP client of the edge.

    Attributes:
        failures: What the requests failed with, as the trace sees it.
        caller: Who the function believes calls it.
    """

    def __init__(self) -> None:
        self.address = ""
        self.failures: list[BaseException] = []
        self.caller: str | None = "edge"
        self.identity: Identity | None = None

    async def ask(self, verb: str, path: str, body: bytes | None = None, **headers: str) -> Reply:
        return await asyncio.to_thread(self._ask, verb, path, body, headers)

    def _ask(self, verb: str, path: str, body: bytes | None, headers: dict[str, str]) -> Reply:
        connection = http.client.HTTPConnection(self.address, timeout=20)
        try:
            connection.putrequest(verb, path, skip_host="host" in headers, skip_accept_encoding=True)
            if body is not None:
                headers.setdefault("content-length", str(len(body)))
            for name, value in headers.items():
                for one in value.split("\n"):
                    connection.putheader(name.replace("_", "-"), one)
            connection.endheaders(body)
            response = connection.getresponse()
            return Reply(response.status, response.getheaders(), response.read())
        finally:
            connection.close()


@asynccontextmanager
async def edged(project: Project) -> AsyncIterator[Client]:
    """An edge in front of the function; bodies up to 10,000 bytes."""
    client = Client()
    threads = ThreadPool(8)
    service = ServiceContext("hello", channel=None, blocking=None)
    handlers = project.functions().handlers(service, threads)

    async def trace(call: Call, next: Handler) -> None:
        call.headers.append((b"x-trace-id", b"0af7651916cd43dd8448eb211c80319c"))
        try:
            await next(call)
        except StatusError as error:
            client.failures.append(error)
            raise

    async def authenticate(call: Call, next: Handler) -> None:
        call.identity = client.identity
        await next(call)

    async def upstream(call: Call) -> None:
        call.caller = client.caller
        await deadline(call, handlers[call.method.path][1])

    edge = Edge(
        project.contract, handler=upstream, trace=trace, authenticate=authenticate,
        concurrency_limit=ConcurrencyLimit(20, 20), stream_limit=ConcurrencyLimit(20, 0),
        max_body=10_000, timeout=10.0, listen=lambda app: Listener(app, "127.0.0.1:0", grpc=False, drain=5),
    )  # fmt: skip
    client.address = await edge.start()
    try:
        yield client
    finally:
        await edge.stop()
        threads.stop()


@asynccontextmanager
async def served(project: Project, caller: str | None = None, identity: Identity | None = None) -> AsyncIterator[str]:
    """A sidecar that hosts the function and takes every call as one of ``caller``; gives the address."""

    async def authenticate(call: Call, next: Handler) -> None:
        call.caller, call.identity = caller, identity
        await next(call)

    entry = project.manifest.services["hello"]
    sidecar = Sidecar(
        project.contract, entry.serves, project.functions(), ServiceContext("hello", channel=None, blocking=None),
        trace=open_layer, authenticate=authenticate, authorize=open_layer,
        concurrency_limit=ConcurrencyLimit(100, 100), drain=0.0,
    )  # fmt: skip
    address = await sidecar.start()
    try:
        yield address
    finally:
        await sidecar.stop()
