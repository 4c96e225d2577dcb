"""Environment tag used to find and kill a worker's descendants.

Linux shows the environment of a process (``/proc/PID/environ``). For a program it is the environment that it was
started with. For a process that was only forked it is the memory where its parent's environment was. So a worker writes
its tag over the value of the variable in memory, and the sidecar starts the fork server with a value of that length. A
process that a worker starts with an environment of its own making has no tag, and its worker is unknown.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Collection
from pathlib import Path

__all__ = ["FORK_SERVER_TAG", "VARIABLE", "is_orphan", "read", "write"]

VARIABLE = "MESH_INTERNAL_WORKER"
FORK_SERVER_TAG = "-" * 40
"""The tag of the fork server itself."""

_getenv = ctypes.CDLL(None).getenv
_getenv.restype, _getenv.argtypes = ctypes.c_void_p, [ctypes.c_char_p]


def write(tag: str) -> None:
    """Tag this process and all that it will start; ``tag`` is no longer than ``FORK_SERVER_TAG``."""
    address = _getenv(VARIABLE.encode())
    if address and len(ctypes.string_at(address)) == len(FORK_SERVER_TAG):
        ctypes.memmove(address, tag.encode().ljust(len(FORK_SERVER_TAG), b"\0"), len(FORK_SERVER_TAG))
    os.environ[VARIABLE] = tag  # a function may build the environment of a subprocess from os.environ


def read(pid: int) -> str:
    """Return the tag of a process; "" if it has none or may not be read."""
    try:
        found = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return ""
    prefix = f"{VARIABLE}=".encode()
    tags = [one.removeprefix(prefix) for one in found.split(b"\0") if one.startswith(prefix)]
    return tags[0].decode(errors="replace") if tags else ""


def is_orphan(tag: str, prefix: str, live: Collection[str]) -> bool:
    """Whether a process that lost its parent was started by a worker that has ended, and must be killed.

    Args:
        tag: Its tag.
        prefix: Common prefix of the tags of all workers.
        live: Tags of the live workers.
    """
    if tag.startswith(prefix):
        return tag not in live
    return tag != FORK_SERVER_TAG and not live  # its worker is unknown: it is killed once no worker is left
