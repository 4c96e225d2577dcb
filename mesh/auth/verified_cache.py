"""Cache of verified tokens and certificates until they expire, so that a call costs a lookup and not a check."""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

__all__ = ["VerifiedCache"]

T = TypeVar("T")


class VerifiedCache(Generic[T]):
    """Bounded cache of text → value with an expiry. The least recently used element is evicted first.

    Args:
        size: Largest number of elements.
    """

    __slots__ = ("_entries", "_size")

    def __init__(self, size: int) -> None:
        self._entries: OrderedDict[bytes | str, tuple[T, float]] = OrderedDict()
        self._size = size

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, text: bytes | str, now: float) -> T | None:
        """Return the value of ``text``, or None if there is none or it has expired."""
        entry = self._entries.get(text)
        if entry is None:
            return None
        if entry[1] <= now:
            del self._entries[text]
            return None
        self._entries.move_to_end(text)
        return entry[0]

    def put(self, text: bytes | str, value: T, until: float) -> None:
        """Store ``value`` until ``until`` (same clock as ``now``)."""
        self._entries[text] = (value, until)
        if len(self._entries) > self._size:
            self._entries.popitem(last=False)
