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
from mesh.events.arrival import Delivered, once
from mesh.events.hops import carry
from mesh.events.publications import Publications, Publisher
from mesh.faults import Faults
from mesh.lambdas.functions import functions_of
from mesh.recover import recover
from mesh.rpc.blocking import BlockingChannel
from mesh.rpc.channel import Channel
from mesh.sidecar.service import ServiceContext
from mesh.sidecar.workers import frames, touched
from mesh.sidecar.workers.begun import Begun
from mesh.sidecar.workers.calls import Answered, Notes
from mesh.sidecar.workers.frames import Kind
from mesh.sidecar.workers.heads import Asked, Loaded, Onward, decoder, encode
from mesh.sidecar.workers.link import Link
from mesh.sidecar.workers.publishing import Passage
from mesh.sidecar.workers.setup import GRACE
from mesh.sidecar.workers.slowest import Imports
from mesh.telemetry import relay
from mesh.telemetry.bugs import bug_behind
from mesh.telemetry.propagation import Propagation
from mesh.text import text_of, utf8
from mesh.threads import THREADS, Block, Threads

if TYPE_CHECKING:
    from mesh.contract import Contract, Method
    from mesh.database import Database
    from mesh.sidecar.workers.setup import Setup

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

    Args:
        way: Where it comes from, with the memory of ``mesh.sidecar.workers.begun``: two descriptors.
        setup: What it hosts.
        contract: The contract.
        database: The service's database, opened and without a connection; or None.
        noted: The file of ``mesh.sidecar.workers.touched``.
    """
    be_called(SPARE)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        code = runner.run(_Host(setup, contract, database, noted).serve(way))
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # threads that functions have left behind are not waited for


def be_called(name: str) -> None:
    """Have ``ps`` and ``top`` say what this process is."""
    with contextlib.suppress(OSError):  # no Linux
        Path("/proc/self/comm").write_text(name)


class WorkerCall(Answered):
    """A call of the sidecar; what a function may never look at is decoded when it does."""

    __slots__ = ("_head", "_metadata", "_user", "delivered", "span")

    def __init__(self, link: Link, number: int, method: Method, opened: frames.Open) -> None:
        super().__init__(link, number, method, opened)
        self._head = head = _asked(opened.head)
        self._metadata: Metadata | None = None
        self._user: Identity | None = None
        self.caller = head.caller
        self.delivered = None if head.delivered is None else Delivered(*head.delivered)
        self.span = relay.Remote(head.span, head.state) if head.span else None

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
        return b"baggage" in bytes(self._head.metadata)

    def notes(self) -> Notes:
        """Return what the function did to the server span."""
        return (self.span.notes or []) if self.span is not None else []


class _Threads(Threads):
    """Threads that are watched: one that goes on long after its call has ended is reported."""

    def __init__(self, limit: int, stuck: Callable[[str], None]) -> None:
        super().__init__(limit)
        self._stuck = stuck

    async def run(self, work: Callable[[Block], Any]) -> Any:
        running = False

        def watched(block: Block) -> Any:
            nonlocal running
            running = True
            try:
                return work(block)
            finally:
                running = False

        try:
            return await super().run(watched)
        except asyncio.CancelledError:
            call = current.get()
            path = "" if call is None else call.method.path
            asyncio.get_running_loop().call_later(GRACE, lambda: running and self._stuck(path))
            raise


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

    async def serve(self, way: socket.socket) -> int:
        """Wait to be needed, load the functions, say so, answer calls; returns the exit code."""
        setup = self._setup
        loop = asyncio.get_running_loop()
        self._drain = asyncio.Event()
        link = self._link = Link(1, self._answer, self._told)
        relay.install(partial(self._send, Kind.SPANS), partial(self._send, Kind.MEASURED))
        channel = Channel(chain(carry, self._onward), self._contract)
        published = Publications(self._contract, setup.serves, setup.name) if setup.events else None
        service = ServiceContext(
            setup.name,
            channel=channel,
            blocking=BlockingChannel(channel, loop),
            database=self._database,
            settings=setup.settings,
            publisher=Publisher(published, Passage(link)) if published is not None else None,
        )
        threads = _Threads(THREADS, self._stuck)
        sock = await self._given(way)
        if sock is None:
            return 0
        began = time_ns()
        await loop.create_connection(lambda: link, sock=sock)
        try:
            if setup.bytecode:
                sys.pycache_prefix, sys.dont_write_bytecode = setup.bytecode, False
            with Imports() as imports:
                importlib.invalidate_caches()  # what the fork server saw of the project's folders may be old
                served = [self._contract.services[name] for name in setup.serves]
                functions = functions_of(setup.module, setup.function, served)
            loaded = time_ns()
            handlers = functions.handlers(service, threads).values()
            self._methods = [(method, partial(self._run, function)) for method, function in handlers]
            if functions.startup is not None:
                await functions.startup(service)
        except Faults as faults:
            return await self._failed([(fault.place, fault.text) for fault in faults.faults])
        except Exception as error:
            log.exception("the start failed")
            what = f"a call failed: {error.status}" if isinstance(error, RemoteError) else text_of(error)
            return await self._failed([(setup.module, f"startup failed: {type(error).__name__}: {what}")])
        gc.freeze()  # the collector was off since the fork: what it would look through is what has just been loaded
        gc.set_threshold(*COLLECT_AFTER)
        gc.enable()
        link.write(frames.frame(Kind.READY, 0, encode(Loaded(began, loaded, imports.slowest()))))
        draining = asyncio.ensure_future(self._drain.wait())
        ends: list[asyncio.Future[Any]] = [link.lost, draining]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        if link.lost.done():
            return 0
        await self._finish()
        if not self._begun.reached(2 * _YOUNG):
            touched.note(self._noted)
        try:
            if functions.shutdown is not None:
                await functions.shutdown(service)
        finally:
            if self._database is not None:
                await self._database.stop()
            link.flush()
        return 0

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

    async def _failed(self, faults: list[tuple[str, str]]) -> int:
        self._link.write(frames.frame(Kind.FAILED, 0, encode([(place, utf8(text)) for place, text in faults])))
        await self._link.lost  # the sidecar has read it
        return 1

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
            await recover(call, function if call.delivered is None else chain(once, function))
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
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            self._link.loop.call_soon_threadsafe(self._link.write, frame)
        else:
            self._link.write(frame)

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
        span, state = relay.current_span()
        streams = (method.client_streaming, method.server_streaming)
        head = Onward(
            method.path, streams, span, state, metadata.pairs, call.wait_for_ready, call.compression,
            relay.current_baggage(),
        )  # fmt: skip
        try:
            await self._link.ask(call, 0, encode(head), message)
        except ConnectionError:
            raise Unavailable("the sidecar of this worker is gone") from None
