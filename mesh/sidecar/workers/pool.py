"""The pool: a handler that has each call answered by the worker with the most room.

It stands where the functions would, behind the unchanged inbound chain. A call waits while there is no room, and at
zero workers while one starts; a worker that ends takes down only what had begun in it.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import sys
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mesh.call import Call, Handler
from mesh.contract import Contract, Method
from mesh.errors import Unavailable
from mesh.faults import Fault, Faults
from mesh.sidecar.workers import frames
from mesh.sidecar.workers.frames import Kind
from mesh.sidecar.workers.heads import AskedOut, encode
from mesh.sidecar.workers.link import LostError
from mesh.sidecar.workers.nursery import Nursery
from mesh.sidecar.workers.setup import Setup
from mesh.sidecar.workers.worker import LoadError, Rim, State, Worker
from mesh.telemetry import relay

if TYPE_CHECKING:
    from mesh.threads import Threads
    from mesh.workers_table import Workers

__all__ = ["Pool"]

log = logging.getLogger("mesh.workers")

GRACE = 2.0
"""Seconds that a function may go on after its call was cancelled."""
TRIES = 3
"""Workers that may die under one call before it is given up."""


class Pool:
    """The workers of one service.

    Args:
        contract: The contract.
        setup: What they host.
        spec: ``workers`` of mesh.toml.
        onward: The chain of onward calls.
        spans: Takes a span that a worker has recorded.
    """

    def __init__(
        self, contract: Contract, setup: Setup, spec: Workers, onward: Handler, spans: Callable[[bytes], None]
    ) -> None:
        self._contract = contract
        self._setup = setup
        self._spec = spec
        self._nursery = Nursery(setup)
        self._rim = Rim(contract, onward, spans)
        methods = [method for name in setup.serves for method in contract.services[name].methods.values()]
        self._index = {method.path: index for index, method in enumerate(methods)}
        self._methods = methods
        self._workers: list[Worker] = []
        self._waiting: deque[asyncio.Future[Worker]] = deque()
        self._starting = 0
        self._context = contextvars.Context()
        self._tasks: set[asyncio.Task[Any]] = set()

    # -- what a sidecar asks of functions --

    def handlers(self, *_: object) -> dict[str, tuple[Method, Handler]]:
        """Return path → (method, handler) for every method."""
        limit = float(self._spec.timeout)
        return {
            method.path: (method if method.timeout is not None else replace(method, timeout=limit), self)
            for method in self._methods
        }

    async def startup(self, *_: object) -> None:
        """Start the fork server and the first worker, so that what is wrong with the functions is said now.

        Raises:
            Faults: The functions cannot be loaded.
        """
        self._context = contextvars.copy_context()
        await self._nursery.ready()
        try:
            await self._spawn()
        except LoadError as error:
            await self._nursery.stop()
            raise Faults([Fault(place or self._setup.module, text) for place, text in error.faults]) from None

    async def shutdown(self, *_: object) -> None:
        """End every worker and the fork server."""
        for worker in list(self._workers):
            self._retire(worker)
        ending = [worker.born.ended for worker in self._workers]
        if ending:
            await asyncio.wait(ending, timeout=GRACE)
        await self._nursery.stop()

    # -- calls --

    async def __call__(self, call: Call) -> None:
        """Have a worker answer the call.

        Raises:
            StatusError: The function's status; UNAVAILABLE when its worker ended.
        """
        method = call.method
        message = None if method.client_streaming else await call.receive_one()
        identity = call.identity
        span, state = relay.current_span()
        head = encode(
            AskedOut(
                span,
                state,
                call.caller,
                None if identity is None else (identity.subject, list(identity.roles), dict(identity.claims)),
                call.metadata.pairs,
            )
        )
        index = self._index[method.path]
        for tries in range(TRIES, 0, -1):
            worker = self._most_room()
            if worker is None:
                worker = await self._wait()
                worker.reserved -= 1
            worker.given += 1
            try:
                await worker.link.ask(call, index, head, message)
            except LostError as lost:
                untouched = lost.call < 0 or not worker.born.begun.reached(lost.call)
                again = untouched or (method.idempotent and message is not None and not call.headers_sent)
                if again and message is not None and tries > 1:
                    continue
                raise Unavailable(await self._why(worker)) from None
            else:
                return

    def _most_room(self) -> Worker | None:
        if self._waiting:
            return None
        best, most = None, 0
        for worker in self._workers:
            room = worker.room
            if room > most:
                best, most = worker, room
        return best

    async def _wait(self) -> Worker:
        place: asyncio.Future[Worker] = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        if not self._starting and len(self._workers) < self._spec.max:
            self._background(self._spawn())
        try:
            return await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                worker = place.result()
                worker.reserved -= 1
                self._freed(worker)
            elif place in self._waiting:
                self._waiting.remove(place)
            raise

    def _freed(self, worker: Worker) -> None:
        """A worker has room: give it what waits."""
        while self._waiting and worker.room > 0:
            place = self._waiting.popleft()
            if not place.done():
                worker.reserved += 1
                place.set_result(worker)
        if worker.state is State.DRAINING and worker.busy == 0:
            worker.link.write(frames.frame(Kind.DRAIN, 0))

    async def _why(self, worker: Worker) -> str:
        if worker.verdict:
            return f"the worker process that ran this function was ended: {worker.verdict}"
        return f"the worker process that ran this function ended ({await worker.how()})"

    # -- workers --

    async def _spawn(self) -> Worker:
        self._starting += 1
        try:
            await self._nursery.ready()
            worker = Worker(self._nursery.fork(), self._rim, self._spec.concurrency)
            worker.link.on_end = lambda: self._freed(worker)
            worker.on_stuck = lambda: self._retire(worker)
            await worker.connect()
            await worker.loaded
        finally:
            self._starting -= 1
        worker.state = State.READY
        self._workers.append(worker)
        worker.born.ended.add_done_callback(lambda _: self._ended(worker))
        self._freed(worker)
        return worker

    def _retire(self, worker: Worker) -> None:
        worker.state = State.DRAINING
        self._freed(worker)

    def _ended(self, worker: Worker) -> None:
        worker.state = State.ENDED
        if worker in self._workers:
            self._workers.remove(worker)
        worker.link.close()
        worker.born.begun.close()

    def _background(self, work: Coroutine[Any, Any, Any]) -> None:
        task = asyncio.get_running_loop().create_task(work, context=self._context)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
