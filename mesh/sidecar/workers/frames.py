"""The frames between a sidecar and a worker: how they look on the socket pair, and nothing of what they mean.

The protocol is the same both ways: either end opens calls, and the other answers them. The sidecar's calls have even
ids, the worker's odd ones; each end counts its own upwards. Frames about the worker as a whole have id 0, which means
nothing there.

    frame    length u32, kind u8, id u64 | body (length bytes)
    OPEN     method u16, flags u8, deadline f64, head u32 | head, first request message (flag INLINE)
    STATUS   code u8, flags u8, extra u32 | extra, last response message (flag INLINE)
    CREDIT   bytes u32

Numbers are little-endian. A unary call is one frame each way. ``head`` and ``extra`` are msgpack (``mesh.sidecar.
workers.heads``); a deadline is ``time.monotonic()`` seconds, which is one clock for all processes of a machine.

Both ends are processes of one component, forked from code that both have; so there is no version, and a frame that
cannot be read is a bug, which ends the connection.
"""

from __future__ import annotations

from enum import IntEnum
from struct import Struct
from typing import Any, NamedTuple

__all__ = [
    "DEADLINE", "ENDED", "INLINE", "MOST", "FrameError", "Kind", "Open", "Reader", "Status", "credit", "frame", "open_",
    "parse_credit", "parse_open", "parse_status", "status",
]  # fmt: skip

_FRAME = Struct("<IBQ")
_OPEN = Struct("<HBdI")
_STATUS = Struct("<BBI")
_CREDIT = Struct("<I")
_OPEN_FRAME = Struct("<IBQHBdI")
_STATUS_FRAME = Struct("<IBQBBI")

INLINE = 1
"""Flag: the rest of the body is a message."""
ENDED = 2
"""Flag of OPEN: no request message follows what is in this frame."""
DEADLINE = float("inf")
"""The deadline of a call that has none."""
MOST = 2**30
"""Bytes of a body beyond which it is no frame of ours."""


class Kind(IntEnum):
    """What a frame is."""

    OPEN = 1
    """A call begins."""
    MESSAGE = 2
    """A request message of the end that opened the call, or a response message of the other."""
    END = 3
    """The end that opened the call sends no more requests."""
    HEADERS = 4
    """Response metadata before the first message."""
    STATUS = 5
    """How the call ended; the last frame of its answer."""
    CANCEL = 6
    """The end that opened the call does not want its answer any more; a STATUS still follows."""
    CREDIT = 7
    """The receiver of a stream has taken so many bytes out."""
    READY = 8
    """The worker has loaded its functions; the body says how long that took."""
    FAILED = 9
    """The worker cannot load its functions; the body says why."""
    SPANS = 10
    """Spans that have ended in the worker."""
    STUCK = 11
    """A thread of the worker still runs, long after its call has ended; the body is the method."""
    DRAIN = 12
    """The worker is to end; no call follows, and what runs is to be finished."""
    PING = 13
    """The worker's loop is to say that it turns."""
    PONG = 14
    """It does."""
    MEASURED = 15
    """What a function has measured in the worker."""


class FrameError(ValueError):
    """The bytes are no frames of ours."""


class Open(NamedTuple):
    """The body of an OPEN frame."""

    method: int
    deadline: float
    head: bytes
    message: bytes | None
    ended: bool


class Status(NamedTuple):
    """The body of a STATUS frame."""

    code: int
    extra: bytes
    message: bytes | None


_made: Any = tuple.__new__
"""What a named tuple's own constructor calls, which is one more function in Python for each frame."""


def frame(kind: int, call: int, body: bytes = b"") -> bytes:
    """Return one frame."""
    return _FRAME.pack(len(body), kind, call) + body


def open_(
    call: int,
    method: int,
    deadline: float,
    head: bytes,
    message: bytes | None,
    ended: bool,  # noqa: FBT001 - by position: this is the hot path
) -> bytes:
    """Return an OPEN frame."""
    flags = ENDED if ended else 0
    if message is None:
        message = b""
    else:
        flags |= INLINE
    held = len(head)
    return _OPEN_FRAME.pack(_OPEN.size + held + len(message), 1, call, method, flags, deadline, held) + head + message


def status(call: int, code: int, extra: bytes, message: bytes | None) -> bytes:
    """Return a STATUS frame."""
    held = len(extra)
    if message is None:
        return _STATUS_FRAME.pack(_STATUS.size + held, 5, call, code, 0, held) + extra
    return _STATUS_FRAME.pack(_STATUS.size + held + len(message), 5, call, code, INLINE, held) + extra + message


def credit(call: int, size: int) -> bytes:
    """Return a CREDIT frame."""
    return frame(Kind.CREDIT, call, _CREDIT.pack(size))


def parse_open(body: bytes) -> Open:
    """Return what an OPEN frame says."""
    try:
        method, flags, deadline, held = _OPEN.unpack_from(body)
    except Exception as error:
        raise FrameError("an OPEN frame is too short") from error
    end = _OPEN.size + held
    if end > len(body):
        raise FrameError("the head of an OPEN frame is cut")
    message = body[end:] if flags & INLINE else None
    found: Open = _made(Open, (method, deadline, body[_OPEN.size : end], message, flags & ENDED != 0))
    return found


def parse_status(body: bytes) -> Status:
    """Return what a STATUS frame says."""
    try:
        code, flags, held = _STATUS.unpack_from(body)
    except Exception as error:
        raise FrameError("a STATUS frame is too short") from error
    end = _STATUS.size + held
    if end > len(body):
        raise FrameError("the extra of a STATUS frame is cut")
    found: Status = _made(Status, (code, body[_STATUS.size : end], body[end:] if flags & INLINE else None))
    return found


def parse_credit(body: bytes) -> int:
    """Return the bytes of a CREDIT frame."""
    if len(body) != _CREDIT.size:
        raise FrameError("a CREDIT frame has four bytes")
    size: int = _CREDIT.unpack(body)[0]
    return size


class Reader:
    """Cuts what comes from the socket into frames, however it was cut on the way.

    Raises (from ``feed``):
        FrameError: The bytes are no frames.
    """

    __slots__ = ("_rest",)

    def __init__(self) -> None:
        self._rest = bytearray()

    @property
    def partial(self) -> bool:
        """Whether a frame is still incomplete."""
        return bool(self._rest)

    def feed(self, data: bytes) -> list[tuple[int, int, bytes]]:
        """Return the frames that are complete now: kind, call id, body."""
        rest = self._rest
        if rest:
            rest += data
            if len(rest) < _FRAME.size or len(rest) < _FRAME.size + _FRAME.unpack_from(rest)[0] <= MOST:
                return []  # a large frame comes in many pieces: it is copied once, at its end
            data = bytes(rest)
            rest.clear()
        found = []
        at, size, end = 0, _FRAME.size, len(data)
        unpack = _FRAME.unpack_from
        while end - at >= size:
            length, kind, call = unpack(data, at)
            if length > MOST or not 1 <= kind <= 15:  # noqa: PLR2004 - the last of Kind
                raise FrameError(f"no frame has kind {kind} and {length} bytes")
            stop = at + size + length
            if stop > end:
                break
            found.append((kind, call, data[at + size : stop]))
            at = stop
        if at < end:
            rest += data[at:]
        return found
