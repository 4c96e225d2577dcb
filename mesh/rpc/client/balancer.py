"""Load balancing over connections, and the backoff between attempts to connect. Pure: randomness is an argument."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Protocol, TypeVar

__all__ = ["backoff", "pick"]


class Candidate(Protocol):
    """The part of a connection that balancing uses."""

    @property
    def streams(self) -> Collection[int]:
        """The open streams."""

    @property
    def available_streams(self) -> int:
        """Number of streams that may be opened now."""


CandidateT = TypeVar("CandidateT", bound=Candidate)


def pick(candidates: Sequence[CandidateT], chance: Callable[[int], int]) -> CandidateT | None:
    """Return the one of two random candidates with fewer open streams, or None if no candidate takes a stream.

    Two choices spread calls almost as well as comparing all candidates, and callers that decide at the same time do not
    all choose the same one (Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing").

    Args:
        candidates: Connections that are ready.
        chance: ``chance(n)`` is a random integer of 0 … n - 1.
    """
    count = len(candidates)
    if count == 1:
        only = candidates[0]
        return only if only.available_streams > 0 else None
    if count == 0:
        return None
    first = chance(count)
    second = (first + 1 + chance(count - 1)) % count
    one, other = candidates[first], candidates[second]
    if len(other.streams) < len(one.streams):
        one, other = other, one
    if one.available_streams > 0:
        return one
    if other.available_streams > 0:
        return other
    free = [candidate for candidate in candidates if candidate.available_streams > 0]
    return min(free, key=lambda candidate: len(candidate.streams), default=None)


def backoff(failures: int, chance: float, *, base: float, cap: float) -> float:
    """Return the delay in seconds after failures in a row (≥ 1): ``base · 1.6ⁿ⁻¹`` up to ``cap``, ± 20 %.

    Args:
        failures: Failures in a row.
        chance: A random number of 0 … 1.
        base: Delay after the first failure, seconds.
        cap: Longest delay, seconds.

    Source: connection-backoff.md of gRPC, with a shorter base and cap: a mesh's peers restart within seconds.
    """
    exponent = min(failures - 1, 64)
    return float(min(base * 1.6**exponent, cap) * (0.8 + 0.4 * chance))
