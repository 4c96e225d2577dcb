"""How far a worker has come, in memory that it shares with the sidecar: it can be read when the worker is dead.

One number: the id of the last call whose function has begun. Functions begin in the order of their calls, so every call
with a higher id was never touched, and may be given to another worker whatever it does.
"""

from __future__ import annotations

import mmap
import os
import sys
import tempfile
from pathlib import Path
from struct import Struct

__all__ = ["Begun", "shared_file"]

_NUMBER = Struct("<q")


def shared_file() -> int:
    """Return the descriptor of a new file for one ``Begun``; it has no name, and is gone with its last descriptor."""
    if sys.platform == "linux":
        found = os.memfd_create("mesh-worker", os.MFD_CLOEXEC)
    else:
        found, name = tempfile.mkstemp(prefix="mesh-worker-")
        Path(name).unlink()
    os.ftruncate(found, mmap.PAGESIZE)
    return found


class Begun:
    """The number.

    Args:
        descriptor: Of the file; it can be closed afterwards.
    """

    __slots__ = ("_last", "_memory")

    def __init__(self, descriptor: int) -> None:
        self._last: int | None = None
        self._memory = mmap.mmap(descriptor, mmap.PAGESIZE)

    def note(self, call: int) -> None:
        """Say that the function of this call begins. The number is one more, so that a new file says none."""
        _NUMBER.pack_into(self._memory, 0, call + 1)

    def reached(self, call: int) -> bool:
        """Return whether the function of this call has begun."""
        return call < self._number()

    def close(self) -> None:
        """Give the memory back; how far the worker has come stays known."""
        self._last = self._number()
        self._memory.close()

    def _number(self) -> int:
        if self._last is not None:
            return self._last
        number: int = _NUMBER.unpack_from(self._memory)[0]
        return number
