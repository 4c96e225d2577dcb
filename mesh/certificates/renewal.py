"""Renewal schedule of a component that asks a signer: times of renewals, retries and looks at the signer. Pure."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

__all__ = ["MAX_RETRY_DELAY", "POLL_INTERVAL", "RenewalSchedule"]

POLL_INTERVAL = 60.0
"""Seconds between two looks at the signer's round, which changes with each step of a rotation."""
FIRST_RETRY_DELAY = 1.0
"""Seconds before the first repetition of a request that failed. Each further delay is twice as long."""
MAX_RETRY_DELAY = 60.0
"""Seconds that the delay never exceeds."""
SPREAD = 0.05
"""Share of a leaf's life by which components renew apart, so that they do not ask the signer all at once."""


class RenewalSchedule:
    """Schedule of one component.

    Args:
        chance: Returns a random number from 0 to 1.
    """

    def __init__(self, chance: Callable[[], float]) -> None:
        self._chance = chance
        self._failures = 0
        self._retry_at = 0.0
        self._poll_at = 0.0
        self._spread = chance() * SPREAD

    def renewal_due(self, now: datetime, half_life: datetime, life: timedelta, monotonic: float) -> bool:
        """Return whether to ask for a new leaf.

        Args:
            now: The time by the clock of the wall, which certificates go by.
            half_life: Half of the leaf's life.
            life: The whole of it.
            monotonic: Seconds of a clock that is never set, which retries go by.
        """
        return now >= half_life + life * self._spread and monotonic >= self._retry_at

    def poll_due(self, monotonic: float) -> bool:
        """Return whether to look at the signer's round."""
        return monotonic >= max(self._poll_at, self._retry_at)

    def succeeded(self, monotonic: float) -> None:
        """Note that the signer responded."""
        self._failures = 0
        self._retry_at = 0.0
        self._poll_at = monotonic + POLL_INTERVAL * (0.8 + 0.4 * self._chance())

    def failed(self, monotonic: float) -> float:
        """Note a failure; return the seconds until the next request."""
        delay = min(FIRST_RETRY_DELAY * 2.0 ** min(self._failures, 32), MAX_RETRY_DELAY) * (0.5 + 0.5 * self._chance())
        self._failures += 1
        self._retry_at = monotonic + delay
        return delay
