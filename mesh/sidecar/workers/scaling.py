"""Scaling: the number of workers that a service needs. A pure decision on the demand of the last minute.

*Demand* is the number of calls in progress and waiting. Capacity follows it up fast and down slowly, as in Knative's
autoscaler with its panic and stable windows (knative/serving, docs/scaling/SYSTEM.md and pkg/autoscaler/scaling):

- **Up**: to what the mean demand of the last second needs (``BURST_SECONDS``). Also at once, without waiting for a
  mean, to half of what the highest demand needs (``SURGE_FACTOR``). So the first call after silence starts a worker at
  once, 200 calls at once start several, and one call too many for a millisecond starts none.
- **Down**: only to the largest number that was needed at any time of the last minute (``STABLE_SECONDS``). So a load
  that goes up and down within a minute changes nothing, and a steady load cannot make the number flap.
- **To zero** (or ``min``): when there has been no call for ``idle``; never earlier, and never during a call. Earlier
  needs are forgotten then.

The decision has no state but the samples, so equal samples give equal results. It starts and ends no process.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from mesh.config.manifest import WorkersConfig

__all__ = [
    "BURST_SECONDS", "SAMPLE_INTERVAL", "STABLE_SECONDS", "SURGE_FACTOR", "DemandRecorder", "DemandSample",
    "workers_needed",
]  # fmt: skip

BURST_SECONDS = 1.0
"""Seconds whose mean demand must be served; a worker starts in a hundredth of that."""
STABLE_SECONDS = 60.0
"""Seconds for which a number of workers that was needed is kept."""
SURGE_FACTOR = 2.0
"""Demand of this many times the capacity starts workers at once; a few coinciding calls do not reach it."""
SAMPLE_INTERVAL = 0.1
"""Seconds of the shortest sample, and so the precision of the end of the last call."""
SLACK_CALLS = 0.1
"""Part of a mean, in calls, that starts no worker: one call too many must last, or come often. It is less than a whole
call, so that a call that lasts always gets its permit."""


@dataclass(frozen=True, slots=True)
class DemandSample:
    """The demand of an interval.

    Attributes:
        begin: Its start, seconds of a monotonic clock.
        end: Its end, exclusive.
        mean: Mean demand; 0 for an interval that is still running, because a mean that changes would be forgotten after
            it was acted on.
        peak: Highest demand.
    """

    begin: float
    end: float
    mean: float
    peak: int


def workers_needed(samples: Sequence[DemandSample], spec: WorkersConfig, now: float) -> int:
    """Return how many workers there should be, ``spec.min`` … ``spec.max``.

    Args:
        samples: The demand up to ``now``, oldest first; times without a sample had no call.
        spec: ``workers`` of mesh.toml.
        now: The time, by the clock of the samples.
    """
    if not any(sample.peak and sample.end >= now - spec.idle for sample in samples):
        return spec.min
    need = 1
    busy_until = -math.inf
    area = 0.0
    window: deque[DemandSample] = deque()
    for sample in samples:
        if sample.peak:
            if sample.begin - busy_until > spec.idle:
                need = 1
            busy_until = sample.end
        area += sample.mean * (sample.end - sample.begin)
        window.append(sample)
        while window[0].end <= sample.end - BURST_SECONDS:
            oldest = window.popleft()
            area -= oldest.mean * (oldest.end - oldest.begin)
        if sample.end >= now - STABLE_SECONDS:
            # The oldest sample may begin before the window.
            outside = max(0.0, sample.end - BURST_SECONDS - window[0].begin) * window[0].mean
            burst = math.ceil(((area - outside) / BURST_SECONDS - SLACK_CALLS) / spec.concurrency)
            surge = math.ceil(sample.peak / SURGE_FACTOR / spec.concurrency)
            need = max(need, burst, surge)
    return min(max(need, spec.min), spec.max)


class DemandRecorder:
    """Records each change of the demand as samples, and keeps as many as a decision needs.

    Args:
        now: The time, seconds of a monotonic clock; also in the methods. A time before the last one counts as the last.
    """

    __slots__ = ("_area", "_begin", "_calls", "_last", "_peak", "_samples")

    def __init__(self, now: float) -> None:
        self._samples: deque[DemandSample] = deque()
        self._begin = self._last = now
        self._calls = self._peak = 0
        self._area = 0.0

    def change(self, calls: int, now: float) -> None:
        """Record that from now on ``calls`` are in progress and waiting."""
        self._advance(now)
        self._calls = calls
        self._peak = max(self._peak, calls)

    def samples(self, now: float) -> Sequence[DemandSample]:
        """Return the demand up to now, oldest first."""
        self._advance(now)
        return [*self._samples, DemandSample(self._begin, self._last, 0.0, self._peak)]

    def _advance(self, now: float) -> None:
        """Extend the running interval up to now; if it is long enough, it becomes a sample."""
        full = self._begin + SAMPLE_INTERVAL
        if now >= full:
            # The last change was before `full`. The demand since then is constant, and one sample, however long.
            self._close(full)
            if now - full >= SAMPLE_INTERVAL:
                self._close(now)
        if now > self._last:
            self._area += self._calls * (now - self._last)
            self._last = now

    def _close(self, end: float) -> None:
        mean = (self._area + self._calls * (end - self._last)) / (end - self._begin)
        before = self._samples[-1] if self._samples else None
        if before is not None and before.peak == self._peak == 0:
            self._samples[-1] = DemandSample(before.begin, end, 0.0, 0)  # hours without calls are one sample
        else:
            self._samples.append(DemandSample(self._begin, end, mean, self._peak))
        self._begin = self._last = end
        self._area = 0.0
        self._peak = self._calls
        self._forget(end - STABLE_SECONDS - BURST_SECONDS)

    def _forget(self, since: float) -> None:
        """Drop the samples that no decision needs; the last one with calls stays, however old."""
        samples = self._samples
        while len(samples) > 1 and samples[0].end <= since:
            # Of two samples in a row, one had calls: two without calls are merged.
            if len(samples) == 2 and samples[0].peak and not samples[1].peak:  # noqa: PLR2004 - it and the one after
                return
            samples.popleft()
