"""Wrapper that replaces itself (exec) by a command that ends with its parent: ``PARENT LOCK COMMAND…``.

It is for programs without the readiness protocol, such as nats-server. On Linux the kernel signals the program when its
parent ends, also by SIGKILL (prctl(2), PR_SET_PDEATHSIG). On other systems a locked file protects the storage: two
brokers on one storage would destroy it, so the second one does not start while the first one holds the lock.
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
    """Return the command that runs ``words`` and ends with this process.

    Args:
        lock: Path of the file that stays locked while the program runs.
        words: Path of the program, and its arguments.
    """
    return (sys.executable, "-P", "-m", "mesh.control.supervise.exec_with_parent", str(os.getpid()), lock, *words)


def tie(number: signal.Signals) -> None:
    """Make the kernel send this process a signal when its parent ends.

    The setting survives exec(2), unless exec changes the user. It exists on Linux only.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)


def main(parent: int, lock: str, words: Sequence[str]) -> None:
    """Replace this process by the command. The function returns by an exception only."""
    tie(signal.SIGTERM)
    if os.getppid() != parent:
        sys.exit("the process that started this has ended")
    file = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit(f"{lock} is locked: a process that an earlier `mesh up` started still runs; end it first")
    os.set_inheritable(file, True)  # noqa: FBT003 - the standard library's own signature
    os.execv(words[0], list(words))  # noqa: S606 - that is what it is for


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3:])
