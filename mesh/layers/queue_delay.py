"""Queue delay of one method: whether it is overloaded, how many of its calls may then run, and how long one may wait.

A pure data structure: it holds no clock. It looks at one thing only: how long calls wait in queues of this process (for
a permit, a thread, a worker, a database connection, or a pool of their own, ``mesh.note_wait``). It does not look at
the length of calls. A slow dependency, larger requests and foreign load of the machine make calls longer, and none of
that is a reason to refuse one.

A burst is worth queueing: the calls are served in order, and nearly all in time. So are callers that wait for their
responses before they call again: their queue does not grow. A queue that stands only makes every call late, until
callers give up and the work for them is lost. A wait is long from ``interval`` on, or from half of the time to the
call's deadline. The method counts as **overloaded** when for half of an interval its calls have had long waits only (a
standing queue is one that never gets short; K. Nichols, V. Jacobson, *Controlling Queue Delay*, ACM Queue 10(5), 2012).
Nothing is limited before. Methods share
queues, such as a lock or a database: of several, the one whose calls fill them most is overloaded first. From then on:

- **Limit.** As many calls run as are not in a queue of the process, and a few more, so that these queues are short and
  never empty. Little's law gives the number: the time that ended calls have not waited, divided by the time in which
  they ended. It corrects itself: if nothing waits inside, the limit is too low, and doubles.
  It doubles as well if the calls do not use it up: then it is the limit that makes them wait.
- **Newest first.** A call waits for its permit for the length of one call at most. The newest call goes first, because
  its caller is the most likely to be still there (adaptive LIFO; B. Maurer, *Fail at Scale*, ACM Queue 13(8), 2015).

The overload ends when for an ``interval`` no call has been refused.

Netflix' concurrency-limits and Envoy's adaptive concurrency decide by the latency of calls, WeChat's overload control
(Zhou et al., SoCC 2018) and Breakwater (Cho et al., OSDI 2020) by the queueing delay, as this does.
"""

from __future__ import annotations

from math import inf

__all__ = ["QueueDelay"]

MIN_INTERVAL = 1.0
"""Seconds of a long wait, at least."""
INTERVAL_CALLS = 4
"""The same, as a multiple of the length of a call without its waits."""
MIN_TARGET_DELAY = 0.03
"""Seconds that a call may wait for a permit under overload, at least."""
FORGIVEN_SHARE = 0.1
"""Short waits among the long ones that do not end a standing queue: calls that fail before they come to the queue."""
MIN_LONG_WAITS = 8
"""Long waits of an overload, at least."""
WINDOW_SECONDS, WINDOW_CALLS = 0.25, 8
"""Time and ended calls of a measurement of the limit, at least."""
HEADROOM = 1.2
"""Limit as a multiple of the calls that run without waiting, plus one call."""
UNQUEUED_SHARE = 0.05
"""Part of the calls' time that is waiting, below which the limit is too low."""
USED_SHARE = 0.6
"""Part of the limit that the calls use on average, below which it is too low."""
FORGET_DELAY = 2.0
"""Seconds after which the last measurement says nothing of the queues any more."""
MAX_RETRY_DELAY = 30.0
"""Seconds of the longest delay that a refused caller is told."""
MIN_RETRY_DELAY = 0.1
"""Seconds of the shortest."""
_AVERAGED_ENDS = 32
"""Calls in the moving average of the time between two ends."""


class QueueDelay:
    """Queue delay of one method.

    Attributes:
        service_seconds: Mean length of the last calls without their waits; 0 while it is unknown.
        saturated: Whether calls waited for a permit when the last one ended.
        overloaded_until: Time at which the overload ends if no call is refused before.
    """

    __slots__ = (
        "_between_ends", "_calls", "_count", "_ended_at", "_limit", "_long", "_long_since", "_long_until",
        "_opened_at", "_queued", "_running", "_seconds", "_short", "_waited", "overloaded_until", "saturated",
        "service_seconds",
    )  # fmt: skip

    def __init__(self) -> None:
        self.service_seconds = 0.0
        self.overloaded_until = -inf
        # The present run of long waits:
        self._long = self._short = 0
        self._long_since = self._long_until = -inf
        # The present window of ended calls, and the limit of the last one:
        self._limit = inf
        self._opened_at = -inf
        self._calls = self._running = 0
        self._seconds = self._waited = 0.0
        self._queued = 0.0
        # The moving average of the time between two ends:
        self._between_ends = 0.0
        self._count = 0
        self._ended_at = -inf
        self.saturated = False

    def interval(self, now: float) -> float:
        """Return the length of a long wait, seconds.

        A dependency may have become slow a moment ago. Therefore the calls that have ended since the last measurement
        count, and the time for which none has.
        """
        service = self.service_seconds
        if self._calls:
            service = max(service, (self._seconds - self._waited) / self._calls)
        return max(MIN_INTERVAL, INTERVAL_CALLS * service, self._silence(now))

    @property
    def target(self) -> float:
        """Longest wait for a permit under overload, seconds."""
        return max(MIN_TARGET_DELAY, self.service_seconds)

    def overloaded(self, now: float) -> bool:
        """Whether the newest call goes first, and a call waits for ``target`` at most."""
        return now < self.overloaded_until

    def limit(self, now: float) -> float:
        """Return the calls that may run; infinite without an overload."""
        return self._limit if now < self.overloaded_until else inf

    def queued(self, now: float) -> float:
        """Return the mean number of calls in queues behind the permit; 0 if it was measured long ago."""
        return self._queued if now - self._opened_at < FORGET_DELAY else 0.0

    def waited(self, seconds: float, budget: float, now: float) -> bool:
        """Note the wait of a call in all queues of the process, when it has ended, gave up, or still waits.

        Args:
            seconds: Length of the wait.
            budget: Seconds from the call's arrival to its deadline.
            now: The current time.

        Returns:
            Whether an overload begins with it.
        """
        interval = self.interval(now)
        long = seconds >= min(interval, budget / 2)
        if now < self.overloaded_until:
            if long:
                self.refused(now)
            return False
        if not long:
            self._short += 1
            if self._short > FORGIVEN_SHARE * self._long:
                self._long = 0
            return False
        if not self._long or now - self._long_until >= interval:
            self._long = self._short = 0
            self._long_since = now
            self._limit = inf
            self._open(now)
        self._long += 1
        self._long_until = now
        if now - self._long_since < interval / 2 or self._long < MIN_LONG_WAITS:
            return False
        self._long = 0
        self.overloaded_until = now + interval
        return True

    def dismiss(self) -> None:
        """Take back the overload that has begun: the queues are those of another method."""
        self.overloaded_until = -inf

    def refused(self, now: float) -> None:
        """Note that a call was refused under overload."""
        self.overloaded_until = now + self.interval(now)

    def ended(self, now: float, *, waiting: bool) -> None:
        """Note the end of any call. It may be left out while neither ``saturated`` nor ``waiting``.

        Args:
            now: The current time.
            waiting: Whether other calls of the method wait for a permit, so that one of them gets it.
        """
        if self.saturated:
            self._count = min(self._count + 1, _AVERAGED_ENDS)
            self._between_ends += (now - self._ended_at - self._between_ends) / self._count
        self._ended_at = now
        self.saturated = waiting

    def measured(self, seconds: float, waited: float, running: int, now: float) -> None:
        """Measure a call that has ended.

        Args:
            seconds: Its length since it got its permit.
            waited: The part of it that was waiting.
            running: Calls in progress, itself included.
            now: The current time.
        """
        if not self._calls and self._opened_at == -inf:
            self._open(now - seconds)
        self._calls += 1
        self._seconds += seconds
        if waited:
            self._waited += min(waited, seconds)
        self._running += running
        if self._calls < WINDOW_CALLS or now - self._opened_at < WINDOW_SECONDS:
            return
        worked, elapsed = self._seconds - self._waited, now - self._opened_at
        self.service_seconds = worked / self._calls
        self._queued = self._waited / elapsed
        if self._waited < UNQUEUED_SHARE * self._seconds:
            self._limit = 2 * self._running / self._calls
        elif self.limit(now) < inf and self._seconds / elapsed < USED_SHARE * self._limit:
            self._limit *= 2
        else:
            self._limit = int(HEADROOM * worked / elapsed) + 1
        self._open(now)

    def estimate(self, calls: int) -> float:
        """Return the seconds until ``calls`` further calls have ended; 0 if it is unknown."""
        return calls * self._between_ends

    def retry_delay(self, calls: int, now: float) -> float:
        """Return the seconds after which a refused call may be served: when the ``calls`` before it have ended.

        While no call ends at all, it is the time for which none has.
        """
        return min(MAX_RETRY_DELAY, max(MIN_RETRY_DELAY, self.estimate(calls), self._silence(now)))

    def _silence(self, now: float) -> float:
        """Return the seconds for which no call has ended although calls waited for a permit."""
        return now - self._ended_at if self.saturated else 0.0

    def _open(self, now: float) -> None:
        self._opened_at = now
        self._calls = self._running = 0
        self._seconds = self._waited = 0.0
