"""When a component that died is started again. Pure: time is an argument."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["FIRST", "HEALTHY", "LONGEST", "Restart", "decide"]

FIRST = 0.1
"""Seconds before the first restart."""
LONGEST = 15.0
"""Seconds that the delay never exceeds."""
HEALTHY = 20.0
"""Seconds of being ready after which earlier failures are forgotten."""


@dataclass(frozen=True, slots=True)
class Restart:
    """What to do about a death.

    Attributes:
        failures: Deaths in a row, this one included.
        delay: Seconds to wait before the next start.
    """

    failures: int
    delay: float


def decide(failures: int, *, ready_at: float | None, now: float, longest: float = LONGEST) -> Restart:
    """Return what to do about a component that died at ``now``.

    Args:
        failures: Deaths in a row before this one.
        ready_at: When it became ready, or None if this start never did.
        now: The time, seconds, by the same clock.
        longest: Seconds that the delay never exceeds.
    """
    if ready_at is not None and now - ready_at >= HEALTHY:
        failures = 0
    # The exponent is bounded so that a component that fails for a year does not overflow a float.
    return Restart(failures + 1, min(FIRST * 2.0 ** min(failures, 32), longest))
