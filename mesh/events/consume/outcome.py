"""What becomes of a delivery: how a call ended, and how often it was tried → done, once more, or dead letter. Pure.

A code is *permanent* when the same event can only end the same way: trying again would hold its key for nothing.
Everything else may be about now, so it comes back, later and later, until ``Limits.tries`` is reached. What was refused
before the function began (concurrency limit reached, a stop) is no try. Nor is a call whose worker ended while others
ran in it: any of them may be why (``mesh.sidecar.workers``). Such a loss is counted by itself, and bounded too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from mesh.errors import Code

__all__ = ["PERMANENT", "Ack", "Dead", "Decision", "Limits", "Retry", "backoff", "decide"]

PERMANENT = frozenset(
    {
        Code.INVALID_ARGUMENT,
        Code.FAILED_PRECONDITION,
        Code.OUT_OF_RANGE,
        Code.UNIMPLEMENTED,
        Code.PERMISSION_DENIED,
        Code.UNAUTHENTICATED,
        Code.ALREADY_EXISTS,
        Code.DATA_LOSS,
    }
)
"""Codes that another try cannot change. NOT_FOUND is not among them: what is missing may be on its way, as another
event."""
REFUSED = 1.0
"""Seconds after which a delivery that found the concurrency limit reached comes back, at the earliest."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How patient deliveries are.

    Attributes:
        tries: Calls of the function for one event, after which it is a dead letter.
        first: Seconds before the second try, at most (jitter makes it shorter).
        longest: Seconds before any try, at most.
    """

    tries: int = 20
    first: float = 0.5
    longest: float = 60.0


@dataclass(frozen=True, slots=True)
class Ack:
    """Done."""


@dataclass(frozen=True, slots=True)
class Retry:
    """Once more.

    Attributes:
        after: Seconds to wait.
    """

    after: float


@dataclass(frozen=True, slots=True)
class Dead:
    """Never again by itself.

    Attributes:
        reason: Why, in words.
    """

    reason: str


Decision: TypeAlias = Ack | Retry | Dead


def backoff(tries: int, limits: Limits, random: float) -> float:
    """Return the seconds before the next try: doubled with each one, between half and all of it by chance.

    Args:
        tries: Tries so far, 1 or more.
        limits: The bounds.
        random: From 0 to 1.
    """
    return min(limits.longest, limits.first * 2.0 ** min(tries - 1, 60)) * (0.5 + random / 2)


def decide(code: Code, tries: int, limits: Limits, random: float, *, began: bool, losses: int = 0) -> Decision:
    """Return what becomes of a delivery.

    Args:
        code: How the call ended.
        tries: Tries so far, this one included if it was one.
        limits: How patient to be.
        random: From 0 to 1.
        began: The function was called. What ended before that says nothing of the event.
        losses: Times, this one included, that it was lost with a worker that another call may have ended; 0 when it
            was not lost this time.
    """
    if code is Code.OK:
        return Ack()
    if not began:
        return Retry(REFUSED * (1 + random))
    if losses:
        return _lost(losses, limits, random)
    if code in PERMANENT:
        return Dead(f"{code.name} is permanent: another try would end the same way")
    if tries >= limits.tries:
        return Dead(f"{tries} tries, the most that are made")
    return Retry(backoff(tries, limits, random))


def _lost(losses: int, limits: Limits, random: float) -> Decision:
    if losses >= 2 * limits.tries:
        return Dead(f"its worker ended {losses} times while it and others ran: it may be why")
    return Retry(backoff(losses, limits, random))
