"""The mark of a worker, by which all that it starts is known when it is gone: a variable of the environment.

Linux says which environment a process has (``/proc/PID/environ``): of a program, the one that it was started with; of a
process that was only forked, the memory in which its parent's was. So the mark is written to where the variable stands
in memory, and the sidecar starts the fork server with room for it; no process of a worker is ever without. What it
starts with an environment of another making has none, and nothing is known of it.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Collection
from pathlib import Path

__all__ = ["BLANK", "NAME", "doomed", "read", "write"]

NAME = "MESH_INTERNAL_WORKER"
BLANK = "-" * 40
"""The mark of the fork server itself."""

_getenv = ctypes.CDLL(None).getenv
_getenv.restype, _getenv.argtypes = ctypes.c_void_p, [ctypes.c_char_p]


def write(mark: str) -> None:
    """Mark this process, and all that it will start; ``mark`` is no longer than ``BLANK``."""
    place = _getenv(NAME.encode())
    if place and len(ctypes.string_at(place)) == len(BLANK):
        ctypes.memmove(place, mark.encode().ljust(len(BLANK), b"\0"), len(BLANK))
    os.environ[NAME] = mark  # of which a function may make the environment of what it starts


def read(pid: int) -> str:
    """Return the mark of a process; "" if it has none, or nobody may know."""
    try:
        found = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return ""
    begins = f"{NAME}=".encode()
    marks = [one.removeprefix(begins) for one in found.split(b"\0") if one.startswith(begins)]
    return marks[0].decode(errors="replace") if marks else ""


def doomed(mark: str, prefix: str, live: Collection[str]) -> bool:
    """Return whether a process that lost its parent has to end.

    Args:
        mark: Its mark.
        prefix: What the marks of all workers begin with.
        live: The marks of the workers that live.
    """
    if mark.startswith(prefix):
        return mark not in live
    return mark != BLANK and not live  # it is nobody's: it goes with the last one that it may have been of
