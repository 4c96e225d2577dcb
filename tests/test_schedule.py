"""The time that a schedule named, against one that looks at every minute, where clocks are set back and forward."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.schedule import parse

ZONES = ("Europe/Berlin", "Australia/Lord_Howe", "America/New_York", "Africa/Casablanca", "UTC")
MINUTE = timedelta(minutes=1)


def changes(zone: str) -> list[datetime]:
    """Return the hours of 2026 and 2027 in which the clocks of a zone are set, and one in which none are."""
    hours = [datetime(2026, 1, 1, tzinfo=UTC) + timedelta(hours=hour) for hour in range(2 * 365 * 24)]
    offsets = [hour.astimezone(ZoneInfo(zone)).utcoffset() for hour in hours]
    found = [hour for hour, one, following in zip(hours, offsets, offsets[1:], strict=False) if one != following]
    return [*found, datetime(2026, 7, 1, 12, tzinfo=UTC)]


CHANGES = {zone: changes(zone) for zone in ZONES}


def by_looking(zone: str, minutes: set[int], hours: set[int], moment: datetime) -> datetime:
    """Return the last whole minute before ``moment`` at which the clocks of the zone show one of these times."""
    at = moment.replace(second=0, microsecond=0)
    if at == moment:
        at -= MINUTE
    local = at.astimezone(ZoneInfo(zone))
    while local.minute not in minutes or local.hour not in hours:
        at -= MINUTE
        local = at.astimezone(ZoneInfo(zone))
    return at


def test_clocks_are_set_in_these_zones() -> None:
    assert [len(CHANGES[zone]) for zone in ZONES] == [5, 5, 5, 5, 1]


@settings(max_examples=300, deadline=None)
@given(
    zone=st.sampled_from(ZONES),
    which=st.integers(0, 4),
    away=st.integers(-4 * 3600, 30 * 3600),
    minutes=st.sets(st.integers(0, 59), min_size=1),
    hours=st.one_of(st.just(set(range(24))), st.sets(st.integers(0, 4), min_size=1)),
)
def test_it_is_what_the_clocks_showed_last(
    zone: str, which: int, away: int, minutes: set[int], hours: set[int]
) -> None:
    moment = CHANGES[zone][which % len(CHANGES[zone])] + timedelta(seconds=away)
    line = f"CRON_TZ={zone} {','.join(map(str, minutes))} {','.join(map(str, hours))} * * *"
    assert parse(line).before(moment) == by_looking(zone, minutes, hours, moment)


@pytest.mark.parametrize(
    ("line", "first", "times"),
    [
        ("CRON_TZ=Europe/Berlin */15 * * * *", "2026-10-25T00:30:00+00:00", 10),
        ("CRON_TZ=Australia/Lord_Howe */15 * * * *", "2026-04-04T14:30:00+00:00", 10),
    ],
)
def test_each_time_of_an_hour_that_comes_twice_is_one_of_its_own(line: str, first: str, times: int) -> None:
    """An event's id holds the time: what has the same one is taken for the same tick."""
    found, at = parse(line), datetime.fromisoformat(first)
    firings = [at + timedelta(minutes=15 * number) for number in range(times)]
    assert [found.before(firing + timedelta(minutes=15)) for firing in firings] == firings


def test_each_second_is_found_at_once() -> None:
    found = parse("CRON_TZ=Europe/Berlin * * * * * *")
    moment = datetime(2026, 10, 25, 1, 15, 0, 500_000, tzinfo=UTC)
    assert found.before(moment) == datetime(2026, 10, 25, 1, 15, tzinfo=UTC)
