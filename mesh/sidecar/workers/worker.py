"""The sidecar's side of one worker: its life, its link, its room.

What a worker calls onward is answered here, by the sidecar's own outbound chain. Which calls it gets, and when it has
to go, is the pool's business.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from time import time_ns

from google.protobuf.empty_pb2 import Empty
from opentelemetry import context as otel

from mesh.call import Call, Handler, Metadata, current
from mesh.contract.model import Contract, Method
from mesh.sidecar.workers import frames
from mesh.sidecar.workers.call_headers import Loaded, Onward, decoder
from mesh.sidecar.workers.frames import Kind
from mesh.sidecar.workers.method_health import Standing
from mesh.sidecar.workers.spawner import Born
from mesh.sidecar.workers.worker_calls import Answered
from mesh.sidecar.workers.worker_connection import Link
from mesh.sidecar.workers.worker_events import METHOD, PUBLISH
from mesh.telemetry import worker_spans

__all__ = ["LoadError", "Rim", "State", "Worker"]

log = logging.getLogger("mesh.workers")

_PAGE = os.sysconf("SC_PAGE_SIZE")
_onward = decoder(Onward)
_loaded = decoder(Loaded)
_why = decoder(list[tuple[str, str]])


class State(Enum):
    """Where a worker is in its life."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    """It finishes what it has, and ends."""
    ENDED = "ended"


class Rim:
    """What every worker of a pool has behind it.

    Args:
        contract: The contract.
        onward: The chain of onward calls.
        spans: Takes a span that a worker has recorded.
        measured: Takes what a function has measured in a worker.
        publish: Answers a worker that publishes an event (``mesh.sidecar.workers.worker_events``); None when the
            service
            has nothing to do with events.
    """

    def __init__(
        self,
        contract: Contract,
        onward: Handler,
        spans: Callable[[bytes], None],
        measured: Callable[[bytes], None],
        publish: Handler | None,
    ) -> None:
        self.contract = contract
        self.onward = onward
        self.spans = spans
        self.measured = measured
        self.publish = publish

    async def answer(self, call: Call) -> None:
        """Make an onward call of a worker."""
        assert isinstance(call, OnwardCall)  # noqa: S101 - the link makes no other
        current.set(None)  # whoever it is made for is in its metadata; this task is nobody's
        head = call.head
        otel.attach(worker_spans.context(head.span, head.state, head.baggage))
        await self.onward(call)


class OnwardCall(Answered):
    """A call that a function makes, on its way through the sidecar."""

    __slots__ = ("compression", "head", "wait_for_ready")

    def __init__(self, link: Link, number: int, method: Method, opened: frames.Open, head: Onward) -> None:
        super().__init__(link, number, method, opened)
        self.head = head
        self.metadata = Metadata.from_wire(head.metadata)
        self.identity = None
        self.caller = None
        self.wait_for_ready = head.wait
        self.compression = head.compression


class Worker:
    """One worker.

    Args:
        born: Its process.
        rim: What is behind it.
        concurrency: Calls that it answers at once.

    Attributes:
        state: Where it is in its life.
        reserved: Places that are given away to calls which have not begun.
        given: Calls that it was given, ever.
        generation: Which code it runs: counts reloads.
        silent: Questions whether its loop turns that it has not answered.
        standing: The worst of the methods whose calls it has.
        verdict: Why it is being ended, for its callers; "" if it ends by itself.
        asked: When it was asked for, Unix time in nanoseconds.
        heard: When it was ready, by the same clock.
        loaded: Done when it is ready, with how long that took; or fails with ``LoadError``.
        on_lost: Called when its link is lost, with the methods that had begun and not ended.
        on_stuck: Called with the method when a thread of it goes on long after its call has ended.
    """

    def __init__(self, born: Born, rim: Rim, concurrency: int) -> None:
        self.born = born
        self.state = State.STARTING
        self.reserved = 0
        self.given = 0
        self.generation = 0
        self.standing = Standing.PROVEN
        self.verdict = ""
        self.asked = time_ns()
        self.heard = 0
        self.silent = 0
        self._pings = 0
        self._late = -1
        self.loaded: asyncio.Future[Loaded] = asyncio.get_running_loop().create_future()
        self.on_lost: Callable[[list[str]], None]
        self.on_stuck: Callable[[str], None]
        self._concurrency = concurrency
        self._dismissed = False
        self._rim = rim
        self.link = Link(0, self._answer, self._told)
        self.link.on_notes = worker_spans.replay

    async def connect(self) -> None:
        """Take the socket pair's end into the loop."""
        self.born.sock.setblocking(False)  # noqa: FBT003 - the standard library's own signature
        await self.link.loop.create_connection(lambda: self.link, sock=self.born.sock)
        self.link.lost.add_done_callback(lambda _: self._lost())

    @property
    def room(self) -> int:
        """Calls that it can take now."""
        if self.state is not State.READY or self.link.lost.done():
            return 0
        return self._concurrency - len(self.link.asked) - self.reserved

    @property
    def busy(self) -> int:
        """Calls that it has, cancelled ones that have not ended included."""
        return len(self.link.asked) + self.reserved

    @property
    def pid(self) -> int:
        """Its process id; 0 while it is not known."""
        pid = self.born.pid
        return pid.result() if pid.done() and not pid.cancelled() else 0

    def begun(self) -> list[str]:
        """Return the methods of the calls that have begun in it and not ended."""
        return [exchange.path for exchange in self.link.asked.values() if self.born.begun.reached(exchange.id)]

    def beside(self, call: int) -> bool:
        """Return whether a call that was lost with it was beside others that had begun, or it was ended for another."""
        return self.verdict != "" or any(
            exchange.id != call and self.born.begun.reached(exchange.id) for exchange in self.link.left
        )

    def memory(self) -> int:
        """Return its resident size, bytes; 0 if it cannot be known."""
        try:
            return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * _PAGE
        except (OSError, IndexError):
            return 0

    async def how(self) -> str:
        """Return in words how it ended, once that is known."""
        done, _ = await asyncio.wait([self.born.ended], timeout=2.0)
        return str(self.born.ended.result()) if done else "it closed its connection"

    def drain(self) -> None:
        """Take no more calls, and end when those that it has are over."""
        if self.state is State.READY:
            self.state = State.DRAINING
        self.settle()

    def settle(self) -> None:
        """Tell a draining worker to end, once it has no calls any more."""
        if self.state is State.DRAINING and not self.busy and not self._dismissed:
            self._dismissed = True
            self.link.write(frames.frame(Kind.DRAIN, 0))

    def ping(self) -> int:
        """Ask whether its loop turns; returns the number of the question."""
        self.silent += 1
        self._pings += 1
        self.link.write(frames.frame(Kind.PING, 0))
        return self._pings

    def turned(self, ping: int) -> bool:
        """Return whether it has answered a question; it answers them in their order."""
        return self._pings - self.silent >= ping

    def watch(self) -> None:
        """Ask it if the newest call has not begun since the last look; to be called now and then."""
        newest = next(reversed(self.link.asked), -1)
        if newest >= 0 and newest == self._late and not self.silent and not self.born.begun.reached(newest):
            self.ping()
        self._late = newest

    def _lost(self) -> None:
        self.on_lost([exchange.path for exchange in self.link.left if self.born.begun.reached(exchange.id)])
        if not self.loaded.done():
            self.loaded.set_exception(LoadError([("", "the process ended while it was loading")]))
            self.loaded.exception()  # whoever waits gets it; nobody has to

    def _told(self, kind: int, body: bytes) -> None:
        if kind == Kind.SPANS:
            self._rim.spans(body)
        elif kind == Kind.MEASURED:
            self._rim.measured(body)
        elif kind == Kind.PONG:
            self.silent -= 1
        elif kind == Kind.STUCK:
            self.on_stuck(body.decode())
        elif kind == Kind.READY and not self.loaded.done():
            self.heard = time_ns()
            self.loaded.set_result(_loaded(body))
        elif kind == Kind.FAILED and not self.loaded.done():
            self.loaded.set_exception(LoadError(_why(body)))
            self.loaded.exception()
            self.link.close()

    def _answer(self, link: Link, number: int, opened: frames.Open) -> tuple[Answered, Handler]:
        if opened.method == PUBLISH and self._rim.publish is not None:
            return Answered(link, number, METHOD, opened), self._rim.publish
        head = _onward(opened.head)
        method = self._rim.contract.methods.get(head.path)
        if method is None or (method.client_streaming, method.server_streaming) != head.streams:
            service, _, name = head.path.strip("/").rpartition("/")
            client, server = head.streams
            method = Method(name, service, head.path, Empty, Empty, client_streaming=client, server_streaming=server)
        return OnwardCall(link, number, method, opened, head), self._rim.answer


class LoadError(Exception):
    """A worker could not load its functions.

    Attributes:
        faults: Place and text of each fault.
    """

    def __init__(self, faults: list[tuple[str, str]]) -> None:
        super().__init__("; ".join(f"{place}: {text}" if place else text for place, text in faults))
        self.faults = faults
