"""What functions hand to telemetry → what OTLP and msgpack can carry: UTF-8, 64 bits, sequences and mappings of them.

Nothing here raises, whatever it is given: telemetry never breaks a call, and no odd value takes others with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mesh.text import text_of, utf8

__all__ = ["plain", "plain_attributes", "sound"]

_HALF = 1 << 63


def plain(value: Any) -> Any:
    """Return an attribute's value as it can be carried: itself if that is so, else the nearest, else its text."""
    kind = type(value)
    if kind is str:
        return utf8(value)
    if kind is int and -_HALF <= value < _HALF:
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
        return value if -_HALF <= value < _HALF else str(value)
    if isinstance(value, Mapping):
        return {text_of(key): _plain(one) for key, one in value.items()}
    if isinstance(value, Sequence):
        made = [_plain(one) for one in value]
        return value if all(map(_same, made, value)) else made
    return text_of(value)


def _same(one: object, other: object) -> bool:
    return one is other


def plain_attributes(attributes: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return attributes as they can be carried."""
    return {
        key if type(key) is str and key.isascii() else text_of(key): plain(value)
        for key, value in (attributes or {}).items()
    }


def sound(attributes: Mapping[str, Any] | None) -> bool:
    """Return whether attributes can be carried as they are."""
    return not attributes or all(text_of(key) is key and plain(value) is value for key, value in attributes.items())
