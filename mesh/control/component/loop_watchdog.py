"""Watchdog of the event loop: logs what blocks it, measures its lag, and aborts a hung process without a supervisor.

The event loop takes a timestamp twice a second. A thread looks at it. While the loop is blocked, the thread reads the
stack of the loop's thread: the innermost function is what blocks. Code that holds the interpreter lock (some C
extensions) blocks the thread too; then the loop reports its lag afterwards, without a stack.

``mesh up`` probes its components and restarts a hung one. In a container nothing does: engines restart what has ended.
"""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import os
import threading
import time
from time import monotonic

from opentelemetry import metrics

from mesh.liveness import SilenceTimer, debugger_attached
from mesh.stacks import innermost, log_with_stack, method_of, stack_text, thread_frame

__all__ = ["LoopWatchdog"]

log = logging.getLogger("mesh.control")

BEAT_INTERVAL = 0.5
"""Seconds between two timestamps of the loop, and between two checks."""
LAG_TIMEOUT = 1.0
"""Seconds of lag from which on the log says what blocks the event loop."""
REPORT_INTERVAL = 10.0
"""Seconds between two log records."""
_UNSEEN = "the process was stopped, the machine was busy, or code held the interpreter lock"
_LAG_BOUNDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds of the buckets of the metric, seconds."""


class LoopWatchdog:
    """Watchdog of the running event loop. Create it in the loop's thread.

    Args:
        abort_timeout: Seconds after which the process aborts itself (SIGABRT, with the stacks of all threads), if the
            loop does not turn and no debugger is attached; None: never.
    """

    def __init__(self, abort_timeout: float | None) -> None:
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._abort_timeout = abort_timeout
        self._beat_at = monotonic()
        self._debugger = False
        self._seen_lag = False
        self._reported_at = -REPORT_INTERVAL
        self._not_reported = 0
        self._lag = metrics.get_meter("mesh.control").create_histogram(
            "mesh.loop.lag", "s", "Delay of a timer of the event loop", explicit_bucket_boundaries_advisory=_LAG_BOUNDS
        )

    def start(self) -> None:
        """Watch until the process ends."""
        self._beat_at = monotonic()
        self._loop.call_later(BEAT_INTERVAL, self._beat)
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    # -- in the loop's thread --

    def _beat(self) -> None:
        now = monotonic()
        lag, self._beat_at = max(0.0, now - self._beat_at - BEAT_INTERVAL), now
        self._debugger = debugger_attached(self._loop_thread)
        self._lag.record(lag)
        if lag >= LAG_TIMEOUT and not self._seen_lag:
            self._report(f"the event loop was {lag:.1f} s late: {_UNSEEN}", "")
        self._seen_lag = False
        self._loop.call_later(BEAT_INTERVAL, self._beat)

    # -- in a thread --

    def _watch(self) -> None:
        checked, silence = monotonic(), None
        while True:
            time.sleep(BEAT_INTERVAL)
            now = monotonic()
            late = now - checked - BEAT_INTERVAL
            checked = now
            lag = now - self._beat_at - BEAT_INTERVAL
            if lag < LAG_TIMEOUT:
                silence = None
                continue
            if late < BEAT_INTERVAL and not self._seen_lag:
                self._seen_lag = True
                self._report_stack(lag)
            if self._abort_timeout is not None:
                silence = silence or SilenceTimer(self._abort_timeout - lag, now, BEAT_INTERVAL)
                if silence.check(now, answered=False) and not self._debugged():
                    self._abort(self._abort_timeout)

    def _report_stack(self, lag: float) -> None:
        frame = thread_frame(self._loop_thread)
        if frame is not None:
            method = method_of(frame)
            by = f" by {method}" if method else ""
            self._report(f"the event loop has been blocked for {lag:.1f} s{by}: {innermost(frame)}", stack_text(frame))

    def _report(self, message: str, stack: str) -> None:
        now = monotonic()
        if now - self._reported_at < REPORT_INTERVAL:
            self._not_reported += 1
            return
        more, self._not_reported, self._reported_at = self._not_reported, 0, now
        log_with_stack(log, f"{message} (and {more} times before)" if more else message, stack)

    def _debugged(self) -> bool:
        return self._debugger or debugger_attached(self._loop_thread)

    def _abort(self, timeout: float) -> None:
        log.critical("the event loop has not turned for %g s; the process aborts itself, with its stacks", timeout)
        if not faulthandler.is_enabled():  # the user's module has switched it off
            faulthandler.enable()
        os.abort()
