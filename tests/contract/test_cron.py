"""Scheduled times against a search of every minute, across changes of the clocks."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.contract.cron import ScheduleError, parse

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
    # Not how often: the rules of Casablanca differ between releases of the time zone database.
    assert [zone for zone in ZONES if len(CHANGES[zone]) == 1] == ["UTC"]


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


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("@every 1.5s", "an interval is whole seconds; write 1s or 2s"),
        ("@every 1m0.5s", "an interval is whole seconds; write 60s or 61s"),
        ("@every 2500ms", "an interval is whole seconds; write 2s or 3s"),
        ("@every 0.0001h1s", "an interval is whole seconds; write 1s or 2s"),
        ("@every 0s", "the shortest interval is 1s"),
        ("@every 999ms", "the shortest interval is 1s"),
        ("@every 0.99999999999999999999999999999999s", "the shortest interval is 1s"),
        ("@every -5s", "a duration of h, m and s, such as 90s, 5m, 1h30m or 24h"),
        ("@every 1d", "or 24h"),
        ("@every 5", "a duration of h, m and s"),
        ("@every 1h 30m", "a duration of h, m and s"),
        ("@every ٣s", "a duration of h, m and s"),
        ("@every 2562047h", "the longest interval is 876000h"),
        (f"@every {'9' * 900}h", "the longest interval is 876000h"),
        ("@reboot", "known are @every DURATION"),
        ("@Daily", "known are @every DURATION"),
        ("0 0 * * FRI-SUN", "'FRI-SUN' of day of week runs backwards; write FRI-SAT,SUN"),
        ("0 22-2 * * *", "'22-2' of hour runs backwards; write 22-23,0-2"),
        ("0 0 * * 6-2", "'6-2' of day of week runs backwards; write 6,0-2"),
        ("0 0 L * *", "day of month must be 1-31, not 'L'"),
        ("0 0 15W * *", "day of month must be 1-31, not '15W'"),
        ("0 0 * * 5#3", "day of week must be 0-7 or SUN-SAT, not '5#3'"),
        ("0 0 * * MONDAY", "day of week must be 0-7 or SUN-SAT, not 'MONDAY'"),
        ("*/0 * * * *", "the step of minute must be a positive number, not '0'"),
        ("*/-1 * * * *", "the step of minute must be a positive number, not '-1'"),
        ("*/² * * * *", "the step of minute must be a positive number, not '²'"),
        ("² * * * *", "minute must be 0-59, not '²'"),
        (f"{'9' * 900} * * * *", "minute must be 0-59"),
        ("1,,2 * * * *", "minute must be 0-59, not ''"),
        ("60 * * * *", "minute must be 0-59, not '60'"),
        ("0 24 * * *", "hour must be 0-23, not '24'"),
        ("0 0 0 * *", "day of month must be 1-31, not '0'"),
        ("0 0 1 0 *", "month must be 1-12 or JAN-DEC, not '0'"),
        ("0 0 0 31 2 *", "never fires"),
        ("0 0 31 4,6,9,11 *", "never fires"),
        ("* * * *", "has 4 fields"),
        ("* * * * * * *", "has 7 fields"),
        ("", "has 0 fields"),
        ("rate(5 minutes)", "is AWS's form; write @every 5m, or a cron line of 5 fields without a year"),
        ("cron(0 12 * * ? *)", "is AWS's form"),
        ("CRON_TZ=europe/berlin 0 3 * * *", "there is no time zone 'europe/berlin'; write one such as Europe/Berlin"),
        ("CRON_TZ=localtime 0 3 * * *", "there is no time zone 'localtime'"),
        ("CRON_TZ=right/UTC 0 3 * * *", "there is no time zone 'right/UTC'"),
        ("CRON_TZ=../UTC 0 3 * * *", "there is no time zone"),
        ("CRON_TZ=UTC @every 5s", "an interval has no time zone"),
        ("0 " * 600, "a line has at most 1000 characters"),
    ],
)
def test_a_line_that_is_none_is_refused_with_what_would_be_right(line: str, what: str) -> None:
    with pytest.raises(ScheduleError) as refused:
        parse(line)
    assert what in str(refused.value)


@pytest.mark.parametrize(
    ("line", "seconds"),
    [
        ("@every 1h30m", 5400),
        ("@every 1.5h", 5400),
        ("@every 1.5m", 90),
        ("@every 1000ms", 1),
        ("@every 876000h", 3153600000),
    ],
)
def test_an_interval_is_whole_seconds(line: str, seconds: int) -> None:
    assert parse(line).every == seconds
    assert parse(line).broker == f"@every {seconds}s"


def test_sunday_with_a_step_is_sunday() -> None:
    """It was no day at all, which the broker refuses."""
    assert parse("0 0 * * 7/3").broker == "0 0 0 * * 0"
    assert parse("0 0 1 * 7/3").broker == "0 0 0 1 * 0"


@pytest.mark.parametrize(
    ("days", "restricted"),
    [
        ("*", False), ("?", False), ("*/1", False), ("*,5", False), ("5,*", False), ("*/2,*", False),
        ("*/2", True), ("1-31", True), ("5", True), ("?/3", True),
    ],
)  # fmt: skip
def test_a_star_with_a_step_is_a_list_of_days(days: str, restricted: bool) -> None:  # noqa: FBT001 - a row of the table
    """With a restricted day of week, either counts, as on nats-server; else only Mondays are named."""
    found = parse(f"0 0 {days} * MON")
    sunday = datetime(2026, 3, 1, tzinfo=UTC)  # the first of its month is in each of the lists but "5"
    named = found.before(datetime(2026, 3, 8, 12, tzinfo=UTC))
    assert (named.isoweekday() != 1) == restricted, f"{named} before {sunday}"


@settings(max_examples=300, deadline=None)
@given(
    line=st.sampled_from(["@every 1s", "@every 90s", "* * * * * *", "*/7 * * * *", "CRON_TZ=Asia/Tokyo 30 4 * * *"]),
    second=st.integers(0, 366 * 86400),
    late=st.floats(0, 5),
)
def test_a_firing_stands_for_a_time_that_is_past(line: str, second: int, late: float) -> None:
    """A broker that is late counts the next firing from its time rounded to the nearest second."""
    found = parse(line)
    due = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=second)
    due = due if found.every else found.before(due)
    fired = due + timedelta(seconds=late)
    rounded = (fired + timedelta(seconds=0.5)).replace(microsecond=0)
    following = (due if late < 1 else rounded) + timedelta(seconds=found.every or 60)
    assert due <= found.due(fired, following) <= fired
