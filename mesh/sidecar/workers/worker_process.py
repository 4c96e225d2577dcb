"""The worker process: hosts the functions of one service, and answers the sidecar's calls over a socket pair.

Functions are found and called by the same code as in the sidecar's own process. What is different is at the rim: calls
come as frames, a stub's calls leave as frames, and spans leave with them. It does not know the gRPC wire, who may call,
or any address; the sidecar does.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib
import json
import logging
import os
import socket
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from time import time_ns
from typing import TYPE_CHECKING, Any, NoReturn

import uvloop
from opentelemetry import context as otel
from opentelemetry import trace

from mesh.call import Call, Handler, Identity, Metadata, chain, current
from mesh.errors import RemoteError, StatusError, Unavailable
from mesh.events.consume.delivery_call import Delivered, once
from mesh.events.hops import carry
from mesh.events.publish.publisher import Publications, Publisher
from mesh.faults import Faults
from mesh.lambdas.handlers import functions_of
from mesh.layers.recover import recover
from mesh.main_thread import MainThread, ignoring
from mesh.rpc.client.blocking_channel import BlockingChannel
from mesh.rpc.client.channel import Channel
from mesh.sidecar.service_context import ServiceContext
from mesh.sidecar.workers import frames, prefault
from mesh.sidecar.workers.call_headers import Asked, Loaded, Onward, decoder, encode
from mesh.sidecar.workers.frames import Kind
from mesh.sidecar.workers.import_times import Imports
from mesh.sidecar.workers.lingering import Alone, Watched
from mesh.sidecar.workers.watermark import Begun
from mesh.sidecar.workers.worker_calls import Answered, Notes
from mesh.sidecar.workers.worker_connection import Link
from mesh.sidecar.workers.worker_events import Passage
from mesh.telemetry import worker_spans
from mesh.telemetry.exceptions import bug_behind
from mesh.telemetry.propagation import Propagation
from mesh.text import text_of, utf8
from mesh.threads import THREADS, OwnLoop, Runs, Threads
from mesh.trace_context import BAGGAGE

if TYPE_CHECKING:
    from mesh.contract.model import Contract, Method
    from mesh.database import Database
    from mesh.function import Functions
    from mesh.lambdas.handlers import LambdaFunctions
    from mesh.sidecar.workers.fork_setup import Setup

__all__ = ["be_called", "run"]

log = logging.getLogger("mesh.workers")

COLLECT_AFTER = (20_000, 20, 20)
"""As in the sidecar: looking for cycles after every 700 objects that calls in flight hold took a fifth of the time."""
_YOUNG = 200
"""Calls up to which what a worker has written to is what the start of another writes to."""
SPARE, WORKER = "mesh-spare", "mesh-worker"
"""What the process is called (``ps -o comm``) before it is given its connection, and from then on."""
_AUTHORIZATION = b"authorization"

_asked = decoder(Asked)
_identity = decoder(tuple[str, list[str], dict[str, Any]] | str | None)
_pairs = decoder(list[tuple[bytes, bytes]])
(_SPAN,) = trace.set_span_in_context(trace.INVALID_SPAN, otel.Context())
"""The key of the current span in a context, which the API itself does not name."""


def run(way: socket.socket, setup: Setup, contract: Contract, database: Database | None, noted: int) -> NoReturn:
    """Be a worker from when it is given its connection until the sidecar says that it is enough, or is gone.

    The loop runs in the main thread until the functions are loaded, ``startup`` included. If there is a ``def``
    function that the main thread is for, the loop then goes on in a thread of its own.

    Args:
        way: Where it comes from, with the memory of ``mesh.sidecar.workers.watermark``: two descriptors.
        setup: What it hosts.
        contract: The contract.
        database: The service's database, opened and without a connection; or None.
        noted: The file of ``mesh.sidecar.workers.prefault``.
    """
    be_called(SPARE)
    loop = uvloop.new_event_loop()
    host = _Host(setup, contract, database, noted)
    if not loop.run_until_complete(host.given(way)):
        _end(0)
    if setup.function is not None:
        host.load()  # no event loop runs: as on AWS, the handler's module may run one
    if not loop.run_until_complete(host.start()):
        _end(1)

    if host.main is not None and setup.function is None:
        host.own = OwnLoop()  # as the threads of functions have one; AWS gives its main thread none

    def serve() -> bool:
        return loop.run_until_complete(host.serve())

    def leave(drained: bool) -> NoReturn:  # noqa: FBT001 - what serve returns
        _end(0 if not drained or loop.run_until_complete(host.leave()) else 1)

    leave(serve() if host.main is None else host.main.beside(serve, leave))


def _end(code: int) -> NoReturn:
    with contextlib.suppress(OSError, ValueError):  # whoever read them is gone, or a function has closed them
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)  # threads that functions have left behind are not waited for


def be_called(name: str) -> None:
    """Have ``ps`` and ``top`` say what this process is."""
    with contextlib.suppress(OSError):  # no Linux
        Path("/proc/self/comm").write_text(name)


class WorkerCall(Answered):
    """A call of the sidecar; what a function may never look at is decoded when it does."""

    __slots__ = ("_head", "_metadata", "_user", "delivery", "span")

    def __init__(self, link: Link, number: int, method: Method, opened: frames.Open) -> None:
        super().__init__(link, number, method, opened)
        self._head = head = _asked(opened.head)
        self._metadata: Metadata | None = None
        self._user: Identity | None = None
        self.caller = head.caller
        self.delivery = None if head.delivered is None else Delivered(*head.delivered)
        self.span = worker_spans.Remote(head.span, head.state) if head.span else None

    @property
    def metadata(self) -> Metadata:  # type: ignore[override]
        """The caller's metadata."""
        if self._metadata is None:
            self._metadata = Metadata.from_wire(_pairs(self._head.metadata))
        return self._metadata

    @property
    def identity(self) -> Identity | None:  # type: ignore[override]
        """The verified user, or None."""
        if self._user is None:
            found = _identity(self._head.identity)
            if found is not None:
                subject, roles, claims = json.loads(found) if isinstance(found, str) else found
                self._user = Identity(subject, frozenset(roles), claims)
        return self._user

    @property
    def baggage(self) -> bool:
        """Whether the caller sent any."""
        return BAGGAGE in bytes(self._head.metadata)

    def notes(self) -> Notes:
        """Return what the function did to the server span."""
        return (self.span.notes or []) if self.span is not None else []


class _Host:
    def __init__(self, setup: Setup, contract: Contract, database: Database | None, noted: int) -> None:
        self._database = database
        self._setup = setup
        self._contract = contract
        self._noted = noted
        self._begun: Begun
        self._propagation = Propagation()
        self._methods: list[tuple[Method, Callable[[Any], Awaitable[None]]]] = []
        self._link: Link
        self._drain: asyncio.Event
        self._service: ServiceContext
        self._began = 0
        self._functions: Functions | LambdaFunctions | None = None
        self._wrong: Exception | None = None
        self._loaded: Loaded | None = None
        self.main: MainThread | None = None
        self.own: OwnLoop | None = None

    async def given(self, way: socket.socket) -> bool:
        """Prepare what all services have alike, and wait to be needed; False when the fork server is gone."""
        setup = self._setup
        loop = asyncio.get_running_loop()
        self._drain = asyncio.Event()
        link = self._link = Link(1, self._answer, self._told)
        worker_spans.install(partial(self._send, Kind.SPANS), partial(self._send, Kind.MEASURED))
        channel = Channel(chain(carry, self._onward), self._contract)
        published = Publications(self._contract, setup.serves, setup.name) if setup.events else None
        self._service = ServiceContext(
            setup.name,
            channel=channel,
            blocking=BlockingChannel(channel, loop),
            database=self._database,
            settings=setup.settings,
            publisher=Publisher(published, Passage(link)) if published is not None else None,
        )
        sock = await self._given(way)
        if sock is None:
            return False
        self._began = time_ns()
        await loop.create_connection(lambda: link, sock=sock)
        return True

    def load(self) -> None:
        """Import the functions; ``start`` says what is wrong with them."""
        setup = self._setup
        if setup.bytecode:
            sys.pycache_prefix, sys.dont_write_bytecode = setup.bytecode, False
        with Imports() as imports:
            try:
                importlib.invalidate_caches()  # what the fork server saw of the project's folders may be old
                served = [self._contract.services[name] for name in setup.serves]
                self._functions = functions_of(setup.module, setup.function, served)
            except Exception as error:  # noqa: BLE001 - raised in ``start``
                self._wrong = error
        self._loaded = Loaded(self._began, time_ns(), imports.slowest())

    async def start(self) -> bool:
        """Load the functions, unless that is done, and run ``startup``; False if they cannot be used."""
        if self._loaded is None:
            self.load()
        try:
            functions = self._right()
            handlers = functions.handlers(self._service, self._places(functions)).values()
            self._methods = [(method, partial(self._run, function)) for method, function in handlers]
            if functions.startup is not None:
                await functions.startup(self._service)
        except Faults as faults:
            await self._failed([(fault.place, fault.text) for fault in faults.faults])
            return False
        except Exception as error:
            log.exception("the start failed")
            what = f"a call failed: {error.status}" if isinstance(error, RemoteError) else text_of(error)
            await self._failed([(self._setup.module, f"startup failed: {type(error).__name__}: {what}")])
            return False
        ignoring()  # signals that the module has given their default
        gc.freeze()  # the collector was off since the fork: what it would look through is what has just been loaded
        gc.set_threshold(*COLLECT_AFTER)
        gc.enable()
        return True

    def _right(self) -> Functions | LambdaFunctions:
        """Return the functions, or raise why they could not be loaded."""
        if self._functions is None:
            assert self._wrong is not None  # noqa: S101 - the one or the other
            raise self._wrong
        return self._functions

    def _places(self, functions: Functions | LambdaFunctions) -> Runs:
        """Return where ``def`` functions run: a Lambda handler, and the one call of a worker, in the main thread."""
        alone = self._setup.concurrency == 1
        if functions.plain and (alone or self._setup.function is not None):
            self.main = MainThread(None if alone else Threads(THREADS), self._keep)
        if self.main is None:
            return Watched(Threads(THREADS), self._stuck)
        return Alone(self.main, self._stuck) if alone else Watched(self.main, self._stuck)

    def _keep(self) -> None:
        """Restore in the main thread what a function has taken."""
        ignoring()
        if self.own is not None:
            self.own.keep()

    async def serve(self) -> bool:
        """Say that it is ready, and answer calls until it is to end; True when those that it had have ended."""
        link = self._link
        assert self._loaded is not None  # noqa: S101 - start has seen to it
        link.write(frames.frame(Kind.READY, 0, encode(self._loaded)))
        draining = asyncio.ensure_future(self._drain.wait())
        ends: list[asyncio.Future[Any]] = [link.lost, draining]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        if link.lost.done():
            return False
        await self._finish()
        if not self._begun.reached(2 * _YOUNG):
            prefault.note(self._noted)
        return True

    async def leave(self) -> bool:
        """Run ``shutdown``, and close what the functions used; False if that failed."""
        well = True
        try:
            if self._functions is not None and self._functions.shutdown is not None:
                await self._functions.shutdown(self._service)
        except Exception:
            log.exception("shutdown failed")
            well = False
        if self._database is not None:
            await self._database.stop()
        self._link.flush()
        return well

    async def _given(self, way: socket.socket) -> socket.socket | None:
        """Wait for the connection to the sidecar; None when the fork server is gone."""
        loop = asyncio.get_running_loop()
        come = asyncio.Event()
        way.setblocking(False)  # noqa: FBT003 - the standard library's own signature
        loop.add_reader(way, come.set)
        await come.wait()
        loop.remove_reader(way)
        _, descriptors, _, _ = socket.recv_fds(way, 1, 2)
        way.close()
        if not descriptors:
            return None
        be_called(WORKER)
        link, memory = descriptors
        self._begun = Begun(memory)
        os.close(memory)
        sock = socket.socket(fileno=link)
        sock.setblocking(False)  # noqa: FBT003 - as above
        return sock

    async def _finish(self) -> None:
        """Wait until every call that is answered here has ended."""
        running = [call.task for call in self._link.answering.values() if call.task is not None]
        if running:
            await asyncio.wait(running)

    async def _failed(self, faults: list[tuple[str, str]]) -> None:
        self._link.write(frames.frame(Kind.FAILED, 0, encode([(place, utf8(text)) for place, text in faults])))
        await self._link.lost  # the sidecar has read it

    # -- calls that come in --

    def _answer(self, link: Link, number: int, opened: frames.Open) -> tuple[WorkerCall, Handler]:
        method, handler = self._methods[opened.method]
        return WorkerCall(link, number, method, opened), handler

    async def _run(self, function: Handler, call: WorkerCall) -> None:
        self._begun.note(call.id)
        current.set(call)  # the task has a context of its own
        span = call.span
        if call.baggage:
            context = self._propagation.context(call.metadata)
            otel.attach(context if span is None else trace.set_span_in_context(span, context))
        elif span is not None:
            otel.attach(otel.Context({_SPAN: span}))
        try:
            await recover(call, function if call.delivery is None else chain(once, function))
        except StatusError as error:
            bug = bug_behind(error)
            if span is not None and bug is not None:
                span.fail(bug)
            raise

    def _told(self, kind: int, _: bytes) -> None:
        if kind == Kind.DRAIN:
            self._drain.set()
        elif kind == Kind.PING:
            self._link.write(frames.frame(Kind.PONG, 0))

    def _stuck(self, path: str) -> None:
        self._link.write(frames.frame(Kind.STUCK, 0, path.encode()))

    def _send(self, kind: Kind, body: bytes) -> None:
        """Send what functions trace and measure, in whatever thread."""
        frame = frames.frame(kind, 0, body)
        if asyncio._get_running_loop() is self._link.loop:  # noqa: SLF001 - what get_running_loop asks; it raises
            self._link.write(frame)
        else:  # another thread, with a loop of a function's own perhaps
            self._link.loop.call_soon_threadsafe(self._link.write, frame)

    # -- calls that go out --

    async def _onward(self, call: Call) -> None:
        """The last handler of a stub's calls: the sidecar makes them."""
        method = call.method
        parent = current.get()
        metadata = call.metadata
        if parent is not None and parent.identity is not None and metadata.wire(_AUTHORIZATION) is None:
            # The user of the call that is answered here, as mesh.auth.identify does in the sidecar's own process.
            credentials = parent.metadata.wire(_AUTHORIZATION)
            if credentials is not None:
                metadata.append(_AUTHORIZATION, credentials)
        message = None if method.client_streaming else await call.receive_one()
        span, state = worker_spans.current_span()
        streams = (method.client_streaming, method.server_streaming)
        head = Onward(
            method.path, streams, span, state, metadata.pairs, call.wait_for_ready, call.compression,
            worker_spans.current_baggage(),
        )  # fmt: skip
        try:
            await self._link.ask(call, 0, encode(head), message)
        except ConnectionError:
            raise Unavailable("the sidecar of this worker is gone") from None
