"""Which connection takes the next call, and how long to wait before connecting again. Pure: chance is an argument."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Protocol, TypeVar

__all__ = ["backoff", "pick"]


class Candidate(Protocol):
    """A connection, as far as balancing sees it."""

    @property
    def streams(self) -> Collection[int]:
        """What it carries now."""

    @property
    def room(self) -> int:
        """How many more calls it takes now."""


CandidateT = TypeVar("CandidateT", bound=Candidate)


def pick(candidates: Sequence[CandidateT], chance: Callable[[int], int]) -> CandidateT | None:
    """Return the one of two random candidates with fewer calls in flight, or None if no candidate has room.

    Two choices spread calls almost as well as looking at all, and callers that decide at the same time do not all run
    to the same one (Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing").

    Args:
        candidates: Connections that are ready.
        chance: ``chance(n)`` is a random integer of 0 … n - 1.
    """
    count = len(candidates)
    if count == 1:
        only = candidates[0]
        return only if only.room > 0 else None
    if count == 0:
        return None
    first = chance(count)
    second = (first + 1 + chance(count - 1)) % count
    one, other = candidates[first], candidates[second]
    if len(other.streams) < len(one.streams):
        one, other = other, one
    if one.room > 0:
        return one
    if other.room > 0:
        return other
    free = [candidate for candidate in candidates if candidate.room > 0]
    return min(free, key=lambda candidate: len(candidate.streams), default=None)


def backoff(failures: int, chance: float, *, base: float, cap: float) -> float:
    """Return the seconds to wait after so many failures in a row (≥ 1): ``base · 1.6ⁿ⁻¹`` up to ``cap``, ± 20 %.

    Args:
        failures: Failures in a row.
        chance: A random number of 0 … 1.
        base: The first wait.
        cap: The longest.

    Source: connection-backoff.md of gRPC, with a shorter base and cap: a mesh's peers restart within seconds.
    """
    exponent = min(failures - 1, 64)
    return float(min(base * 1.6**exponent, cap) * (0.8 + 0.4 * chance))
