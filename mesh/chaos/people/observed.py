"""Record of the responses, resets and closed connections that an attacker observed."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Observed"]


@dataclass(slots=True)
class Observed:
    """Counts of one attacker.

    Attributes:
        counts: Name of an observation → how often it was made: ``"requests"``, ``"HTTP 429"``, ``"reset CANCEL"``.
        times: Seconds that each request took that was responded to with success, where the attacker measures it.
    """

    counts: Counter[str] = field(default_factory=Counter)
    times: list[float] = field(default_factory=list)

    def note(self, name: str, number: int = 1) -> None:
        """Count an observation."""
        self.counts[name] += number

    def as_json(self) -> dict[str, Any]:
        """Return the record as JSON values."""
        return {"counts": dict(sorted(self.counts.items())), "times": [round(one, 4) for one in self.times]}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Observed:
        """Return the record of JSON values."""
        return cls(Counter(value["counts"]), list(value["times"]))
