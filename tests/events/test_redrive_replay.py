"""Dead letters, redrive and replay of messages that JetStream stores with its own headers: batches and ticks."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from delivering import CLOCK, RECORDER, broker_at, dead_letters, delivering, happened, until
from delivery.v1 import delivery_pb2 as pb
from google.protobuf.empty_pb2 import Empty

from mesh.contract.model import Contract
from mesh.errors import InvalidArgument
from mesh.events.broker import history
from mesh.events.broker.broker import Broker
from mesh.events.broker.history import StreamMessage
from mesh.events.broker.nats_connection import MIN_BATCH, Outgoing
from mesh.events.broker.streams import SCHEDULES
from mesh.events.cloudevents import Event
from mesh.events.consume import redrive_replay
from mesh.events.consume.consumers import consumers_of
from mesh.events.consume.dead_letters import LEFT_OUT, read_dead_letter

MANY = 30
assert MANY >= MIN_BATCH


class Function:
    """Refuses all events until it is mended."""

    def __init__(self) -> None:
        self.mended = False
        self.refused: set[str] = set()
        self.done: list[tuple[str, Any]] = []

    async def __call__(self, request: Any, context: Any) -> Empty:
        id_ = context.metadata["ce-id"]
        if not self.mended:
            self.refused.add(id_)
            raise InvalidArgument("not yet")
        self.done.append((id_, request))
        return Empty()


async def stored_as_a_batch(broker: Broker) -> list[Event]:
    """Return events that the stream holds as the relay sent them."""
    events = [happened(f"k{number}", number) for number in range(MANY)]
    link = await broker.ready()
    assert await link.store([Outgoing(one.subject, one.to_headers(), one.data) for one in events]) == (MANY, None)
    message = await link.js.get_msg("EVENTS", 1)
    assert message.headers is not None
    assert "Nats-Batch-Id" in message.headers
    return events


async def letters_of(broker: Broker) -> list[StreamMessage]:
    link = await broker.ready()
    return [one async for one in history.read(link, "DEAD", "dead.>")]


async def redrive(broker: Broker, contract: Contract, serves: str, letters: list[StreamMessage]) -> None:
    consumers = {one.name: one for one in consumers_of([contract.services[serves]])}
    messages = [redrive_replay.redriven(letter, consumers) for letter in letters]
    async with asyncio.timeout(10):
        await asyncio.gather(*(broker.store(message) for message in messages if message is not None))


async def test_events_of_a_batch_die_and_are_delivered_once_more(contract: Contract, nats_url: str) -> None:
    function = Function()
    async with delivering(contract, nats_url, {"on_happened": function}) as replica:
        events = await stored_as_a_batch(replica.broker)
        letters: list[StreamMessage] = []
        async with asyncio.timeout(10):
            while len(letters) < MANY:
                await asyncio.sleep(0.05)
                letters = await letters_of(replica.broker)
        function.mended = True
        await redrive(replica.broker, contract, RECORDER, letters)
        await until(lambda: len(function.done) == MANY)
    assert {id_: request.number for id_, request in function.done} == {
        event.id: number for number, event in enumerate(events)
    }


async def test_events_of_a_batch_are_replayed(contract: Contract, nats_url: str) -> None:
    function = Function()
    function.mended = True
    async with broker_at(nats_url) as broker:
        events = await stored_as_a_batch(broker)
        link = await broker.ready()
        mine = consumers_of([contract.services[RECORDER]])
        found = [one async for one in history.read(link, "EVENTS", "events.delivery-v1-Happened.*.*")]
        for event in found:
            consumer = redrive_replay.consumer_for(mine, event.subject)
            assert consumer is not None
            await asyncio.wait_for(broker.store(redrive_replay.replayed(event, consumer, "run")), 10)
    async with delivering(contract, nats_url, {"on_happened": function}):
        await until(lambda: len(function.done) == 2 * MANY)
    ids = {event.id for event in events}
    assert {id_ for id_, _ in function.done} == ids | {f"{id_}~run" for id_ in ids}


@pytest.mark.parametrize("method", ["EverySecond", "Often"])
async def test_a_tick_dies_and_stands_for_the_same_time_when_it_is_delivered_once_more(
    contract: Contract, nats_url: str, method: str
) -> None:
    function = Function()
    name = {"EverySecond": "every_second", "Often": "often"}[method]
    async with delivering(contract, nats_url, {name: function}, serves=CLOCK) as replica:
        letters: list[StreamMessage] = []
        async with asyncio.timeout(10):
            while not letters:
                await asyncio.sleep(0.05)
                letters = await letters_of(replica.broker)
        function.mended = True
        died = set(function.refused)
        await redrive(replica.broker, contract, CLOCK, letters[:1])
        await until(lambda: any(id_ in died for id_, _ in function.done))
        message = (await dead_letters(replica.broker))[0]
        link = await replica.broker.ready()
        redriven = f"ticks.redo.delivery-v1-Clock.{method}.0.0.{method}"  # the stream forgets nothing by itself
        assert ((await link.js.get_last_msg(SCHEDULES, redriven)).headers or {})["Nats-TTL"] == "168h"
        assert (await link.js.get_last_msg(SCHEDULES, f"ticks.delivery-v1-Clock.{method}")).seq
    assert read_dead_letter(message.headers).code == "INVALID_ARGUMENT"
    ((id_, tick),) = [one for one in function.done if one[0] in died]
    due = message.headers["mesh-tick-due"]
    assert id_ == f"ticks.delivery-v1-Clock.{method}@{due}"
    assert tick.time.ToDatetime().isoformat() == due.removesuffix("+00:00")


async def test_an_event_too_large_for_a_letter_dies_and_is_delivered_once_more(
    contract: Contract, nats_url: str
) -> None:
    """The event is of another publisher, since the mesh's own events are smaller."""
    function = Function()
    async with delivering(contract, nats_url, {"on_happened": function}) as replica:
        link = await replica.broker.ready()
        event = happened("k", 1)
        headers = sum(len(name) + len(value) + 4 for name, value in event.to_headers().items())
        size = link.largest - headers - 200
        data = event.data + pb.Happened(what="w" * size).SerializeToString()
        await replica.broker.store(Outgoing(event.subject, event.to_headers(), data))
        letters: list[StreamMessage] = []
        async with asyncio.timeout(10):
            while not letters:
                await asyncio.sleep(0.05)
                letters = await letters_of(replica.broker)
        assert (letters[0].data, letters[0].headers[LEFT_OUT]) == (b"", str(len(data)))
        found = await redrive_replay.with_event(link, letters[0])
        assert found is not None
        function.mended = True
        await redrive(replica.broker, contract, RECORDER, [found])
        await until(lambda: bool(function.done))
        await link.js.delete_msg("EVENTS", 1)
        assert await redrive_replay.with_event(link, letters[0]) is None
    ((id_, request),) = function.done
    assert (id_, request.number, len(request.what)) == (event.id, 1, size)
