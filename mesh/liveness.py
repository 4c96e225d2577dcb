"""Liveness: decides from unanswered probes whether a process hangs. Time is an argument.

A process is alive if its event loop turns. Load, a drain and failing dependencies are matters of readiness.
"""

from __future__ import annotations

import sys
from pathlib import Path

__all__ = [
    "ABORT_TIMEOUT", "MAX_PROBE_INTERVAL", "SilenceTimer", "debugger_attached", "probe_interval", "stopped", "traced",
]  # fmt: skip

ABORT_TIMEOUT = 2.0
"""Seconds that a hung process gets to write its stacks, before it is killed."""

MAX_PROBE_INTERVAL = 2.0
"""Seconds between two probes at most."""
_PROBES_PER_TIMEOUT = 5
_LATE_FACTOR = 1.5
"""Multiple of the probe interval from which on the observer itself was late."""


def probe_interval(timeout: float) -> float:
    """Return the seconds between two probes for a liveness timeout."""
    return min(MAX_PROBE_INTERVAL, timeout / _PROBES_PER_TIMEOUT)


class SilenceTimer:
    """Time for which a process has responded to no probe, as far as its observer ran in time.

    A check that comes late adds nothing. The machine was suspended or overloaded, or the observer was stopped, so the
    process may have had no chance to answer.

    Args:
        timeout: Seconds without a response after which the process hangs.
        now: The time, seconds.
        interval: Seconds between two checks; None: ``probe_interval``.

    Attributes:
        interval: Seconds after which the next check is due.
    """

    def __init__(self, timeout: float, now: float, interval: float | None = None) -> None:
        self.interval = probe_interval(timeout) if interval is None else interval
        self._timeout = timeout
        self._checked = now
        self._silent = 0.0

    def check(self, now: float, *, answered: bool) -> bool:
        """Return whether the process hangs.

        Args:
            now: The time, seconds, by the clock of the constructor.
            answered: Whether the last probe was answered.
        """
        elapsed, self._checked = now - self._checked, now
        if answered:
            self._silent = 0.0
        elif elapsed < _LATE_FACTOR * self.interval:
            self._silent += elapsed
        return self._silent >= self._timeout


def debugger_attached(loop_thread: int) -> bool:
    """Whether a debugger of Python is attached to this process: it may stop the event loop at any time.

    Args:
        loop_thread: Identifier of the event loop's thread (``threading.get_ident``).
    """
    monitoring = getattr(sys, "monitoring", None)  # Python 3.12
    if (
        sys.gettrace() is not None  # of this thread
        or "pydevd" in sys.modules  # debugpy, PyCharm
        or (monitoring is not None and monitoring.get_tool(monitoring.DEBUGGER_ID) is not None)
    ):
        return True
    frame = sys._current_frames().get(loop_thread)  # noqa: SLF001 - the documented way
    while frame is not None and frame.f_globals.get("__name__") != "bdb":  # breakpoint() stops in it
        frame = frame.f_back
    return frame is not None


def traced(pid: int) -> bool:
    """Whether a debugger such as gdb or strace is attached to a process (proc(5), ``TracerPid``); Linux only."""
    return _status(pid, "TracerPid").strip() not in ("", "0")


def stopped(pid: int) -> bool:
    """Whether a process is stopped by a signal such as SIGSTOP (proc(5), ``State``); Linux only."""
    return _status(pid, "State").strip().startswith("T")


def _status(pid: int, key: str) -> str:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2] for line in lines if line.startswith(f"{key}:")), "")
