"""Authorization block of nats-server's configuration: users with their public NKEYs and their rights. Pure.

Strings are written as JSON with characters outside ASCII as they are, because nats-server reads no escapes of them
(findings/nats-config-json-strings.sh).

Source: https://docs.nats.io/running-a-nats-service/configuration/securing_nats/authorization
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["User", "block", "text"]


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
    """Return the block. Other clients are refused."""
    return "\n".join(["authorization {", "  users: [", *(_user(one) for one in users), "  ]", "}", ""])


def _user(user: User) -> str:
    lists = {"publish": user.publish, "subscribe": user.subscribe}
    permissions = "".join(
        f"      {name}: {{ allow: [\n{_lines(allowed)}      ] }}\n" for name, allowed in lists.items()
    )
    return f"    # {user.name}\n    {{ nkey: {user.nkey}, permissions: {{\n{permissions}    }} }}"


def _lines(subjects: Iterable[str]) -> str:
    return "".join(f"        {text(one)}\n" for one in subjects)


def text(value: str) -> str:
    """Return a string of the configuration."""
    return json.dumps(value, ensure_ascii=False)
