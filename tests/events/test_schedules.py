"""Schedules on a real nats-server: stored schedules, calls, and missed ticks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from broker_process import BrokerProcess
from delivering import CLOCK, broker_at, delivering, until
from google.protobuf.empty_pb2 import Empty
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from mesh.contract import cron
from mesh.contract.model import Contract, GrpcService, ScheduleTrigger, Trigger
from mesh.events.broker.streams import SCHEDULES
from mesh.events.consume import schedules

KEPT = "schedules.delivery-v1-Clock.EverySecond"


class Clock:
    """Records the ticks of the functions of a schedule."""

    def __init__(self) -> None:
        self.times: list[datetime] = []

    async def __call__(self, request: Any, context: Any) -> Empty:  # noqa: ARG002 - a function's shape
        self.times.append(request.time.ToDatetime(UTC))
        return Empty()


def clock_with(contract: Contract, *triggers: Trigger) -> GrpcService:
    """Return the service with other triggers on EverySecond, and no other method."""
    service = contract.services[CLOCK]
    return replace(service, methods={"EverySecond": replace(service.methods["EverySecond"], triggers=triggers)})


async def test_a_tick_says_the_time_that_was_meant(contract: Contract, nats_url: str) -> None:
    cron, every = Clock(), Clock()
    began = datetime.now(UTC)
    async with delivering(contract, nats_url, {"every_second": cron, "often": every}, serves=CLOCK):
        await until(lambda: len(cron.times) >= 3 and len(every.times) >= 2)
    assert all(time.microsecond == 0 for time in cron.times)
    assert [later - time for time, later in zip(cron.times, cron.times[1:], strict=False)] == [timedelta(seconds=1)] * (
        len(cron.times) - 1
    )
    assert began - timedelta(seconds=1) <= cron.times[0] <= datetime.now(UTC)


async def test_replicas_share_a_firing(contract: Contract, nats_url: str) -> None:
    clock = Clock()
    functions = {"every_second": clock}
    async with (
        delivering(contract, nats_url, functions, serves=CLOCK),
        delivering(contract, nats_url, functions, serves=CLOCK),
    ):
        await until(lambda: len(clock.times) >= 4)
    assert len(set(clock.times)) == len(clock.times)


async def test_a_schedule_is_written_once_changed_and_removed(contract: Contract, nats_url: str) -> None:
    def every(line: str) -> GrpcService:
        return clock_with(contract, ScheduleTrigger(line))

    async with broker_at(nats_url) as broker:
        link = await broker.ready()

        async def sequence() -> int:
            return int((await link.js.get_last_msg(SCHEDULES, KEPT)).seq or 0)

        await asyncio.gather(*(schedules.ensure(link, [every("@every 1h")]) for _ in range(5)))
        first = await sequence()
        await schedules.ensure(link, [every("@every 1h")])
        assert await sequence() == first
        await schedules.ensure(link, [every("CRON_TZ=Europe/Berlin 30 3 * * MON-FRI,7")])
        kept = await link.js.get_last_msg(SCHEDULES, KEPT)
        assert kept.headers is not None
        assert kept.headers["Nats-Schedule"] == "0 30 3 * * 0,1,2,3,4,5"
        assert kept.headers["Nats-Schedule-Time-Zone"] == "Europe/Berlin"
        await schedules.ensure(link, [clock_with(contract)])
        removed = await link.js.get_last_msg(SCHEDULES, KEPT)
        assert "Nats-Schedule" not in (removed.headers or {})
        async with asyncio.timeout(10):
            with pytest.raises(Exception, match="no message found"):
                while True:
                    await sequence()
                    await asyncio.sleep(0.05)


async def test_every_line_that_the_contract_takes_the_broker_takes_too(contract: Contract, nats_url: str) -> None:
    lines = [
        "* * * * *", "*/5 * * * *", "0 0 3 1,15 JAN-MAR MON", "1-5/2 * * * 0-7", "@every 1h30m", "@every 1.5m",
        "@every 876000h", "@daily", "@annually", "0 0 ? * mon", "0 0 * * 7", "5/20 * * * *", "0 0 */2 * 1-7",
        "TZ=Asia/Tokyo @weekly",
    ]  # fmt: skip
    async with broker_at(nats_url) as broker:
        link = await broker.ready()
        for line in lines:
            await schedules.ensure(link, [clock_with(contract, ScheduleTrigger(line))])


async def test_what_was_due_while_the_broker_was_down_is_made_up_for_once(
    contract: Contract, new_nats: Callable[..., BrokerProcess]
) -> None:
    server = new_nats()
    hourly = clock_with(contract, ScheduleTrigger("@hourly"))
    skips = clock_with(contract, ScheduleTrigger("@hourly", skip_missed=True))
    now = datetime.now(UTC) + timedelta(hours=3)
    async with broker_at(server.url) as broker:
        link = await broker.ready()
        await schedules.ensure(link, [hourly])
        await schedules.publish_missed(link, [skips], now)
        await asyncio.gather(*(schedules.publish_missed(link, [hourly], now) for _ in range(5)))
        info = await link.js.stream_info(SCHEDULES)
        assert info.state.messages == 2
        tick = await link.js.get_last_msg(SCHEDULES, "ticks.delivery-v1-Clock.EverySecond")
    assert tick.headers is not None
    assert tick.headers["mesh-tick-due"] == now.replace(minute=0, second=0, microsecond=0).isoformat()


async def test_what_the_broker_passes_over_is_made_up_for(
    contract: Contract, nats_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own schedule names no time that comes, where the contract's does; as after a midnight that there was not."""
    monkeypatch.setattr(schedules, "CHECK_INTERVAL", 0.2)
    monkeypatch.setattr(schedules, "MISSED_DELAY", 1.5)
    clock = Clock()
    name = "schedules.delivery-v1-Clock.EverySecond"
    line = ScheduleTrigger("*/4 * * * * *")
    changed = replace(contract, services={**contract.services, CLOCK: clock_with(contract, line)})
    async with delivering(changed, nats_url, {"every_second": clock}, serves=CLOCK) as replica:
        await until(lambda: bool(clock.times))
        link = await replica.broker.ready()
        kept = await link.js.get_last_msg(SCHEDULES, name)
        own = {key: value for key, value in (kept.headers or {}).items() if "Expected" not in key}
        await link.js.publish(name, headers={**own, "Nats-Schedule": "0 0 0 1 1 *"})
        fired = len(clock.times)
        await until(lambda: len(clock.times) >= fired + 2)
        messages = (await link.js.stream_info(SCHEDULES, subjects_filter="ticks.>")).state.subjects
        tick = await link.js.get_last_msg(SCHEDULES, "ticks.delivery-v1-Clock.EverySecond")
    assert len(set(clock.times)) == len(clock.times)
    assert all(time.second % 4 == 0 and time.microsecond == 0 for time in clock.times)
    assert tick.headers is not None
    assert "mesh-tick-due" in tick.headers
    assert messages == {"ticks.delivery-v1-Clock.EverySecond": 1}


@pytest.mark.parametrize(
    ("line", "moment", "before"),
    [
        ("* * * * *", "2026-03-01T12:00:00+00:00", "2026-03-01T11:59:00+00:00"),
        ("* * * * *", "2026-03-01T12:00:00.5+00:00", "2026-03-01T12:00:00+00:00"),
        ("*/10 * * * * *", "2026-03-01T12:00:09+00:00", "2026-03-01T12:00:00+00:00"),
        ("0 3 * * *", "2026-03-01T02:00:00+00:00", "2026-02-28T03:00:00+00:00"),
        ("0 0 29 2 *", "2027-01-01T00:00:00+00:00", "2024-02-29T00:00:00+00:00"),
        ("0 0 13 * FRI", "2026-03-12T00:00:00+00:00", "2026-03-06T00:00:00+00:00"),  # either day counts
        ("0 0 * * 7", "2026-03-12T00:00:00+00:00", "2026-03-08T00:00:00+00:00"),
        ("CRON_TZ=Europe/Berlin 0 3 * * *", "2026-07-01T12:00:00+00:00", "2026-07-01T01:00:00+00:00"),
        ("CRON_TZ=Europe/Berlin 0 3 * * *", "2026-01-01T12:00:00+00:00", "2026-01-01T02:00:00+00:00"),
        # Half past two does not exist in the night when the clocks go forward.
        ("CRON_TZ=Europe/Berlin 30 2 * * *", "2026-03-29T12:00:00+00:00", "2026-03-28T01:30:00+00:00"),
        ("@every 90s", "2026-03-01T12:00:00+00:00", "2026-03-01T11:58:30+00:00"),
    ],
)
def test_the_time_before(line: str, moment: str, before: str) -> None:
    assert cron.parse(line).before(datetime.fromisoformat(moment)) == datetime.fromisoformat(before)


# -- what a line means, here and there --

_ZONES = ("", "CRON_TZ=Asia/Tokyo ", "CRON_TZ=America/New_York ", "CRON_TZ=Asia/Kolkata ")


def _field(low: int, high: int, words: tuple[str, ...] = ()) -> st.SearchStrategy[str]:
    number = st.integers(low, high)
    names = st.sampled_from(words) if words else st.nothing()
    ordered = st.tuples(number, number).map(sorted)
    step = st.integers(1, high)
    part = st.one_of(
        st.sampled_from(["*", "?"]),
        number.map(str),
        names,
        ordered.map(lambda two: f"{two[0]}-{two[1]}"),
        st.builds("*/{}".format, step),
        st.builds("{}/{}".format, number, step),
        st.builds(lambda two, step: f"{two[0]}-{two[1]}/{step}", ordered, step),
    )
    return st.one_of(st.just("*"), st.lists(part, min_size=1, max_size=4).map(",".join))


_LINES = st.builds(
    "{}{} {} {} {} {} {}".format,
    st.sampled_from(_ZONES),
    _field(0, 59),
    st.one_of(st.just("*"), _field(0, 59)),
    st.one_of(st.just("*"), _field(0, 23)),
    _field(1, 31),
    st.one_of(st.just("*"), _field(1, 12, ("JAN", "jun", "Nov"))),
    _field(0, 7, ("SUN", "wed", "Sat")),
)


@settings(max_examples=2, deadline=None, phases=[Phase.explicit, Phase.generate], database=None)
@given(lines=st.lists(_LINES, min_size=200, max_size=200))
def test_the_broker_fires_when_a_line_says_so_and_never_else(lines: list[str]) -> None:
    asyncio.run(_fires(["@every 1s", "@every 2s", "* * * * * *", *lines]))


async def _fires(lines: list[str]) -> None:
    """Keep the lines on a server of its own for some seconds; compare the ticks with what the lines name."""
    wanted = []
    for number, line in enumerate(lines):
        try:
            wanted.append(
                schedules.BrokerSchedule(f"schedules.{number}", f"ticks.{number}", cron.parse(line), skip_missed=False)
            )
        except cron.ScheduleError as error:
            assert "never fires" in str(error)  # noqa: PT017 - 31 February is drawn now and then
    server = BrokerProcess()
    server.start()
    try:
        async with broker_at(server.url) as broker:
            link = await broker.ready()
            for one in wanted:
                headers = {name: value for name, value in one.headers().items() if "Rollup" not in name}
                await link.js.publish(one.subject, headers=headers)
            # A time less than a second away is passed over when a schedule is new.
            began = await schedules.broker_time(link) + timedelta(seconds=1.5)
            await asyncio.sleep(5)  # what must not fire has no event
            ended = await schedules.broker_time(link) - timedelta(seconds=1)
            reading = await link.js.pull_subscribe("ticks.>", stream=SCHEDULES)
            count = (await link.js.stream_info(SCHEDULES, subjects_filter="ticks.>")).state.subjects or {}
            found: dict[str, set[datetime]] = {}
            for message in await reading.fetch(sum(count.values()), timeout=10):
                subject, stored = message.subject, message.metadata.timestamp
                following = datetime.fromisoformat((message.headers or {})["Nats-Schedule-Next"])
                line = next(one.schedule for one in wanted if one.target == subject)
                due = line.due(stored, following)
                assert due <= stored
                assert line.before(following) == due or (stored - due).total_seconds() > 1, line  # it was late
                found.setdefault(subject, set()).add(due)
    finally:
        server.stop()
    for one in wanted:
        if not one.schedule.every:
            ticked = {due for due in found.get(one.target, ()) if began <= due <= ended}
            named = _named(one.schedule, began, ended)
            assert ticked <= named, one.schedule
            assert bool(ticked) == bool(named), one.schedule  # a broker that is late may pass a second over, not all
    assert all(len(found[f"ticks.{number}"]) >= 2 for number in (0, 1, 2))


def _named(line: cron.Schedule, began: datetime, ended: datetime) -> set[datetime]:
    named, at = set(), line.before(ended + timedelta(microseconds=1))
    while at >= began:
        named.add(at)
        at = line.before(at)
    return named
