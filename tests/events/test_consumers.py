"""Consumers on a real nats-server: removal of those that nobody reads."""

from __future__ import annotations

import json

from delivering import RECORDER, broker_at, happened
from publishing import until

from mesh.contract.model import Contract
from mesh.events.broker.nats_connection import NatsConnection
from mesh.events.consume.consumers import Consumer, consumers_of, ensure

KEPT_SECONDS = 1.5
"""Seconds that events are kept, in the settings of these consumers."""


def read_by(contract: Contract, key: str) -> Consumer:
    """Return the consumer that reads the events of a key."""
    part = happened(key).subject.split(".")[2]
    return next(one for one in consumers_of([contract.services[RECORDER]]) if one.name.endswith(f"OnHappened-{part}"))


async def there(link: NatsConnection, consumer: Consumer) -> bool:
    return "error" not in await link.request(f"CONSUMER.INFO.{consumer.stream}.{consumer.name}")


async def test_one_that_nobody_reads_is_removed_and_one_that_is_read_is_not(contract: Contract, nats_url: str) -> None:
    idle, busy = read_by(contract, "a"), read_by(contract, "b")
    assert idle != busy
    async with broker_at(nats_url) as broker:
        link = await broker.ready()
        for consumer in (idle, busy):
            await ensure(link, consumer, KEPT_SECONDS)
            await ensure(link, consumer, KEPT_SECONDS)  # a current consumer is not changed
        pull = json.dumps({"batch": 1, "expires": int(30e9), "group": "one"}).encode()
        inbox = link.client.new_inbox()
        await link.client.subscribe(inbox)
        await link.client.publish(f"$JS.API.CONSUMER.MSG.NEXT.{busy.stream}.{busy.name}", pull, inbox)

        async def removed() -> bool:
            return not await there(link, idle)

        await until(removed)
        assert await there(link, busy)
        await ensure(link, idle, KEPT_SECONDS)
        assert await there(link, idle)


def test_a_schedule_keeps_its_place(contract: Contract) -> None:
    clock = consumers_of([contract.services["delivery.v1.Clock"]])
    assert clock
    assert all("inactive_threshold" not in one.config(KEPT_SECONDS) for one in clock)
    assert "inactive_threshold" not in read_by(contract, "a").config(0.0)
