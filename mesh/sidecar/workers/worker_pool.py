"""Worker pool: a handler that forwards each call to the worker with the most free permits.

It stands where the functions would, behind the unchanged inbound chain. A call waits while no worker has a free permit,
and while the first worker starts. A worker that dies takes down only calls whose function had started. Methods that
kill workers share none with other methods (``worker_choice``), if ``max`` allows two.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from time import monotonic, time_ns
from typing import TYPE_CHECKING

import msgspec
from opentelemetry import trace

from mesh.call import Call, Handler, note_wait
from mesh.contract.model import Contract, Method
from mesh.errors import StatusError, Unavailable
from mesh.events.consume.delivery_call import DeliveryCall
from mesh.faults import Fault, Faults
from mesh.layers.concurrency import queue_full
from mesh.layers.fair_queue import FairQueue, QueueFull, Share, Shares, Waiter
from mesh.sidecar.workers.frame_payloads import call_head
from mesh.sidecar.workers.lifecycle import WorkerLifecycle
from mesh.sidecar.workers.method_health import MethodHealth, MethodHealthTracker
from mesh.sidecar.workers.scaling import STABLE_SECONDS, DemandRecorder, workers_needed
from mesh.sidecar.workers.spawner import Spawner
from mesh.sidecar.workers.worker import LoadError, SidecarBackend, Worker
from mesh.sidecar.workers.worker_calls import ConnectionLostError
from mesh.sidecar.workers.worker_choice import choose
from mesh.sidecar.workers.worker_events import publish_handler
from mesh.sidecar.workers.worker_setup import WorkerSetup

if TYPE_CHECKING:
    from mesh.config.manifest import WorkersConfig
    from mesh.events.cloudevents import Event

__all__ = ["WorkerPool"]

MAX_ATTEMPTS = 5
"""Workers that may die under one call before it fails."""
SEPARATION_TIMEOUT = 0.2
"""Seconds that a call waits for a worker without calls of another health, while one with such calls has a permit."""
DECISION_DELAY = 0.02
"""Seconds between two scaling decisions under load, because each reads a minute of samples."""
BUSY_CHECK_INTERVAL, IDLE_CHECK_INTERVAL = 0.1, 1.0
"""Seconds between two checks of the workers' memory and number, while there are calls and while there are none."""


class _QueuedCall(Waiter):
    """A call in the queue."""

    __slots__ = ("method", "worker")

    def __init__(self, method: str, shares: Shares) -> None:
        super().__init__(shares)
        self.method = method
        self.worker: asyncio.Future[Worker] = asyncio.get_running_loop().create_future()


class WorkerPool:
    """The workers of one service, as a handler.

    Args:
        contract: The contract.
        setup: The service, as workers host it.
        spec: ``workers`` of mesh.toml.
        queue: Calls that may wait.
        onward: The chain of onward calls.
        spans: Records a span of a worker.
        metrics: Records metrics of a worker.
        publish: Publishes an event; None for a service without events.
        liveness_timeout: Seconds after which a worker or fork server that does not respond is replaced; None: never.

    Attributes:
        spawner: The client of its fork server.
        lifecycle: Its workers.
    """

    def __init__(
        self,
        contract: Contract,
        setup: WorkerSetup,
        spec: WorkersConfig,
        *,
        queue: int,
        onward: Handler,
        spans: Callable[[bytes], None],
        metrics: Callable[[bytes], None],
        publish: Callable[[Event], Awaitable[None]] | None = None,
        liveness_timeout: float | None = None,
    ) -> None:
        self._module = setup.module
        self._spec = spec
        methods = [method for name in setup.serves for method in contract.services[name].methods.values()]
        self._methods = methods
        self._index = {method.path: index for index, method in enumerate(methods)}
        self._queue: FairQueue[_QueuedCall] = FairQueue(spec.max * spec.concurrency, queue)
        self._shares: dict[str, Shares] = {method.path: (Share(),) for method in methods}
        self._demand = DemandRecorder(monotonic())
        self._health = MethodHealthTracker(self._index)
        self._separated: set[Worker] = set()  # those with calls of methods that are not proven
        self._min_workers = 0  # so that calls of different health need not share a worker
        self._min_workers_until = 0.0
        self._mix_at = 0.0  # when new and proven methods may share a worker; 0: no call waits for that
        self._demand_changed = False
        publishing = None if publish is None else publish_handler(publish)
        self.spawner = Spawner(msgspec.structs.replace(setup, concurrency=spec.concurrency))
        self.lifecycle = WorkerLifecycle(
            self.spawner, SidecarBackend(contract, onward, spans, metrics, publishing), spec,
            liveness_timeout=liveness_timeout,
            on_call_end=self._call_ended, on_capacity=self._dispatch, on_death=self._record_death,
        )  # fmt: skip
        self._tracer = trace.get_tracer("mesh.workers")
        self._decision_timer: asyncio.TimerHandle | None = None
        self._check_timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()

    # -- the interface of functions to a sidecar --

    def handlers(self, *_: object) -> dict[str, tuple[Method, Handler]]:
        """Return path → (method, handler) for every method; a method without a timeout has that of ``workers``."""
        limit = float(self._spec.timeout)
        return {method.path: (replace(method, timeout=method.time_limit(limit)), self) for method in self._methods}

    def prepare(self) -> None:
        """Start the fork server now, at the same time as everything else that precedes the first worker."""
        self.lifecycle.background(self.spawner.prepare())

    async def startup(self, *_: object) -> None:
        """Start the fork server and a first worker, so that faults of the functions are reported now.

        Raises:
            Faults: The functions cannot be loaded, or no worker can be started.
        """
        self._demand.change(1, monotonic())  # keeps the first worker for `idle`
        try:
            await self.lifecycle.start()
        except LoadError as error:
            await self.lifecycle.stop()
            raise Faults([Fault(place or self._module, text) for place, text in error.faults]) from None
        except OSError as error:
            await self.lifecycle.stop()
            raise Faults([Fault(self._module, f"no worker can be started: {error}")]) from None
        self._note_demand()
        self._check_workers()

    async def shutdown(self, *_: object) -> None:
        """End every worker and the fork server."""
        for timer in (self._decision_timer, self._check_timer):
            if timer is not None:
                timer.cancel()
        await self.lifecycle.stop()

    async def reload(self) -> None:
        """Replace every worker by one with the current code; no call is lost (see ``WorkerLifecycle.reload``)."""
        await self.lifecycle.reload()
        self._health.reset()

    # -- calls --

    async def __call__(self, call: Call) -> None:
        """Forward the call to a worker.

        Raises:
            StatusError: The function's status.
            Unavailable: The worker died, or none can be started.
            ResourceExhausted: The queue is full.
        """
        method = call.method
        message = None if method.client_streaming else await call.receive_one()
        delivery = _delivery(call)
        head = call_head(call)
        path = method.path
        index = self._index[path]
        attempts = MAX_ATTEMPTS
        while True:
            worker = self._choose(path)
            if worker is None or not self._queue.enter(self._shares[path]):
                worker = await self._wait(path)
            else:
                note_wait(0.0)
            self._note_demand()
            self.lifecycle.count_call(worker)
            if delivery is not None:
                delivery.started, delivery.worker_lost_with_others = True, False
            try:
                await worker.connection.forward(call, index, head, message)
            except ConnectionLostError as lost:
                unsent = lost.call is None
                if unsent:  # the connection does not report the end of such a call
                    self._call_ended(path)
                attempts -= 1
                unstarted = lost.call is None or not worker.process.watermark.reached(lost.call)
                replayable = unsent or (message is not None and not call.headers_sent)
                retryable = unstarted or (method.idempotent and attempts > 0 and not self._health.retry_is_futile(path))
                if delivery is not None:
                    delivery.started = not unstarted
                    delivery.worker_lost_with_others = worker.lost_with_others(lost.call)
                if not (replayable and retryable):
                    raise Unavailable(await _lost_message(worker)) from None
            except StatusError:
                self._health.record_response(path)
                raise
            else:
                self._health.record_response(path)
                return

    def _choose(self, path: str, *, mixed: bool = False) -> Worker | None:
        """Return the worker that takes a call of the method now; None when the call has to wait."""
        health = self._health.health.get(path, MethodHealth.PROVEN)
        max_workers = self._spec.max
        if max_workers == 1 or not (health or self._separated or self._min_workers):
            best, permits = None, 0
            for worker in self.lifecycle.ready:
                free = worker.free_permits
                if free > permits:
                    if worker.unanswered_pings:
                        break
                    best, permits = worker, free
            else:
                return best
        for worker in list(self._separated):
            self._update_health(worker)
        found = choose(self.lifecycle.ready, health, max_workers=max_workers, mixed=mixed)
        if found is not None and health and max_workers > 1:
            found.health = max(health, found.health) if found.busy else health
            self._separated.add(found)
        return found

    def _update_health(self, worker: Worker) -> None:
        """Update the health of a worker by the calls that it has."""
        if not worker.reserved:
            known = self._health.health
            proven = MethodHealth.PROVEN
            worker.health = max((known.get(path, proven) for path in worker.connection.paths()), default=proven)
        (self._separated.add if worker.health else self._separated.discard)(worker)

    def _record_death(self, paths: Iterable[str]) -> None:
        """Record that a worker died, or has to be killed, while functions of these methods had started in it."""
        self._health.record_death(paths)
        if self._spec.max > 1:
            for worker in self.lifecycle.ready:
                self._update_health(worker)

    async def _wait(self, path: str) -> Worker:
        arrived_ns = time_ns()
        delay = self.lifecycle.restart_delay
        if delay and not self.lifecycle.count:
            raise _start_refusal(delay)
        queued = _QueuedCall(path, self._shares[path])
        began, all_busy = monotonic(), len(self.lifecycle.ready) >= self._spec.max  # else the call waits for a start
        try:
            displaced = self._queue.push(queued)
        except QueueFull:
            raise queue_full(self._queue.running, self._queue.size) from None
        if displaced is not None and not displaced.worker.done():  # else it was cancelled a moment ago
            displaced.worker.set_exception(queue_full(self._queue.running, self._queue.size))
        self._note_demand()
        self._dispatch()
        self._schedule_decision()
        try:
            worker = await queued.worker
        except asyncio.CancelledError:
            given = queued.worker.done() and not queued.worker.cancelled() and queued.worker.exception() is None
            if not self._queue.remove(queued) and given:
                self.lifecycle.release_permit(queued.worker.result())
                self._call_ended(path)
                self._dispatch()
            self._note_demand()
            raise
        finally:
            if all_busy:
                note_wait(monotonic() - began)
        worker.reserved -= 1
        if worker.ready_ns > arrived_ns and not worker.calls_given:
            self._record_cold_start(worker, arrived_ns)
        return worker

    def _dispatch(self) -> None:
        """Give waiting calls to workers with free permits; start missing workers."""
        if not self._queue.waiting:
            self._mix_at = 0.0
            if self.lifecycle.count < self._spec.min:
                self._schedule_decision()
            return
        mixed = 0 < self._mix_at <= self._loop.time()
        while self._queue.waiting:
            if all(worker.free_permits <= 0 for worker in self.lifecycle.ready):
                break
            queued = self._queue.pop(lambda waiting: self._choose(waiting.method, mixed=mixed) is not None)
            if queued is None:
                break
            if queued.worker.done():  # cancelled a moment ago
                self._queue.leave(queued.shares)
                continue
            worker = self._choose(queued.method, mixed=mixed)
            assert worker is not None  # noqa: S101 - ``pop`` has just chosen one, and nothing was awaited since
            worker.reserved += 1
            queued.worker.set_result(worker)
        if mixed or not self._queue.waiting:
            self._mix_at = 0.0
        elif not self._mix_at and any(worker.free_permits > 0 for worker in self.lifecycle.ready):
            self._mix_at = self._loop.time() + SEPARATION_TIMEOUT
            self._loop.call_later(SEPARATION_TIMEOUT, self._dispatch)
        if self._queue.waiting or self.lifecycle.count < self._spec.min:
            self._schedule_decision()

    def _call_ended(self, path: str) -> None:
        """Record that a call has left its worker."""
        self._queue.leave(self._shares[path])
        self._note_demand()

    def _note_demand(self) -> None:
        """Record the demand at the end of this turn of the event loop; a call that has ended by then does not count."""
        if not self._demand_changed:
            self._demand_changed = True
            self._loop.call_soon(self._record_demand)

    def _record_demand(self) -> None:
        self._demand_changed = False
        self._demand.change(self._queue.running + self._queue.waiting, monotonic())

    # -- the number of workers --

    def _schedule_decision(self) -> None:
        if self._decision_timer is None:
            self._decision_timer = self._loop.call_later(DECISION_DELAY if self.lifecycle.count else 0, self._decide)

    def _decide(self) -> None:
        self._decision_timer = None
        if self.lifecycle.restart_delay and not self.lifecycle.count:
            self._refuse_all()
        now = monotonic()
        self.lifecycle.scale(self._wanted(now))
        if self._check_timer is None and self.lifecycle.count:
            self._check_timer = self._loop.call_later(BUSY_CHECK_INTERVAL, self._check_workers)

    def _wanted(self, now: float) -> int:
        """Return how many workers there should be: for the demand, and for each kind of health at least one."""
        if self._demand_changed:
            self._record_demand()
        wanted = workers_needed(self._demand.samples(now), self._spec, now)
        if self._mix_at:
            self._min_workers = min(self._spec.max, len(self.lifecycle.ready) + 1)
            self._min_workers_until = now + min(STABLE_SECONDS, self._spec.idle)
        elif now >= self._min_workers_until:
            self._min_workers = 0
        return max(wanted, self._min_workers)

    def _check_workers(self) -> None:
        """Check the workers periodically, as long as there are any."""
        self._check_timer = None
        self.lifecycle.check_workers()
        self._decide()
        if self._check_timer is not None:
            self._check_timer.cancel()
            self._check_timer = None
        if self.lifecycle.alive or self.lifecycle.count:
            self._check_timer = self._loop.call_later(
                BUSY_CHECK_INTERVAL if self._queue.running else IDLE_CHECK_INTERVAL, self._check_workers
            )

    def _refuse_all(self) -> None:
        """Refuse every waiting call, because no worker can be started."""
        while (queued := self._queue.pop()) is not None:
            self._queue.leave(queued.shares)
            if not queued.worker.done():
                queued.worker.set_exception(_start_refusal(self.lifecycle.restart_delay))
        self._note_demand()

    # -- traces and messages --

    def _record_cold_start(self, worker: Worker, arrived_ns: int) -> None:
        """Record spans of the start of a worker in the trace of the call that waited for it since ``arrived_ns``."""
        loaded = worker.loaded.result()
        began = max(arrived_ns, worker.requested_ns)
        pid: dict[str, int | list[str]] = {"mesh.worker.pid": worker.pid}
        slowest = [f"{module} {seconds * 1000:.1f} ms" for module, seconds in loaded.imports]
        for name, begin, end, attributes in (
            ("fork", began, loaded.began_ns, pid),
            ("load", loaded.began_ns, loaded.loaded_ns, {**pid, "mesh.worker.slowest_imports": slowest}),
            ("connect", loaded.loaded_ns, worker.ready_ns, pid),
        ):
            start = max(begin, began)  # the call may have waited for a worker that was loading already
            span = self._tracer.start_span(name, start_time=start, attributes=attributes)
            span.end(end_time=max(start, end))


def _delivery(call: Call) -> DeliveryCall | None:
    """Return the call if it is a delivery; it begins when a worker has it."""
    if not isinstance(call, DeliveryCall):
        return None
    call.started = False
    return call


def _start_refusal(seconds: float) -> Unavailable:
    return Unavailable("no worker of this service can be started now", retry_after=max(1.0, round(seconds)))


async def _lost_message(worker: Worker) -> str:
    if worker.end_reason:
        return f"the worker process that ran this function was ended: {worker.end_reason}"
    return f"the worker process that ran this function ended ({await worker.exit_description()})"
