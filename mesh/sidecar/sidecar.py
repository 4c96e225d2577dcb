"""Sidecar server: hosts the functions of one service and serves gRPC and Connect for them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Container, Hashable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Protocol

from opentelemetry import metrics
from opentelemetry.trace import get_tracer

from mesh.asgi import Receive, Scope, Send
from mesh.call import Call, Handler, Layer, chain, current
from mesh.events.consume.delivery_call import linked, once
from mesh.layers.deadline import deadline
from mesh.layers.drained_streams import DrainedStreams
from mesh.layers.recover import recover
from mesh.rpc.server.builtin_services import builtin_handlers
from mesh.rpc.server.caller_disconnect import CallerDisconnectWatcher
from mesh.rpc.server.clients.limits import DEFAULT_BUFFERS_BYTES, ClientLimits
from mesh.rpc.server.connect.dispatch import ConnectDispatch
from mesh.rpc.server.grpc_app import GrpcApp
from mesh.rpc.server.health_service import Health
from mesh.rpc.server.listener import CertificateFiles, Listener, ListenError
from mesh.rpc.server.reflection_service import Reflection
from mesh.text import text_of
from mesh.threads import MAX_THREADS, FunctionRunner, ThreadPool

if TYPE_CHECKING:
    from mesh.context import Service as ServiceContext
    from mesh.contract.model import Contract, Method
    from mesh.layers.concurrency import ConcurrencyLimit
    from mesh.main_thread import MainThread

__all__ = ["Sidecar", "caller_and_user"]


class FunctionHost(Protocol):
    """Handlers of a service's methods: ``mesh.function.Functions``, or a pool of workers."""

    @property
    def startup(self) -> Callable[[ServiceContext], Awaitable[None]] | None:
        """Awaited before the first call."""

    @property
    def shutdown(self) -> Callable[[ServiceContext], Awaitable[None]] | None:
        """Awaited after the last call."""

    def handlers(self, service: ServiceContext, threads: FunctionRunner) -> Mapping[str, tuple[Method, Handler]]:
        """Return path → (method, handler) for every method."""


class Sidecar:
    """One service of the mesh, hosted.

    Args:
        contract: The contract.
        serves: Full names of the services of the contract that it hosts.
        functions: Their functions, or the workers that host them.
        service: The service as functions see it; also the argument of the module's hooks.
        trace: The layer that records spans and metrics.
        trace_connect: The same for Connect calls; None: ``trace``.
        authenticate: The layer that verifies the caller and the user.
        authorize: The layer that decides whether they may call the method.
        concurrency_limit: The layer that bounds the calls in progress.
        stream_identity: Layers of streams that end them when the identity of their user does.
        listen: ``host:port``; port 0 picks a free one.
        fd: A listening socket to adopt instead.
        max_message: Largest request message, bytes.
        drain: Seconds that ``stop`` waits for calls in progress.
        threads: Where ``def`` functions run; None: in threads of its own.
        clients: Limits on what callers make the service wait for, and hold; None: the defaults.
        tls: Certificates of the listener, which requires client certificates; None: plain text.
        watched: Paths of streams that every component of the mesh keeps open. They take no permit, and end when the
            drain begins.

    Attributes:
        app: The gRPC server behind the listener.
        health: Its health service.
        deliveries: Path → handler of deliveries, for each method that has a trigger (``mesh.events.consume.delivery``).
    """

    def __init__(
        self,
        contract: Contract,
        serves: Sequence[str],
        functions: FunctionHost,
        service: ServiceContext,
        *,
        trace: Layer,
        authenticate: Layer,
        authorize: Layer,
        concurrency_limit: ConcurrencyLimit,
        trace_connect: Layer | None = None,
        stream_identity: Sequence[Layer] = (),
        listen: str = "127.0.0.1:0",
        fd: int | None = None,
        max_message: int = 4 * 2**20,
        drain: float = 10.0,
        threads: ThreadPool | MainThread | None = None,
        clients: ClientLimits | None = None,
        tls: CertificateFiles | None = None,
        watched: Container[str] = frozenset(),
    ) -> None:
        self._functions = functions
        self._service = service
        self._threads = ThreadPool(MAX_THREADS) if threads is None else threads
        self.health = Health(serves)
        self._measure_threads()
        self._watches = DrainedStreams()

        def answered_by(method: Method, function: Handler) -> Handler:
            streams = method.client_streaming or method.server_streaming
            ends = stream_identity if streams else ()
            bound = self._watches if method.path in watched else concurrency_limit
            return chain(recover, deadline, authenticate, *ends, authorize, bound, run, function)

        def delivered_to(function: Handler) -> Handler:
            return chain(trace, recover, deadline, linked, concurrency_limit, run, once, function)

        handlers = functions.handlers(service, self._threads)
        answers = {path: (method, answered_by(method, function)) for path, (method, function) in handlers.items()}
        builtin = builtin_handlers(self.health, Reflection(contract.files, serves))
        self.deliveries = {
            path: delivered_to(function) for path, (method, function) in handlers.items() if method.triggers
        }

        def traced(by: Layer) -> dict[str, tuple[Method, Handler]]:
            return {path: (method, chain(by, answer)) for path, (method, answer) in answers.items()} | builtin

        clients = clients or ClientLimits(buffers=max(DEFAULT_BUFFERS_BYTES, 2 * max_message), component="sidecar")
        by_connect = trace_connect or trace
        self.app = GrpcApp(
            traced(trace),
            max_message=max_message,
            trace=trace,
            clients=clients,
            connect=ConnectDispatch(traced(by_connect), trace=by_connect),
        )
        self._watched = CallerDisconnectWatcher(self.app)
        self._listener = Listener(
            self.app, listen, fd=fd, grpc=True, drain=drain, expire=self.app.expire, tls=tls, stall=clients.stall
        )

    async def start(self) -> str:
        """Run the module's ``startup``, listen, report SERVING; returns the bound ``host:port``.

        Raises:
            ListenError: The address cannot be listened on.
            Exception: What ``startup`` raised.
        """
        await self._startup()
        try:
            address = await self._listener.start()
        except ListenError:
            await self._shutdown()
            raise
        self.health.serving()
        return address

    async def renew(self, tls: CertificateFiles) -> None:
        """Present other certificates to new connections.

        Raises:
            ListenError: The files cannot be used. The sidecar goes on with the certificates that it has.
        """
        await self._listener.renew(tls)

    async def stop(self, *others: Awaitable[object]) -> None:
        """Report NOT_SERVING, stop accepting, finish the calls in progress, run the module's ``shutdown``.

        Args:
            others: Awaited before ``shutdown``, at the same time as the calls: the ends of deliveries.
        """
        self.health.drain()
        self._watches.drain()
        await asyncio.gather(self._listener.stop(), *others)
        await self._shutdown()

    async def asgi(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve calls under another ASGI server, which replaces ``start`` and ``stop`` (docs/servers.md).

        ``mesh.control.component.assembly`` starts the deliveries, not this method.
        """
        if scope["type"] != "lifespan":
            await self._watched(scope, receive, send)
            return
        await receive()
        try:
            await self._startup()
        except Exception as error:  # noqa: BLE001 - the server ends and logs the message
            await send({"type": "lifespan.startup.failed", "message": f"startup failed: {text_of(error)}"})
            return
        self.health.serving()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        self.health.drain()
        self._watches.drain()
        try:
            await self._shutdown()
        except Exception as error:  # noqa: BLE001 - as above
            await send({"type": "lifespan.shutdown.failed", "message": f"shutdown failed: {text_of(error)}"})
            return
        await send({"type": "lifespan.shutdown.complete"})

    def _measure_threads(self) -> None:
        meter = metrics.get_meter("mesh.sidecar")
        for field, description in (
            ("busy", "Threads that run a function."),
            ("queued", "Calls that wait for a thread."),
            ("abandoned", "Threads whose function goes on although its call has ended."),
        ):
            unit = "{call}" if field == "queued" else "{thread}"
            observe = partial(self._observe_threads, field)
            meter.create_observable_gauge(f"mesh.threads.{field}", [observe], unit, description)

    def _observe_threads(self, field: str, _: metrics.CallbackOptions) -> list[metrics.Observation]:
        return [metrics.Observation(getattr(self._threads.usage, field))]

    async def _startup(self) -> None:
        if self._functions.startup is not None:
            with get_tracer("mesh.sidecar").start_as_current_span("startup"):  # the spans of the hook form one trace
                await self._functions.startup(self._service)

    async def _shutdown(self) -> None:
        try:
            if self._functions.shutdown is not None:
                await self._functions.shutdown(self._service)
        finally:
            self._threads.stop()


async def run(call: Call, next: Handler) -> None:
    """Set the current call for everything that runs for it."""
    token = current.set(call)
    try:
        await next(call)
    finally:
        current.reset(token)


def caller_and_user(call: Call) -> tuple[Hashable | None, ...]:
    """Return the keys of the shares of a call at a sidecar: the calling service and the user."""
    return call.caller, None if call.identity is None else call.identity.subject
