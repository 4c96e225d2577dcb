"""The pool: a handler that has each call answered by the worker with the most room.

It stands where the functions would, behind the unchanged inbound chain. A call waits while there is no room, and at
zero workers while one starts; a worker that ends takes down only what had begun in it. Methods that end their workers
share none with the others (``places``), as long as there may be two.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from time import monotonic, time_ns
from typing import TYPE_CHECKING

import msgspec
from opentelemetry import trace

from mesh.call import Call, Handler
from mesh.contract.model import Contract, Method
from mesh.errors import StatusError, Unavailable
from mesh.events.consume.delivery_call import DeliveryCall
from mesh.faults import Fault, Faults
from mesh.sidecar.workers.call_headers import head_of
from mesh.sidecar.workers.call_queue import Queue, full
from mesh.sidecar.workers.fork_setup import Setup
from mesh.sidecar.workers.lifecycle import Crew
from mesh.sidecar.workers.method_health import Records, Standing
from mesh.sidecar.workers.scaling import STABLE, Demand, decide
from mesh.sidecar.workers.spawner import Nursery
from mesh.sidecar.workers.worker import LoadError, Rim, Worker
from mesh.sidecar.workers.worker_calls import LostError
from mesh.sidecar.workers.worker_choice import choose
from mesh.sidecar.workers.worker_events import answering

if TYPE_CHECKING:
    from mesh.config.manifest import Workers
    from mesh.events.cloudevents import Event

__all__ = ["Pool"]

TRIES = 5
"""Workers that may die under one call before it is given up."""
PATIENCE = 0.2
"""Seconds that calls wait for a worker without calls of another standing, while one with such calls has room."""
SOON = 0.02
"""Seconds between two decisions under load: each looks at a minute of samples."""
BUSY, QUIET = 0.1, 1.0
"""Seconds between two looks at the workers' memory and number, while there are calls and while there are none."""


class _Place:
    """A call in the queue."""

    __slots__ = ("method", "worker")

    def __init__(self, method: str) -> None:
        self.method = method
        self.worker: asyncio.Future[Worker] = asyncio.get_running_loop().create_future()


class Pool:
    """The workers of one service, as a handler.

    Args:
        contract: The contract.
        setup: What they host.
        spec: ``workers`` of mesh.toml.
        queue: Calls that may wait.
        onward: The chain of onward calls.
        spans: Takes a span that a worker has recorded.
        measured: Takes what a function has measured in a worker.
        publish: Publishes an event; None when the service has to do with none.
    """

    def __init__(
        self,
        contract: Contract,
        setup: Setup,
        spec: Workers,
        *,
        queue: int,
        onward: Handler,
        spans: Callable[[bytes], None],
        measured: Callable[[bytes], None],
        publish: Callable[[Event], Awaitable[None]] | None = None,
    ) -> None:
        self._module = setup.module
        self._spec = spec
        methods = [method for name in setup.serves for method in contract.services[name].methods.values()]
        self._methods = methods
        self._index = {method.path: index for index, method in enumerate(methods)}
        self._queue: Queue[_Place] = Queue(queue, spec.max * spec.concurrency)
        self._demand = Demand(monotonic())
        self._records = Records(self._index)
        self._apart: set[Worker] = set()
        self._parted = 0
        self._parted_until = 0.0
        self._held = 0.0
        self._uncounted = False
        self.nursery = Nursery(msgspec.structs.replace(setup, concurrency=spec.concurrency))
        self.crew = Crew(
            self.nursery, Rim(contract, onward, spans, measured, None if publish is None else answering(publish)), spec,
            ended=self._left, room=self._room, blamed=self._blamed,
        )  # fmt: skip
        self._tracer = trace.get_tracer("mesh.workers")
        self._soon: asyncio.TimerHandle | None = None
        self._tick: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()

    # -- what a sidecar asks of functions --

    def handlers(self, *_: object) -> dict[str, tuple[Method, Handler]]:
        """Return path → (method, handler) for every method; one that says nothing has the pool's ``timeout``."""
        limit = float(self._spec.timeout)
        return {method.path: (replace(method, timeout=method.time_limit(limit)), self) for method in self._methods}

    def prepare(self) -> None:
        """Start the fork server now, beside all else that has to be done before the first worker may start."""
        self.crew.background(self.nursery.prepare())

    async def startup(self, *_: object) -> None:
        """Start the fork server and a first worker, so that what is wrong with the functions is said now.

        Raises:
            Faults: The functions cannot be loaded, or no worker can be started.
        """
        self._demand.change(1, monotonic())  # so the first one stays for `idle`
        try:
            await self.crew.start()
        except LoadError as error:
            await self.crew.stop()
            raise Faults([Fault(place or self._module, text) for place, text in error.faults]) from None
        except OSError as error:
            await self.crew.stop()
            raise Faults([Fault(self._module, f"no worker can be started: {error}")]) from None
        self._count()
        self._look()

    async def shutdown(self, *_: object) -> None:
        """End every worker and the fork server."""
        for timer in (self._soon, self._tick):
            if timer is not None:
                timer.cancel()
        await self.crew.stop()

    async def reload(self) -> None:
        """Replace every worker by one with the code as it is now; no call is lost (see ``Crew.reload``)."""
        await self.crew.reload()
        self._records.forget()

    # -- calls --

    async def __call__(self, call: Call) -> None:
        """Have a worker answer the call.

        Raises:
            StatusError: The function's status.
            Unavailable: Its worker ended, or none can be started.
            ResourceExhausted: Too many calls wait already.
        """
        method = call.method
        message = None if method.client_streaming else await call.receive_one()
        delivery = _delivery(call)
        head = head_of(call)
        path = method.path
        index = self._index[path]
        tries = TRIES
        while True:
            worker = self._free(path)
            if worker is None or not self._queue.enter(path):
                worker = await self._wait(path)
            self._count()
            self.crew.given(worker)
            if delivery is not None:
                delivery.started, delivery.worker_lost_with_others = True, False
            try:
                await worker.link.ask(call, index, head, message)
            except LostError as lost:
                if lost.call < 0:  # it was not even sent, so nothing tells that it has left
                    self._left(path)
                tries -= 1
                untouched = lost.call < 0 or not worker.born.begun.reached(lost.call)
                replayable = lost.call < 0 or (message is not None and not call.headers_sent)
                again = untouched or (method.idempotent and tries > 0 and not self._records.hopeless(path))
                if delivery is not None:
                    delivery.started = not untouched
                    delivery.worker_lost_with_others = worker.beside(lost.call)
                if not (replayable and again):
                    raise Unavailable(await _why(worker)) from None
            except StatusError:
                self._records.answered(path)
                raise
            else:
                self._records.answered(path)
                return

    def _free(self, path: str, *, mix: bool = False) -> Worker | None:
        """Return the worker that takes a call of the method now; None when it has to wait."""
        standing = self._records.standing.get(path, Standing.PROVEN)
        most = self._spec.max
        if most == 1 or not (standing or self._apart or self._parted):
            best, room = None, 0
            for worker in self.crew.ready:
                free = worker.room
                if free > room:
                    if worker.silent:
                        break
                    best, room = worker, free
            else:
                return best
        for worker in list(self._apart):
            self._look_at(worker)
        found = choose(self.crew.ready, standing, most=most, mix=mix)
        if found is not None and standing and most > 1:
            found.standing = max(standing, found.standing) if found.busy else standing
            self._apart.add(found)
        return found

    def _look_at(self, worker: Worker) -> None:
        """Find out whose calls a worker has."""
        if not worker.reserved:
            known = self._records.standing
            proven = Standing.PROVEN
            worker.standing = max((known.get(path, proven) for path in worker.link.paths()), default=proven)
        (self._apart.add if worker.standing else self._apart.discard)(worker)

    def _blamed(self, paths: Iterable[str]) -> None:
        """A worker ended, or has to, in which calls of these methods had begun."""
        self._records.died(paths)
        if self._spec.max > 1:
            for worker in self.crew.ready:
                self._look_at(worker)

    async def _wait(self, path: str) -> Worker:
        arrived = time_ns()
        broken = self.crew.broken
        if broken and not self.crew.count:
            raise _cannot_start(broken)
        place = _Place(path)
        lost = self._queue.push(path, place)
        if lost is not None and not lost.worker.done():  # else it was cancelled a moment ago
            lost.worker.set_exception(full(self._queue.running, self._queue.limit))
        self._count()
        self._room()
        self._decide_soon()
        try:
            worker = await place.worker
        except asyncio.CancelledError:
            given = place.worker.done() and not place.worker.cancelled() and place.worker.exception() is None
            if not self._queue.remove(path, place) and given:
                self.crew.given_back(place.worker.result())
                self._left(path)
                self._room()
            self._count()
            raise
        worker.reserved -= 1
        if worker.heard > arrived and not worker.given:
            self._tell(worker, arrived)
        return worker

    def _room(self) -> None:
        """Give the calls that wait to the workers that have room; what is missing is started."""
        if not self._queue.waiting:
            self._held = 0.0
            if self.crew.count < self._spec.min:
                self._decide_soon()
            return
        mix = 0 < self._held <= self._loop.time()
        while self._queue.waiting:
            if all(worker.room <= 0 for worker in self.crew.ready):
                break
            place = self._queue.pop(lambda path: self._free(path, mix=mix) is not None)
            if place is None:
                break
            if place.worker.done():  # cancelled a moment ago
                self._queue.leave(place.method)
                continue
            worker = self._free(place.method, mix=mix)
            assert worker is not None  # noqa: S101 - there was room, and nobody was asked in between
            worker.reserved += 1
            place.worker.set_result(worker)
        if mix or not self._queue.waiting:
            self._held = 0.0
        elif not self._held and any(worker.room > 0 for worker in self.crew.ready):
            self._held = self._loop.time() + PATIENCE
            self._loop.call_later(PATIENCE, self._room)
        if self._queue.waiting or self.crew.count < self._spec.min:
            self._decide_soon()

    def _left(self, path: str) -> None:
        """A call has left its worker."""
        self._queue.leave(path)
        self._count()

    def _count(self) -> None:
        """Note at the end of this turn of the loop that the demand is another; what is gone by then was none."""
        if not self._uncounted:
            self._uncounted = True
            self._loop.call_soon(self._counted)

    def _counted(self) -> None:
        self._uncounted = False
        self._demand.change(self._queue.running + self._queue.waiting, monotonic())

    # -- how many workers --

    def _decide_soon(self) -> None:
        if self._soon is None:
            self._soon = self._loop.call_later(SOON if self.crew.count else 0, self._decide)

    def _decide(self) -> None:
        self._soon = None
        if self.crew.broken and not self.crew.count:
            self._refuse_all()
        now = monotonic()
        self.crew.scale(self._wanted(now))
        if self._tick is None and self.crew.count:
            self._tick = self._loop.call_later(BUSY, self._look)

    def _wanted(self, now: float) -> int:
        """Return how many workers there should be: for the demand, and for each kind of calls one."""
        if self._uncounted:
            self._counted()
        wanted = decide(self._demand.samples(now), self._spec, now)
        if self._held:
            self._parted = min(self._spec.max, len(self.crew.ready) + 1)
            self._parted_until = now + min(STABLE, self._spec.idle)
        elif now >= self._parted_until:
            self._parted = 0
        return max(wanted, self._parted)

    def _look(self) -> None:
        """Look after the workers, as long as there are any."""
        self._tick = None
        self.crew.watch()
        self._decide()
        if self._tick is not None:
            self._tick.cancel()
            self._tick = None
        if self.crew.all or self.crew.count:
            self._tick = self._loop.call_later(BUSY if self._queue.running else QUIET, self._look)

    def _refuse_all(self) -> None:
        """No worker can be started: nobody is left waiting for one."""
        while (place := self._queue.pop()) is not None:
            self._queue.leave(place.method)
            if not place.worker.done():
                place.worker.set_exception(_cannot_start(self.crew.broken))
        self._count()

    # -- what is said --

    def _tell(self, worker: Worker, arrived: int) -> None:
        """Record how the worker came to be, since the call that waited for it arrived, in that call's trace."""
        loaded = worker.loaded.result()
        began = max(arrived, worker.asked)
        told = {"mesh.worker.pid": worker.pid}
        slowest = [f"{module} {seconds * 1000:.1f} ms" for module, seconds in loaded.imports]
        for name, begun, end, more in (
            ("fork", began, loaded.began, {}),
            ("load", loaded.began, loaded.loaded, {"mesh.worker.slowest_imports": slowest}),
            ("connect", loaded.loaded, worker.heard, {}),
        ):
            start = max(begun, began)  # the call may have come to a worker that was loading already
            span = self._tracer.start_span(name, start_time=start, attributes={**told, **more})
            span.end(end_time=max(start, end))


def _delivery(call: Call) -> DeliveryCall | None:
    """Return the call if it is a delivery, which begins when a worker has it."""
    if not isinstance(call, DeliveryCall):
        return None
    call.started = False
    return call


def _cannot_start(seconds: float) -> Unavailable:
    return Unavailable("no worker of this service can be started now", retry_after=max(1.0, round(seconds)))


async def _why(worker: Worker) -> str:
    if worker.verdict:
        return f"the worker process that ran this function was ended: {worker.verdict}"
    return f"the worker process that ran this function ended ({await worker.how()})"
