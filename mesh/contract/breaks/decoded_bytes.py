"""Decoding of stored bytes with two contracts: whether the new one reads what the old one wrote. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from google.protobuf.message import DecodeError, Message
from google.protobuf.unknown_fields import UnknownFieldSet

from mesh.message_methods import descriptor_of, has_field, list_fields, missing, parser

__all__ = ["decoding_fault"]


def decoding_fault(data: bytes, old: type[Message] | None, new: type[Message]) -> str:
    """Return the reason why bytes cannot be read as the new message, or read as other values; ``""``: they can be.

    Values of fields that the new message does not have are passed over, as every protobuf reader does.

    Args:
        data: A serialised message.
        old: The message of the contract that wrote it; None: unknown.
        new: The message of the new contract, of the same name.
    """
    try:
        after = parser(new)(data)
    except DecodeError:
        return "it cannot be decoded"
    lacking = missing(after)
    if lacking:
        return f"{lacking[0]} is required and not there"
    before = None
    if old is not None:
        try:
            before = parser(old)(data)
        except DecodeError:  # an earlier contract wrote it
            before = None
    found = _mismatches(after, "") if before is None else _differences(before, after, "")
    return next(found, "")


def _differences(old: Any, new: Any, path: str) -> Iterator[str]:
    """Yield the fields that have another value in the new message."""
    fields = descriptor_of(new).fields_by_number
    for field, value in list_fields(old):
        now = fields.get(field.number)
        if now is None:
            continue
        place = f"{path}{now.name}"
        other = getattr(new, now.name)
        if _is_map(field) and _is_map(now):
            values = [(f"{place}[{key}]", one, _entry(other, key)) for key, one in value.items()]
        elif field.is_repeated and now.is_repeated and not _is_map(field) and not _is_map(now):
            pairs = list(zip(value, other, strict=False))
            values = [(f"{place}[{index}]", one, two) for index, (one, two) in enumerate(pairs)]
            if len(value) != len(other):
                yield f"{place} had {len(value)} values and has {len(other)} now"
        elif field.is_repeated or now.is_repeated:
            yield f"{place} has another form now"
            continue
        else:
            is_set = not now.has_presence or has_field(new, now.name)
            values = [(place, value, other if is_set else None)]
        for name, one, two in values:
            yield from _difference(name, one, two, field, now)


def _entry(entries: Any, key: Any) -> Any:
    """Return the value of a key of a map, or None; also if the keys have another type now."""
    try:
        return entries.get(key)
    except TypeError:
        return None


def _difference(place: str, old: Any, new: Any, field: Any, now: Any) -> Iterator[str]:
    if isinstance(old, Message) and isinstance(new, Message):
        yield from _differences(old, new, f"{place}.")
    elif isinstance(old, Message) or isinstance(new, Message):
        yield f"{place} has another form now"
    elif _as_bytes(old) != _as_bytes(new) and not (old != old and new != new):  # noqa: PLR0124 - NaN is NaN
        yield f"{place} was {_shown(old)} and reads as {_shown(new)} now"
    elif _lacks_value(now, new) and not _lacks_value(field, old):
        yield f"{place} is {field.enum_type.values_by_number[old].name} ({old}), which {now.enum_type.full_name} lacks"


def _lacks_value(field: Any, value: Any) -> bool:
    return field.enum_type is not None and not _is_map(field) and value not in field.enum_type.values_by_number


def _as_bytes(value: Any) -> Any:
    return value.encode() if isinstance(value, str) else value


def _shown(value: Any) -> str:
    """Return a value; of text and bytes only the length, because they may be personal data."""
    if value is None or value in ("", b""):
        return "nothing"
    if isinstance(value, str | bytes):
        return f"{'a text' if isinstance(value, str) else 'bytes'} of length {len(value)}"
    return repr(value)


def _is_map(field: Any) -> bool:
    return field.message_type is not None and bool(field.message_type.GetOptions().map_entry)


def _mismatches(message: Any, path: str) -> Iterator[str]:
    """Yield the fields whose bytes have another wire type than the message declares: readers pass them over."""
    fields: Mapping[int, Any] = descriptor_of(message).fields_by_number
    unknown_fields: Any = UnknownFieldSet(message)  # the stubs lack its iterator
    for unknown in unknown_fields:
        if unknown.field_number in fields:
            yield f"{path}{fields[unknown.field_number].name} has bytes of another type"
    for field, value in list_fields(message):
        if field.message_type is None:
            continue
        place = f"{path}{field.name}"
        if _is_map(field):
            parts = [one for one in value.values() if isinstance(one, Message)]
        else:
            parts = list(value) if field.is_repeated else [value]
        for part in parts:
            yield from _mismatches(part, f"{place}.")
