"""Attribute values of functions, converted to values that OTLP and msgpack can carry.

Those are UTF-8 text, bytes, booleans, floats, 64-bit integers, and sequences and mappings of them. Nothing here raises,
whatever the value: telemetry never breaks a call, and one odd value does not lose the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mesh.text import text_of, utf8

__all__ = ["are_plain", "plain", "plain_attributes"]

_INT64_LIMIT = 1 << 63


def plain(value: Any) -> Any:
    """Return the value itself if it can be carried, else the nearest value that can, else its text."""
    kind = type(value)
    if kind is str:
        return utf8(value)
    if kind is int and -_INT64_LIMIT <= value < _INT64_LIMIT:
        return value
    try:
        return _plain(value)
    except BaseException:  # noqa: BLE001 - a list that holds itself, an iterator that fails
        return text_of(value)


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return utf8(value)
    if value is None or isinstance(value, bool | float | bytes):
        return value
    if isinstance(value, int):
        return value if -_INT64_LIMIT <= value < _INT64_LIMIT else str(value)
    if isinstance(value, Mapping):
        return {text_of(key): _plain(one) for key, one in value.items()}
    if isinstance(value, Sequence):
        converted = [_plain(one) for one in value]
        return value if all(map(_same, converted, value)) else converted
    return text_of(value)


def _same(one: object, other: object) -> bool:
    return one is other


def plain_attributes(attributes: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return attributes that can be carried."""
    return {
        key if type(key) is str and key.isascii() else text_of(key): plain(value)
        for key, value in (attributes or {}).items()
    }


def are_plain(attributes: Mapping[str, Any] | None) -> bool:
    """Whether the attributes can be carried without conversion."""
    return not attributes or all(text_of(key) is key and plain(value) is value for key, value in attributes.items())
