"""List of the attacks: name → attacker, and the paths of the target that it needs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from mesh.chaos.people import floods, open_streams, oversubscription, silent_readers, slow_senders
from mesh.chaos.people.attack_target import AttackTarget
from mesh.chaos.people.observed import Observed

__all__ = ["ATTACKS", "Attack", "possible"]


@dataclass(frozen=True, slots=True)
class Attack:
    """One kind of attack.

    Attributes:
        run: Attacks until it is cancelled.
        needs: The path of the target that it needs; "": none.
        http1: Whether it speaks HTTP/1.1, which a gRPC server does not.
        json: Whether it asks for a form of response that gRPC does not have.
    """

    run: Callable[[AttackTarget, Observed], Awaitable[None]]
    needs: str = ""
    http1: bool = False
    json: bool = False

    @property
    def text(self) -> str:
        """The first line of its docstring."""
        return (self.run.__doc__ or "").partition("\n")[0]


ATTACKS: Mapping[str, Attack] = {
    "slow-heads": Attack(slow_senders.slow_heads, "post"),
    "slow-heads-http1": Attack(slow_senders.slow_heads_http1, "post", http1=True),
    "slow-bodies": Attack(slow_senders.slow_bodies, "post"),
    "slow-bodies-http1": Attack(slow_senders.slow_bodies_http1, "post", http1=True),
    "body-less": Attack(slow_senders.body_less_posts, "post"),
    "uploads": Attack(slow_senders.uploads, "post"),
    "uploads-http1": Attack(slow_senders.uploads_http1, "post", http1=True),
    "silent-readers": Attack(silent_readers.silent_readers, "large"),
    "silent-readers-http1": Attack(silent_readers.silent_readers_http1, "large", http1=True),
    "streams": Attack(open_streams.server_streams, "stream"),
    "event-streams": Attack(open_streams.event_streams, "stream", json=True),
    "web-sockets": Attack(open_streams.web_sockets, "stream", http1=True),
    "hung": Attack(open_streams.hung_calls, "hung"),
    "watches": Attack(open_streams.watches),
    "reflection": Attack(open_streams.reflection),
    "resets": Attack(floods.resets, "get"),
    "pings": Attack(floods.pings),
    "settings": Attack(floods.settings),
    "connections": Attack(floods.connections),
    "capacity": Attack(oversubscription.saturate, "costly", http1=True),
    "oversubscription": Attack(oversubscription.offer, "costly", http1=True),
}
"""Name → attack. ``capacity`` measures, the rest attack."""


def possible(target: AttackTarget) -> list[str]:
    """Return the names of the attacks that a target has the paths for, without ``capacity``."""
    return [
        name
        for name, attack in ATTACKS.items()
        if name != "capacity"
        and (not attack.needs or getattr(target, attack.needs))
        and not (target.grpc and (attack.http1 or attack.json))
    ]
