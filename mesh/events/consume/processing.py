"""Processing of one delivered message: attempt record, the call of the function, the decision, the dead letter."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, assert_never

from opentelemetry import metrics

from mesh.boundary import as_exception, cancelled_by_mesh
from mesh.contract.model import ChangeTrigger, EventTrigger, ScheduleTrigger
from mesh.errors import Code, Internal, InvalidArgument, StatusError
from mesh.events.broker.nats_connection import BROKER_ERRORS, Outgoing
from mesh.events.cloudevents import MESSAGE_ID, Event, MalformedEventError
from mesh.events.consume import attempts, schedules
from mesh.events.consume.dead_letters import LEFT_OUT, DeadLetter, dead_letter_headers
from mesh.events.consume.delivery_call import DeliveryCall
from mesh.events.consume.outcome import Ack, Decision, GiveUp, Retry, RetryLimits, decide
from mesh.events.consume.verification import RefusedError
from mesh.events.subjects import dead_subject

if TYPE_CHECKING:
    from mesh.call import Handler
    from mesh.events.broker.broker import Broker
    from mesh.events.broker.message import Message
    from mesh.events.consume.consumers import Consumer
    from mesh.events.consume.ordering import HeldEvent
    from mesh.events.consume.verification import EventVerifier

__all__ = ["DeliverySettings", "Processor", "event_of"]

log = logging.getLogger("mesh.events")

STORE_RETRY_DELAY = 2.0
"""Seconds before the next attempt to store a dead letter or an attempt record that the broker did not take."""
MAX_HOPS = 16
"""Maximum consecutive deliveries, each for an event that the one before published. More are an endless cycle."""


@dataclass(frozen=True, slots=True)
class DeliverySettings:
    """Settings of deliveries.

    Attributes:
        limits: Limits of the retries of one event.
        timeout: Timeout of a call in seconds when its method declares none.
        concurrency: Maximum number of concurrent calls.
        hops: Maximum number of consecutive deliveries.
    """

    limits: RetryLimits = field(default_factory=RetryLimits)
    timeout: float = 60.0
    concurrency: int = 100
    hops: int = MAX_HOPS


class Processor:
    """Calls the functions of one service for delivered messages.

    Args:
        broker: The broker. It stores attempt records and dead letters.
        handlers: Path of a method → the chain that handles its deliveries.
        settings: Settings of deliveries.
        verifier: Checks who published a message.
    """

    def __init__(
        self, broker: Broker, handlers: Mapping[str, Handler], settings: DeliverySettings, verifier: EventVerifier
    ) -> None:
        self._verifier = verifier
        self._broker = broker
        self._handlers = handlers
        self._settings = settings
        self._permits = asyncio.Semaphore(settings.concurrency)
        self._suspects = asyncio.Lock()
        self._loop = asyncio.get_running_loop()
        self._counter = metrics.get_meter("mesh.events").create_counter(
            "mesh.events.deliveries", "{delivery}", "Deliveries that ended, by method and what became of them"
        )

    async def process(self, consumer: Consumer, message: Message, held: HeldEvent) -> Decision:
        """Call the function for a message; return the decision, after a dead letter was stored."""
        try:
            event = event_of(consumer, message)
            self._verifier.check(consumer, message, event)
        except (MalformedEventError, RefusedError) as error:
            reason = "malformed" if isinstance(error, MalformedEventError) else "refused"
            return await self._store_dead_letter(consumer, message, held, reason, None, str(error), "")
        if event.hops > self._settings.hops:
            reason = f"{event.hops} deliveries in a row led to it, more than {self._settings.hops}: a cycle of events"
            return await self._store_dead_letter(consumer, message, held, reason, None, "", "")
        if not held.recalled and not await self._recall(consumer, message, held):
            return Retry(STORE_RETRY_DELAY)
        if held.unfinished < self._settings.limits.attempts and not held.losses:
            async with self._permits:
                return await self._call(consumer, message, held, event)
        if held.unfinished >= 2 * self._settings.limits.attempts:
            reason = f"started {held.unfinished} times by processes that ended before it did: it may end them"
            return await self._store_dead_letter(consumer, message, held, reason, None, "", "")
        # Some event ends the process, or its worker, repeatedly. Suspects are called one at a time, in any order, which
        # clears the innocent ones.
        await asyncio.sleep(random.random())  # noqa: S311 - no secret
        async with self._suspects:
            return await self._call(consumer, message, held, event)

    async def _call(self, consumer: Consumer, message: Message, held: HeldEvent, event: Event) -> Decision:
        suspect = held.deliveries > 1  # it may have ended its process; a record shows it if that happens again
        try:
            if suspect and not await self._store_record(consumer, message, held, unfinished=held.unfinished + 1):
                return Retry(STORE_RETRY_DELAY)
            decision, started = await self._attempt(consumer, message, held, event)
        except asyncio.CancelledError:  # the event is returned to the broker
            if suspect:
                await self._store_record(consumer, message, held, unfinished=held.unfinished)
            raise
        if started:  # and its end was seen
            held.unfinished = 0
        if isinstance(decision, Retry) and (started or suspect):
            await self._store_record(consumer, message, held, unfinished=held.unfinished)
        return decision

    async def _recall(self, consumer: Consumer, message: Message, held: HeldEvent) -> bool:
        """Read the counts of the event's deliveries to other processes; return whether the broker responded."""
        connection = self._broker.connection
        try:
            found = None if connection is None else await attempts.read(connection, consumer, message)
        except BROKER_ERRORS:
            found = None
        if found is not None:
            held.attempts, held.losses, held.unfinished = found.attempts, found.losses, found.unfinished
            held.recalled = True
        return held.recalled

    async def _store_record(self, consumer: Consumer, message: Message, held: HeldEvent, *, unfinished: int) -> bool:
        """Store the counts of the event for later processes; return whether the broker took them."""
        record = attempts.AttemptRecord(held.attempts, held.losses, unfinished)
        try:
            await self._broker.store(attempts.outgoing(consumer, message, record))
        except StatusError as error:
            log.info("%s: the attempts of event %d are not stored: %s", consumer.group, message.sequence, error)
            return False
        return True

    async def _attempt(
        self, consumer: Consumer, message: Message, held: HeldEvent, event: Event
    ) -> tuple[Decision, bool]:
        """Call the function; return the decision, and whether the function was started.

        Raises:
            asyncio.CancelledError: The event is returned to the broker, and the function did not succeed nevertheless.
        """
        method = consumer.method
        timeout = method.time_limit(self._settings.timeout)
        deadline = None if timeout is None else self._loop.time() + timeout
        call = DeliveryCall(method, event, consumer.group, held.attempts + 1, deadline, held.logged_failure)
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
            raise asyncio.CancelledError  # whatever the error is: the process ends, and this was no attempt
        held.logged_failure = call.failure
        code = Code.OK if error is None else error.code
        lost = call.worker_lost_with_others and code is not Code.OK
        if lost:
            held.losses += 1
        elif call.started:
            held.attempts += 1
        decision = decide(
            code, held.attempts, self._settings.limits, random.random(), started=call.started,  # noqa: S311 - no secret
            losses=held.losses if lost else 0,
        )  # fmt: skip
        if isinstance(decision, GiveUp):
            assert error is not None  # noqa: S101 - OK is acknowledged
            stored = await self._store_dead_letter(
                consumer, message, held, decision.reason, code, error.message, call.trace
            )
            return stored, call.started
        self._count(consumer, "ok" if isinstance(decision, Ack) else "retry" if call.started else "refused")
        if isinstance(decision, Retry) and call.started:
            what, number = ("loss", held.losses) if lost else ("attempt", held.attempts)
            log.warning(
                "%s: %s %d of event %s ended with %s: %s; retry in %.1f s",
                consumer.group, what, number, event.id, code.name,
                call.failure or (error.message if error else ""), decision.delay,
            )  # fmt: skip
        return decision, call.started

    async def _store_dead_letter(
        self,
        consumer: Consumer,
        message: Message,
        held: HeldEvent,
        reason: str,
        code: Code | None,
        error: str,
        trace: str,
    ) -> Decision:
        """Store a dead letter; while the broker does not take it the event is held."""
        letter = DeadLetter(
            reason=reason, code=code.name if code else "", error=error, attempts=held.attempts, trace=trace,
            consumer=consumer.name, method=consumer.method.path, subject=message.subject, stream=consumer.stream,
            sequence=message.sequence, time=datetime.now(UTC),
        )  # fmt: skip
        id_ = {MESSAGE_ID: f"{consumer.name}/{message.sequence}"}
        subject = dead_subject(consumer.method.service, consumer.method.name)
        headers = dead_letter_headers(letter, _lasting_headers(consumer, message)) | id_
        try:
            try:
                await self._broker.store(Outgoing(subject, headers, message.data))
            except InvalidArgument:  # too large together: the dead letter names the event's place in its stream
                bare = dead_letter_headers(letter, {LEFT_OUT: str(len(message.data))}) | id_
                await self._broker.store(Outgoing(subject, bare, b""))
        except StatusError as failure:
            log.warning("%s: a dead letter is not stored yet: %s", consumer.group, failure)
            return Retry(STORE_RETRY_DELAY)
        self._count(consumer, "dead")
        log.error(
            "%s: dead letter of %s %d: %s%s", consumer.group, consumer.stream, message.sequence, reason,
            f" ({error})" if error else "",
        )  # fmt: skip
        return GiveUp(reason)

    def _count(self, consumer: Consumer, outcome: str) -> None:
        self._counter.add(1, {"rpc.method": consumer.group, "mesh.event.outcome": outcome})


def event_of(consumer: Consumer, message: Message) -> Event:
    """Return the event of a message.

    Raises:
        MalformedEventError: The message is none.
    """
    trigger = consumer.trigger
    match trigger:
        case ScheduleTrigger(schedule):
            return schedules.event(consumer, schedule, message)
        case EventTrigger() | ChangeTrigger():
            return Event.from_message(message.headers, message.data)
        case _:
            assert_never(trigger)


def _lasting_headers(consumer: Consumer, message: Message) -> Mapping[str, str]:
    """Return the headers of a message that its dead letter keeps."""
    trigger = consumer.trigger
    match trigger:
        case ScheduleTrigger(schedule):
            return schedules.dead_letter_headers(consumer, schedule, message)
        case EventTrigger() | ChangeTrigger():
            return message.headers
        case _:
            assert_never(trigger)
