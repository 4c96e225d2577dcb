"""Worker process: hosts the functions of one service and serves the sidecar's calls over a socket pair.

The same code as in the sidecar's own process finds and calls the functions. Only the edges differ: inbound calls arrive
as frames, the calls of stubs leave as frames, and so do spans and metrics. A worker does not know the gRPC wire, access
rules or any address; the sidecar does.
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
import threading
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from time import time_ns
from typing import TYPE_CHECKING, Any, NoReturn

import uvloop
from opentelemetry import context as otel
from opentelemetry import trace

from mesh.call import Call, Handler, Identity, Metadata, chain, current, forward_client
from mesh.errors import RemoteError, StatusError, Unavailable
from mesh.events.consume.delivery_call import Delivered, once
from mesh.events.hops import carry
from mesh.events.publish.publisher import Publications, Publisher
from mesh.faults import Faults
from mesh.headers import RETRY
from mesh.lambdas.handlers import functions_of
from mesh.layers.recover import recover
from mesh.liveness import debugger_attached
from mesh.main_thread import MainThread, ignore_stop_signals
from mesh.rpc.client.attempt import is_retry
from mesh.rpc.client.blocking_channel import BlockingChannel
from mesh.rpc.client.channel import Channel
from mesh.sidecar.service_context import ServiceContext
from mesh.sidecar.workers import frames, prefault
from mesh.sidecar.workers.frame_payloads import CallHead, LoadTimes, OnwardHead, decoder, encode
from mesh.sidecar.workers.frames import FrameKind
from mesh.sidecar.workers.import_times import ImportTimer
from mesh.sidecar.workers.overrun import OverrunWatcher, SingleCallMainThread
from mesh.sidecar.workers.watermark import Watermark
from mesh.sidecar.workers.worker_calls import ServedCall, SpanNotes
from mesh.sidecar.workers.worker_connection import WorkerConnection
from mesh.sidecar.workers.worker_events import BrokerProxy
from mesh.telemetry import worker_spans
from mesh.telemetry.exceptions import bug_behind
from mesh.telemetry.propagation import Propagation
from mesh.text import text_of, utf8
from mesh.threads import MAX_THREADS, FunctionRunner, ThreadEventLoop, ThreadPool
from mesh.trace_context import BAGGAGE

if TYPE_CHECKING:
    from mesh.contract.model import Contract, Method
    from mesh.database import Database
    from mesh.function import Functions
    from mesh.lambdas.handlers import LambdaFunctions
    from mesh.sidecar.workers.worker_setup import WorkerSetup

__all__ = ["run", "set_process_name"]

log = logging.getLogger("mesh.workers")

GC_THRESHOLDS = (20_000, 20, 20)
"""Thresholds of the garbage collector, as in the sidecar. With Python's own thresholds, a collection after every 700
objects that calls in progress hold took a fifth of the time."""
_MAX_PREFAULT_CALLS = 200
"""Calls up to which the pages that a worker has written to are those that the start of another one writes to."""
SPARE_NAME, WORKER_NAME = "mesh-spare", "mesh-worker"
"""Names of the process (``ps -o comm``) before it is given its connection, and afterwards."""

_call_head = decoder(CallHead)
_identity = decoder(tuple[str, list[str], dict[str, Any], list[str] | None] | str | None)
_pairs = decoder(list[tuple[bytes, bytes]])
(_SPAN,) = trace.set_span_in_context(trace.INVALID_SPAN, otel.Context())
"""The key of the current span in a context; the API has no name for it."""


def run(
    assignment: socket.socket, setup: WorkerSetup, contract: Contract, database: Database | None, dirty_pages: int
) -> NoReturn:
    """Run a worker until the sidecar drains it or is gone; first wait for its connection, as the spare does.

    The event loop runs in the main thread until the functions are loaded, ``startup`` included. If a ``def`` function
    needs the main thread, the event loop then continues in a thread of its own.

    Args:
        assignment: Socket that delivers two descriptors: the connection, and the ``mesh.sidecar.workers.watermark``.
        setup: The service, as workers host it.
        contract: The contract.
        database: The service's database, opened and without a connection; or None.
        dirty_pages: Descriptor of the file of ``mesh.sidecar.workers.prefault``.
    """
    set_process_name(SPARE_NAME)
    loop = uvloop.new_event_loop()
    host = _WorkerProcess(setup, contract, database, dirty_pages)
    if not loop.run_until_complete(host.prepare(assignment)):
        _end(0)
    if setup.function is not None:
        host.load()  # no event loop runs here: as on AWS, the handler's module may run one
    if not loop.run_until_complete(host.start()):
        _end(1)

    if host.main is not None and setup.function is None:
        host.own_loop = ThreadEventLoop()  # as the threads of functions have one; on AWS the main thread has none

    def serve() -> bool:
        return loop.run_until_complete(host.serve())

    def leave(drained: bool) -> NoReturn:  # noqa: FBT001 - the result of serve
        _end(0 if not drained or loop.run_until_complete(host.leave()) else 1)

    leave(serve() if host.main is None else host.main.run_with_loop(serve, leave))


def _end(code: int) -> NoReturn:
    with contextlib.suppress(OSError, ValueError):  # their reader is gone, or a function has closed them
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)  # does not wait for threads that functions have left behind


def set_process_name(name: str) -> None:
    """Set the name of this process that ``ps`` and ``top`` show, at most 15 bytes."""
    with contextlib.suppress(OSError):  # no Linux
        Path("/proc/self/comm").write_text(name)


class WorkerCall(ServedCall):
    """A call of the sidecar; metadata and identity are decoded when a function first reads them."""

    __slots__ = ("_head", "_metadata", "_user", "delivery", "span")

    def __init__(self, connection: WorkerConnection, number: int, method: Method, opened: frames.OpenBody) -> None:
        super().__init__(connection, number, method, opened)
        self._head = head = _call_head(opened.head)
        self._metadata: Metadata | None = None
        self._user: Identity | None = None
        self.caller = head.caller
        self.delivery = None if head.delivery is None else Delivered(*head.delivery)
        self.span = worker_spans.RemoteServerSpan(head.span, head.state) if head.span else None

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
                subject, roles, claims, scopes = json.loads(found) if isinstance(found, str) else found
                self._user = Identity(subject, frozenset(roles), claims, None if scopes is None else frozenset(scopes))
        return self._user

    @property
    def baggage(self) -> bool:
        """Whether the caller sent baggage."""
        return BAGGAGE in bytes(self._head.metadata)

    def notes(self) -> SpanNotes:
        """Return the function's operations on the server span."""
        return (self.span.notes or []) if self.span is not None else []


class _WorkerProcess:
    """The functions of one worker, and its connection to the sidecar."""

    def __init__(self, setup: WorkerSetup, contract: Contract, database: Database | None, dirty_pages: int) -> None:
        self._database = database
        self._setup = setup
        self._contract = contract
        self._dirty_pages = dirty_pages
        self._watermark: Watermark
        self._propagation = Propagation()
        self._methods: list[tuple[Method, Callable[[Any], Awaitable[None]]]] = []
        self._connection: WorkerConnection
        self._drain: asyncio.Event
        self._service: ServiceContext
        self._began_ns = 0
        self._functions: Functions | LambdaFunctions | None = None
        self._load_error: Exception | None = None
        self._loaded: LoadTimes | None = None
        self.main: MainThread | None = None
        self.own_loop: ThreadEventLoop | None = None

    async def prepare(self, assignment: socket.socket) -> bool:
        """Set up what needs no functions, and wait for the connection; False if the fork server is gone."""
        setup = self._setup
        loop = asyncio.get_running_loop()
        self._drain = asyncio.Event()
        connection = self._connection = WorkerConnection(1, self._accept, self._on_control_frame)
        worker_spans.install(partial(self._send, FrameKind.SPANS), partial(self._send, FrameKind.METRICS))
        channel = Channel(chain(carry, self._onward), self._contract)
        publications = Publications(self._contract, setup.serves, setup.name) if setup.events else None
        self._service = ServiceContext(
            setup.name,
            channel=channel,
            blocking=BlockingChannel(channel, loop),
            database=self._database,
            settings=setup.settings,
            publisher=Publisher(publications, BrokerProxy(connection)) if publications is not None else None,
        )
        sock = await self._assigned_socket(assignment)
        if sock is None:
            return False
        self._began_ns = time_ns()
        await loop.create_connection(lambda: connection, sock=sock)
        return True

    def load(self) -> None:
        """Import the functions; ``start`` reports their faults."""
        setup = self._setup
        if setup.bytecode:
            sys.pycache_prefix, sys.dont_write_bytecode = setup.bytecode, False
        with ImportTimer() as timer:
            try:
                importlib.invalidate_caches()  # the fork server's listing of the project's folders may be outdated
                served = [self._contract.services[name] for name in setup.serves]
                self._functions = functions_of(setup.module, setup.function, served)
            except Exception as error:  # noqa: BLE001 - raised in ``start``
                self._load_error = error
        self._loaded = LoadTimes(self._began_ns, time_ns(), timer.slowest())

    async def start(self) -> bool:
        """Load the functions, unless ``load`` has, and run ``startup``; False if they cannot be used."""
        if self._loaded is None:
            self.load()
        try:
            functions = self._loaded_functions()
            handlers = functions.handlers(self._service, self._runner(functions)).values()
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
        ignore_stop_signals()  # again, because the module may have restored the default of signals
        gc.freeze()  # the collector was off since the fork, so all objects are long-lived ones that were just loaded
        gc.set_threshold(*GC_THRESHOLDS)
        gc.enable()
        return True

    def _loaded_functions(self) -> Functions | LambdaFunctions:
        """Return the functions, or raise the error of their import."""
        if self._functions is None:
            assert self._load_error is not None  # noqa: S101 - ``load`` sets one of the two
            raise self._load_error
        return self._functions

    def _runner(self, functions: Functions | LambdaFunctions) -> FunctionRunner:
        """Return where ``def`` functions run: in threads, or in the main thread.

        Lambda handlers run in the main thread, and so do functions in a worker that serves one call at a time.
        """
        single = self._setup.concurrency == 1
        if functions.has_blocking and (single or self._setup.function is not None):
            self.main = MainThread(None if single else ThreadPool(MAX_THREADS), self._restore)
        if self.main is None:
            return OverrunWatcher(ThreadPool(MAX_THREADS), self._report_overrun)
        return (SingleCallMainThread if single else OverrunWatcher)(self.main, self._report_overrun)

    def _restore(self) -> None:
        """Restore the signal handlers and the event loop of the main thread, which a function may have replaced."""
        ignore_stop_signals()
        if self.own_loop is not None:
            self.own_loop.restore()

    async def serve(self) -> bool:
        """Report READY and serve calls until the sidecar drains this worker; False if the sidecar is gone."""
        connection = self._connection
        assert self._loaded is not None  # noqa: S101 - set by ``start``
        connection.write(frames.frame(FrameKind.READY, 0, encode(self._loaded)))
        draining = asyncio.ensure_future(self._drain.wait())
        ends: list[asyncio.Future[Any]] = [connection.lost, draining]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        if connection.lost.done():
            return False
        await self._finish()
        if not self._watermark.reached(2 * _MAX_PREFAULT_CALLS):  # the ids of the sidecar's calls are even
            prefault.record(self._dirty_pages)
        return True

    async def leave(self) -> bool:
        """Run ``shutdown`` and close the database; False if ``shutdown`` failed."""
        succeeded = True
        try:
            if self._functions is not None and self._functions.shutdown is not None:
                await self._functions.shutdown(self._service)
        except Exception:
            log.exception("shutdown failed")
            succeeded = False
        if self._database is not None:
            await self._database.stop()
        self._connection.flush()
        return succeeded

    async def _assigned_socket(self, assignment: socket.socket) -> socket.socket | None:
        """Wait for the connection to the sidecar; None when the fork server is gone."""
        loop = asyncio.get_running_loop()
        readable = asyncio.Event()
        assignment.setblocking(False)  # noqa: FBT003 - the standard library's own signature
        loop.add_reader(assignment, readable.set)
        await readable.wait()
        loop.remove_reader(assignment)
        _, descriptors, _, _ = socket.recv_fds(assignment, 1, 2)
        assignment.close()
        if not descriptors:
            return None
        set_process_name(WORKER_NAME)
        connection, memory = descriptors
        self._watermark = Watermark(memory)
        os.close(memory)
        sock = socket.socket(fileno=connection)
        sock.setblocking(False)  # noqa: FBT003 - as above
        return sock

    async def _finish(self) -> None:
        """Wait until every served call has ended."""
        running = [call.task for call in self._connection.served_calls.values() if call.task is not None]
        if running:
            await asyncio.wait(running)

    async def _failed(self, faults: list[tuple[str, str]]) -> None:
        body = encode([(place, utf8(text)) for place, text in faults])
        self._connection.write(frames.frame(FrameKind.FAILED, 0, body))
        await self._connection.lost  # the sidecar closes it when it has read the frame

    # -- inbound calls --

    def _accept(self, connection: WorkerConnection, number: int, opened: frames.OpenBody) -> tuple[WorkerCall, Handler]:
        method, handler = self._methods[opened.method]
        return WorkerCall(connection, number, method, opened), handler

    async def _run(self, function: Handler, call: WorkerCall) -> None:
        self._watermark.advance(call.id)
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

    def _on_control_frame(self, kind: int, _: bytes) -> None:
        if kind == FrameKind.DRAIN:
            self._drain.set()
        elif kind == FrameKind.PING:
            self._connection.write(frames.frame(FrameKind.PONG, 0))
        elif kind == FrameKind.PROBE:
            debugger = debugger_attached(threading.get_ident())
            self._connection.write(frames.frame(FrameKind.PROBE_RESPONSE, 0, b"debugger" if debugger else b""))

    def _report_overrun(self, path: str) -> None:
        self._connection.write(frames.frame(FrameKind.OVERRUN, 0, path.encode()))

    def _send(self, kind: FrameKind, body: bytes) -> None:
        """Send spans and metrics, from any thread."""
        frame = frames.frame(kind, 0, body)
        if asyncio._get_running_loop() is self._connection.loop:  # noqa: SLF001 - get_running_loop raises without a loop
            self._connection.write(frame)
        else:  # another thread, which may have an event loop of its own
            self._connection.loop.call_soon_threadsafe(self._connection.write, frame)

    # -- onward calls --

    async def _onward(self, call: Call) -> None:
        """Handle a call of a stub, as the last handler of its chain: the sidecar makes the call."""
        method = call.method
        parent = current.get()
        metadata = call.metadata
        forward_client(parent, metadata)  # as mesh.auth.identify does in the sidecar's own process
        if parent is not None and is_retry(parent):  # as mesh.rpc.client.retry does in the sidecar's own process
            metadata.append(RETRY, b"1")
        message = None if method.client_streaming else await call.receive_one()
        span, state = worker_spans.current_span()
        streams = (method.client_streaming, method.server_streaming)
        head = OnwardHead(
            method.path, streams, span, state, metadata.pairs, call.wait_for_ready, call.compression,
            worker_spans.current_baggage(),
        )  # fmt: skip
        try:
            await self._connection.forward(call, 0, encode(head), message)
        except ConnectionError:
            raise Unavailable("the sidecar of this worker is gone") from None
