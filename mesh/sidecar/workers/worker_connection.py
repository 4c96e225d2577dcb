"""One end of the socket pair between a sidecar and a worker; the same class at both ends.

It opens calls and serves calls. It writes once in a turn of the event loop, all frames at once. It keeps the unread
messages of a stream within a window. It knows neither functions nor processes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from typing import Any

from mesh.boundary import cancel_task
from mesh.call import Call, Handler
from mesh.errors import Cancelled, Code, Internal, StatusError
from mesh.rpc.status import pack_status, unpack_details
from mesh.sidecar.workers import frames
from mesh.sidecar.workers.frame_payloads import StatusExtra, decoder, encode
from mesh.sidecar.workers.frames import FrameKind
from mesh.sidecar.workers.worker_calls import (
    MIN_MESSAGE_BYTES,
    ConnectionLostError,
    PendingCall,
    ServedCall,
    SpanNotes,
    wake,
)  # fmt: skip
from mesh.telemetry.attribute_values import plain

__all__ = ["WorkerConnection"]

log = logging.getLogger("mesh.workers")

_status_extra = decoder(StatusExtra)
_pairs = decoder(list[tuple[bytes, bytes]])
_EMPTY_EXTRA = StatusExtra()
_CANCELLED = "the call was cancelled"


def _status_of(call: ServedCall, error: StatusError | None, notes: SpanNotes) -> bytes:
    """Return the STATUS frame of a call that has ended, with OK if ``error`` is None."""
    headers = [] if call.headers_sent else call.headers
    if error is not None:
        details = pack_status(error) if error.details else b""
        extra = encode(StatusExtra(error.message, details, error.where, headers, call.trailers, notes, call.peer))
        return frames.status_frame(call.id, int(error.code), extra, None)
    extra = encode(StatusExtra("", b"", "", headers, call.trailers, notes, call.peer))
    return frames.status_frame(call.id, 0, extra, call.response)


def _fallback_status(call: ServedCall, error: StatusError | None) -> bytes:
    """Return the frame if encoding failed: with replaced values in the span notes, or else as an internal error."""
    try:
        return _status_of(call, error, plain(call.notes()))
    except Exception:
        log.exception("%s: its status cannot be encoded", call.method.path)
        return frames.status_frame(call.id, int(Code.INTERNAL), encode(StatusExtra("internal error")), None)


def _ignore(*_: object) -> None:
    """Do nothing."""


class WorkerConnection(asyncio.Protocol):
    """One end of the connection.

    Args:
        first_id: The id of the first call that this end opens: 0 in the sidecar, 1 in the worker.
        accept: Returns the call of an OPEN frame, and its handler.
        on_control_frame: Called with every frame about the whole worker: kind, body.

    Attributes:
        pending_calls: The calls that this end opened and whose STATUS has not come, by id.
        served_calls: The calls that this end serves, by id.
        loop: Its event loop.
        lost: Done when the connection is lost.
        lost_calls: The ``pending_calls`` at that time.
        on_call_end: Called with the method of a pending call that has ended.
        on_call_cancelled: Called with the id of a pending call that was cancelled before its STATUS came.
        on_span_notes: Called with the operations of the other end's function on the current span.
    """

    def __init__(
        self,
        first_id: int,
        accept: Callable[[WorkerConnection, int, frames.OpenBody], tuple[ServedCall, Handler]],
        on_control_frame: Callable[[int, bytes], None],
    ) -> None:
        self._next_id = first_id
        self._accept = accept
        self._on_control_frame = on_control_frame
        self._reader = frames.FrameReader()
        self._out: list[bytes] = []
        self.loop = asyncio.get_running_loop()
        self._transport: Any = None
        self.pending_calls: dict[int, PendingCall] = {}
        self.served_calls: dict[int, ServedCall] = {}
        self.lost: asyncio.Future[None] = self.loop.create_future()
        self.lost_calls: list[PendingCall] = []
        self.on_call_end: Callable[[str], None] = _ignore
        self.on_call_cancelled: Callable[[int], None] = _ignore
        self.on_span_notes: Callable[[SpanNotes], None] = _ignore

    def paths(self) -> Iterator[str]:
        """Return the methods of the pending calls."""
        return (pending.path for pending in self.pending_calls.values())

    # -- the connection --

    def connection_made(self, transport: Any) -> None:
        """Begin to write."""
        self._transport = transport
        if self._out:
            self._flush()

    def connection_lost(self, error: Exception | None) -> None:  # noqa: ARG002 - the protocol's signature
        """End every call of both ends."""
        self._transport = None
        if not self.lost.done():
            self.lost.set_result(None)
        self.lost_calls = list(self.pending_calls.values())
        self.pending_calls.clear()
        for pending in self.lost_calls:
            pending.put(0, None)
            self.on_call_end(pending.path)
        for call in list(self.served_calls.values()):
            call.cancel()

    def close(self) -> None:
        """Close the connection."""
        if self._transport is not None:
            self._transport.abort()

    def write(self, frame: bytes) -> None:
        """Write a frame at the end of this turn of the loop."""
        if not self._out:
            self.loop.call_soon(self._flush)
        self._out.append(frame)

    def flush(self) -> None:
        """Write the collected frames now."""
        if self._out:
            self._flush()

    def _flush(self) -> None:
        out = self._out
        transport = self._transport
        if not out or transport is None:
            return
        self._out = []
        if not transport.is_closing():
            transport.write(out[0] if len(out) == 1 else b"".join(out))

    def data_received(self, data: bytes) -> None:
        """Act on the frames in ``data``."""
        try:
            for kind, call, body in self._reader.feed(data):
                self._act(kind, call, body)
        except Exception:
            log.exception("a frame between the sidecar and its worker could not be read")
            self.close()

    def _act(self, kind: int, number: int, body: bytes) -> None:  # noqa: C901 - one flat list of kinds
        if kind == 1:  # OPEN
            self._open(number, body)
            return
        if kind == 5:  # noqa: PLR2004 - STATUS
            pending = self.pending_calls.pop(number, None)
            if pending is not None:
                pending.put(5, body)
                self.on_call_end(pending.path)
            return
        if kind >= FrameKind.READY:
            self._on_control_frame(kind, body)
            return
        pending = self.pending_calls.get(number)
        if pending is not None:
            if kind == FrameKind.CREDIT:
                pending.credit += frames.parse_credit(body)
                wake(pending.credit_waiter)
            elif not pending.cancelled:
                pending.put(kind, body)
            return
        call = self.served_calls.get(number)
        if call is None:  # the call has ended, and this frame has crossed its STATUS
            return
        if kind == FrameKind.MESSAGE:
            call.put(body)
        elif kind == FrameKind.END:
            call.end()
        elif kind == FrameKind.CANCEL:
            call.cancel()
        elif kind == FrameKind.CREDIT:
            call.credit += frames.parse_credit(body)
            wake(call.credit_waiter)

    # -- served calls --

    def _open(self, number: int, body: bytes) -> None:
        call, handler = self._accept(self, number, frames.parse_open(body))
        self.served_calls[number] = call
        call.task = self.loop.create_task(self._run(call, handler))

    async def _run(self, call: ServedCall, handler: Handler) -> None:
        error: StatusError | None = None
        try:
            await handler(call)
        except StatusError as raised:
            error = raised
        except asyncio.CancelledError:  # by a CANCEL frame: ``recover`` has made a status of every other cancellation
            error = Cancelled(_CANCELLED)
        except BaseException:  # of a layer; the other end waits for a STATUS, whatever happened here
            log.exception("%s failed", call.method.path)
            error = Internal("internal error")
        finally:
            del self.served_calls[call.id]
        notes = call.notes()
        if error is None and not (call.headers or call.trailers or notes or call.peer):
            self.write(frames.status_frame(call.id, 0, b"", call.response))  # nearly every call
            return
        try:
            self.write(_status_of(call, error, notes))
        except Exception:  # noqa: BLE001 - a value that cannot be encoded; the other end waits for a STATUS
            self.write(_fallback_status(call, error))

    def end_unstarted(self, call: ServedCall) -> None:
        """End a call that was cancelled before its handler ran."""
        del self.served_calls[call.id]
        self.write(frames.status_frame(call.id, int(Code.CANCELLED), encode(StatusExtra(_CANCELLED)), None))

    # -- pending calls --

    async def forward(self, call: Call, method: int, head: bytes, message: bytes | None) -> None:
        """Have the other end serve a call, and pass its responses to ``call``.

        Args:
            call: The call. Its requests are read from it, unless ``message`` is the only one.
            method: Number of its method, on which both ends agree.
            head: Its encoded head.
            message: The request of a method that does not stream requests.

        Raises:
            ConnectionLostError: The other end is gone; the outcome of the call is unknown.
            StatusError: The status of the call.
        """
        if self.lost.done():
            raise ConnectionLostError(None)
        number = self._next_id
        self._next_id = number + 2
        pending = self.pending_calls[number] = PendingCall(number, call.method.path)
        streams = message is None
        deadline = frames.NO_DEADLINE if call.deadline is None else call.deadline
        self.write(frames.open_frame(number, method, deadline, head, message, not streams))
        forwarding: asyncio.Task[None] | None = None
        if streams:
            forwarding = self.loop.create_task(self._forward_requests(call, pending))
        try:
            await self._receive_responses(call, pending)
        finally:
            if number in self.pending_calls:
                pending.cancelled = True
                pending.received.clear()
                self.write(frames.frame(FrameKind.CANCEL, number))
                self.on_call_cancelled(number)
            if forwarding is not None:
                cancel_task(forwarding)
                await asyncio.wait([forwarding])

    async def _receive_responses(self, call: Call, pending: PendingCall) -> None:
        received = pending.received
        while True:
            while not received:
                pending.waiter = waiter = self.loop.create_future()
                await waiter
            kind, body = received.popleft()
            if kind == 5:  # noqa: PLR2004 - STATUS
                status = frames.parse_status(body)
                if status.extra or status.code:
                    self._apply_status(call, status)
                if status.message is not None:
                    await call.send(status.message)
                return
            if kind == FrameKind.MESSAGE:
                await call.send(body)
                back = pending.consumed(len(body))
                if back:
                    self.write(frames.credit_frame(pending.id, back))
            elif kind == FrameKind.HEADERS:
                call.headers.extend(_pairs(body))
                await call.send_headers()
            elif kind == 0:
                raise ConnectionLostError(pending.id) if body is None else body

    def _apply_status(self, call: Call, status: frames.StatusBody) -> None:
        """Apply a status to the call; raises one that is not OK."""
        extra = _status_extra(status.extra) if status.extra else _EMPTY_EXTRA
        if extra is not _EMPTY_EXTRA:
            call.headers.extend(extra.headers)
            call.trailers.extend(extra.trailers)
            if extra.peer:
                call.peer = extra.peer
            if extra.notes:
                self.on_span_notes(extra.notes)
        if status.code:
            raise StatusError.of(status.code, extra.message, unpack_details(extra.details)).at(extra.where)

    async def _forward_requests(self, call: Call, pending: PendingCall) -> None:
        """Forward the requests of a stream as the other end consumes them."""
        try:
            while (message := await call.receive()) is not None:
                while pending.credit <= 0:
                    pending.credit_waiter = self.loop.create_future()
                    await pending.credit_waiter
                pending.credit -= max(len(message), MIN_MESSAGE_BYTES)
                self.write(frames.frame(FrameKind.MESSAGE, pending.id, message))
            self.write(frames.frame(FrameKind.END, pending.id))
        except Exception as error:  # noqa: BLE001 - raised where the call is awaited
            pending.put(0, error)
