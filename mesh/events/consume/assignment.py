"""Partition assignment: rendezvous hashing over the live replicas. Pure.

Each partition goes to the replica that scores highest for it. So partitions spread evenly, a replica that starts or
stops moves only its own share, and every replica computes the same result without a coordinator. Two replicas that
disagree for a moment do no harm: the broker pins a partition to one of them.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

__all__ = ["HEARTBEAT_INTERVAL", "HEARTBEAT_TIMEOUT", "LiveReplicas", "owner"]

HEARTBEAT_INTERVAL = 1.0
"""Seconds between two heartbeats."""
HEARTBEAT_TIMEOUT = 3.5
"""Seconds without a heartbeat after which a replica counts as gone."""


def owner(partition: str, replicas: list[str]) -> str:
    """Return the replica that should have a partition; the same for the same set, in any order."""
    return max(sorted(replicas), key=lambda replica: hashlib.sha256(f"{replica}/{partition}".encode()).digest())


@dataclass(slots=True)
class LiveReplicas:
    """Replicas of a service with a recent heartbeat.

    Attributes:
        name: This replica, which is always live.
    """

    name: str
    _seen: dict[str, float] = field(default_factory=dict)

    def heartbeat(self, name: str, now: float) -> bool:
        """Note a heartbeat; return whether the replica is new."""
        new = name != self.name and name not in self._seen
        if name != self.name:
            self._seen[name] = now
        return new

    def left(self, name: str) -> None:
        """Remove a replica that shuts down."""
        self._seen.pop(name, None)

    def live(self, now: float) -> list[str]:
        """Return the live replicas, this one included; forget the others. ``now`` is of a monotonic clock."""
        self._seen = {name: at for name, at in self._seen.items() if now - at < HEARTBEAT_TIMEOUT}
        return [self.name, *self._seen]
