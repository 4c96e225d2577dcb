"""Messages between a sidecar and its fork server; both ends of their socket import this module, and little else.

The sidecar sends first a ``WorkerSetup`` (length u32, pickle), and then commands of 9 bytes (kind u8, number u64):

    FORK   with two descriptors: the worker's end of its socket pair, and its ``mesh.sidecar.workers.watermark``
    KILL
    PROBE  a liveness probe

The fork server sends frames as in ``mesh.sidecar.workers.frames``, with msgpack bodies:

    PRELOADED  ``PreloadResult``
    FORKED     the pid
    ENDED      ``ProcessEnd``; also for a worker that could not be forked
    PROBE_RESPONSE  response to a PROBE
"""

from __future__ import annotations

import signal
from enum import IntEnum
from struct import Struct

import msgspec

__all__ = ["COMMAND", "LENGTH", "ForkServerCommand", "ForkServerReport", "PreloadResult", "ProcessEnd"]

COMMAND = Struct("<BQ")
LENGTH = Struct("<I")


class ForkServerCommand(IntEnum):
    """Kind of a command of the sidecar."""

    FORK = 1
    KILL = 2
    PROBE = 3


class ForkServerReport(IntEnum):
    """Kind of a frame of the fork server."""

    PRELOADED = 1
    FORKED = 2
    ENDED = 3
    PROBE_RESPONSE = 4


class PreloadResult(msgspec.Struct, array_like=True, gc=False, frozen=True):
    """Imports of the fork server before the first fork.

    Attributes:
        failed: Module → why it could not be imported.
        threaded: The module whose import started threads, or "". The fork server ends, because a fork would copy only
            half of such a module.
        seconds: How long the import of ``threaded`` took.
    """

    failed: dict[str, str]
    threaded: str
    seconds: float


class ProcessEnd(msgspec.Struct, array_like=True, frozen=True):
    """End of a worker process.

    Attributes:
        code: Exit code; negative: the signal that killed it.
        fork_error: Why it could not be forked; "" if it was.
    """

    code: int
    fork_error: str = ""

    def __str__(self) -> str:
        if self.fork_error:
            return f"it could not be forked: {self.fork_error}"
        if self.code >= 0:
            return f"exit code {self.code}"
        try:
            return f"signal {signal.Signals(-self.code).name}"
        except ValueError:
            return f"signal {-self.code}"
