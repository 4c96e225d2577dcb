"""What was verified, by its text, until it expires: so that a call costs a dictionary lookup, not a signature."""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

__all__ = ["Cache"]

T = TypeVar("T")


class Cache(Generic[T]):
    """Text → value until a time; bounded, the least recently used goes first.

    Args:
        size: How many it holds at most.
    """

    __slots__ = ("_entries", "_size")

    def __init__(self, size: int) -> None:
        self._entries: OrderedDict[bytes, tuple[T, float]] = OrderedDict()
        self._size = size

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, text: bytes, now: float) -> T | None:
        """Return what was put under ``text``, or None when there is nothing or its time has passed."""
        entry = self._entries.get(text)
        if entry is None:
            return None
        if entry[1] <= now:
            del self._entries[text]
            return None
        self._entries.move_to_end(text)
        return entry[0]

    def put(self, text: bytes, value: T, until: float) -> None:
        """Keep ``value`` until ``until`` (same clock as ``now``)."""
        self._entries[text] = (value, until)
        if len(self._entries) > self._size:
            self._entries.popitem(last=False)
