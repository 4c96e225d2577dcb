"""How many workers a service needs: a pure decision on the demand of the last minute. It starts and ends nothing.

*Demand* is the number of calls in flight and waiting. Capacity follows it up fast and down slowly, as Knative's
autoscaler does with its panic and stable windows (knative/serving, docs/scaling/SYSTEM.md and pkg/autoscaler/scaling):

- **Up**: to what the mean demand of the last second (``BURST``) needs, and at once, without waiting for a mean, to half
  of what the highest demand needs (``SURGE``). So the first call after silence starts a worker at once, 200 calls at
  once start several, and one call too many for a millisecond starts none.
- **Down**: only to the most that was needed at any time of the last minute (``STABLE``). So a load that goes up and
  down within a minute changes nothing, and a steady one cannot make it flap.
- **To zero** (or ``min``): when there has been no call for ``idle``; never earlier, and never while there is one. What
  was needed before is forgotten then.

The decision has no state but the samples, so equal samples give equal answers.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from mesh.config.manifest import WorkersConfig

__all__ = ["BURST", "GRAIN", "STABLE", "SURGE", "Demand", "Sample", "decide"]

BURST = 1.0
"""Seconds whose mean demand must be served; a worker starts in a hundredth of that."""
STABLE = 60.0
"""Seconds for which what was needed stays."""
SURGE = 2.0
"""Demand that is this many times the capacity is no chance encounter of calls: it starts workers at once."""
GRAIN = 0.1
"""Seconds of the shortest sample; the last call's end is known as exactly as that."""
SLACK = 0.1
"""Calls of a mean that start no worker: one call too many must last, or come often. Less than a whole one, so that a
call that lasts always gets its place."""


@dataclass(frozen=True, slots=True)
class Sample:
    """The demand of an interval.

    Attributes:
        begin: Its first moment, seconds by a monotonic clock.
        end: The moment after its last.
        mean: Calls in flight and waiting, averaged over the interval; 0 for an interval that still runs: a mean that
            changes would be forgotten after it was acted on.
        peak: The most of them at one time.
    """

    begin: float
    end: float
    mean: float
    peak: int


def decide(samples: Sequence[Sample], spec: WorkersConfig, now: float) -> int:
    """Return how many workers there should be, ``spec.min`` … ``spec.max``.

    Args:
        samples: The demand up to ``now``, oldest first; where there is no sample there was no call.
        spec: ``workers`` of mesh.toml.
        now: The time, by the clock of the samples.
    """
    if not any(sample.peak and sample.end >= now - spec.idle for sample in samples):
        return spec.min
    need = 1
    busy_until = -math.inf
    area = 0.0
    window: deque[Sample] = deque()
    for sample in samples:
        if sample.peak:
            if sample.begin - busy_until > spec.idle:
                need = 1
            busy_until = sample.end
        area += sample.mean * (sample.end - sample.begin)
        window.append(sample)
        while window[0].end <= sample.end - BURST:
            oldest = window.popleft()
            area -= oldest.mean * (oldest.end - oldest.begin)
        if sample.end >= now - STABLE:
            # The oldest sample in the window may reach out of it.
            outside = max(0.0, sample.end - BURST - window[0].begin) * window[0].mean
            burst = math.ceil(((area - outside) / BURST - SLACK) / spec.concurrency)
            surge = math.ceil(sample.peak / SURGE / spec.concurrency)
            need = max(need, burst, surge)
    return min(max(need, spec.min), spec.max)


class Demand:
    """What the samples are made from: told each change of the demand, it keeps as much of the past as is needed.

    Args:
        now: The time, seconds by a monotonic clock; so everywhere here. One that is earlier than the last counts as it.
    """

    __slots__ = ("_area", "_begin", "_calls", "_last", "_peak", "_samples")

    def __init__(self, now: float) -> None:
        self._samples: deque[Sample] = deque()
        self._begin = self._last = now
        self._calls = self._peak = 0
        self._area = 0.0

    def change(self, calls: int, now: float) -> None:
        """Say that from now on ``calls`` are in flight and waiting."""
        self._advance(now)
        self._calls = calls
        self._peak = max(self._peak, calls)

    def samples(self, now: float) -> Sequence[Sample]:
        """Return the demand up to now, oldest first."""
        self._advance(now)
        return [*self._samples, Sample(self._begin, self._last, 0.0, self._peak)]

    def _advance(self, now: float) -> None:
        """Bring the running interval up to now; one that is long enough becomes a sample."""
        full = self._begin + GRAIN
        if now >= full:
            # The last change was before `full`: what follows is constant, and a sample of its own, however long.
            self._close(full)
            if now - full >= GRAIN:
                self._close(now)
        if now > self._last:
            self._area += self._calls * (now - self._last)
            self._last = now

    def _close(self, end: float) -> None:
        mean = (self._area + self._calls * (end - self._last)) / (end - self._begin)
        before = self._samples[-1] if self._samples else None
        if before is not None and before.peak == self._peak == 0:
            self._samples[-1] = Sample(before.begin, end, 0.0, 0)  # hours of silence are one sample
        else:
            self._samples.append(Sample(self._begin, end, mean, self._peak))
        self._begin = self._last = end
        self._area = 0.0
        self._peak = self._calls
        self._forget(end - STABLE - BURST)

    def _forget(self, since: float) -> None:
        """Drop what no decision looks at; the last sample that had calls stays, however old."""
        samples = self._samples
        while len(samples) > 1 and samples[0].end <= since:
            # Two silent samples in a row are one, so of the next two, one had calls.
            if len(samples) == 2 and samples[0].peak and not samples[1].peak:  # noqa: PLR2004 - it and the silence
                return
            samples.popleft()
