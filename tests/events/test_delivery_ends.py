"""Deliveries to functions that end in every way but a plain exception: retried, logged, and blocking no other key."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest
from delivering import CLOCK, dead_letters, delivering, happened, publish, until
from google.protobuf.empty_pb2 import Empty

from mesh.chaos.endings.ways import BUGS, CANCELLATIONS, Panic, end, end_on_the_loop
from mesh.contract.model import Contract
from mesh.events.consume.dead_letters import read_dead_letter
from mesh.events.consume.delivery import DeliverySettings
from mesh.events.consume.outcome import RetryLimits

QUICK = DeliverySettings(limits=RetryLimits(attempts=3, first_delay=0.05, max_delay=0.1))


@pytest.mark.parametrize("where", ["loop", "thread"])
async def test_every_end_is_a_try_and_the_next_event_of_the_key_comes(
    contract: Contract, nats_url: str, caplog: pytest.LogCaptureFixture, where: str
) -> None:
    called: Counter[str] = Counter()
    after: set[str] = set()

    async def on_the_loop(request: Any, context: Any) -> Empty:
        if request.number:
            after.add(request.key)
        else:
            called[request.what] += 1
            await end_on_the_loop(request.what)
            end(request.what)
        return Empty()

    def in_a_thread(request: Any, context: Any) -> Empty:
        if request.number:
            after.add(request.key)
        else:
            called[request.what] += 1
            end(request.what)
        return Empty()

    hows = [*BUGS, *CANCELLATIONS]
    function = on_the_loop if where == "loop" else in_a_thread
    async with delivering(contract, nats_url, {"on_happened": function}, settings=QUICK) as replica:
        events = {how: happened(f"k{number}", 0, how) for number, how in enumerate(hows)}
        await publish(replica.broker, *events.values())
        await publish(replica.broker, *(happened(f"k{number}", 1) for number in range(len(hows))))
        await until(lambda: len(after) == len(hows))
        found = await dead_letters(replica.broker)
    letters = {letter.headers["ce-id"]: read_dead_letter(letter.headers) for letter in found}
    assert called == dict.fromkeys(hows, 3)
    for how, event in events.items():
        code = "INTERNAL" if how in BUGS else "CANCELLED"
        assert (how, letters[event.id].code, letters[event.id].attempts) == (how, code, 3)
        lines = [line.getMessage() for line in caplog.records if event.id in line.getMessage()]
        assert [f"attempt {number} of event {event.id} ended with {code}" in " ".join(lines) for number in (1, 2)] == [
            True, True,
        ]  # fmt: skip
    assert "secret" not in "".join(letter.error for letter in letters.values())


async def test_a_function_that_makes_an_error_of_its_end_is_given_back_all_the_same(
    contract: Contract, nats_url: str
) -> None:
    begun, done = asyncio.Event(), asyncio.Event()

    async def at_first(request: Any, context: Any) -> Empty:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise ValueError("as libraries do when what they wait for is cancelled") from None
        return Empty()

    async def then(request: Any, context: Any) -> Empty:
        done.set()
        return Empty()

    once = DeliverySettings(limits=RetryLimits(attempts=1))  # an attempt would make it a dead letter
    async with delivering(contract, nats_url, {"on_happened": at_first}, settings=once, drain=0.0) as replica:
        await publish(replica.broker, happened("k"))
        await begun.wait()
    async with delivering(contract, nats_url, {"on_happened": then}, settings=once) as replica:
        await asyncio.wait_for(done.wait(), 30)
        assert await dead_letters(replica.broker) == []


async def test_a_schedule_goes_on(contract: Contract, nats_url: str) -> None:
    ticks: list[Any] = []

    async def every_second(request: Any, context: Any) -> Empty:
        ticks.append(request.time.ToSeconds())
        if len(ticks) == 1:
            raise Panic("at first")
        if len(ticks) == 2:
            raise asyncio.CancelledError
        return Empty()

    functions = {"every_second": every_second}
    async with delivering(contract, nats_url, functions, serves=CLOCK, settings=QUICK):
        await until(lambda: len(ticks) >= 4)
    assert ticks[:2] == [ticks[0]] * 2  # the second is another try of the first
