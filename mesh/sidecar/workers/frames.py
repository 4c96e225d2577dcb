"""Frame codec of the socket pair between a sidecar and a worker: layout of the frames, without their meaning.

The protocol is the same both ways: either end opens calls, and the other end serves them. The sidecar's calls have even
ids, the worker's have odd ones; each end counts its own upwards. Frames about the whole worker have id 0, which has no
meaning there.

    frame    length u32, kind u8, id u64 | body (length bytes)
    OPEN     method u16, flags u8, deadline f64, head u32 | head, first request message (flag INLINE)
    STATUS   code u8, flags u8, extra u32 | extra, last response message (flag INLINE)
    CREDIT   bytes u32

Numbers are little-endian. A unary call is one frame each way. ``head`` and ``extra`` are msgpack
(``mesh.sidecar.workers.frame_payloads``). A deadline is a time of ``time.monotonic()`` in seconds, which is one clock
for all processes of a machine.

Both ends are processes of one component and run the same code. So there is no version, and a frame that cannot be read
is a bug: it closes the connection.
"""

from __future__ import annotations

from enum import IntEnum
from struct import Struct
from typing import Any, NamedTuple

__all__ = [
    "END_OF_REQUESTS", "INLINE", "MAX_BODY_BYTES", "NO_DEADLINE", "FrameError", "FrameKind", "FrameReader", "OpenBody",
    "StatusBody", "credit_frame", "frame", "open_frame", "parse_credit", "parse_open", "parse_status", "status_frame",
]  # fmt: skip

_FRAME = Struct("<IBQ")
_OPEN = Struct("<HBdI")
_STATUS = Struct("<BBI")
_CREDIT = Struct("<I")
_OPEN_FRAME = Struct("<IBQHBdI")
_STATUS_FRAME = Struct("<IBQBBI")

INLINE = 1
"""Flag: the rest of the body is a message."""
END_OF_REQUESTS = 2
"""Flag of OPEN: no request message follows this frame."""
NO_DEADLINE = float("inf")
"""The deadline of a call that has none."""
MAX_BODY_BYTES = 2**30
"""Bytes of the largest body; a longer one is an error."""


class FrameKind(IntEnum):
    """Kind of a frame."""

    OPEN = 1
    """Start of a call."""
    MESSAGE = 2
    """A request message from the end that opened the call, or a response message from the other end."""
    END = 3
    """The end that opened the call sends no more requests."""
    HEADERS = 4
    """Response metadata before the first message."""
    STATUS = 5
    """Status of the call; the last frame of its response."""
    CANCEL = 6
    """The end that opened the call cancels it; a STATUS still follows."""
    CREDIT = 7
    """The receiver of a stream has consumed so many bytes."""
    READY = 8
    """The worker has loaded its functions; the body is ``LoadTimes``."""
    FAILED = 9
    """The worker cannot load its functions; the body gives the reasons."""
    SPANS = 10
    """Spans that have ended in the worker."""
    OVERRUN = 11
    """A function still runs long after its call has ended; the body is its method."""
    DRAIN = 12
    """The worker has to finish the calls that it has, and to end; no call follows."""
    PING = 13
    """The worker's event loop has to respond with PONG."""
    PONG = 14
    """Response to a PING."""
    METRICS = 15
    """Metrics that a function has recorded in the worker."""
    PROBE = 16
    """Liveness probe for the event loop of the worker, which sends PROBE_RESPONSE. It says nothing about calls."""
    PROBE_RESPONSE = 17
    """Response to a PROBE; the body is not empty if a debugger is attached."""


class FrameError(ValueError):
    """The bytes are no frames of this protocol."""


class OpenBody(NamedTuple):
    """The body of an OPEN frame."""

    method: int
    deadline: float
    head: bytes
    message: bytes | None
    ended: bool


class StatusBody(NamedTuple):
    """The body of a STATUS frame."""

    code: int
    extra: bytes
    message: bytes | None


_new_tuple: Any = tuple.__new__
"""Constructor of a named tuple without the Python function around it, which would run once more for each frame."""


def frame(kind: int, call: int, body: bytes = b"") -> bytes:
    """Return one frame."""
    return _FRAME.pack(len(body), kind, call) + body


def open_frame(
    call: int,
    method: int,
    deadline: float,
    head: bytes,
    message: bytes | None,
    ended: bool,  # noqa: FBT001 - by position: this is the hot path
) -> bytes:
    """Return an OPEN frame."""
    flags = END_OF_REQUESTS if ended else 0
    if message is None:
        message = b""
    else:
        flags |= INLINE
    head_size = len(head)
    size = _OPEN.size + head_size + len(message)
    return _OPEN_FRAME.pack(size, 1, call, method, flags, deadline, head_size) + head + message


def status_frame(call: int, code: int, extra: bytes, message: bytes | None) -> bytes:
    """Return a STATUS frame."""
    extra_size = len(extra)
    size = _STATUS.size + extra_size
    if message is None:
        return _STATUS_FRAME.pack(size, 5, call, code, 0, extra_size) + extra
    return _STATUS_FRAME.pack(size + len(message), 5, call, code, INLINE, extra_size) + extra + message


def credit_frame(call: int, size: int) -> bytes:
    """Return a CREDIT frame."""
    return frame(FrameKind.CREDIT, call, _CREDIT.pack(size))


def parse_open(body: bytes) -> OpenBody:
    """Return the content of an OPEN frame.

    Raises:
        FrameError: It is no such frame.
    """
    try:
        method, flags, deadline, head_size = _OPEN.unpack_from(body)
    except Exception as error:
        raise FrameError("an OPEN frame is too short") from error
    end = _OPEN.size + head_size
    if end > len(body):
        raise FrameError("the head of an OPEN frame is cut")
    message = body[end:] if flags & INLINE else None
    ended = flags & END_OF_REQUESTS != 0
    found: OpenBody = _new_tuple(OpenBody, (method, deadline, body[_OPEN.size : end], message, ended))
    return found


def parse_status(body: bytes) -> StatusBody:
    """Return the content of a STATUS frame.

    Raises:
        FrameError: It is no such frame.
    """
    try:
        code, flags, extra_size = _STATUS.unpack_from(body)
    except Exception as error:
        raise FrameError("a STATUS frame is too short") from error
    end = _STATUS.size + extra_size
    if end > len(body):
        raise FrameError("the extra of a STATUS frame is cut")
    found: StatusBody = _new_tuple(StatusBody, (code, body[_STATUS.size : end], body[end:] if flags & INLINE else None))
    return found


def parse_credit(body: bytes) -> int:
    """Return the number of bytes of a CREDIT frame.

    Raises:
        FrameError: It is no such frame.
    """
    if len(body) != _CREDIT.size:
        raise FrameError("a CREDIT frame has four bytes")
    size: int = _CREDIT.unpack(body)[0]
    return size


class FrameReader:
    """Cuts the bytes from the socket into frames, whatever the pieces in which they arrive.

    Raises (from ``feed``):
        FrameError: The bytes are no frames.
    """

    __slots__ = ("_rest",)

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> list[tuple[int, int, bytes]]:
        """Return the frames that are complete now: kind, call id, body."""
        rest = self._rest
        if rest:
            rest += data
            if len(rest) < _FRAME.size or len(rest) < _FRAME.size + _FRAME.unpack_from(rest)[0] <= MAX_BODY_BYTES:
                return []  # a large frame comes in many pieces: it is copied once, when it is complete
            data = bytes(rest)
            rest.clear()
        found = []
        at, size, end = 0, _FRAME.size, len(data)
        unpack = _FRAME.unpack_from
        while end - at >= size:
            length, kind, call = unpack(data, at)
            if length > MAX_BODY_BYTES or not 1 <= kind <= 17:  # noqa: PLR2004 - the largest FrameKind
                raise FrameError(f"no frame has kind {kind} and {length} bytes")
            stop = at + size + length
            if stop > end:
                break
            found.append((kind, call, data[at + size : stop]))
            at = stop
        if at < end:
            rest += data[at:]
        return found
