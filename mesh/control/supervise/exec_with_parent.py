"""Runs a command in its own place (exec) and ends it when the parent ends: ``PARENT LOCK COMMAND…``.

For a program that does not know ``mesh.control.readiness``. On Linux the kernel ends it with its parent, SIGKILL
included (prctl(2), PR_SET_PDEATHSIG). The locked file is the safety for all systems: two brokers on one storage would
destroy it, so the second one does not start as long as the first holds the lock.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import sys
from collections.abc import Sequence

__all__ = ["command", "tie"]

_PR_SET_PDEATHSIG = 1


def command(lock: str, words: Sequence[str]) -> tuple[str, ...]:
    """Return the command that runs ``words`` tied to this process.

    Args:
        lock: Path of the file that is held locked as long as it runs.
        words: Program, by its path, and arguments.
    """
    return (sys.executable, "-P", "-m", "mesh.control.supervise.exec_with_parent", str(os.getpid()), lock, *words)


def tie(how: signal.Signals) -> None:
    """Let this process get a signal when its parent ends; it stays so over exec(2), unless that changes the user."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, how)


def main(parent: int, lock: str, words: Sequence[str]) -> None:
    """Become the command; returns only by an exception."""
    tie(signal.SIGTERM)
    if os.getppid() != parent:
        sys.exit("whoever started this is gone")
    file = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit(f"{lock} is locked: what an earlier `mesh up` started still runs; end it first")
    os.set_inheritable(file, True)  # noqa: FBT003 - the standard library's own signature
    os.execv(words[0], list(words))  # noqa: S606 - that is what it is for


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3:])
