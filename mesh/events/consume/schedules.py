"""Schedules: messages that the broker stores and publishes repeatedly as ticks (NATS ADR-51).

So one tick reaches one replica, and no replica has to be up for it.

- A schedule is written only when it is missing or different. Writing it again would restart its interval.
- A tick that no replica took waits, and a newer one replaces it. So the function is called once after the service was
  down. With ``skip_missed`` a tick expires after a minute, and the function is not called for missed ticks.
- The broker itself skips ticks that fell due while it was down. The first replica that sees it again publishes the last
  of them, once, unless ``skip_missed`` is set.
- The broker also skips whole days. nats-server 2.15 searches the next day from midnight to midnight: where clocks go
  forward at midnight (Santiago, Cairo, Havana), the next of the days that a line names is left out. So replicas check
  every minute whether a due time has passed without a tick.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from mesh.contract import cron
from mesh.contract.model import ScheduleTrigger
from mesh.events import subjects
from mesh.events.broker import history, streams
from mesh.events.broker.nats_connection import Outgoing
from mesh.events.cloudevents import MESSAGE_ID, Event, MalformedEventError
from mesh.events.consume.consumers import Consumer, tick_subject
from mesh.events.signatures import SIGNATURE

if TYPE_CHECKING:
    from mesh.contract.model import GrpcService, Method
    from mesh.events.broker.history import StreamMessage
    from mesh.events.broker.message import Message
    from mesh.events.broker.nats_connection import NatsConnection

__all__ = ["TICK_DUE", "TickError", "broker_time", "dead_letter_headers", "ensure", "event", "publish_missed", "wanted"]

log = logging.getLogger("mesh.events")

SKIP_MISSED_TTL = "60s"
"""Time that a tick waits for a replica when missed ticks are skipped."""
OUTAGE_MISSED_DELAY = 2.0
"""Seconds after which a tick that did not fire counts as missed when the broker was down."""
CHECK_INTERVAL = 60.0
"""Seconds between two checks for due times that passed without a tick."""
MISSED_DELAY = 30.0
"""Seconds after which a tick that did not fire counts as missed while the broker is up."""
TYPE = "meshapi.v1.Tick"
_SCHEDULE, _TARGET, _ZONE, _ROLLUP, _TTL = (
    "Nats-Schedule", "Nats-Schedule-Target", "Nats-Schedule-Time-Zone", "Nats-Schedule-Rollup", "Nats-Schedule-TTL",
)  # fmt: skip
_NEXT = "Nats-Schedule-Next"
_PRECISION = timedelta(microseconds=1)
"""Precision of a message's time, which was a 64-bit float: a tick at a whole second must not count as one before it."""
TICK_DUE = "mesh-tick-due"
"""Header of a tick that replaces a missed one, and of a dead letter: the due time of the tick."""
_EXPECTED = "Nats-Expected-Last-Subject-Sequence"
_WRONG_SEQUENCE = 10071
"""JetStream's error code when the expected sequence differs: another replica was faster."""


class TickError(Exception):
    """The broker refuses a schedule; the text names it and the reason."""


@dataclass(frozen=True, slots=True)
class BrokerSchedule:
    """One schedule as the broker should have it.

    Attributes:
        subject: The subject that stores it.
        target: The subject of its ticks.
        schedule: The parsed line.
        skip_missed: Missed ticks are not published later.
    """

    subject: str
    target: str
    schedule: cron.Schedule
    skip_missed: bool

    def headers(self) -> dict[str, str]:
        """Return the headers of its message."""
        found = {_SCHEDULE: self.schedule.broker, _TARGET: self.target, _ROLLUP: "sub"}
        if self.schedule.zone:
            found[_ZONE] = self.schedule.zone
        if self.skip_missed:
            found[_TTL] = SKIP_MISSED_TTL
        return found


def wanted(services: Iterable[GrpcService]) -> list[BrokerSchedule]:
    """Return the schedules of these services."""
    return [
        _wanted(method, index, trigger)
        for service in services
        for method in service.methods.values()
        for index, trigger in enumerate(method.triggers)
        if isinstance(trigger, ScheduleTrigger)
    ]


def _wanted(method: Method, index: int, trigger: ScheduleTrigger) -> BrokerSchedule:
    base = subjects.schedule_subject(method.service, method.name)
    subject = f"{base}.{index}" if index else base
    return BrokerSchedule(subject, tick_subject(method, index), cron.parse(trigger.schedule), trigger.skip_missed)


def event(consumer: Consumer, schedule: str, message: Message) -> Event:
    """Return a tick as an event whose data is the ``meshapi.v1.Tick``, in the contract's class, with its due time.

    Raises:
        MalformedEventError: The broker's header does not say when the next firing is.
    """
    time = _time(consumer, schedule, message)
    tick: Any = consumer.method.input()
    tick.time.FromDatetime(time.astimezone(UTC).replace(tzinfo=None))
    tick.schedule = schedule
    return Event(
        id=f"{consumer.filters[0]}@{time.astimezone(UTC).isoformat()}",  # the same in each redelivery
        type=TYPE,
        source="schedule",
        key="",
        time=time,
        data=tick.SerializeToString(),
    )


def dead_letter_headers(consumer: Consumer, schedule: str, message: Message) -> Mapping[str, str]:
    """Return a tick's headers with its due time in ``mesh-tick-due``: a dead letter keeps none of the broker's own."""
    try:
        return {**message.headers, TICK_DUE: _time(consumer, schedule, message).isoformat()}
    except MalformedEventError:  # unchanged, for whoever inspects the dead letter
        return message.headers


def _time(consumer: Consumer, schedule: str, message: Message) -> datetime:
    """Return the due time of a tick.

    Raises:
        MalformedEventError: A header holds no time.
    """
    due, following = message.headers.get(TICK_DUE), message.headers.get(_NEXT)
    stored = datetime.fromtimestamp(message.time, UTC)
    try:
        if due is not None:
            return datetime.fromisoformat(due)
        if following is not None:
            return cron.parse(schedule).due(stored + _PRECISION, datetime.fromisoformat(following))
    except ValueError as error:
        raise MalformedEventError(f"a tick of {consumer.group}: {error}") from None
    return stored  # published by hand


async def ensure(connection: NatsConnection, services: Iterable[GrpcService]) -> None:
    """Write the schedules of these services that are missing or different; remove those that are not declared.

    Any number of replicas may do it concurrently.

    Raises:
        TickError: The broker refuses one; the text has its reason.
        nats.errors.Error: The broker is away.
    """
    services = list(services)
    should = {one.subject: one for one in wanted(services)}
    for service in services:
        async for subject in _stored_subjects(connection, f"{subjects.SCHEDULES}.{subjects.token_of(service.name)}.>"):
            if subject not in should:
                log.info("the schedule %s is no longer declared", subject)
                await _remove(connection, subject)
    for one in should.values():
        await _write(connection, one)


async def _remove(connection: NatsConnection, subject: str) -> None:
    """Replace a schedule by a message that expires at once. A service has no right to purge the stream of others.

    Raises:
        TickError: The broker refuses it; the text has its reason.
        nats.errors.Error: The broker is away.
    """
    error = await connection.publish_acknowledged(subject, {"Nats-Rollup": "sub", "Nats-TTL": "1s"})
    if error is not None:
        raise TickError(f"the schedule {subject}, which is no longer declared: {error.get('description', error)}")


async def broker_time(connection: NatsConnection) -> datetime:
    """Return the broker's time. Its ticks follow its own clock, so only that clock shows which ones it missed.

    Raises:
        nats.errors.Error: The broker is away.
    """
    return datetime.fromisoformat((await connection.request(f"STREAM.INFO.{streams.SCHEDULES}"))["ts"])


async def publish_missed(
    connection: NatsConnection, services: Iterable[GrpcService], now: datetime, late: float = OUTAGE_MISSED_DELAY
) -> None:
    """Publish the last tick that fell due and did not fire, because the broker was down or skipped it.

    Args:
        connection: The connection.
        services: The services with the schedules.
        now: The broker's time.
        late: Seconds after which a tick counts as missed.

    Raises:
        nats.errors.Error: The broker is away.
    """
    for one in wanted(services):
        if one.skip_missed or one.schedule.every:
            continue  # an interval fires by itself before another one has passed
        kept, last = await _last(connection, one.subject), await _last(connection, one.target)
        due = one.schedule.before(now)
        if kept is None or (now - due).total_seconds() < late:
            continue
        seen = max(kept.time, last.time if last is not None else kept.time)
        if due <= seen:
            continue
        headers = {TICK_DUE: due.isoformat(), MESSAGE_ID: f"{one.target}@{due.isoformat()}", "Nats-Rollup": "sub"}
        headers[_EXPECTED] = str(last.sequence if last is not None else 0)
        error = await connection.publish_acknowledged(one.target, headers)
        if error is None:
            log.info("%s was due at %s and did not fire: published now", one.target, due.isoformat())


async def _write(connection: NatsConnection, one: BrokerSchedule) -> None:
    kept = await _last(connection, one.subject)
    # The broker copies the signature into each tick.
    ((_, headers, _),) = connection.signed([Outgoing(one.target, one.headers(), b"")])
    if kept is not None and {name: value for name, value in kept.headers.items() if name in _OURS} == headers:
        return
    expected = {_EXPECTED: str(kept.sequence if kept else 0)}
    error = await connection.publish_acknowledged(one.subject, {**headers, **expected})
    if error is not None and error.get("err_code") != _WRONG_SEQUENCE:
        raise TickError(f"schedule {one.schedule.line!r} of {one.target}: {error.get('description', error)}")


_OURS = frozenset({_SCHEDULE, _TARGET, _ZONE, _ROLLUP, _TTL, SIGNATURE})


async def _last(connection: NatsConnection, subject: str) -> StreamMessage | None:
    return await history.last_stored(connection, streams.SCHEDULES, subject)


async def _stored_subjects(connection: NatsConnection, filter: str) -> AsyncIterator[str]:  # noqa: A002 - JetStream's word
    response = await connection.request(f"STREAM.INFO.{streams.SCHEDULES}", {"subjects_filter": filter})
    for subject in response.get("state", {}).get("subjects") or {}:
        yield subject
