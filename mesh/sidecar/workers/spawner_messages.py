"""What a sidecar says to its fork server, and what it is told: both ends of their socket import this, and little else.

The sidecar says, first, a ``Setup`` (length u32, pickle), and then (9 bytes each: kind u8, number u64):

    FORK   with two descriptors: the worker's end of its socket pair, and the memory of
    ``mesh.sidecar.workers.watermark`` KILL

and is told, in frames as in ``mesh.sidecar.workers.frames``, with msgpack bodies:

    PRELOADED  ``Preloaded``
    FORKED     the pid
    ENDED      ``Ended``; a worker that could not be forked has ended as well
"""

from __future__ import annotations

import signal
from enum import IntEnum
from struct import Struct

import msgspec

__all__ = ["COMMAND", "LENGTH", "Command", "Ended", "Preloaded", "Report"]

COMMAND = Struct("<BQ")
LENGTH = Struct("<I")


class Command(IntEnum):
    """What the sidecar says."""

    FORK = 1
    KILL = 2


class Report(IntEnum):
    """What the fork server says."""

    PRELOADED = 1
    FORKED = 2
    ENDED = 3


class Preloaded(msgspec.Struct, array_like=True, gc=False, frozen=True):
    """What was done before the first fork.

    Attributes:
        failed: Module → why it could not be imported.
        threaded: The module whose import started threads, or "". The fork server ends: forking would copy half of it.
        seconds: Module → how long its import took.
    """

    failed: dict[str, str]
    threaded: str
    seconds: dict[str, float]


class Ended(msgspec.Struct, array_like=True, frozen=True):
    """How a worker ended.

    Attributes:
        code: Exit code; negative: the signal.
        largest: Its largest resident size, bytes; 0 if it is not known.
        unborn: Why it could not be forked; "" if it was.
    """

    code: int
    largest: int = 0
    unborn: str = ""

    def __str__(self) -> str:
        if self.unborn:
            return f"it could not be forked: {self.unborn}"
        if self.code >= 0:
            return f"exit code {self.code}"
        try:
            return f"signal {signal.Signals(-self.code).name}"
        except ValueError:
            return f"signal {-self.code}"
