"""Delivery from a real nats-server through a sidecar's own chain."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections import defaultdict
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from broker_process import BrokerProcess
from delivering import RECORDER, SIGNER, broker_at, dead_letters, delivering, happened, publish, until
from google.protobuf.empty_pb2 import Empty
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from mesh.call import Call, Handler
from mesh.contract.model import Contract
from mesh.errors import InvalidArgument, Unavailable
from mesh.events.broker.message import Message
from mesh.events.broker.nats_connection import Outgoing
from mesh.events.cloudevents import Event
from mesh.events.consume import attempts, pull
from mesh.events.consume.consumers import Consumer, consumers_of, ensure
from mesh.events.consume.dead_letters import read_dead_letter
from mesh.events.consume.delivery import DeliverySettings
from mesh.events.consume.ordering import HeldEvent
from mesh.events.consume.outcome import Ack, Decision, GiveUp, Retry, RetryLimits
from mesh.events.consume.redrive_replay import consumer_for
from mesh.events.signatures import SIGNATURE, SignedMessage
from mesh.layers.concurrency import ConcurrencyLimit

QUICK = DeliverySettings(limits=RetryLimits(attempts=3, first_delay=0.05, max_delay=0.1))


class Seen:
    """Records the requests of a function."""

    def __init__(self) -> None:
        self.numbers: dict[str, list[int]] = defaultdict(list)

    @property
    def count(self) -> int:
        return sum(map(len, self.numbers.values()))

    async def on_happened(self, request: Any, context: Any) -> Empty:  # noqa: ARG002 - a function's shape
        self.numbers[request.key].append(request.number)
        return Empty()


async def test_events_of_a_key_come_in_order(contract: Contract, nats_url: str) -> None:
    seen = Seen()
    async with delivering(contract, nats_url, {"on_happened": seen.on_happened}) as replica:
        await publish(replica.broker, *(happened(f"k{number % 7}", number) for number in range(700)))
        await until(lambda: seen.count == 700)
    assert seen.numbers == {f"k{key}": list(range(key, 700, 7)) for key in range(7)}


async def test_what_was_published_before_the_first_start_is_delivered_too(contract: Contract, nats_url: str) -> None:
    seen = Seen()
    async with broker_at(nats_url) as broker:
        await publish(broker, happened("k", 1), happened("k", 2))
    for _ in range(2):  # and what was acknowledged does not come again
        async with delivering(contract, nats_url, {"on_happened": seen.on_happened}):
            await until(lambda: seen.count == 2)
    assert seen.numbers == {"k": [1, 2]}


async def test_a_delivery_has_the_time_of_its_method(contract: Contract, nats_url: str) -> None:
    """OnHappened says 2 s, OnNoted ``no_time_limit``."""
    left: dict[str, float | None] = {}

    async def note(request: Any, context: Any) -> Empty:
        left[request.DESCRIPTOR.name] = context.remaining()
        return Empty()

    noted = Event(id="n", type="delivery.v1.Noted", source="test", data=b"", key="", time=datetime.now(UTC))
    async with delivering(contract, nats_url, {"on_happened": note, "on_noted": note}) as replica:
        await publish(replica.broker, happened("k"), noted)
        await until(lambda: len(left) == 2)
    assert left.pop("Noted") is None
    assert 0 < (left.pop("Happened") or 0) <= 2


async def test_what_a_function_does_to_its_context_is_seen_by_no_later_delivery(
    contract: Contract, nats_url: str
) -> None:
    """The next event of the key begins when the one before ends, and the next try when the one before has failed."""
    variable: ContextVar[str] = ContextVar("variable", default="none")
    found: list[tuple[int, str]] = []

    async def on_happened(request: Any, context: Any) -> Empty:
        found.append((request.number, variable.get()))
        variable.set(f"of {request.number}")
        if request.number == 1 and len(found) == 2:
            raise Unavailable("once more")
        return Empty()

    async with delivering(contract, nats_url, {"on_happened": on_happened}, settings=QUICK) as replica:
        for number in range(4):
            await publish(replica.broker, happened("k", number))
        await until(lambda: len(found) == 5)
    assert found == [(0, "none"), (1, "none"), (1, "none"), (2, "none"), (3, "none")]


async def test_a_failing_key_holds_only_itself(contract: Contract, nats_url: str) -> None:
    seen = Seen()
    mended = asyncio.Event()

    async def on_happened(request: Any, context: Any) -> Empty:
        if request.key == "bad" and not mended.is_set():
            raise Unavailable("not yet")
        return await seen.on_happened(request, context)

    settings = DeliverySettings(limits=RetryLimits(attempts=1000, first_delay=0.05, max_delay=0.1))
    async with delivering(contract, nats_url, {"on_happened": on_happened}, settings=settings) as replica:
        events = [happened(key, number) for number in range(5) for key in ("bad", "a", "b")]
        await publish(replica.broker, *events)
        await until(lambda: seen.count == 10)
        assert "bad" not in seen.numbers
        mended.set()
        await until(lambda: seen.count == 15)
    assert seen.numbers == {key: [0, 1, 2, 3, 4] for key in ("bad", "a", "b")}


async def test_poison_goes_to_the_dead_letters_with_its_reason(contract: Contract, nats_url: str) -> None:
    seen = Seen()

    async def on_happened(request: Any, context: Any) -> Empty:
        if request.number == 1:
            raise InvalidArgument("nobody can read this")
        if request.number == 2:
            raise ValueError("a bug")
        return await seen.on_happened(request, context)

    async with delivering(contract, nats_url, {"on_happened": on_happened}, settings=QUICK) as replica:
        events = [happened("k", number) for number in range(4)]
        await publish(replica.broker, *events)
        await until(lambda: seen.count == 2)
        letters = await dead_letters(replica.broker)
    assert seen.numbers == {"k": [0, 3]}
    read = [read_dead_letter(letter.headers) for letter in letters]
    assert [(one.code, one.error, one.attempts, one.reason) for one in read] == [
        (
            "INVALID_ARGUMENT",
            "nobody can read this",
            1,
            "INVALID_ARGUMENT is permanent: a retry would end the same way",
        ),
        ("INTERNAL", "internal error", 3, "3 attempts failed, the maximum"),
    ]
    assert [letter.subject for letter in letters] == ["dead.delivery-v1-Recorder.OnHappened"] * 2
    assert [letter.data for letter in letters] == [event.data for event in events[1:3]]
    assert [letter.headers["ce-id"] for letter in letters] == [event.id for event in events[1:3]]


async def test_an_event_that_violates_a_rule_is_a_dead_letter_at_once(contract: Contract, nats_url: str) -> None:
    """Its publisher may have had an older contract, or none. OUTPUT_ONLY fields are the publisher's, and stay."""
    from rules.v1 import rules_pb2 as pb

    seen: list[Any] = []

    async def on_put(request: Any, context: Any) -> Empty:
        seen.append(request)
        return Empty()

    def event(message: pb.Put) -> Event:
        data = message.SerializeToString()
        return Event(
            id=f"{message.number}",
            type="rules.v1.Put",
            source="test",
            key=message.shelf,
            time=datetime.now(UTC),
            data=data,
        )

    functions = {"on_put": on_put} | dict.fromkeys(("add", "update", "divide", "add_all"), on_put)
    functions |= dict.fromkeys(("watch", "exchange"), _nothing)
    good, bad = pb.Put(shelf="k", title="Emma", number=7), pb.Put(shelf="k", title="Emma", number=-7)
    async with delivering(contract, nats_url, functions, serves="rules.v1.Shelf") as replica:
        await publish(replica.broker, event(bad), event(good))
        await until(lambda: bool(seen))
        letters = await dead_letters(replica.broker)
    assert seen == [good]
    (letter,) = [read_dead_letter(letter.headers) for letter in letters]
    assert (letter.code, letter.error, letter.attempts) == (
        "INVALID_ARGUMENT", "number: must be greater than or equal to 0 (int32.gte)", 1
    )  # fmt: skip


async def _nothing(request: Any, context: Any) -> Any:
    yield


async def test_a_handler_that_hangs_ends_at_its_deadline(contract: Contract, nats_url: str) -> None:
    async def on_happened(request: Any, context: Any) -> Empty:
        await asyncio.Event().wait()
        return Empty()

    settings = DeliverySettings(limits=RetryLimits(attempts=1))
    async with delivering(contract, nats_url, {"on_happened": on_happened}, settings=settings) as replica:
        await publish(replica.broker, happened("k"))
        letters: list[Any] = []
        while not letters:
            letters = await dead_letters(replica.broker)
            await asyncio.sleep(0.05)
    assert read_dead_letter(letters[0].headers).code == "DEADLINE_EXCEEDED"


async def test_a_stop_gives_back_what_is_unfinished(contract: Contract, nats_url: str) -> None:
    begun = asyncio.Event()

    async def hangs(request: Any, context: Any) -> Empty:
        begun.set()
        await asyncio.Event().wait()
        return Empty()

    seen = Seen()
    limits = DeliverySettings(limits=RetryLimits(attempts=1))
    async with delivering(contract, nats_url, {"on_happened": hangs}, settings=limits, drain=0.1) as replica:
        await publish(replica.broker, *(happened("k", number) for number in range(3)))
        await begun.wait()
    loop = asyncio.get_running_loop()
    since = loop.time()
    async with delivering(contract, nats_url, {"on_happened": seen.on_happened}) as replica:
        await until(lambda: seen.count == 3)
        assert loop.time() - since < 4  # given back, not waited for
        assert await dead_letters(replica.broker) == []
    assert seen.numbers == {"k": [0, 1, 2]}


async def test_two_replicas_share_and_neither_overtakes(contract: Contract, nats_url: str) -> None:
    seen, first, second = Seen(), Seen(), Seen()

    def both(own: Seen) -> Any:
        async def on_happened(request: Any, context: Any) -> Empty:
            await asyncio.sleep(0.001)
            await own.on_happened(request, context)
            return await seen.on_happened(request, context)

        return {"on_happened": on_happened}

    async with (
        delivering(contract, nats_url, both(first)) as replica,
        delivering(contract, nats_url, both(second)),
    ):
        await asyncio.sleep(2)  # until they know of each other
        for start in range(0, 600, 100):
            await publish(replica.broker, *(happened(f"k{n % 20}", n) for n in range(start, start + 100)))
        await until(lambda: seen.count == 600)
    assert seen.numbers == {f"k{key}": list(range(key, 600, 20)) for key in range(20)}
    assert first.count
    assert second.count


async def test_a_killed_broker_loses_nothing(contract: Contract, new_nats: Callable[..., BrokerProcess]) -> None:
    server = new_nats()
    seen = Seen()

    async def on_happened(request: Any, context: Any) -> Empty:
        await asyncio.sleep(0.005)
        return await seen.on_happened(request, context)

    async with delivering(contract, server.url, {"on_happened": on_happened}) as replica:
        for start in range(0, 400, 200):
            await publish(replica.broker, *(happened(f"k{n % 4}", n) for n in range(start, start + 200)))
            await until(lambda: seen.count > 20)
            server.kill()
            await asyncio.sleep(0.2)
            await asyncio.to_thread(server.start)
        await until(
            lambda: all(len(set(numbers)) == 100 for numbers in seen.numbers.values()) and len(seen.numbers) == 4
        )
    # Delivered twice is possible, out of order is not: the first time of each is in order.
    for key, numbers in seen.numbers.items():
        assert list(dict.fromkeys(numbers)) == list(range(int(key[1:]), 400, 4))


async def test_a_broker_that_lost_its_disk_is_read_from_its_beginning(
    contract: Contract, new_nats: Callable[..., BrokerProcess]
) -> None:
    """Its sequences were all seen before; what still runs for the old stream answers for none of them."""
    nats = new_nats()
    seen, ends = Seen(), asyncio.Event()

    async def on_happened(request: Any, context: Any) -> Empty:
        if request.number == 9:
            await ends.wait()
        return await seen.on_happened(request, context)

    async with delivering(contract, nats.url, {"on_happened": on_happened}) as replica:
        await publish(replica.broker, *(happened("k", number) for number in range(10)))
        await until(lambda: seen.count == 9)
        link = await replica.broker.ready()
        nats.kill()
        nats.lose()
        nats.start()
        await until(link.closed.is_set)
        for number in range(100, 110):
            await publish(replica.broker, happened("k", number))
        ends.set()
        await until(lambda: seen.count == 20)
        assert seen.numbers == {"k": [*range(10), *range(100, 110)]}


async def test_a_stream_that_was_removed_and_made_again_is_read(contract: Contract, nats_url: str) -> None:
    seen = Seen()
    async with delivering(contract, nats_url, {"on_happened": seen.on_happened}) as replica:
        await publish(replica.broker, *(happened("k", number) for number in range(5)))
        await until(lambda: seen.count == 5)
        js = (await replica.broker.ready()).js
        config = (await js.stream_info("EVENTS")).config
        await js.delete_stream("EVENTS")
        await js.add_stream(config)
        await publish(replica.broker, *(happened("k", number) for number in range(100, 105)))
        await until(lambda: seen.count == 10)
    assert sorted(seen.numbers["k"]) == [*range(5), *range(100, 105)]


async def test_too_many_hops_are_a_cycle(contract: Contract, nats_url: str) -> None:
    seen = Seen()
    async with delivering(contract, nats_url, {"on_happened": seen.on_happened}) as replica:
        await publish(replica.broker, happened("k", 1, hops=17), happened("k", 2, hops=16))
        await until(lambda: seen.count == 1)
        (letter,) = await dead_letters(replica.broker)
    assert seen.numbers == {"k": [2]}
    assert "a cycle of events" in read_dead_letter(letter.headers).reason


async def test_headers_of_others_hold_no_key(contract: Contract, nats_url: str) -> None:
    """More digits than Python makes a number of."""
    seen = Seen()
    async with delivering(contract, nats_url, {"on_happened": seen.on_happened}) as replica:
        bad = happened("k", 1)
        await replica.broker.store(Outgoing(bad.subject, {**bad.to_headers(), "mesh-hops": "1" * 5000}, bad.data))
        await publish(replica.broker, happened("k", 2))
        await until(lambda: seen.count == 1)
        (letter,) = await dead_letters(replica.broker)
    assert seen.numbers == {"k": [2]}
    assert read_dead_letter(letter.headers).reason == "malformed"


async def test_a_delivery_that_fails_by_a_bug_of_ours_is_tried_again(
    contract: Contract, nats_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(pull, "FAILURE_RETRY_DELAY", 0.05)
    event, called, gone = happened("k", 1), [], []
    consumer = next(one for one in consumers_of([contract.services[RECORDER]]) if consumer_for([one], event.subject))

    async def deliver(consumer: Consumer, message: Message, held: HeldEvent) -> Decision:
        called.append(message.sequence)
        if len(called) == 1:
            raise ZeroDivisionError
        return Ack()

    async with broker_at(nats_url) as broker:
        link = await broker.ready()
        await ensure(link, consumer)
        await publish(broker, event)
        reading = pull.ConsumerReader(consumer, deliver, gone.append)
        reading.attach(link)
        await reading.tick(0, mine=True)
        await until(lambda: len(called) == 2 and not reading.partition.held)
        await reading.release()
    assert (called, gone) == ([1, 1], [])
    assert f"{consumer.name}: the delivery of 1 failed" in caplog.text


def handed_over(contract: Contract, sequence: int) -> tuple[Consumer, Message, HeldEvent]:
    """Return an event as a process gets it that another one had before."""
    consumer = next(one for one in consumers_of([contract.services[RECORDER]]) if "OnHappened" in one.name)
    event = happened("k", 1)
    (signature,) = SIGNER.sign([SignedMessage(event.subject, event.to_headers(), event.data)])
    headers = {**event.to_headers(), SIGNATURE: signature}
    message = Message(event.subject, headers, event.data, "", sequence, 2, 1.5, 0, "")
    return consumer, message, HeldEvent(sequence, "k", deliveries=2, recalled=False)


async def test_what_ends_the_process_again_and_again_is_a_dead_letter(contract: Contract, nats_url: str) -> None:
    begun = asyncio.Event()
    calls = 0

    async def ends_the_process(request: Any, context: Any) -> Empty:
        nonlocal calls
        calls += 1
        begun.set()
        await asyncio.Event().wait()
        return Empty()

    once = DeliverySettings(limits=RetryLimits(attempts=1))
    functions = {"on_happened": ends_the_process}
    for _ in range(2):
        async with delivering(contract, nats_url, functions, settings=once) as replica:
            await replica.broker.ready()
            begun.clear()
            task = asyncio.create_task(replica.delivery.processor.process(*handed_over(contract, 1)))
            await begun.wait()
            await replica.broker.stop()  # as of a process that has ended, nothing more of it reaches the broker
            while not task.done():
                task.cancel()
                await asyncio.wait([task], timeout=0.01)
    async with delivering(contract, nats_url, functions, settings=once) as replica:
        await replica.broker.ready()
        assert isinstance(await replica.delivery.processor.process(*handed_over(contract, 1)), GiveUp)
        (letter,) = await dead_letters(replica.broker)
    assert calls == 2
    assert (
        read_dead_letter(letter.headers).reason
        == "started 2 times by processes that ended before it did: it may end them"
    )
    assert read_dead_letter(letter.headers).attempts == 0


@pytest.mark.slow
@pytest.mark.timeout(120)
async def test_an_event_that_ends_its_process_holds_its_key_only_so_long(contract: Contract, nats_url: str) -> None:
    """With real processes: they die of the first event, and the second, which waited behind it each time, is called."""
    calls: list[bytes] = []
    async with broker_at(nats_url) as broker:
        await publish(broker, happened("k", 0), happened("k", 1))
        while calls[-1:] != [b"1"]:
            process = await asyncio.create_subprocess_exec(
                sys.executable, str(Path(__file__).parent / "ended.py"), nats_url, stdout=asyncio.subprocess.PIPE
            )
            try:
                assert process.stdout is not None
                async with asyncio.timeout(60):
                    calls.append((await process.stdout.readline()).strip())
                    if calls[-1] == b"1":
                        process.terminate()
                    await process.wait()
            finally:
                if process.returncode is None:
                    process.kill()
                    await process.wait()
        (letter,) = await dead_letters(broker)
    assert calls == [b"0", b"0", b"0", b"1"]
    assert (
        read_dead_letter(letter.headers).reason
        == "started 2 times by processes that ended before it did: it may end them"
    )


async def test_what_is_given_back_is_no_try_however_often(contract: Contract, nats_url: str) -> None:
    """The first event of a key is cancelled by the stop of each replica; the second only waits behind it."""
    calls: list[int] = []
    ends = asyncio.Event()

    async def on_happened(request: Any, context: Any) -> Empty:
        calls.append(request.number)
        if request.number == 0:
            await ends.wait()
        return Empty()

    once = DeliverySettings(limits=RetryLimits(attempts=1))
    async with broker_at(nats_url) as broker:
        await publish(broker, happened("k", 0), happened("k", 1))
        for number in range(1, 5):
            async with delivering(contract, nats_url, {"on_happened": on_happened}, settings=once, drain=0):
                await until(lambda number=number: len(calls) == number)
        ends.set()
        async with delivering(contract, nats_url, {"on_happened": on_happened}, settings=once):
            await until(lambda: 1 in calls)
        assert await dead_letters(broker) == []
    assert calls == [0, 0, 0, 0, 0, 1]


async def test_tries_are_counted_over_replicas(contract: Contract, nats_url: str) -> None:
    failures = 0

    async def fails(request: Any, context: Any) -> Empty:
        nonlocal failures
        failures += 1
        raise Unavailable("not yet")

    slow = DeliverySettings(limits=RetryLimits(attempts=3, first_delay=60.0))
    async with broker_at(nats_url) as broker:
        await publish(broker, happened("k", 1))
        for number in range(1, 4):
            async with delivering(contract, nats_url, {"on_happened": fails}, settings=slow):
                await until(lambda number=number: failures == number)
        link = await broker.ready()
        (letter,) = await dead_letters(broker)
        assert (await link.js.stream_info("TRIES")).state.messages == 1
    assert (read_dead_letter(letter.headers).reason, failures) == ("3 attempts failed, the maximum", 3)


async def test_what_was_refused_before_it_began_stays_unbegun(contract: Contract, nats_url: str) -> None:
    consumer, message, held = handed_over(contract, 1)
    async with delivering(contract, nats_url, {}, settings=QUICK, concurrency_limit=ConcurrencyLimit(0, 0)) as replica:
        link = await replica.broker.ready()
        await replica.broker.store(
            attempts.outgoing(consumer, message, attempts.AttemptRecord(attempts=1, unfinished=2))
        )
        assert isinstance(await replica.delivery.processor.process(consumer, message, held), Retry)
        assert (held.attempts, held.unfinished) == (1, 2)
        assert await attempts.read(link, consumer, message) == attempts.AttemptRecord(attempts=1, unfinished=2)


async def test_the_record_of_an_event_is_of_no_other_with_its_place(contract: Contract, nats_url: str) -> None:
    consumer, message, _ = handed_over(contract, 7)
    async with broker_at(nats_url) as broker:
        link = await broker.ready()
        assert await attempts.read(link, consumer, message) == attempts.AttemptRecord()
        for record in (attempts.AttemptRecord(1, 2, 3), attempts.AttemptRecord(4, 5, 6)):
            await broker.store(attempts.outgoing(consumer, message, record))
        assert await attempts.read(link, consumer, message) == attempts.AttemptRecord(4, 5, 6)
        assert await attempts.read(link, consumer, replace(message, time=2.5)) == attempts.AttemptRecord()
        assert await attempts.read(link, consumer, replace(message, sequence=8)) == attempts.AttemptRecord()


async def test_a_full_gate_is_no_try(contract: Contract, nats_url: str) -> None:
    seen = Seen()
    concurrency_limit = ConcurrencyLimit(0, 0)
    settings = DeliverySettings(limits=RetryLimits(attempts=1))
    async with delivering(
        contract, nats_url, {"on_happened": seen.on_happened}, settings=settings, concurrency_limit=concurrency_limit
    ) as replica:
        await publish(replica.broker, happened("k", 1))
        await asyncio.sleep(1)
        assert not seen.count
        concurrency_limit.limit = 1
        await until(lambda: seen.count == 1)
        assert await dead_letters(replica.broker) == []


async def test_a_delivery_is_a_trace_of_its_own_linked_to_the_publisher(contract: Contract, nats_url: str) -> None:
    found: list[Any] = []

    async def on_happened(request: Any, context: Any) -> Empty:
        found.append((context.metadata["ce-id"], context.metadata["ce-subject"], context.caller))
        return Empty()

    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("test")

    async def traced(call: Call, next: Handler) -> None:
        with tracer.start_as_current_span("delivery"):
            await next(call)

    event = happened("ada", traceparent="00-" + "a" * 32 + "-" + "b" * 16 + "-01")
    async with delivering(contract, nats_url, {"on_happened": on_happened}, trace=traced) as replica:
        await publish(replica.broker, event)
        await until(lambda: bool(exporter.get_finished_spans()))
    (span,) = exporter.get_finished_spans()
    assert found == [(event.id, "ada", None)]
    assert span.parent is None
    assert [(link.context.trace_id, link.context.span_id) for link in span.links] == [
        (int("a" * 32, 16), int("b" * 16, 16))
    ]
    assert span.attributes is not None
    assert span.attributes["messaging.message.id"] == event.id
    provider.shutdown()


async def test_a_failure_that_stays_the_same_shows_its_traceback_once(
    contract: Contract, nats_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    fails = ["a bug", "a bug", "another bug", "another bug"]
    seen = Seen()

    async def on_happened(request: Any, context: Any) -> Empty:
        if fails:
            raise ValueError(fails.pop(0))
        return await seen.on_happened(request, context)

    settings = DeliverySettings(limits=RetryLimits(attempts=10, first_delay=0.01, max_delay=0.02))
    with caplog.at_level(logging.WARNING):
        async with delivering(contract, nats_url, {"on_happened": on_happened}, settings=settings) as replica:
            await publish(replica.broker, happened("k", 1))
            await until(lambda: seen.count == 1)
    tracebacks = [str(record.exc_info[1]) for record in caplog.records if record.exc_info]
    assert tracebacks == ["a bug", "another bug"]
    lines = [text for record in caplog.records if " attempt " in (text := record.getMessage())]
    assert [line.split(" ended with ")[1].split(";")[0] for line in lines] == [
        "INTERNAL: ValueError: a bug", "INTERNAL: ValueError: a bug",
        "INTERNAL: ValueError: another bug", "INTERNAL: ValueError: another bug",
    ]  # fmt: skip
