"""Liveness: decides from unanswered probes whether a process hangs. Pure: time is an argument.

A process is alive if its event loop turns. Load, a drain and failing dependencies are matters of readiness.
"""

from __future__ import annotations

import sys

__all__ = ["MAX_PROBE_INTERVAL", "SilenceTimer", "debugger_attached", "probe_interval"]

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
