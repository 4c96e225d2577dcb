"""The sidecar's side of one worker: its state, its connection, its free permits.

The sidecar's own outbound chain makes the worker's onward calls. The pool decides which calls the worker gets, and the
lifecycle when it has to end.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Iterable
from enum import Enum
from pathlib import Path
from time import time_ns

from google.protobuf.empty_pb2 import Empty
from opentelemetry import context as otel

from mesh.call import Call, Handler, Metadata, current
from mesh.contract.model import Contract, Method
from mesh.liveness import SilenceTimer, probe_interval, stopped, traced
from mesh.sidecar.workers import frames
from mesh.sidecar.workers.frame_payloads import LoadTimes, OnwardHead, decoder
from mesh.sidecar.workers.frames import FrameKind
from mesh.sidecar.workers.method_health import MethodHealth
from mesh.sidecar.workers.spawner import SpawnedProcess
from mesh.sidecar.workers.worker_calls import PendingCall, ServedCall
from mesh.sidecar.workers.worker_connection import WorkerConnection
from mesh.sidecar.workers.worker_events import PUBLISH_METHOD, PUBLISH_METHOD_NUMBER
from mesh.telemetry import worker_spans

__all__ = ["LoadError", "SidecarBackend", "Worker", "WorkerState"]

_LIVENESS_CHECK_INTERVAL = 1.0
"""Seconds between two calls of ``hangs`` at most."""
_PAGE_SIZE = os.sysconf("SC_PAGE_SIZE")
_onward = decoder(OnwardHead)
_load_times = decoder(LoadTimes)
_load_faults = decoder(list[tuple[str, str]])


class WorkerState(Enum):
    """State of a worker."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    """It finishes the calls that it has, and ends."""
    ENDED = "ended"


class SidecarBackend:
    """The sidecar's services for its workers.

    Args:
        contract: The contract.
        onward: The chain of onward calls.
        spans: Records a span of a worker.
        metrics: Records metrics of a worker.
        publish: Handler of publish calls (``mesh.sidecar.workers.worker_events``); None if the service has no events.
    """

    def __init__(
        self,
        contract: Contract,
        onward: Handler,
        spans: Callable[[bytes], None],
        metrics: Callable[[bytes], None],
        publish: Handler | None,
    ) -> None:
        self.contract = contract
        self.onward = onward
        self.spans = spans
        self.metrics = metrics
        self.publish = publish

    async def make_call(self, call: Call) -> None:
        """Make an onward call of a worker."""
        assert isinstance(call, OnwardCall)  # noqa: S101 - ``Worker`` makes no other
        current.set(None)  # the user is in the call's metadata; this task belongs to no inbound call
        head = call.head
        otel.attach(worker_spans.context(head.span, head.state, head.baggage))
        await self.onward(call)


class OnwardCall(ServedCall):
    """A call that a function in a worker makes, on its way through the sidecar."""

    __slots__ = ("compression", "head", "wait_for_ready")

    def __init__(
        self, connection: WorkerConnection, number: int, method: Method, opened: frames.OpenBody, head: OnwardHead
    ) -> None:
        super().__init__(connection, number, method, opened)
        self.head = head
        self.metadata = Metadata.from_wire(head.metadata)
        self.identity = None
        self.caller = None
        self.wait_for_ready = head.wait
        self.compression = head.compression


class Worker:
    """One worker.

    Args:
        process: Its process.
        backend: The sidecar's services for it.
        concurrency: Calls that it serves at once.

    Attributes:
        state: Its state.
        reserved: Permits reserved for calls that it has not been given yet.
        calls_given: Calls that it was ever given.
        generation: The generation of its code; each reload starts a new one.
        unanswered_pings: Pings that it has not responded to.
        health: The worst health of the methods whose calls it has.
        end_reason: Why the sidecar ends it, for its callers; "" if the sidecar does not.
        requested_ns: When it was requested, Unix time in nanoseconds.
        ready_ns: When it was ready, by the same clock.
        loaded: Done when it is ready; fails with ``LoadError``.
        on_lost: Called when its connection is lost, with the methods whose functions had started and not ended.
        on_overrun: Called with the method of a function that goes on long after its call has ended.
    """

    def __init__(self, process: SpawnedProcess, backend: SidecarBackend, concurrency: int) -> None:
        self.process = process
        self.state = WorkerState.STARTING
        self.reserved = 0
        self.calls_given = 0
        self.generation = 0
        self.health = MethodHealth.PROVEN
        self.end_reason = ""
        self.requested_ns = time_ns()
        self.ready_ns = 0
        self.unanswered_pings = 0
        self._pings = 0
        self._newest_at_last_check = -1
        self._probed_at = 0.0
        self._alive = True  # it has responded to the last liveness probe
        self._debugger = False
        self._silence: SilenceTimer | None = None
        self.loaded: asyncio.Future[LoadTimes] = asyncio.get_running_loop().create_future()
        self.on_lost: Callable[[list[str]], None]
        self.on_overrun: Callable[[str], None]
        self._concurrency = concurrency
        self._drain_sent = False
        self._backend = backend
        self.connection = WorkerConnection(0, self._accept, self._on_control_frame)
        self.connection.on_span_notes = worker_spans.replay

    async def connect(self) -> None:
        """Connect the event loop to the socket pair."""
        self.process.sock.setblocking(False)  # noqa: FBT003 - the standard library's own signature
        await self.connection.loop.create_connection(lambda: self.connection, sock=self.process.sock)
        self.connection.lost.add_done_callback(lambda _: self._lost())

    @property
    def free_permits(self) -> int:
        """Calls that it can take now."""
        if self.state is not WorkerState.READY or self.connection.lost.done():
            return 0
        return self._concurrency - len(self.connection.pending_calls) - self.reserved

    @property
    def busy(self) -> int:
        """Calls that it has, including cancelled ones that have not ended."""
        return len(self.connection.pending_calls) + self.reserved

    @property
    def pid(self) -> int:
        """Its process id; 0 while it is unknown."""
        pid = self.process.pid
        return pid.result() if pid.done() and not pid.cancelled() else 0

    def all_cancelled(self) -> bool:
        """Whether the callers of all its calls have given up."""
        return all(pending.cancelled for pending in self.connection.pending_calls.values())

    def started_methods(self) -> list[str]:
        """Return the methods of the calls whose functions have started and not ended."""
        return self._started(self.connection.pending_calls.values())

    def lost_with_others(self, call: int | None) -> bool:
        """Whether the loss may have another cause than this call.

        Another call had started too, or the sidecar ended the worker.
        """
        return self.end_reason != "" or any(
            pending.id != call and self.process.watermark.reached(pending.id) for pending in self.connection.lost_calls
        )

    def _started(self, calls: Iterable[PendingCall]) -> list[str]:
        return [pending.path for pending in calls if self.process.watermark.reached(pending.id)]

    def resident_bytes(self) -> int:
        """Return its resident size, bytes; 0 if it is unknown."""
        try:
            return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * _PAGE_SIZE
        except (OSError, IndexError):
            return 0

    async def exit_description(self) -> str:
        """Return how it ended, in words; waits a moment until that is known."""
        done, _ = await asyncio.wait([self.process.ended], timeout=2.0)
        return str(self.process.ended.result()) if done else "it closed its connection"

    def drain(self) -> None:
        """Take no more calls, and end when those that it has are over."""
        if self.state is WorkerState.READY:
            self.state = WorkerState.DRAINING
        self.finish_drain()

    def finish_drain(self) -> None:
        """Tell a draining worker to end, if it has no calls any more."""
        if self.state is WorkerState.DRAINING and not self.busy and not self._drain_sent:
            self._drain_sent = True
            self.connection.write(frames.frame(FrameKind.DRAIN, 0))

    def ping(self) -> int:
        """Send a ping to its event loop; return the number of the ping."""
        self.unanswered_pings += 1
        self._pings += 1
        self.connection.write(frames.frame(FrameKind.PING, 0))
        return self._pings

    def has_answered(self, ping: int) -> bool:
        """Whether it has responded to a ping; it responds in order."""
        return self._pings - self.unanswered_pings >= ping

    def check_progress(self) -> None:
        """Ping it if the function of the newest call has not started since the last check; called periodically."""
        newest = next(reversed(self.connection.pending_calls), -1)
        seen_before = newest >= 0 and newest == self._newest_at_last_check
        if seen_before and not self.unanswered_pings and not self.process.watermark.reached(newest):
            self.ping()
        self._newest_at_last_check = newest

    def hangs(self, now: float, timeout: float) -> bool:
        """Return whether its event loop has not turned for a time; called periodically, and sends liveness probes.

        A function may block the event loop as long as its call has time. So the time counts only while no function has
        started, or while the process is stopped.

        Args:
            now: The time, seconds.
            timeout: Seconds without a response after which it hangs.
        """
        if self.state is not WorkerState.READY:  # the start and the end have limits of their own
            return False
        if self._silence is None:
            self._silence = SilenceTimer(timeout, now, _LIVENESS_CHECK_INTERVAL)
        alive = self._alive or self._debugger or (bool(self.started_methods()) and not stopped(self.pid))
        if self._alive and now - self._probed_at >= probe_interval(timeout):
            self._alive, self._probed_at = False, now
            self.connection.write(frames.frame(FrameKind.PROBE, 0))
        return self._silence.check(now, answered=alive) and not traced(self.pid)

    def abort(self) -> None:
        """End it by SIGABRT, which writes its stacks to the log."""
        for number in (signal.SIGABRT, signal.SIGCONT):  # a stopped process handles no other signal
            if self.pid and not self.process.ended.done():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.pid, number)

    def _lost(self) -> None:
        self.on_lost(self._started(self.connection.lost_calls))
        if not self.loaded.done():
            self.loaded.set_exception(LoadError([("", "the process ended while it was loading")]))
            self.loaded.exception()  # marks it as retrieved, because maybe no task waits

    def _on_control_frame(self, kind: int, body: bytes) -> None:
        if kind == FrameKind.SPANS:
            self._backend.spans(body)
        elif kind == FrameKind.METRICS:
            self._backend.metrics(body)
        elif kind == FrameKind.PONG:
            self.unanswered_pings -= 1
        elif kind == FrameKind.PROBE_RESPONSE:
            self._alive, self._debugger = True, bool(body)
        elif kind == FrameKind.OVERRUN:
            self.on_overrun(body.decode())
        elif kind == FrameKind.READY and not self.loaded.done():
            self.ready_ns = time_ns()
            self.loaded.set_result(_load_times(body))
        elif kind == FrameKind.FAILED and not self.loaded.done():
            self.loaded.set_exception(LoadError(_load_faults(body)))
            self.loaded.exception()
            self.connection.close()

    def _accept(self, connection: WorkerConnection, number: int, opened: frames.OpenBody) -> tuple[ServedCall, Handler]:
        if opened.method == PUBLISH_METHOD_NUMBER and self._backend.publish is not None:
            return ServedCall(connection, number, PUBLISH_METHOD, opened), self._backend.publish
        head = _onward(opened.head)
        method = self._backend.contract.methods.get(head.path)
        if method is None or (method.client_streaming, method.server_streaming) != head.streams:
            service, _, name = head.path.strip("/").rpartition("/")
            client, server = head.streams
            method = Method(name, service, head.path, Empty, Empty, client_streaming=client, server_streaming=server)
        return OnwardCall(connection, number, method, opened, head), self._backend.make_call


class LoadError(Exception):
    """A worker could not load its functions.

    Attributes:
        faults: Place and text of each fault.
    """

    def __init__(self, faults: list[tuple[str, str]]) -> None:
        super().__init__("; ".join(f"{place}: {text}" if place else text for place, text in faults))
        self.faults = faults
