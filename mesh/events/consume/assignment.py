"""Which replica should have which partition: all of them, by the same arithmetic, from who was heard of lately. Pure.

Rendezvous hashing: each partition goes to the replica that scores highest for it, so partitions spread evenly and a
replica that comes or goes moves only its own share. Two replicas that disagree for a moment do no harm: the broker pins
a partition to one of them.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

__all__ = ["EVERY", "FORGOTTEN", "Members", "owner"]

EVERY = 1.0
"""Seconds between two signs of life."""
FORGOTTEN = 3.5
"""Seconds of silence after which a replica counts as gone."""


def owner(partition: str, replicas: list[str]) -> str:
    """Return the replica that should have a partition; the same for the same set, in any order."""
    return max(sorted(replicas), key=lambda replica: hashlib.sha256(f"{replica}/{partition}".encode()).digest())


@dataclass(slots=True)
class Members:
    """The replicas of a service that were heard of lately.

    Attributes:
        name: This one, which is always among them.
    """

    name: str
    _heard: dict[str, float] = field(default_factory=dict)

    def heard(self, name: str, now: float) -> bool:
        """Note a sign of life; True if the replica is new."""
        new = name != self.name and name not in self._heard
        if name != self.name:
            self._heard[name] = now
        return new

    def left(self, name: str) -> None:
        """Note that a replica has said goodbye."""
        self._heard.pop(name, None)

    def here(self, now: float) -> list[str]:
        """Return the replicas, this one included; the silent are forgotten. ``now`` is of a monotonic clock."""
        self._heard = {name: at for name, at in self._heard.items() if now - at < FORGOTTEN}
        return [self.name, *self._heard]
