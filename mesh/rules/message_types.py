"""Message types within a message type: those of its fields, of theirs, and so on. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from google.protobuf.descriptor import Descriptor, FieldDescriptor

__all__ = ["containing", "is_map", "reachable", "value_type"]


def value_type(field: FieldDescriptor) -> Descriptor | None:
    """Return the message type of a field, of the values of a map; None for a scalar or an enum."""
    found: Descriptor | None = field.message_type
    if found is not None and is_map(field):
        return value_type(found.fields_by_name["value"])
    return found


def is_map(field: FieldDescriptor) -> bool:
    """Whether the field is a map."""
    return field.message_type is not None and bool(field.message_type.GetOptions().map_entry)


def reachable(message: Descriptor) -> list[Descriptor]:
    """Return the message type and every type within it, outermost first. Types of extensions are not among them."""
    found = {message.full_name: message}
    waiting = [message]
    while waiting:
        for field in waiting.pop().fields:
            inner = value_type(field)
            if inner is not None and inner.full_name not in found:
                found[inner.full_name] = inner
                waiting.append(inner)
    return list(found.values())


def containing(types: Iterable[Descriptor], own: Callable[[Descriptor], bool]) -> set[str]:
    """Return the full names of the types that have a property themselves, or have a type within them that has it.

    Args:
        types: Types with all types within them.
        own: Whether a type has the property itself.
    """
    types = list(types)
    users: dict[str, list[str]] = {}
    for one in types:
        for field in one.fields:
            inner = value_type(field)
            if inner is not None:
                users.setdefault(inner.full_name, []).append(one.full_name)
    waiting = [one.full_name for one in types if own(one)]
    found = set(waiting)
    while waiting:
        added = [user for user in users.get(waiting.pop(), ()) if user not in found]
        found.update(added)
        waiting += added
    return found
