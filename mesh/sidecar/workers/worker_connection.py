"""One end of the socket pair between a sidecar and a worker: calls opened here, calls answered here.

Both ends are this class. It writes once a turn of the loop, whatever was said in it, and keeps what a stream may hold
unread within a window. It knows neither functions nor processes.
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
from mesh.sidecar.workers.call_headers import Ending, decoder, encode
from mesh.sidecar.workers.frames import Kind
from mesh.sidecar.workers.worker_calls import COST, Answered, Exchange, LostError, Notes, wake
from mesh.telemetry.attribute_values import plain

__all__ = ["Link"]

log = logging.getLogger("mesh.workers")

_ending = decoder(Ending)
_pairs = decoder(list[tuple[bytes, bytes]])
_NOTHING = Ending()
_CANCELLED = "the call was cancelled"


def _status(call: Answered, ended: StatusError | None, notes: Notes) -> bytes:
    """Return the frame that says how a call ended."""
    headers = [] if call.headers_sent else call.headers
    if ended is not None:
        details = pack_status(ended) if ended.details else b""
        extra = encode(Ending(ended.message, details, ended.where, headers, call.trailers, notes, call.peer))
        return frames.status(call.id, int(ended.code), extra, None)
    return frames.status(call.id, 0, encode(Ending("", b"", "", headers, call.trailers, notes, call.peer)), call.reply)


def _odd(call: Answered, ended: StatusError | None) -> bytes:
    """Return that frame when it cannot be written: with odd values in the notes replaced, or as a bug."""
    try:
        return _status(call, ended, plain(call.notes()))
    except Exception:
        log.exception("%s: how it ended cannot be told", call.method.path)
        return frames.status(call.id, int(Code.INTERNAL), encode(Ending("internal error")), None)


def _nothing(*_: object) -> None:
    """Do nothing."""


class Link(asyncio.Protocol):
    """One end.

    Args:
        first: The id of the first call that is opened here: 0 in the sidecar, 1 in the worker.
        answer: Makes the call that an OPEN frame opens, and says what answers it.
        told: Called with every frame about the worker as a whole.

    Attributes:
        asked: The calls opened here whose STATUS has not come, by id.
        answering: The calls answered here, by id.
        loop: The loop that it lives on.
        lost: Done when the connection is.
        left: The calls of ``asked`` when it was lost.
        on_end: Called with its method when a call that was opened here has ended.
        on_revoked: Called with the number of a call that is cancelled here before it has ended.
        on_notes: Called with what the other end did to the current span.
    """

    def __init__(
        self,
        first: int,
        answer: Callable[[Link, int, frames.Open], tuple[Answered, Handler]],
        told: Callable[[int, bytes], None],
    ) -> None:
        self._next = first
        self._answer = answer
        self._told = told
        self._reader = frames.Reader()
        self._out: list[bytes] = []
        self.loop = asyncio.get_running_loop()
        self._transport: Any = None
        self.asked: dict[int, Exchange] = {}
        self.answering: dict[int, Answered] = {}
        self.lost: asyncio.Future[None] = self.loop.create_future()
        self.left: list[Exchange] = []
        self.on_end: Callable[[str], None] = _nothing
        self.on_revoked: Callable[[int], None] = _nothing
        self.on_notes: Callable[[Notes], None] = _nothing

    def paths(self) -> Iterator[str]:
        """Return the methods of the calls that were opened here and have not ended."""
        return (exchange.path for exchange in self.asked.values())

    # -- the connection --

    def connection_made(self, transport: Any) -> None:
        """Begin to write."""
        self._transport = transport
        if self._out:
            self._flush()

    def connection_lost(self, error: Exception | None) -> None:  # noqa: ARG002 - the protocol's signature
        """End every call on both sides."""
        self._transport = None
        if not self.lost.done():
            self.lost.set_result(None)
        asked = self.left = list(self.asked.values())
        self.asked.clear()
        for exchange in asked:
            exchange.put(0, None)
            self.on_end(exchange.path)
        for call in list(self.answering.values()):
            call.revoke()

    def close(self) -> None:
        """End the connection."""
        if self._transport is not None:
            self._transport.abort()

    def write(self, frame: bytes) -> None:
        """Write a frame at the end of this turn of the loop."""
        if not self._out:
            self.loop.call_soon(self._flush)
        self._out.append(frame)

    def flush(self) -> None:
        """Write what waits to be written, now."""
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
        """Act on frames."""
        try:
            for kind, call, body in self._reader.feed(data):
                self._act(kind, call, body)
        except Exception:
            log.exception("a frame between the sidecar and its worker could not be read")
            self.close()

    def _act(self, kind: int, number: int, body: bytes) -> None:  # noqa: C901 - one frame after the other, flat
        if kind == 1:  # OPEN
            self._open(number, body)
            return
        if kind == 5:  # noqa: PLR2004 - STATUS
            exchange = self.asked.pop(number, None)
            if exchange is not None:
                exchange.put(5, body)
                self.on_end(exchange.path)
            return
        if kind >= Kind.READY:
            self._told(kind, body)
            return
        asked = self.asked.get(number)
        if asked is not None:
            if kind == Kind.CREDIT:
                asked.credit += frames.parse_credit(body)
                wake(asked.room)
            elif not asked.revoked:
                asked.put(kind, body)
            return
        call = self.answering.get(number)
        if call is None:  # it has ended: what crossed its end on the way means nothing
            return
        if kind == Kind.MESSAGE:
            call.put(body)
        elif kind == Kind.END:
            call.end()
        elif kind == Kind.CANCEL:
            call.revoke()
        elif kind == Kind.CREDIT:
            call.credit += frames.parse_credit(body)
            wake(call.room)

    # -- calls answered here --

    def _open(self, number: int, body: bytes) -> None:
        call, handler = self._answer(self, number, frames.parse_open(body))
        self.answering[number] = call
        call.task = self.loop.create_task(self._run(call, handler))

    async def _run(self, call: Answered, handler: Handler) -> None:
        ended: StatusError | None = None
        try:
            await handler(call)
        except StatusError as error:
            ended = error
        except asyncio.CancelledError:  # asked for: ``recover`` has made a status of every other
            ended = Cancelled(_CANCELLED)
        except BaseException:  # of a layer; whatever it is, the other end waits for a STATUS
            log.exception("%s failed", call.method.path)
            ended = Internal("internal error")
        finally:
            del self.answering[call.id]
        notes = call.notes()
        if ended is None and not (call.headers or call.trailers or notes or call.peer):
            self.write(frames.status(call.id, 0, b"", call.reply))  # what nearly every call comes to
            return
        try:
            self.write(_status(call, ended, notes))
        except Exception:  # noqa: BLE001 - an odd value; the other end waits for a STATUS, whatever happened here
            self.write(_odd(call, ended))

    def unbegun(self, call: Answered) -> None:
        """End a call that was cancelled before anything of it ran."""
        del self.answering[call.id]
        self.write(frames.status(call.id, int(Code.CANCELLED), encode(Ending(_CANCELLED)), None))

    # -- calls opened here --

    async def ask(
        self,
        call: Call,
        method: int,
        head: bytes,
        message: bytes | None,
    ) -> None:
        """Have the other end answer a call.

        Args:
            call: The call; its requests are read here, unless ``message`` is the only one.
            method: Its number, as the two ends have agreed.
            head: What travels with it.
            message: The request of a method that does not stream requests.

        Raises:
            LostError: The other end has gone; the call's fate is not known.
            StatusError: The status of the call.
        """
        if self.lost.done():
            raise LostError(-1)
        number = self._next
        self._next = number + 2
        exchange = self.asked[number] = Exchange(number, call.method.path)
        streams = message is None
        deadline = frames.DEADLINE if call.deadline is None else call.deadline
        self.write(frames.open_(number, method, deadline, head, message, not streams))
        pump: asyncio.Task[None] | None = None
        if streams:
            pump = self.loop.create_task(self._pump(call, exchange))
        try:
            await self._answers(call, exchange)
        finally:
            if number in self.asked:
                exchange.revoked = True
                exchange.events.clear()
                self.write(frames.frame(Kind.CANCEL, number))
                self.on_revoked(number)
            if pump is not None:
                cancel_task(pump)
                await asyncio.wait([pump])

    async def _answers(self, call: Call, exchange: Exchange) -> None:
        events = exchange.events
        while True:
            while not events:
                exchange.waiter = waiter = self.loop.create_future()
                await waiter
            kind, body = events.popleft()
            if kind == 5:  # noqa: PLR2004 - STATUS
                ended = frames.parse_status(body)
                if ended.extra or ended.code:
                    self._end(call, ended)
                if ended.message is not None:
                    await call.send(ended.message)
                return
            if kind == Kind.MESSAGE:
                await call.send(body)
                back = exchange.taken(len(body))
                if back:
                    self.write(frames.credit(exchange.id, back))
            elif kind == Kind.HEADERS:
                call.headers.extend(_pairs(body))
                await call.send_headers()
            elif kind == 0:
                raise LostError(exchange.id) if body is None else body

    def _end(self, call: Call, ended: frames.Status) -> None:
        """Take over what came with a status; raises one that is not OK."""
        extra = _ending(ended.extra) if ended.extra else _NOTHING
        if extra is not _NOTHING:
            call.headers.extend(extra.headers)
            call.trailers.extend(extra.trailers)
            if extra.peer:
                call.peer = extra.peer
            if extra.notes:
                self.on_notes(extra.notes)
        if ended.code:
            raise StatusError.of(ended.code, extra.message, unpack_details(extra.details)).at(extra.where)

    async def _pump(self, call: Call, exchange: Exchange) -> None:
        """Read the requests of a stream and hand them on."""
        try:
            while (message := await call.receive()) is not None:
                while exchange.credit <= 0:
                    exchange.room = self.loop.create_future()
                    await exchange.room
                exchange.credit -= max(len(message), COST)
                self.write(frames.frame(Kind.MESSAGE, exchange.id, message))
            self.write(frames.frame(Kind.END, exchange.id))
        except Exception as error:  # noqa: BLE001 - raised where the call is awaited
            exchange.put(0, error)
