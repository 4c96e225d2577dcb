"""Delivery: everything that calls the functions of one service for events, changes and schedules.

It begins when the service is ready and is the first to end. While the broker is away nothing is lost and nothing fails:
what runs goes on, and reading begins again when the broker is back.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, assert_never
from uuid import uuid4

from opentelemetry import metrics

from mesh.boundary import as_exception, cancelled_by_mesh
from mesh.contract.model import ChangeTrigger, EventTrigger, ScheduleTrigger
from mesh.errors import Code, Internal, InvalidArgument, StatusError
from mesh.events.broker.connection import Outgoing
from mesh.events.cloudevents import MESSAGE_ID, Event, MalformedEventError
from mesh.events.consume import assignment, attempts, schedules
from mesh.events.consume.consumers import Consumer, ConsumerError, consumers_of, ensure
from mesh.events.consume.dead_letters import LEFT_OUT, Letter, letter_headers
from mesh.events.consume.delivery_call import Arrival
from mesh.events.consume.outcome import Ack, Dead, Decision, Limits, Retry, decide
from mesh.events.consume.pull import BROKER_AWAY, Reader
from mesh.events.subjects import dead_subject, token_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from nats.aio.client import Client
    from nats.aio.msg import Msg
    from opentelemetry.metrics import CallbackOptions, Observation

    from mesh.call import Handler
    from mesh.contract.model import GrpcService
    from mesh.events.broker.broker import Broker
    from mesh.events.broker.connection import Link
    from mesh.events.broker.message import Message
    from mesh.events.consume.ordering import Held

__all__ = ["Delivery", "Patience"]

log = logging.getLogger("mesh.events")

TICK = 0.5
"""Seconds between two looks at what is due."""
AGAIN = 2.0
"""Seconds before another try of what the broker did not take: a consumer, a dead letter, or that a call begins."""
MOST_HOPS = 16
"""Deliveries in a row, each for an event that the one before published; more are a cycle that does not end."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How deliveries are made.

    Attributes:
        limits: How often a function is called for one event, and when.
        timeout: Seconds that a call may take when its method says nothing.
        concurrency: Calls at once.
        hops: Deliveries in a row.
    """

    limits: Limits = field(default_factory=Limits)
    timeout: float = 60.0
    concurrency: int = 100
    hops: int = MOST_HOPS


class Delivery:
    """Delivers to the methods of one service of mesh.toml.

    Args:
        broker: The broker.
        name: The service, as mesh.toml calls it.
        services: What of the contract it serves.
        handlers: Path of a method → the chain that answers its deliveries.
        patience: How deliveries are made.
    """

    def __init__(
        self,
        broker: Broker,
        name: str,
        services: Sequence[GrpcService],
        handlers: Mapping[str, Handler],
        patience: Patience,
    ) -> None:
        self._broker = broker
        self._services = services
        self._consumers = consumers_of(services)
        self._handlers = handlers
        self._patience = patience
        self._slots = asyncio.Semaphore(patience.concurrency)
        self._suspects = asyncio.Lock()
        self._members = assignment.Members(uuid4().hex)
        self._channel = f"mesh.replicas.{token_of(name)}"
        self._readers = [Reader(consumer, self._deliver, self._gone) for consumer in self._consumers]
        self._missing: set[str] = set()
        self._task: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()
        meter = metrics.get_meter("mesh.events")
        self._counted = meter.create_counter(
            "mesh.events.deliveries", "{delivery}", "Deliveries that ended, by method and what became of them"
        )
        meter.create_observable_gauge("mesh.events.lag", [self._lag], "{event}", "Events that wait for a method")

    def start(self) -> None:
        """Begin to deliver; returns at once, whether the broker is there or not."""
        if self._consumers:
            self._task = self._loop.create_task(self._run())

    async def stop(self, drain: float) -> None:
        """Take no more, give back what has not begun, wait ``drain`` seconds for what runs, give back the rest."""
        if self._task is None:
            return
        while not self._task.done():  # the client library swallows a cancellation here and there
            self._task.cancel()
            await asyncio.wait([self._task], timeout=TICK)
        until = self._loop.time() + drain
        await asyncio.gather(*(reader.release() for reader in self._readers))
        await asyncio.gather(*(reader.finish(until) for reader in self._readers))
        link = self._broker.link
        if link is not None:
            with contextlib.suppress(*BROKER_AWAY):
                await link.client.publish(self._channel, f"-{self._members.name}".encode())
                await link.client.flush(1)

    # -- the loop --

    async def _run(self) -> None:
        while True:
            link = await self._broker.ready()
            try:
                await self._with(link)
            except BROKER_AWAY as error:
                log.debug("the broker is away: %s", error)
            except Exception:
                log.exception("delivery failed, and begins again")
            for reader in self._readers:
                reader.detach()
            await asyncio.sleep(TICK)

    async def _with(self, link: Link) -> None:
        """Deliver over one connection, until it ends."""
        client = link.client
        while not await self._prepare(client):  # noqa: ASYNC110 - what is waited for is in the broker
            await asyncio.sleep(AGAIN)
        await client.subscribe(self._channel, cb=self._heard)
        for reader in self._readers:
            reader.attach(client)
        sign, look = 0.0, (self._loop.time() + schedules.LOOK if schedules.wanted(self._services) else math.inf)
        while not link.closed.is_set():
            now = self._loop.time()
            if now >= sign:
                sign = now + assignment.EVERY
                await client.publish(self._channel, f"+{self._members.name}".encode())
            if now >= look:
                look = now + schedules.LOOK
                with contextlib.suppress(*BROKER_AWAY):  # one that is only slow is asked again
                    await schedules.make_up(client, self._services, await schedules.clock(client), schedules.LATE)
            await self._tick(client, now)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(link.closed.wait(), TICK)

    async def _prepare(self, client: Client) -> bool:
        """Make consumers and schedules; False if the broker refuses one."""
        try:
            kept = self._broker.kept
            made = await asyncio.gather(*(ensure(client, reader.consumer, kept) for reader in self._readers))
            others = [reader.reads(created) for reader, created in zip(self._readers, made, strict=True)]
            if any(others):
                log.warning("the broker has lost %d consumers: what they sent before is forgotten", sum(others))
            await schedules.ensure(client, self._services)
            if schedules.wanted(self._services):
                await schedules.make_up(client, self._services, await schedules.clock(client))
        except (ConsumerError, schedules.TickError) as error:
            log.error("nothing is delivered yet: %s", error)  # noqa: TRY400 - the text is all there is to say
            return False
        return True

    async def _tick(self, client: Client, now: float) -> None:
        if self._missing and await self._prepare(client):
            self._missing.clear()
        here = self._members.here(now)
        for reader in self._readers:
            await reader.tick(now, mine=assignment.owner(reader.consumer.name, here) == self._members.name)

    async def _heard(self, found: Msg) -> None:
        sign, name = found.data[:1], found.data[1:].decode()
        if sign == b"-":
            self._members.left(name)
        elif self._members.heard(name, self._loop.time()):
            link = self._broker.link
            if link is not None:
                with contextlib.suppress(*BROKER_AWAY):  # a new one need not wait for the next sign
                    await link.client.publish(self._channel, f"+{self._members.name}".encode())

    def _gone(self, consumer: Consumer) -> None:
        self._missing.add(consumer.name)

    def _lag(self, _: CallbackOptions) -> Iterable[Observation]:
        found: dict[str, int] = {}
        for reader in self._readers:
            if reader.wanting:
                group = reader.consumer.group
                found[group] = found.get(group, 0) + reader.pending + len(reader.lane.held)
        return [metrics.Observation(count, {"rpc.method": group}) for group, count in found.items()]

    # -- one delivery --

    async def _deliver(self, consumer: Consumer, message: Message, held: Held) -> Decision:
        """Call the function for a message; returns what becomes of it, dead letters being kept."""
        try:
            event = self._event(consumer, message)
        except MalformedEventError as error:
            return await self._bury(consumer, message, held, "malformed", None, str(error), "")
        if event.hops > self._patience.hops:
            reason = f"{event.hops} deliveries in a row led to it, more than {self._patience.hops}: a cycle of events"
            return await self._bury(consumer, message, held, reason, None, "", "")
        if not held.known and not await self._recall(consumer, message, held):
            return Retry(AGAIN)
        if held.begun < self._patience.limits.tries and not held.losses:
            async with self._slots:
                return await self._call(consumer, message, held, event)
        if held.begun >= 2 * self._patience.limits.tries:
            reason = f"begun {held.begun} times by processes that ended before it did: it may end them"
            return await self._bury(consumer, message, held, reason, None, "", "")
        # Something ends the process again and again, or its worker. Who is innocent shows one at a time, in any order.
        await asyncio.sleep(random.random())  # noqa: S311 - no secret
        async with self._suspects:
            return await self._call(consumer, message, held, event)

    async def _call(self, consumer: Consumer, message: Message, held: Held, event: Event) -> Decision:
        suspect = held.deliveries > 1  # it may have ended its process; if it does so again, that will be known
        try:
            if suspect and not await self._note(consumer, message, held, begun=held.begun + 1):
                return Retry(AGAIN)
            decision, began = await self._called(consumer, message, held, event)
        except asyncio.CancelledError:  # given back
            if suspect:
                await self._note(consumer, message, held, begun=held.begun)
            raise
        if began:  # and its end was seen
            held.begun = 0
        if isinstance(decision, Retry) and (began or suspect):
            await self._note(consumer, message, held, begun=held.begun)
        return decision

    async def _recall(self, consumer: Consumer, message: Message, held: Held) -> bool:
        """Learn what the event's deliveries to other processes came to; False while the broker does not say."""
        link = self._broker.link
        try:
            found = None if link is None else await attempts.read(link.client, consumer, message)
        except BROKER_AWAY:
            found = None
        if found is not None:
            held.tries, held.losses, held.begun, held.known = found.tries, found.losses, found.begun, True
        return held.known

    async def _note(self, consumer: Consumer, message: Message, held: Held, *, begun: int) -> bool:
        """Write down what is known of the event, for processes after this one; False if the broker did not take it."""
        record = attempts.Record(held.tries, held.losses, begun)
        try:
            await self._broker.store(attempts.outgoing(consumer, message, record))
        except StatusError as failure:
            log.info("%s: the tries of event %d are not kept: %s", consumer.group, message.sequence, failure)
            return False
        return True

    async def _called(self, consumer: Consumer, message: Message, held: Held, event: Event) -> tuple[Decision, bool]:
        """Call the function; returns what becomes of the event, and whether the function began.

        Raises:
            asyncio.CancelledError: It is given back, and the function did not end well all the same.
        """
        method = consumer.method
        limit = method.time_limit(self._patience.timeout)
        deadline = None if limit is None else self._loop.time() + limit
        call = Arrival(method, event, consumer.group, held.tries + 1, deadline, held.failure)
        task = call.task = asyncio.current_task()
        error: StatusError | None = None
        try:
            await self._handlers[method.path](call)
        except StatusError as status:
            error = status
        except BaseException as raised:
            failed = await as_exception(raised, call)
            log.exception("a layer failed for event %s", event.id, exc_info=failed)
            error = Internal("internal error")
        if error is not None and task is not None and cancelled_by_mesh(task):
            raise asyncio.CancelledError  # whatever the function made of it: its process ends, and that is no try
        held.failure = call.failure
        code = Code.OK if error is None else error.code
        lost = call.beside and code is not Code.OK
        if lost:
            held.losses += 1
        elif call.began:
            held.tries += 1
        decision = decide(
            code, held.tries, self._patience.limits, random.random(), began=call.began,  # noqa: S311 - no secret
            losses=held.losses if lost else 0,
        )  # fmt: skip
        if isinstance(decision, Dead):
            assert error is not None  # noqa: S101 - OK does not die
            buried = await self._bury(consumer, message, held, decision.reason, code, error.message, call.trace)
            return buried, call.began
        self._count(consumer, "ok" if isinstance(decision, Ack) else "retry" if call.began else "refused")
        if isinstance(decision, Retry) and call.began:
            what, number = ("loss", held.losses) if lost else ("try", held.tries)
            log.warning(
                "%s: %s %d of event %s ended with %s: %s; again in %.1f s",
                consumer.group, what, number, event.id, code.name,
                call.failure or (error.message if error else ""), decision.after,
            )  # fmt: skip
        return decision, call.began

    async def _bury(
        self, consumer: Consumer, message: Message, held: Held, reason: str, code: Code | None, error: str, trace: str
    ) -> Decision:
        """Keep a dead letter; while the broker does not take it the event is held."""
        letter = Letter(
            reason=reason, code=code.name if code else "", error=error, tries=held.tries, trace=trace,
            consumer=consumer.name, method=consumer.method.path, subject=message.subject, stream=consumer.stream,
            sequence=message.sequence, time=datetime.now(UTC),
        )  # fmt: skip
        original = self._lasting_headers(consumer, message)
        mark = {MESSAGE_ID: f"{consumer.name}/{message.sequence}"}
        subject = dead_subject(consumer.method.service, consumer.method.name)
        bare = Outgoing(subject, letter_headers(letter, {LEFT_OUT: str(len(message.data))}) | mark, b"")
        try:
            try:
                await self._broker.store(Outgoing(subject, letter_headers(letter, original) | mark, message.data))
            except InvalidArgument:  # too large together: the letter says where the event is
                await self._broker.store(bare)
        except StatusError as failure:
            log.warning("%s: a dead letter is not kept yet: %s", consumer.group, failure)
            return Retry(AGAIN)
        self._count(consumer, "dead")
        log.error(
            "%s: dead letter of %s %d: %s%s", consumer.group, consumer.stream, message.sequence, reason,
            f" ({error})" if error else "",
        )  # fmt: skip
        return Dead(reason)

    def _event(self, consumer: Consumer, message: Message) -> Event:
        trigger = consumer.trigger
        match trigger:
            case ScheduleTrigger(schedule):
                return schedules.event(consumer, schedule, message)
            case EventTrigger() | ChangeTrigger():
                return Event.from_message(message.headers, message.data)
            case _:
                assert_never(trigger)

    def _lasting_headers(self, consumer: Consumer, message: Message) -> Mapping[str, str]:
        """Return the headers that a dead letter keeps."""
        trigger = consumer.trigger
        match trigger:
            case ScheduleTrigger(schedule):
                return schedules.lasting(consumer, schedule, message)
            case EventTrigger() | ChangeTrigger():
                return message.headers
            case _:
                assert_never(trigger)

    def _count(self, consumer: Consumer, outcome: str) -> None:
        self._counted.add(1, {"rpc.method": consumer.group, "mesh.event.outcome": outcome})
