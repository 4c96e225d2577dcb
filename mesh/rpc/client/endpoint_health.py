"""Health of endpoints: counts the outcomes of their calls, and decides which endpoint is an outlier. Pure.

An endpoint is an outlier only in comparison with others. Calls of one method that fail everywhere are the fault of the
method, of its callers or of something behind all servers, and to leave an endpoint out would only take capacity away.
Outcomes are therefore counted for each method.

A call has *failed* here if the server did not do its work: it answered UNAVAILABLE, it did not answer within the
deadline, or the connection was lost. Every other status is a response, also an error of the function. So is
RESOURCE_EXHAUSTED: a server that refuses work is alive, and to send its share to the others would overload them next.

Sources: https://github.com/grpc/proposal/blob/master/A50-xds-outlier-detection.md and Envoy's outlier detection. Both
need at least five endpoints for their statistics. A mesh has two or three replicas of a service, so the comparison here
is with the calls of all other endpoints together.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

__all__ = ["EndpointHealth", "MethodOutcomes", "ejection_allowed", "ejection_delay", "failing_method", "outlier"]

CONSECUTIVE_FAILURES = 5
"""Failures in a row of one method, while another endpoint answers it, that make an outlier (Envoy's default)."""
MIN_CALLS = 30
"""Calls of an interval, on each side of the comparison, from which ratios are compared."""
FAILURE_RATIO = 0.3
"""Least share of failed calls of an outlier."""
RATIO_FACTOR = 5.0
"""Factor by which the share of failed calls, or the latency, exceeds that of the other endpoints."""
MIN_EXCESS_LATENCY = 0.05
"""Least excess of an outlier's latency over that of the other endpoints, mean of its calls, seconds."""
MAX_EJECTED_SHARE = 0.5
"""Largest share of the endpoints that is ejected because of what the calls show."""
EJECTION_BASE_DELAY = 5.0
EJECTION_MAX_DELAY = 60.0
"""Seconds of the first ejection, and of the longest. It doubles with each ejection."""


class MethodOutcomes:
    """Outcomes of the calls of one method to one endpoint.

    Attributes:
        answers: Calls answered in this interval.
        failures: Calls failed in this interval.
        seconds: Time that both took together.
        streak: Failures since the last response.
        streak_began: Time at which the first of these calls was sent.
        answered_at: Time of the last response.
    """

    __slots__ = ("answered_at", "answers", "failures", "seconds", "streak", "streak_began")

    def __init__(self) -> None:
        self.answers = self.failures = self.streak = 0
        self.seconds = self.streak_began = 0.0
        self.answered_at = float("-inf")

    def start_interval(self) -> None:
        """Set the counts of the interval to zero."""
        self.answers = self.failures = 0
        self.seconds = 0.0


class EndpointHealth:
    """Health of one endpoint, shared by all connections to it.

    Attributes:
        methods: Outcomes by the path of the method.
        ejected: The endpoint gets no calls while others can take them.
        unresponsive: It is ejected because it did not respond to a health check.
        trial_began: Time since which it gets one call at a time, whose outcome decides; 0.0: no trial.
        returned_at: Time of its last return. Failures of calls that were sent before do not count.
        ejections: Ejections so far, less one for each interval without one.
    """

    __slots__ = ("ejected", "ejections", "methods", "returned_at", "trial_began", "unresponsive")

    def __init__(self) -> None:
        self.methods: dict[str, MethodOutcomes] = {}
        self.ejected = self.unresponsive = False
        self.trial_began = self.returned_at = 0.0
        self.ejections = 0

    def answered(self, path: str, seconds: float, now: float) -> None:
        """Count a call that was answered, with any status but UNAVAILABLE. On the path of every call.

        Args:
            path: Path of the method.
            seconds: Duration of the call.
            now: The time.
        """
        outcomes = self.methods.get(path)
        if outcomes is None:
            outcomes = self.methods[path] = MethodOutcomes()
        outcomes.answers += 1
        outcomes.seconds += seconds
        outcomes.answered_at = now
        outcomes.streak = 0

    def failed(self, path: str, seconds: float, now: float) -> None:
        """Count a call that failed; arguments as for ``answered``."""
        if now - seconds < self.returned_at:
            return
        outcomes = self.methods.get(path)
        if outcomes is None:
            outcomes = self.methods[path] = MethodOutcomes()
        outcomes.failures += 1
        outcomes.seconds += seconds
        if not outcomes.streak:
            outcomes.streak_began = now - seconds
        outcomes.streak += 1

    def start_interval(self) -> None:
        """Set the counts of the interval to zero. Streaks go on."""
        for outcomes in self.methods.values():
            outcomes.start_interval()


def failing_method(endpoint: EndpointHealth, path: str, others: Iterable[EndpointHealth]) -> bool:
    """Whether an endpoint fails all calls of a method that another endpoint answers.

    Args:
        endpoint: The endpoint that has just failed such a call.
        path: Path of the method.
        others: The other endpoints that take calls.
    """
    outcomes = endpoint.methods.get(path)
    if outcomes is None or outcomes.streak < CONSECUTIVE_FAILURES:
        return False
    return any(
        other.methods[path].answered_at > outcomes.streak_began and not other.methods[path].streak
        for other in others
        if path in other.methods
    )


def outlier(endpoint: EndpointHealth, others: Collection[EndpointHealth]) -> str:
    """Return the reason why an endpoint is an outlier of the interval that ends, or "".

    Latency is compared method by method: the time that the endpoint's calls took, with the time that as many calls of
    the same methods took elsewhere. Endpoints that fail many calls of a method are no measure of it, because a failure
    may be quick.

    Args:
        endpoint: The endpoint.
        others: The other endpoints that take calls.
    """
    calls = failures = other_calls = other_failures = compared = measure_calls = 0
    seconds = expected = 0.0
    for path, outcomes in endpoint.methods.items():
        count = outcomes.answers + outcomes.failures
        found = [other.methods[path] for other in others if path in other.methods]
        other_count = sum(each.answers + each.failures for each in found)
        if not count or not other_count:
            continue
        calls += count
        failures += outcomes.failures
        other_calls += other_count
        other_failures += sum(each.failures for each in found)
        measures = [each for each in found if each.failures < FAILURE_RATIO * (each.answers + each.failures)]
        if measures:
            measure_count = sum(each.answers + each.failures for each in measures)
            measure_calls += measure_count
            compared += count
            seconds += outcomes.seconds
            expected += count * sum(each.seconds for each in measures) / measure_count
    if calls < MIN_CALLS or other_calls < MIN_CALLS:
        return ""
    ratio, other_ratio = failures / calls, other_failures / other_calls
    if ratio >= FAILURE_RATIO and ratio > RATIO_FACTOR * other_ratio:
        return f"{ratio:.0%} of {calls} calls failed, and {other_ratio:.0%} of those to other addresses"
    excess = seconds - expected
    enough = compared >= MIN_CALLS and measure_calls >= MIN_CALLS
    if enough and seconds > RATIO_FACTOR * expected and excess > MIN_EXCESS_LATENCY * compared:
        return f"its calls took {seconds / compared:.3f} s, and {expected / compared:.3f} s at other addresses"
    return ""


def ejection_allowed(endpoints: int, ejected: int) -> bool:
    """Whether one more endpoint may be ejected because of what its calls show.

    If most endpoints look bad, the fault is not theirs (Envoy's panic threshold). An endpoint that does not respond at
    all is ejected in any case, because it serves nobody.

    Args:
        endpoints: Number of endpoints of the target.
        ejected: Number of those that are ejected.
    """
    return ejected + 1 <= endpoints * MAX_EJECTED_SHARE


def ejection_delay(ejections: int) -> float:
    """Return the seconds of an ejection that follows ``ejections`` others."""
    return float(min(EJECTION_BASE_DELAY * 2 ** min(ejections, 16), EJECTION_MAX_DELAY))
