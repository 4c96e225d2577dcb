"""Adaptive concurrency limit of one method, from its measured latency.

A pure data structure: it holds no clock. Calls are measured in windows. A window is congested when its mean latency is
well above the smallest one known (the base). If there are ever more calls in progress as well, calls arrive faster than
they end, and the limit is cut in proportion (the gradient of Netflix' concurrency-limits and of Envoy's adaptive
concurrency). Calls beyond the limit wait or are refused, so the work that is accepted ends in time. There is no limit
until then, and none again once it has bound nobody for ``FORGET_DELAY``.

Latency may grow for another reason: a dependency is slow, or the requests are larger. A lower limit would only refuse
calls then. So every cut is a trial: if the latency of the calls that began after it has not followed the number of
calls in progress, then throughput was lost, and the latency is the method's own now. The cut is taken back, and the
latency becomes the base. A method that waits for I/O with hundreds of calls in progress is not limited.

The base may have been measured during an overload, and would then allow too much. After the first cut, and from time to
time while the limit binds, the limit is therefore halved as a trial of the same kind, and again as long as the
throughput stays. (Envoy goes down to three calls for that, which stops a method that needs hundreds.)

Sources: https://github.com/Netflix/concurrency-limits (Gradient2),
https://www.envoyproxy.io/docs/envoy/latest/configuration/http/http_filters/adaptive_concurrency_filter. The Python
ports on PyPI in November 2026 (aioadaptive, adaptive-concurrency, ace-concurrency, aimd-limiter) are semaphores for
clients in their first versions, without shares and deadlines.
"""

from __future__ import annotations

from math import inf, sqrt
from typing import NamedTuple

__all__ = ["AdaptiveLimit"]

TOLERANCE = 1.5
"""Latency of a congested window, as a multiple of the base."""
TOLERATED_DELAY = 0.03
"""Seconds above the base that are never congestion. A busy event loop takes as long, and does the most work then."""
WINDOW_SECONDS, WINDOW_CALLS = 0.5, 16
"""Time and calls of a window, at least."""
LOWEST_LIMIT = 2
"""Smallest limit: with one call, nothing could be learned by a lower limit, and a second core would be idle."""
LARGEST_CUT, LARGEST_RISE = 0.1, 2.0
"""Limit after a window, as a multiple of the calls in progress: at least after a cut, and at most after a rise."""
CONGESTED_WINDOWS = 2
"""Congested windows with ever more calls in progress that lead to the first cut."""
CONCLUSIVE = 0.75
"""Calls in progress, as a share of those before a cut, from which the latency can be compared with the one before."""
KEPT, UNCHANGED = 0.8, 0.87
"""Throughput after a cut, as a share of that before, from which the cut is kept, and from which it may be lower still.
Throughput is the calls in progress divided by the latency (Little's law)."""
TRIAL_WINDOWS = 20
"""Congestion-free windows under the limit after which it is halved as a trial."""
MAX_BACKOFF = 16
"""Longest delay between two such trials, as a multiple of ``TRIAL_WINDOWS``, while they find nothing."""
FORGET_DELAY = 10.0
"""Seconds after which a limit that has bound nobody is removed."""


class _Trial(NamedTuple):
    """State before a cut."""

    limit: float
    latency: float
    running: float


class AdaptiveLimit:
    """Limit of one method.

    Attributes:
        limit: Calls in progress at most; infinite while there is no reason for a limit.
        base: Mean latency without congestion, seconds; infinite while it is unknown.
    """

    __slots__ = (
        "_backoff", "_bound_at", "_clear_windows", "_congested_windows", "_count", "_opened_at", "_running",
        "_running_before", "_searching", "_seconds", "_since", "_throttled", "_trial", "base", "limit",
    )  # fmt: skip

    def __init__(self) -> None:
        self.limit = inf
        self.base = inf
        self._trial: _Trial | None = None
        self._searching = True  # the base may be too high
        self._backoff = 1
        self._clear_windows = self._congested_windows = 0
        self._running_before = 0.0
        self._bound_at = -inf
        self._since = -inf  # calls that began before belong to another limit
        self._opened_at = -inf
        self._count = self._running = self._throttled = 0
        self._seconds = 0.0

    def record(self, began: float, ended: float, running: int, *, throttled: bool) -> bool:
        """Record a call.

        Args:
            began: Time at which the call got its permit, seconds.
            ended: Time at which it ended.
            running: Calls in progress when it began, itself included.
            throttled: Whether calls of the method wait now.

        Returns:
            Whether the limit has changed.
        """
        if began < self._since:
            return False
        if not self._count:
            self._opened_at = began
        self._count += 1
        self._seconds += ended - began
        self._running += running
        self._throttled += throttled
        if self._count < WINDOW_CALLS or ended - self._opened_at < WINDOW_SECONDS:
            return False
        before = self.limit
        self._close(ended)
        self._open(ended)
        return self.limit != before

    def _open(self, now: float) -> None:
        self._opened_at = now
        self._count = self._running = self._throttled = 0
        self._seconds = 0.0

    def _close(self, now: float) -> None:
        """Decide at the end of a window."""
        latency, running = self._seconds / self._count, self._running / self._count
        throttled = 2 * self._throttled > self._count
        growing = running > self._running_before + max(1.0, sqrt(self._running_before) / 2)
        self._running_before = running
        if throttled:
            self._bound_at = now
        trial, self._trial = self._trial, None
        conclusive = trial is not None and running <= CONCLUSIVE * trial.running
        if trial is not None and conclusive and running * trial.latency < KEPT * trial.running * latency:
            self._searching = False
            self.base = latency
            self.limit = trial.limit
            return
        self.base = min(self.base, latency)
        if latency > self._tolerated:
            self._clear_windows = 0
            self._congested_windows += throttled or growing
            if not conclusive:
                self._trial = trial
            if throttled or self._congested_windows >= CONGESTED_WINDOWS:
                self._cut(running * max(LARGEST_CUT, self._tolerated / latency), latency, running, now)
            return
        self._congested_windows = 0
        if not throttled:
            if now - self._bound_at >= FORGET_DELAY:
                self.limit = inf
                self._searching = True
        elif trial is not None and conclusive and self._searching:
            self._searching = running * trial.latency >= UNCHANGED * trial.running * latency
            if self._searching:
                self._cut(self.limit / 2, latency, running, now)
        else:
            self._explore(latency, running, now)

    @property
    def _tolerated(self) -> float:
        """Latency beyond which a window is congested, seconds."""
        return max(TOLERANCE * self.base, self.base + TOLERATED_DELAY)

    def _explore(self, latency: float, running: float, now: float) -> None:
        """Raise the limit while it binds and nothing is congested; try a lower one from time to time."""
        if self._clear_windows < TRIAL_WINDOWS * self._backoff:
            self._clear_windows += 1
            self.limit = max(self.limit + 1, running * min(LARGEST_RISE, self._tolerated / latency))
            return
        self._clear_windows = 0
        self._backoff = min(MAX_BACKOFF, 2 * self._backoff)
        self._searching = True
        self._cut(self.limit / 2, latency, running, now)

    def _cut(self, limit: float, latency: float, running: float, now: float) -> None:
        limit = max(float(LOWEST_LIMIT), limit)
        if limit < self.limit:
            self._trial = self._trial or _Trial(self.limit, latency, running)
            self.limit = limit
            self._since = now
            self._congested_windows = 0
