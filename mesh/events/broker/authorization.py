"""Authorization block of nats-server's configuration: users with their public NKEYs and their rights. Pure.

Strings are written as JSON with letters outside ASCII as they are, because nats-server reads no escapes of them
(findings/nats-config-json-strings.sh).

Source: https://docs.nats.io/running-a-nats-service/configuration/securing_nats/authorization
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["User", "block"]


@dataclass(frozen=True, slots=True)
class User:
    """One user of the broker.

    Attributes:
        name: The component, for readers of the file.
        nkey: Its public NKEY (``U…``).
        publish: Subjects that it may publish on, with wildcards.
        subscribe: Subjects that it may subscribe to, with wildcards.
    """

    name: str
    nkey: str
    publish: tuple[str, ...]
    subscribe: tuple[str, ...]


def block(users: Iterable[User]) -> str:
    """Return the block. A client that is none of the users is refused."""
    return "\n".join(["authorization {", "  users: [", *(_user(one) for one in users), "  ]", "}", ""])


def _user(user: User) -> str:
    lists = {"publish": user.publish, "subscribe": user.subscribe}
    permissions = "\n".join(
        f"        {name}: {{ allow: [{', '.join(map(_text, allowed))}] }}" for name, allowed in lists.items()
    )
    return f"    # {user.name}\n    {{ nkey: {user.nkey}, permissions: {{\n{permissions}\n    }} }}"


def _text(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)
