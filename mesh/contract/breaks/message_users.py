"""Users of the messages and enums of a contract: the methods and events that contain them, at any depth."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from mesh.contract.model import Access, Contract, Method

__all__ = ["MessageUsers", "Users"]

_NAMED = 2
"""Users that a text names; it counts the others."""


@dataclass(slots=True)
class Users:
    """Users of one message or enum.

    Attributes:
        requests: Methods whose request contains it.
        responses: Methods whose response contains it.
        events: Full names of the events that contain it.
        json: Methods whose request contains it and may be JSON of a client: by an HTTP route, or by the Connect
            protocol, which clients can use for every method that is not INTERNAL.
        queried: Methods whose request contains it and may be in the query of a URL.
    """

    requests: list[str] = field(default_factory=list)
    responses: list[str] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    json: list[str] = field(default_factory=list)
    queried: list[str] = field(default_factory=list)

    @property
    def checked(self) -> bool:
        """Whether the mesh checks the rules of the message: those of requests and of events."""
        return bool(self.requests or self.events)

    def refused(self, *, ignores_unknown_json: bool) -> str:
        """Return the methods whose clients get an error when they send a field or a value that was removed, or ``""``.

        Args:
            ignores_unknown_json: Whether the edge ignores unknown JSON fields. Query parameters it never ignores.
        """
        return _named(self.queried if ignores_unknown_json else self.json)

    def text(self) -> str:
        """Return who has the message, as the end of a sentence."""
        methods = list(dict.fromkeys([*self.requests, *self.responses]))
        parts = [f"clients of {_named(methods)}"] if methods else []
        if self.events:
            parts.append(f"stored events and subscribers of {_named(self.events)}")
        return " and ".join(parts) or "whoever has stored it (no method and no event contains it)"


def _named(names: list[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


class MessageUsers:
    """Users of all messages and enums of a contract.

    Args:
        contract: The contract.
    """

    def __init__(self, contract: Contract) -> None:
        self._users: dict[str, Users] = {}
        self._contained: dict[str, frozenset[str]] = {}
        for method in contract.methods.values():
            self._method(method)
        for event in contract.events.values():
            for name in self._all(event.message.DESCRIPTOR):
                self._of(name).events.append(event.name)

    def of(self, name: str) -> Users:
        """Return the users of a message or an enum."""
        return self._users.get(name) or Users()

    def used(self) -> set[str]:
        """Return the full names of the messages and enums that have a user."""
        return set(self._users)

    def _of(self, name: str) -> Users:
        return self._users.setdefault(name, Users())

    def _method(self, method: Method) -> None:
        """Add a method. One that only its triggers call has no clients: its request is an event, or of the mesh."""
        name = method.path[1:]
        for contained in () if method.triggers_only else self._all(method.input.DESCRIPTOR):
            users = self._of(contained)
            users.requests.append(name)
            if method.routes or method.access is not Access.INTERNAL:
                users.json.append(name)
            if any(route.body != "*" for route in method.routes):
                users.queried.append(name)
        for contained in () if method.triggers_only else self._all(method.output.DESCRIPTOR):
            self._of(contained).responses.append(name)

    def _all(self, message: Any) -> frozenset[str]:
        found = self._contained.get(message.full_name)
        if found is None:
            found = self._contained[message.full_name] = frozenset(_contained(message))
        return found


def _contained(message: Any) -> Iterator[str]:
    """Yield the full names of a message, and of the messages and enums in it."""
    seen = {message.full_name}
    to_visit: list[Any] = [message]
    while to_visit:
        here = to_visit.pop()
        if not here.GetOptions().map_entry:
            yield here.full_name
        for one in here.fields:
            if one.enum_type is not None and one.enum_type.full_name not in seen:
                seen.add(one.enum_type.full_name)
                yield one.enum_type.full_name
            if one.message_type is not None and one.message_type.full_name not in seen:
                seen.add(one.message_type.full_name)
                to_visit.append(one.message_type)
