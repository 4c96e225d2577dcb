"""Shared-memory watermark: id of the last call whose function started.

The sidecar can read it after the death of the worker. Functions start in the order of their calls. So the function of
every call with a higher id never started, and the call can be sent to another worker whatever its method does.
"""

from __future__ import annotations

import mmap
import os
import sys
import tempfile
from pathlib import Path
from struct import Struct

__all__ = ["Watermark", "shared_file"]

_NUMBER = Struct("<q")


def shared_file() -> int:
    """Return the descriptor of a new file, one page long, without a name; it vanishes with its last descriptor."""
    if sys.platform == "linux":
        found = os.memfd_create("mesh-worker", os.MFD_CLOEXEC)
    else:
        found, name = tempfile.mkstemp(prefix="mesh-worker-")
        Path(name).unlink()
    os.ftruncate(found, mmap.PAGESIZE)
    return found


class Watermark:
    """One number in shared memory: one more than the id of the last started call, so that a new file means none.

    Args:
        descriptor: Descriptor of a ``shared_file``; the caller can close it afterwards.
    """

    __slots__ = ("_final", "_memory")

    def __init__(self, descriptor: int) -> None:
        self._final: int | None = None
        self._memory = mmap.mmap(descriptor, mmap.PAGESIZE)

    def advance(self, call: int) -> None:
        """Record that the function of this call starts."""
        _NUMBER.pack_into(self._memory, 0, call + 1)

    def reached(self, call: int) -> bool:
        """Whether the function of this call has started."""
        return call < self._number()

    def close(self) -> None:
        """Release the memory; ``reached`` keeps its results."""
        self._final = self._number()
        self._memory.close()

    def _number(self) -> int:
        if self._final is not None:
            return self._final
        number: int = _NUMBER.unpack_from(self._memory)[0]
        return number
