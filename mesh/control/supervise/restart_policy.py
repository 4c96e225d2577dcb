"""Restart policy: the delay before a component that died is started again. Pure: time is an argument."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["FIRST_RESTART_DELAY", "HEALTHY_AGE", "MAX_RESTART_DELAY", "Restart", "decide"]

FIRST_RESTART_DELAY = 0.1
"""Seconds before the first restart; each further one waits twice as long."""
MAX_RESTART_DELAY = 15.0
"""Seconds that the delay never exceeds."""
HEALTHY_AGE = 20.0
"""Seconds of being ready after which earlier failures are forgotten."""


@dataclass(frozen=True, slots=True)
class Restart:
    """Decision about the next start of a component.

    Attributes:
        failures: Deaths in a row, this one included.
        delay: Seconds to wait before the next start.
    """

    failures: int
    delay: float


def decide(failures: int, *, ready_at: float | None, now: float, max_delay: float = MAX_RESTART_DELAY) -> Restart:
    """Return the restart of a component that died at ``now``.

    Args:
        failures: Deaths in a row before this one.
        ready_at: Time of becoming ready, or None if this start never became ready.
        now: The time, seconds, by the same clock.
        max_delay: Seconds that the delay never exceeds.
    """
    if ready_at is not None and now - ready_at >= HEALTHY_AGE:
        failures = 0
    # The exponent is bounded so that a component that fails for a year does not overflow a float.
    return Restart(failures + 1, min(FIRST_RESTART_DELAY * 2.0 ** min(failures, 32), max_delay))
