"""Value types of mesh.toml: durations, time limits, sizes and rates, parsed from text."""

from __future__ import annotations

import math
import re

__all__ = ["Duration", "Rate", "Size", "TimeLimit"]

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
MAX_DURATION_SECONDS = 100 * 365 * 86400.0
"""Brokers and timers count nanoseconds in 64 bits."""
_SIZES = {
    "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30,
}  # fmt: skip


class Duration(float):
    """Duration in seconds, written ``"250ms"``, ``"60s"``, ``"5m"``, ``"1h"`` or ``"7d"``."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: object) -> Duration:
        """Parse the text.

        Raises:
            ValueError: The text is no duration.
        """
        match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)", text, re.ASCII) if isinstance(text, str) else None
        if match is None:
            raise ValueError(f'expected a duration such as "250ms", "60s" or "5m", got {text!r}')
        seconds = float(match[1]) * _UNITS[match[2]]
        if seconds > MAX_DURATION_SECONDS:
            raise ValueError(f"expected a duration of at most 100 years, got {match[0][:40]!r}")
        return cls(seconds)


class TimeLimit(Duration):
    """Timeout: a positive duration, or ``"none"``."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: object) -> TimeLimit:
        """Parse the text.

        Raises:
            ValueError: The text is neither a positive duration nor ``"none"``.
        """
        if text == "none":
            return cls(math.inf)
        try:
            limit = Duration.parse(text)
        except ValueError as error:
            raise ValueError(str(error).replace(", got", ', or "none", got', 1)) from None
        if not limit:
            raise ValueError(f'{text!r} is over at once; for no limit write "none"')
        return cls(limit)

    @property
    def seconds(self) -> float | None:
        """The timeout in seconds; None: no timeout."""
        return None if math.isinf(self) else float(self)


class Size(int):
    """Size in bytes, written ``4096``, ``"256MB"`` or ``"4MiB"``."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: object) -> Size:
        """Parse the text.

        Raises:
            ValueError: The text is no size.
        """
        if isinstance(text, int) and not isinstance(text, bool) and text >= 0:
            return cls(text)
        match = re.fullmatch(r"(\d+)\s*([KMG]i?B|B)?", text) if isinstance(text, str) else None
        if match is None:
            raise ValueError(f'expected a size such as 4096, "256MB" or "4MiB", got {text!r}')
        return cls(int(match[1]) * _SIZES[match[2] or "B"])


class Rate(float):
    """Rate in requests per second, written ``"100/s"``, ``"600/m"``, ``"50/h"`` or ``"100/s burst 500"``.

    Attributes:
        burst: Requests that may come at once; by default the count of the rate.
    """

    __slots__ = ("burst",)

    burst: int

    @classmethod
    def parse(cls, text: object) -> Rate:
        """Parse the text.

        Raises:
            ValueError: The text is no rate.
        """
        match = re.fullmatch(r"(\d{1,9})/(s|m|h)(?: burst (\d{1,9}))?", text) if isinstance(text, str) else None
        if match is None or not int(match[1]) or not int(match[3] or 1):
            raise ValueError(f'expected a rate such as "100/s", "600/m" or "100/s burst 500", got {text!r}')
        self = cls(int(match[1]) / _UNITS[match[2]])
        self.burst = int(match[3] or match[1])
        return self
