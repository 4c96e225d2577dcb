"""What is known of a service's methods: which answer, and which end their workers. Pure, without a clock.

When a worker ends, any call that had begun in it may be why. It counts against those of them whose record is the
worst: against a method that never answered rather than one that always did. So a healthy method that was beside
a crash once is not taken for its cause when the true one strikes again.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum

__all__ = ["Records", "Standing"]

PROOF = 3
"""Answers after which a method is no longer new."""
SHARE = 0.1
"""Calls that end with their worker, of all calls of a method, from which on it is a suspect."""
MEMORY = 50
"""Answers after which all that came before counts half."""
TRACE = 0.5
"""Deaths, counted as above, that are too long ago to count."""
HOPELESS = 8
"""Deaths without as many answers, after which a call is not worth another worker."""


class Standing(IntEnum):
    """What a method is taken for; calls of different standing are kept in different workers."""

    PROVEN = 0
    """It answers."""
    NEW = 1
    """It has not answered often enough to know."""
    SUSPECT = 2
    """At least one in ten of its calls ended with its worker."""


class Records:
    """The records of a service's methods.

    Args:
        methods: Their paths.

    Attributes:
        standing: Path → what it is taken for; those that are proven are missing.
    """

    __slots__ = ("_answered", "_died", "standing")

    def __init__(self, methods: Iterable[str]) -> None:
        self._answered: dict[str, float] = dict.fromkeys(methods, 0.0)
        self._died: dict[str, float] = {}
        self.standing: dict[str, Standing] = dict.fromkeys(self._answered, Standing.NEW)

    def answered(self, method: str) -> None:
        """Note that a call of the method has ended as it should: with an answer or with an error."""
        count = self._answered[method] = self._answered[method] + 1
        if count >= MEMORY:
            self._answered[method] = count / 2
            if method in self._died:
                self._died[method] /= 2
        if method in self.standing or method in self._died:
            self._judge(method)

    def died(self, methods: Iterable[str]) -> None:
        """Note that a worker ended, or has to, while calls of these methods had begun in it."""
        rates = {method: self._rate(method) for method in set(methods)}
        worst = max(rates.values(), default=0.0)
        for method, rate in rates.items():
            if rate == worst:
                self._died[method] = self._died.get(method, 0.0) + 1
                self._judge(method)

    def hopeless(self, method: str) -> bool:
        """Return whether another try would most likely only end another worker."""
        return self._died.get(method, 0.0) >= HOPELESS and self._died[method] > self._answered[method]

    def forget(self) -> None:
        """Forget everything: there is new code."""
        self.__init__(self._answered)  # type: ignore[misc]

    def _rate(self, method: str) -> float:
        """Return how likely it is the cause: the share of its calls that ended so, one more put down to each side."""
        died = self._died.get(method, 0.0) + 1
        return died / (died + self._answered[method] + 1)

    def _judge(self, method: str) -> None:
        died, answered = self._died.get(method, 0.0), self._answered[method]
        if died < TRACE:
            self._died.pop(method, None)
            died = 0.0
        if died and died >= SHARE * (died + answered):
            self.standing[method] = Standing.SUSPECT
        elif answered < PROOF:
            self.standing[method] = Standing.NEW
        else:
            self.standing.pop(method, None)
