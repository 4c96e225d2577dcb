"""Schedules: messages that the broker keeps and publishes again and again (NATS ADR-51).

So one firing reaches one replica, and none has to be up for it.

- A schedule is written when it is missing or different, and only then: writing it anew would begin its interval anew.
- A tick that nobody took waits; a newer one takes its place. So after a time without the service the function is called
  once. With ``skip_missed`` a tick lives a minute, and the function is not called for what is past.
- The broker itself skips what fell due while it was down. The first replica that sees it again makes up for it, once,
  unless ``skip_missed`` is set.
- The broker passes over days, too. nats-server 2.15 looks for the next day from midnight to midnight: where clocks go
  forward at midnight (Santiago, Cairo, Havana), the next of the days that a line names is left out. So replicas look
  every minute whether a time has passed without a tick.
"""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from mesh.contract import cron
from mesh.contract.model import ScheduleTrigger
from mesh.events import subjects
from mesh.events.broker import streams
from mesh.events.cloudevents import MESSAGE_ID, Event, MalformedEventError
from mesh.events.consume.consumers import API_TIMEOUT, Consumer, request, tick_subject

if TYPE_CHECKING:
    from nats.aio.client import Client

    from mesh.contract.model import GrpcService, Method
    from mesh.events.broker.message import Message

__all__ = ["TickError", "clock", "ensure", "event", "lasting", "make_up", "wanted"]

log = logging.getLogger("mesh.events")

SKIPPED = "60s"
"""How long a tick waits for a replica when missed ones are to be skipped."""
SLACK = 2.0
"""Seconds that the broker may be late with a firing before it counts as missed."""
LOOK = 60.0
"""Seconds between two looks at what has passed without a tick."""
LATE = 30.0
"""Seconds that a broker that is up may be late with a firing."""
TYPE = "meshapi.v1.Tick"
_SCHEDULE, _TARGET, _ZONE, _ROLLUP, _TTL = (
    "Nats-Schedule", "Nats-Schedule-Target", "Nats-Schedule-Time-Zone", "Nats-Schedule-Rollup", "Nats-Schedule-TTL",
)  # fmt: skip
_NEXT = "Nats-Schedule-Next"
_PRECISION = timedelta(microseconds=1)
"""Of a message's time, a number of 64 bits: a firing at a whole second must not count as one just before it."""
_DUE = "mesh-tick-due"
"""On a tick that makes up for a missed one, and on a dead one: the time that it stands for."""
_EXPECTED = "Nats-Expected-Last-Subject-Sequence"
_OTHERS_WROTE = 10071
"""JetStream's error code when the expected sequence is another: a replica was faster."""


class TickError(Exception):
    """The broker refuses a schedule; the text says which one and why."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """One schedule as it should stand on the broker.

    Attributes:
        subject: Where it is kept.
        target: Where its ticks go.
        schedule: When it fires.
        skips: What was missed is not made up for.
    """

    subject: str
    target: str
    schedule: cron.Schedule
    skips: bool

    def headers(self) -> dict[str, str]:
        """Return the headers of its message."""
        found = {_SCHEDULE: self.schedule.broker, _TARGET: self.target, _ROLLUP: "sub"}
        if self.schedule.zone:
            found[_ZONE] = self.schedule.zone
        if self.skips:
            found[_TTL] = SKIPPED
        return found


def wanted(services: Iterable[GrpcService]) -> list[Wanted]:
    """Return the schedules of these services."""
    return [
        _wanted(method, index, trigger)
        for service in services
        for method in service.methods.values()
        for index, trigger in enumerate(method.triggers)
        if isinstance(trigger, ScheduleTrigger)
    ]


def _wanted(method: Method, index: int, trigger: ScheduleTrigger) -> Wanted:
    base = subjects.schedule_subject(method.service, method.name)
    subject = f"{base}.{index}" if index else base
    return Wanted(subject, tick_subject(method, index), cron.parse(trigger.schedule), trigger.skip_missed)


def event(consumer: Consumer, schedule: str, message: Message) -> Event:
    """Return a tick as an event whose data is the ``Tick``: the time that the schedule named, in the contract's class.

    Raises:
        MalformedEventError: The broker's header does not say when the next firing is.
    """
    time = _time(consumer, schedule, message)
    tick: Any = consumer.method.input()
    tick.time.FromDatetime(time.astimezone(UTC).replace(tzinfo=None))
    tick.schedule = schedule
    return Event(
        id=f"{consumer.filters[0]}@{time.astimezone(UTC).isoformat()}",  # the same when it is delivered once more
        type=TYPE,
        source="schedule",
        key="",
        time=time,
        data=tick.SerializeToString(),
    )


def lasting(consumer: Consumer, schedule: str, message: Message) -> Mapping[str, str]:
    """Return a tick's headers with its time in one of ours, for a dead letter: that keeps none of the broker's."""
    try:
        return {**message.headers, _DUE: _time(consumer, schedule, message).isoformat()}
    except MalformedEventError:  # as it is, to be looked at
        return message.headers


def _time(consumer: Consumer, schedule: str, message: Message) -> datetime:
    """Return the time that the schedule named.

    Raises:
        MalformedEventError: A header holds no time.
    """
    due, following = message.headers.get(_DUE), message.headers.get(_NEXT)
    stored = datetime.fromtimestamp(message.time, UTC)
    try:
        if due is not None:
            return datetime.fromisoformat(due)
        if following is not None:
            return cron.parse(schedule).due(stored + _PRECISION, datetime.fromisoformat(following))
    except ValueError as error:
        raise MalformedEventError(f"a tick of {consumer.group}: {error}") from None
    return stored  # fired by hand


async def ensure(client: Client, services: Iterable[GrpcService]) -> None:
    """Write the schedules of these services where they are missing or different; remove what is declared no more.

    Any number of replicas may do it at once.

    Raises:
        TickError: The broker refuses one; with its reason.
        nats.errors.Error: The broker is away.
    """
    services = list(services)
    should = {one.subject: one for one in wanted(services)}
    for service in services:
        async for subject in _kept(client, f"{subjects.SCHEDULES}.{subjects.token_of(service.name)}.>"):
            if subject not in should:
                log.info("the schedule %s is declared no more", subject)
                await request(client, f"STREAM.PURGE.{streams.SCHEDULES}", {"filter": subject})
    for one in should.values():
        await _write(client, one)


async def clock(client: Client) -> datetime:
    """Return the broker's time. It fires by its own clock, so nobody else's says what it has missed.

    Raises:
        nats.errors.Error: The broker is away.
    """
    return datetime.fromisoformat((await request(client, f"STREAM.INFO.{streams.SCHEDULES}"))["ts"])


async def make_up(client: Client, services: Iterable[GrpcService], now: datetime, late: float = SLACK) -> None:
    """Fire once what fell due and did not fire: the broker was down, or has passed it over.

    Args:
        client: The connection.
        services: Whose schedules.
        now: The broker's time.
        late: Seconds that the broker may be late.

    Raises:
        nats.errors.Error: The broker is away.
    """
    for one in wanted(services):
        if one.skips or one.schedule.every:
            continue  # an interval fires again by itself before another one has passed
        kept, last = await _last(client, one.subject), await _last(client, one.target)
        due = one.schedule.before(now)
        if kept is None or (now - due).total_seconds() < late:
            continue
        seen = max(kept.time, last.time if last is not None else kept.time)
        if due <= seen:
            continue
        headers = {_DUE: due.isoformat(), MESSAGE_ID: f"{one.target}@{due.isoformat()}", "Nats-Rollup": "sub"}
        headers[_EXPECTED] = str(last.sequence if last is not None else 0)
        answer = await _publish(client, one.target, headers)
        if answer is None:
            log.info("%s was due at %s and did not fire: made up for", one.target, due.isoformat())


# -- the broker --


@dataclass(frozen=True, slots=True)
class _Latest:
    """The latest message of a subject."""

    sequence: int
    headers: Mapping[str, str]
    time: datetime


async def _write(client: Client, one: Wanted) -> None:
    kept = await _last(client, one.subject)
    headers = one.headers()
    if kept is not None and {name: value for name, value in kept.headers.items() if name in _OURS} == headers:
        return
    failure = await _publish(client, one.subject, {**headers, _EXPECTED: str(kept.sequence if kept else 0)})
    if failure is not None and failure.get("err_code") != _OTHERS_WROTE:
        raise TickError(f"schedule {one.schedule.line!r} of {one.target}: {failure.get('description', failure)}")


_OURS = frozenset({_SCHEDULE, _TARGET, _ZONE, _ROLLUP, _TTL})


async def _publish(client: Client, subject: str, headers: dict[str, str]) -> dict[str, Any] | None:
    """Publish into the stream; returns the broker's refusal, or None."""
    reply = await client.request(subject, b"", timeout=API_TIMEOUT, headers=headers)
    failure: dict[str, Any] | None = json.loads(reply.data).get("error")
    return failure


async def _last(client: Client, subject: str) -> _Latest | None:
    answer = await request(client, f"STREAM.MSG.GET.{streams.SCHEDULES}", {"last_by_subj": subject})
    found = answer.get("message")
    if found is None:
        return None
    lines = base64.b64decode(found.get("hdrs", "")).decode().split("\r\n")[1:]
    headers = {name: value.strip() for name, _, value in (line.partition(":") for line in lines) if name}
    return _Latest(found["seq"], headers, datetime.fromisoformat(found["time"]))


async def _kept(client: Client, filter: str) -> AsyncIterator[str]:  # noqa: A002 - JetStream's word
    answer = await request(client, f"STREAM.INFO.{streams.SCHEDULES}", {"subjects_filter": filter})
    for subject in answer.get("state", {}).get("subjects") or {}:
        yield subject
