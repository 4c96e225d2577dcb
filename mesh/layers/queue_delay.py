"""Queue delay of one method: how long a call may wait for a permit, and whether the newest call goes first.

A pure data structure: it holds no clock. A burst is worth queueing: the calls are served in order, and nearly all in
time. Under a standing overload a queue only makes every call late, until callers give up and the work for them is lost.
So the method counts as overloaded when calls have waited longer than a target for ``OVERLOAD_INTERVAL``, without an
interval in which none did. From then on a call waits for the target at most. The newest call goes first, because its
caller is the most likely to be still there (adaptive LIFO and controlled delay; B. Maurer, *Fail at Scale*, ACM Queue
13(8), 2015; K. Nichols, V. Jacobson, *Controlling Queue Delay*, ACM Queue 10(5), 2012).
"""

from __future__ import annotations

from math import inf

__all__ = ["QueueDelay"]

MIN_TARGET_DELAY = 0.03
"""Smallest target, seconds. (WeChat's overload control takes 20 ms; Zhou et al., SoCC 2018.)"""
TARGET_SHARE = 0.5
"""Target as a share of the method's latency without congestion."""
OVERLOAD_INTERVAL = 1.0
"""Seconds after which long waits are an overload, and after which an overload without them has ended, at least."""
INTERVAL_CALLS = 4
"""The same, as a multiple of the method's latency without congestion."""
MAX_RETRY_DELAY = 30.0
"""Seconds of the longest delay that a refused caller is told."""
MIN_RETRY_DELAY = 0.1
"""Seconds of the shortest."""
_AVERAGED_ENDS = 32
"""Calls in the moving average of the time between two ends."""


class QueueDelay:
    """Queue delay of one method.

    Attributes:
        base: Latency of the method without congestion, seconds; infinite while it is unknown.
    """

    __slots__ = ("_between_ends", "_count", "_ended_at", "_long_since", "_long_until", "_saturated", "base")

    def __init__(self) -> None:
        self.base = inf
        self._long_since = inf  # first and last long wait of the current episode
        self._long_until = -inf
        self._between_ends = 0.0
        self._count = 0
        self._ended_at = -inf
        self._saturated = False

    @property
    def target(self) -> float:
        """Longest wait under overload, seconds."""
        return MIN_TARGET_DELAY if self.base == inf else max(MIN_TARGET_DELAY, TARGET_SHARE * self.base)

    @property
    def interval(self) -> float:
        """Time of long waits that is an overload, and longest wait otherwise, seconds; infinite while unknown."""
        return max(OVERLOAD_INTERVAL, INTERVAL_CALLS * self.base)

    def ended(self, now: float, *, waiting: bool) -> None:
        """Note the end of a call.

        Args:
            now: The current time.
            waiting: Whether other calls of the method wait, so that one of them gets the permit.
        """
        if self._saturated:
            self._count = min(self._count + 1, _AVERAGED_ENDS)
            self._between_ends += (now - self._ended_at - self._between_ends) / self._count
        self._ended_at = now
        self._saturated = waiting

    def waited(self, seconds: float, now: float) -> None:
        """Note the wait of a call that was admitted or refused."""
        if seconds >= self.target:
            if now - self._long_until >= self.interval:
                self._long_since = now
            self._long_until = now

    def overloaded(self, now: float) -> bool:
        """Whether the newest call goes first, and a call waits for the target at most."""
        interval = self.interval
        return now - self._long_since >= interval and now - self._long_until < interval

    def bound(self, now: float) -> float:
        """Return the longest wait of a call that arrives now, seconds."""
        return self.target if self.overloaded(now) else self.interval

    def estimate(self, calls: int) -> float:
        """Return the seconds until ``calls`` further calls have ended; 0 if it is unknown."""
        return calls * self._between_ends

    def retry_delay(self, calls: int, now: float) -> float:
        """Return the seconds after which a refused call may be served: when the ``calls`` before it have ended.

        While no call ends at all, it is the time for which none has.
        """
        silent = now - self._ended_at if self._saturated else 0.0
        return min(MAX_RETRY_DELAY, max(MIN_RETRY_DELAY, self.estimate(calls), silent))
