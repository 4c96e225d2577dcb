"""Method health: blame and clearance of methods whose workers died. Pure, without a clock.

Any call whose function had started may be the cause of its worker's death. The death counts against those methods in
the worker that have the worst record. So a method that never responded is blamed rather than one that always did, and a
healthy method that was once present at a crash is not blamed again when the true cause crashes the next worker.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum

__all__ = ["MethodHealth", "MethodHealthTracker"]

PROVEN_AFTER = 3
"""Responses after which a method is no longer new."""
SUSPECT_RATE = 0.1
"""Share of a method's calls that end with their worker, from which on the method is a suspect."""
HALVE_AFTER = 50
"""Responses after which all earlier responses and deaths count half."""
NEGLIGIBLE_DEATHS = 0.5
"""Deaths, halved as above, below which they are forgotten."""
FUTILE_DEATHS = 8
"""Deaths, without as many responses, from which on another attempt is not worth another worker."""


class MethodHealth(IntEnum):
    """Health of a method; calls of methods with different health are kept in different workers."""

    PROVEN = 0
    """It responds."""
    NEW = 1
    """It has not responded often enough to know."""
    SUSPECT = 2
    """At least one in ten of its calls ended with its worker."""


class MethodHealthTracker:
    """Responses and deaths of a service's methods.

    Args:
        methods: Their paths.

    Attributes:
        health: Path → health; proven methods are missing.
    """

    __slots__ = ("_deaths", "_responses", "health")

    def __init__(self, methods: Iterable[str]) -> None:
        self._responses: dict[str, float] = dict.fromkeys(methods, 0.0)
        self._deaths: dict[str, float] = {}
        self.health: dict[str, MethodHealth] = dict.fromkeys(self._responses, MethodHealth.NEW)

    def record_response(self, method: str) -> None:
        """Record that a call of the method has ended with a status of its function, OK or an error."""
        count = self._responses[method] = self._responses[method] + 1
        if count >= HALVE_AFTER:
            self._responses[method] = count / 2
            if method in self._deaths:
                self._deaths[method] /= 2
        if method in self.health or method in self._deaths:
            self._classify(method)

    def record_death(self, methods: Iterable[str]) -> None:
        """Record that a worker ended, or has to be killed, while functions of these methods had started in it."""
        rates = {method: self._death_rate(method) for method in set(methods)}
        worst = max(rates.values(), default=0.0)
        for method, rate in rates.items():
            if rate == worst:
                self._deaths[method] = self._deaths.get(method, 0.0) + 1
                self._classify(method)

    def retry_is_futile(self, method: str) -> bool:
        """Whether another attempt would most likely only kill another worker."""
        return self._deaths.get(method, 0.0) >= FUTILE_DEATHS and self._deaths[method] > self._responses[method]

    def reset(self) -> None:
        """Forget everything, because there is new code."""
        self.__init__(self._responses)  # type: ignore[misc]

    def _death_rate(self, method: str) -> float:
        """Return the share of the method's calls that ended with their worker, with one more call on each side."""
        deaths = self._deaths.get(method, 0.0) + 1
        return deaths / (deaths + self._responses[method] + 1)

    def _classify(self, method: str) -> None:
        deaths, responses = self._deaths.get(method, 0.0), self._responses[method]
        if deaths < NEGLIGIBLE_DEATHS:
            self._deaths.pop(method, None)
            deaths = 0.0
        if deaths and deaths >= SUSPECT_RATE * (deaths + responses):
            self.health[method] = MethodHealth.SUSPECT
        elif responses < PROVEN_AFTER:
            self.health[method] = MethodHealth.NEW
        else:
            self.health.pop(method, None)
