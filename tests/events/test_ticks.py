"""Schedules on a real nats-server: what is kept there, who is called, and what becomes of what was missed."""

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

from mesh import schedule
from mesh.contract import Contract, Service, Trigger, TriggerKind
from mesh.events import ticks
from mesh.events.streams import SCHEDULES

KEPT = "schedules.delivery-v1-Clock.EverySecond"


class Clock:
    """What the functions of a schedule were called with."""

    def __init__(self) -> None:
        self.times: list[datetime] = []

    async def __call__(self, request: Any, context: Any) -> Empty:  # noqa: ARG002 - a function's shape
        self.times.append(request.time.ToDatetime(UTC))
        return Empty()


def clock_with(contract: Contract, *triggers: Trigger) -> Service:
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
    def every(line: str) -> Service:
        return clock_with(contract, Trigger(TriggerKind.SCHEDULE, schedule=line))

    async with broker_at(nats_url) as broker:
        link = await broker.ready()

        async def sequence() -> int:
            return int((await link.js.get_last_msg(SCHEDULES, KEPT)).seq or 0)

        await asyncio.gather(*(ticks.ensure(link.client, [every("@every 1h")]) for _ in range(5)))
        first = await sequence()
        await ticks.ensure(link.client, [every("@every 1h")])
        assert await sequence() == first
        await ticks.ensure(link.client, [every("CRON_TZ=Europe/Berlin 30 3 * * MON-FRI,7")])
        kept = await link.js.get_last_msg(SCHEDULES, KEPT)
        assert kept.headers is not None
        assert kept.headers["Nats-Schedule"] == "0 30 3 * * 0,1,2,3,4,5"
        assert kept.headers["Nats-Schedule-Time-Zone"] == "Europe/Berlin"
        await ticks.ensure(link.client, [clock_with(contract)])
        with pytest.raises(Exception, match="no message found"):
            await sequence()


async def test_every_line_that_the_contract_takes_the_broker_takes_too(contract: Contract, nats_url: str) -> None:
    lines = [
        "* * * * *", "*/5 * * * *", "0 0 3 1,15 JAN-MAR MON", "1-5/2 * * * 0-7", "@every 1h30m", "@every 1.5s",
        "@daily", "@annually", "0 0 ? * mon", "0 0 * * 7", "5/20 * * * *", "0 0 */2 * 1-7", "TZ=Asia/Tokyo @weekly",
    ]  # fmt: skip
    async with broker_at(nats_url) as broker:
        link = await broker.ready()
        for line in lines:
            await ticks.ensure(link.client, [clock_with(contract, Trigger(TriggerKind.SCHEDULE, schedule=line))])


async def test_what_was_due_while_the_broker_was_down_is_made_up_for_once(
    contract: Contract, new_nats: Callable[..., BrokerProcess]
) -> None:
    server = new_nats()
    hourly = clock_with(contract, Trigger(TriggerKind.SCHEDULE, schedule="@hourly"))
    skips = clock_with(contract, Trigger(TriggerKind.SCHEDULE, schedule="@hourly", skip_missed=True))
    now = datetime.now(UTC) + timedelta(hours=3)
    async with broker_at(server.url) as broker:
        link = await broker.ready()
        await ticks.ensure(link.client, [hourly])
        await ticks.make_up(link.client, [skips], now)
        await asyncio.gather(*(ticks.make_up(link.client, [hourly], now) for _ in range(5)))
        info = await link.js.stream_info(SCHEDULES)
        assert info.state.messages == 2
        tick = await link.js.get_last_msg(SCHEDULES, "ticks.delivery-v1-Clock.EverySecond")
    assert tick.headers is not None
    assert tick.headers["mesh-tick-due"] == now.replace(minute=0, second=0, microsecond=0).isoformat()


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
    assert schedule.parse(line).before(datetime.fromisoformat(moment)) == datetime.fromisoformat(before)


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("@every 500ms", "the shortest interval is 1s"),
        ("CRON_TZ=Mars/Olympus 0 3 * * *", "there is no time zone 'Mars/Olympus'"),
        ("TZ=UTC @every 5s", "an interval has no time zone"),
        ("0 0 30 2 *", "names no time at all"),
    ],
)
def test_what_no_clock_can_keep(line: str, what: str) -> None:
    with pytest.raises(schedule.ScheduleError, match=what):
        schedule.check(line)
