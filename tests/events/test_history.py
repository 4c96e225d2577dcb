"""Reads of a stream of a real nats-server: from its end, by subject and by time, without reading all of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest
from delivering import broker_at, happened

from mesh.events import subjects
from mesh.events.broker import history
from mesh.events.broker.nats_connection import NatsConnection, Outgoing
from mesh.events.broker.streams import EVENTS

TYPE = "delivery.v1.Happened"
MANY = 3_000
RARE = range(400, 410)
"""Numbers of the events of a key that is seldom."""


@pytest.fixture
async def link(nats_url: str) -> AsyncIterator[NatsConnection]:
    async with broker_at(nats_url) as broker:
        link = await broker.ready()
        events = [happened("rare" if number in RARE else f"k{number % 7}", number) for number in range(1, MANY + 1)]
        for start in range(0, MANY, 1000):
            batch = [Outgoing(event.subject, event.to_headers(), event.data) for event in events[start : start + 1000]]
            assert (await link.store(batch)).error is None
        yield link


class Questions:
    """Counts the requested messages on a connection."""

    def __init__(self, link: NatsConnection, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        publish = link.client.publish

        async def counting(subject: str, *others: object, **more: object) -> None:
            self.count += "DIRECT.GET" in subject
            await publish(subject, *others, **more)  # type: ignore[arg-type]

        monkeypatch.setattr(link.client, "publish", counting)


async def test_the_latest_are_few_questions(link: NatsConnection, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Questions(link, monkeypatch)
    found = await history.latest(link, EVENTS, "events.*.*.*", 50, last=MANY)
    assert [one.sequence for one in found] == list(range(MANY - 49, MANY + 1))
    assert asked.count <= 3


async def test_the_latest_of_a_seldom_key_are_found(link: NatsConnection, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Questions(link, monkeypatch)
    for type_ in (TYPE, ""):
        found = await history.latest(link, EVENTS, subjects.key_filter(type_, "rare"), 3, last=MANY)
        assert [one.sequence for one in found] == list(RARE)[-3:]
    assert asked.count <= 12
    assert await history.latest(link, EVENTS, subjects.key_filter("", "nobody"), 3, last=MANY) == []


async def test_backwards_is_all_of_it_once(link: NatsConnection) -> None:
    parts = [part async for part in history.backwards(link, EVENTS, "events.>", last=MANY)]
    assert [one.sequence for part in reversed(parts) for one in part] == list(range(1, MANY + 1))
    assert len(parts) < 6


async def test_what_is_older_is_left_out(link: NatsConnection) -> None:
    middle = [one async for one in history.read(link, EVENTS, "events.>", after=1999, before=2001)]
    assert [one.sequence for one in middle] == [2000]
    later = await history.latest(link, EVENTS, "events.>", 5000, last=MANY, since=middle[0].time)
    assert later[0].time >= middle[0].time
    assert later[-1].sequence == MANY
    assert len(later) < MANY
    assert await history.latest(link, EVENTS, "events.>", 10, last=MANY, since=datetime.now(UTC)) == []
