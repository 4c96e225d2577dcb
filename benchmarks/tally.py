"""Times of numbered events, in a memory-mapped file that another process reads. Needs no system call."""

from __future__ import annotations

import mmap
from pathlib import Path
from time import monotonic

MAX_NUMBERS = 1 << 22


class Tally:
    """The times by number. Only the numbers 0 to ``MAX_NUMBERS - 1`` are kept.

    Args:
        path: The file; created if it is missing.
    """

    def __init__(self, path: str) -> None:
        file = Path(path)
        with file.open("r+b" if file.exists() else "w+b") as opened:
            opened.truncate(MAX_NUMBERS * 8)
            self._map = mmap.mmap(opened.fileno(), MAX_NUMBERS * 8)
        self._times = memoryview(self._map).cast("d")

    def note(self, number: int) -> None:
        """Record that the event happens now."""
        if number < MAX_NUMBERS:
            self._times[number] = monotonic()

    def times(self, first: int, count: int) -> list[float]:
        """Return the times of ``count`` numbers from ``first`` on, in seconds; 0 for an event that has not happened."""
        return self._times[first : first + count].tolist()
