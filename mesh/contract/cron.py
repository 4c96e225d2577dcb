"""Schedules: parser of cron lines and intervals, and the times of their ticks. Pure.

Forms: ``*/5 * * * *``, six fields with seconds first, ``@every 30s``, ``@daily``. A time zone may stand before them:
``CRON_TZ=Europe/Berlin 0 3 * * *`` is three o'clock in Berlin. The default is UTC.

The broker runs the schedules. This module checks a line, so that a typo is a fault of the contract. It translates the
line to the broker's syntax and computes the time of a tick. A line has the same meaning in both (nats-server 2.15,
server/cron.go and server/scheduler.go).

If both day of month and day of week are restricted, a day that matches either of them counts (crontab(5)). A field is
restricted unless it has a ``*`` or ``?`` without a step above 1. nats-server treats ``*/2`` as a list of days, Debian's
cron treats it as ``*``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, tzinfo
from difflib import get_close_matches
from fractions import Fraction
from functools import cache, lru_cache
from itertools import product
from zoneinfo import ZoneInfo, available_timezones

__all__ = ["Schedule", "ScheduleError", "check", "parse"]

_FIELDS = (
    ("second", 0, 59, ()),
    ("minute", 0, 59, ()),
    ("hour", 0, 23, ()),
    ("day of month", 1, 31, ()),
    ("month", 1, 12, ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")),
    ("day of week", 0, 7, ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")),
)
_NICKNAMES = {
    "@yearly": "0 0 0 1 1 *",
    "@annually": "0 0 0 1 1 *",
    "@monthly": "0 0 0 1 * *",
    "@weekly": "0 0 0 * * 0",
    "@daily": "0 0 0 * * *",
    "@midnight": "0 0 0 * * *",
    "@hourly": "0 0 * * * *",
}
_DURATION = re.compile(r"(?:[0-9]+(?:\.[0-9]+)?(?:ms|h|m|s))+\Z")
_PARTS = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|h|m|s)")
_SECONDS = {"ms": Fraction(1, 1000), "s": Fraction(1), "m": Fraction(60), "h": Fraction(3600)}
_NUMBER = re.compile(r"[0-9]{1,9}\Z")
_MAX_INTERVAL_HOURS = 876_000
"""A hundred years. The broker counts nanoseconds in 64 bits and fires without pause for times after the year 2262."""
_MAX_LINE_LENGTH = 1000
_ZONE = re.compile(r"(?:CRON_TZ|TZ)=(\S+)\s+(.*)\Z", re.DOTALL)
_FIVE, _SIX = 5, 6
_LOOKBACK_DAYS = 366 * 9
"""29 February can be eight years away."""
_SUNDAY = 7


class ScheduleError(ValueError):
    """The line is no schedule. The message names the field and its range."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """Parsed schedule.

    Attributes:
        line: The line as written in the contract.
        zone: Time zone, or "" for UTC.
        every: Interval in whole seconds, as the broker counts them; 0 for a cron line.
        fields: Values of second, minute, hour, day of month, month and day of week (0 is Sunday).
        days: Whether day of month and day of week are restricted.
    """

    line: str
    zone: str = ""
    every: int = 0
    fields: tuple[frozenset[int], ...] = ()
    days: tuple[bool, bool] = (False, False)

    @property
    def broker(self) -> str:
        """The schedule in the broker's syntax: six numeric fields, or an interval."""
        if self.every:
            return f"@every {self.every}s"
        texts = []
        for values, (_, low, high, _) in zip(self.fields, _FIELDS, strict=True):
            highest = high if high != _SUNDAY else high - 1
            unrestricted = len(values) == highest - low + 1
            texts.append("*" if unrestricted else ",".join(str(value) for value in sorted(values)))
        # A restricted field that lists every value still decides how the two day fields combine.
        for place, restricted in zip((3, 5), self.days, strict=True):
            if restricted and texts[place] == "*":
                texts[place] = "1-31" if place == 3 else "0-6"  # noqa: PLR2004 - day of month
        return " ".join(texts)

    def due(self, fired: datetime, following: datetime) -> datetime:
        """Return the scheduled time of a tick, in UTC, never later than the tick.

        The broker counts from its time rounded to the nearest second. If it is late, as after its own restart, the
        interval before the next tick may begin up to half a second after this one.

        Args:
            fired: Time at which the broker fired.
            following: Time of the broker's next tick.
        """
        second = fired.astimezone(UTC).replace(microsecond=0)
        if self.every:
            return min(self.before(following), second)
        return self.before(second + timedelta(seconds=1))

    def before(self, moment: datetime) -> datetime:
        """Return the last scheduled time before ``moment`` (an aware time), in UTC.

        A local time that occurs twice, because clocks are set back, is scheduled twice. The broker fires at both times.

        Raises:
            ScheduleError: The schedule has no time, such as 30 February.
        """
        if self.every:
            return (moment - timedelta(seconds=self.every)).astimezone(UTC)
        zone = ZoneInfo(self.zone) if self.zone else UTC
        moment = moment.astimezone(UTC)
        local, earlier = moment.astimezone(zone), (moment - timedelta(days=1)).astimezone(zone)
        # A later local time has passed only if clocks were set back since then.
        back = (earlier.utcoffset() or timedelta()) - (local.utcoffset() or timedelta())
        last = local.replace(tzinfo=None, fold=0) + max(timedelta(), back)
        day = last.date()
        for _ in range(_LOOKBACK_DAYS):
            found = [one for fold in (0, 1) if (one := self._latest(day, fold, zone, moment, last)) is not None]
            if found:
                return max(found)
            day -= timedelta(days=1)
        raise ScheduleError(f"{self.line!r} never fires: none of its months has such a day")

    def _latest(self, day: date, fold: int, zone: tzinfo, moment: datetime, last: datetime) -> datetime | None:
        """Return the last scheduled time of a day before ``moment``, for one ``fold``.

        Among times of the same ``fold``, a later local time is later in UTC too.
        """
        if not self._matches_day(day):
            return None
        highest = (last.hour, last.minute, last.second) if day == last.date() else (23, 59, 59)
        seconds, minutes, hours = (sorted(values, reverse=True) for values in self.fields[:3])
        for time in product((hour for hour in hours if hour <= highest[0]), minutes, seconds):
            if time > highest:
                continue
            local = datetime(day.year, day.month, day.day, *time, tzinfo=zone, fold=fold)
            found = local.astimezone(UTC)
            # A local time that the clocks skipped does not survive the conversion to UTC and back.
            if found < moment and found.astimezone(zone).replace(tzinfo=None) == local.replace(tzinfo=None):
                return found
        return None

    def _matches_day(self, day: date) -> bool:
        if day.month not in self.fields[4]:
            return False
        in_month, in_week = day.day in self.fields[3], day.isoweekday() % 7 in self.fields[5]
        return (in_month or in_week) if all(self.days) else (in_month and in_week)


def check(line: str) -> None:
    """Check a schedule line.

    Raises:
        ScheduleError: The line is no schedule.
    """
    parse(line)


@lru_cache(maxsize=1024)
def parse(line: str) -> Schedule:
    """Return the schedule of a line.

    Raises:
        ScheduleError: The line is no schedule.
    """
    if len(line) > _MAX_LINE_LENGTH:
        raise ScheduleError(f"{line[:40]!r}…: a line has at most {_MAX_LINE_LENGTH} characters")
    text, zone = line.strip(), ""
    match = _ZONE.match(text)
    if match is not None:
        zone, text = match[1], match[2].strip()
        _check_zone(line, zone)
    if text.startswith(("rate(", "cron(")):
        raise ScheduleError(f"{line!r} is AWS's form; write @every 5m, or a cron line of 5 fields without a year")
    if text.startswith("@every "):
        return Schedule(line, every=_interval(line, text.removeprefix("@every ").strip(), zone))
    if text.startswith("@"):
        if text not in _NICKNAMES:
            raise ScheduleError(f"{line!r}: known are @every DURATION, {', '.join(sorted(_NICKNAMES))}")
        text = _NICKNAMES[text]
    fields = text.split()
    if len(fields) not in (_FIVE, _SIX):
        raise ScheduleError(f"{line!r} has {len(fields)} fields; a cron line has 5, or 6 with seconds first")
    if len(fields) == _FIVE:
        fields = ["0", *fields]
    values = [
        frozenset(value for part in field.split(",") for value in _values(line, part, *about))
        for field, about in zip(fields, _FIELDS, strict=True)
    ]
    values[5] = frozenset(value % _SUNDAY for value in values[5])
    days = (_restricted(fields[3]), _restricted(fields[5]))
    found = Schedule(line, zone, fields=tuple(values), days=days)
    found.before(datetime(2400, 1, 1, tzinfo=UTC))
    return found


@cache
def _zones() -> frozenset[str]:
    """Return the names of the time zones, without ``localtime`` and ``Factory``, which differ between machines."""
    return frozenset(available_timezones()) - {"localtime", "Factory"}


def _check_zone(line: str, zone: str) -> None:
    if zone in _zones():
        return
    names = {name.casefold(): name for name in _zones()}
    close = get_close_matches(zone.casefold(), names, 1)
    found = names[close[0]] if close else "Europe/Berlin"
    raise ScheduleError(f"{line!r}: there is no time zone {zone!r}; write one such as {found}")


def _interval(line: str, text: str, zone: str) -> int:
    if zone:
        raise ScheduleError(f"{line!r}: an interval has no time zone")
    if not _DURATION.match(text):
        raise ScheduleError(f"{line!r}: after @every comes a duration of h, m and s, such as 90s, 5m, 1h30m or 24h")
    seconds = sum((Fraction(number) * _SECONDS[unit] for number, unit in _PARTS.findall(text)), Fraction())
    if seconds < 1:
        raise ScheduleError(f"{line!r}: the shortest interval is 1s")
    if seconds > _MAX_INTERVAL_HOURS * _SECONDS["h"]:
        raise ScheduleError(f"{line!r}: the longest interval is {_MAX_INTERVAL_HOURS}h, a hundred years")
    if seconds % 1:
        below = int(seconds)
        raise ScheduleError(f"{line!r}: an interval is whole seconds; write {below}s or {below + 1}s")
    return int(seconds)


def _restricted(field: str) -> bool:
    """Whether a field of days restricts them, as nats-server sees it."""
    parts = (part.partition("/") for part in field.split(","))
    return not any(body in ("*", "?") and int(step or 1) == 1 for body, _, step in parts)


def _values(line: str, part: str, name: str, low: int, high: int, words: tuple[str, ...]) -> range:
    body, slash, step = part.partition("/")
    if slash and (not _NUMBER.match(step) or int(step) == 0):
        raise ScheduleError(f"{line!r}: the step of {name} must be a positive number, not {step!r}")
    if body in ("*", "?"):
        return range(low, high + (high != _SUNDAY), int(step or 1))
    start, dash, end = body.partition("-")
    bounds = [_number(line, text, name, low, high, words) for text in ([start, end] if dash else [start])]
    if bounds != sorted(bounds):
        highest = high - (high == _SUNDAY)
        top = words[-1] if words and not start.isdecimal() else str(highest)
        bottom = words[0] if words and not end.isdecimal() else str(low)
        first = start if bounds[0] == highest else f"{start}-{top}"
        second = end if bounds[-1] == low else f"{bottom}-{end}"
        raise ScheduleError(f"{line!r}: the range {body!r} of {name} runs backwards; write {first},{second}")
    last = bounds[-1] if dash or not slash else max(bounds[0], high - (high == _SUNDAY))
    return range(bounds[0], last + 1, int(step or 1))


def _number(line: str, text: str, name: str, low: int, high: int, words: tuple[str, ...]) -> int:
    if text.upper() in words:
        return words.index(text.upper()) + (1 if low == 1 else 0)
    if _NUMBER.match(text) and low <= int(text) <= high:
        return int(text)
    names = f" or {words[0]}-{words[-1]}" if words else ""
    raise ScheduleError(f"{line!r}: {name} must be {low}-{high}{names}, not {text!r}")
