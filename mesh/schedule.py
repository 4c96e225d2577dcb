"""Schedule lines: ``*/5 * * * *``, six fields with seconds first, ``@every 30s``, ``@daily``. Pure.

The broker runs schedules; here a line is only checked, so that a typo is a fault of the contract, not a silent clock.
"""

from __future__ import annotations

import re

__all__ = ["ScheduleError", "check"]

_FIELDS = (
    ("second", 0, 59, ()),
    ("minute", 0, 59, ()),
    ("hour", 0, 23, ()),
    ("day of month", 1, 31, ()),
    ("month", 1, 12, ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")),
    ("day of week", 0, 7, ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")),
)
_NICKNAMES = frozenset({"@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly"})
_DURATION = re.compile(r"(?:\d+(?:\.\d+)?(?:ms|h|m|s))+\Z")
_FIVE, _SIX = 5, 6


class ScheduleError(ValueError):
    """The line is not a schedule; the message says which field and what it may be."""


def check(line: str) -> None:
    """Check a schedule line.

    Raises:
        ScheduleError: With the field that is wrong and its range.
    """
    text = line.strip()
    if text.startswith("@every "):
        if not _DURATION.match(text.removeprefix("@every ").strip()):
            raise ScheduleError(f"{line!r}: after @every comes a duration such as 90s, 5m or 1h30m")
        return
    if text.startswith("@"):
        if text not in _NICKNAMES:
            raise ScheduleError(f"{line!r}: known are @every DURATION, {', '.join(sorted(_NICKNAMES))}")
        return
    fields = text.split()
    if len(fields) not in (_FIVE, _SIX):
        raise ScheduleError(f"{line!r} has {len(fields)} fields; a cron line has 5, or 6 with seconds first")
    for value, (name, low, high, words) in zip(fields, _FIELDS[-len(fields) :], strict=True):
        for part in value.split(","):
            _check_part(line, part, name, low, high, words)


def _check_part(line: str, part: str, name: str, low: int, high: int, words: tuple[str, ...]) -> None:
    body, slash, step = part.partition("/")
    if slash and (not step.isdigit() or int(step) == 0):
        raise ScheduleError(f"{line!r}: the step of {name} must be a positive number, not {step!r}")
    if body in ("*", "?"):
        return
    start, dash, end = body.partition("-")
    bounds = [_number(line, text, name, low, high, words) for text in ([start, end] if dash else [start])]
    if bounds != sorted(bounds):
        raise ScheduleError(f"{line!r}: the range {body!r} of {name} runs backwards")


def _number(line: str, text: str, name: str, low: int, high: int, words: tuple[str, ...]) -> int:
    if text.upper() in words:
        return words.index(text.upper()) + (1 if low == 1 else 0)
    if text.isdigit() and low <= int(text) <= high:
        return int(text)
    names = f" or {words[0]}-{words[-1]}" if words else ""
    raise ScheduleError(f"{line!r}: {name} must be {low}-{high}{names}, not {text!r}")
