"""Stops a process as SIGSTOP does, and returns once it has stopped."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

TIMEOUT = 10.0


def suspend(pid: int) -> None:
    """Send SIGSTOP and wait until each thread has stopped: on a busy machine the others run on for a while.

    Raises:
        TimeoutError: The process did not stop within ``TIMEOUT``.
    """
    os.kill(pid, signal.SIGSTOP)
    until = time.monotonic() + TIMEOUT
    while any(_state(task) not in "TtZ" for task in Path(f"/proc/{pid}/task").iterdir()):
        if time.monotonic() > until:
            raise TimeoutError(f"process {pid} has not stopped")
        time.sleep(0.001)


def _state(task: Path) -> str:
    """The state letter of proc(5); "Z" of a thread that has ended meanwhile."""
    try:
        return (task / "stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"
