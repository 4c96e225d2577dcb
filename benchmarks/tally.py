"""When each of many numbered things happened, in a file that another process reads. Costs no system call."""

from __future__ import annotations

import mmap
from pathlib import Path
from time import monotonic

MOST = 1 << 22


class Tally:
    """The times, by number; those of other numbers than 0 to ``MOST - 1`` are not kept.

    Args:
        path: The file; made if it is not there.
    """

    def __init__(self, path: str) -> None:
        file = Path(path)
        with file.open("r+b" if file.exists() else "w+b") as opened:
            opened.truncate(MOST * 8)
            self._map = mmap.mmap(opened.fileno(), MOST * 8)
        self._times = memoryview(self._map).cast("d")

    def note(self, number: int) -> None:
        """It happens now."""
        if number < MOST:
            self._times[number] = monotonic()

    def times(self, first: int, count: int) -> list[float]:
        """Return the times of as many numbers from ``first`` on, in seconds; 0: not yet."""
        return self._times[first : first + count].tolist()
