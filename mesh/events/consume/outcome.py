"""Decision about a delivery: acknowledge, retry or give up, from the code of the call and the number of attempts. Pure.

A code is *permanent* when the same event can only end the same way; a retry would hold its key for nothing. Every other
code may be about the moment, so the event is retried with growing delays until ``RetryLimits.attempts`` is reached. A
call that was refused before the function started (a full queue, a shutdown) is no attempt. Nor is a call whose worker
ended while other calls ran in it: any of them may be the cause (``mesh.sidecar.workers``). Such losses are counted
separately, and limited too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from mesh.errors import Code

__all__ = ["PERMANENT", "Ack", "Decision", "GiveUp", "Retry", "RetryLimits", "backoff", "decide"]

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
"""Codes that a retry cannot change. NOT_FOUND is not among them: another event may bring what is missing."""
REFUSED_DELAY = 1.0
"""Minimum seconds before the retry of a delivery that was refused before its function started."""


@dataclass(frozen=True, slots=True)
class RetryLimits:
    """Limits of the retries of one event.

    Attributes:
        attempts: Attempts after which the event is a dead letter.
        first_delay: Maximum seconds before the second attempt (jitter makes it shorter).
        max_delay: Maximum seconds before any attempt.
    """

    attempts: int = 20
    first_delay: float = 0.5
    max_delay: float = 60.0


@dataclass(frozen=True, slots=True)
class Ack:
    """Acknowledge the event: it is processed."""


@dataclass(frozen=True, slots=True)
class Retry:
    """Deliver the event again.

    Attributes:
        delay: Seconds before the next attempt.
    """

    delay: float


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Make the event a dead letter.

    Attributes:
        reason: The reason, as text.
    """

    reason: str


Decision: TypeAlias = Ack | Retry | GiveUp


def backoff(attempts: int, limits: RetryLimits, random: float) -> float:
    """Return the seconds before the next attempt: doubled with each attempt, with a jitter of up to one half.

    Args:
        attempts: Attempts so far, 1 or more.
        limits: The limits.
        random: From 0 to 1.
    """
    return min(limits.max_delay, limits.first_delay * 2.0 ** min(attempts - 1, 60)) * (0.5 + random / 2)


def decide(
    code: Code, attempts: int, limits: RetryLimits, random: float, *, started: bool, losses: int = 0
) -> Decision:
    """Return the decision about a delivery.

    Args:
        code: The code of the call.
        attempts: Attempts so far, this call included if it was one.
        limits: The limits.
        random: From 0 to 1.
        started: The function was called. A call that ended before that says nothing about the event.
        losses: Number of calls, this one included, that were lost with a worker which another call may have ended; 0
            if this call was not lost.
    """
    if code is Code.OK:
        return Ack()
    if not started:
        return Retry(REFUSED_DELAY * (1 + random))
    if losses:
        return _lost(losses, limits, random)
    if code in PERMANENT:
        return GiveUp(f"{code.name} is permanent: a retry would end the same way")
    if attempts >= limits.attempts:
        return GiveUp(f"{attempts} attempts failed, the maximum")
    return Retry(backoff(attempts, limits, random))


def _lost(losses: int, limits: RetryLimits, random: float) -> Decision:
    if losses >= 2 * limits.attempts:
        return GiveUp(f"its worker ended {losses} times while it and others ran: it may be the cause")
    return Retry(backoff(losses, limits, random))
