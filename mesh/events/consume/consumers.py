"""Durable consumers of JetStream: one for each partition of each trigger of a service's methods.

The name of a consumer says which partition of which trigger it reads. So every replica means the same consumer, and a
method that keeps its name keeps its position in the stream. A new consumer begins with the oldest event that the stream
holds: events that were published before its first start are delivered too.

A consumer is no longer read when its trigger is no longer declared or its service is gone. The broker removes it when
it has been idle for as long as events are kept. No event is lost or delivered twice by that, and no replica has to know
of the others: every event that the stream then holds is newer. If the trigger comes back, its new consumer begins where
the old one would have continued. Consumers of ticks are never removed: the last tick is kept for ever, and a new
consumer would deliver it again.

Names, subjects and settings are those of JetStream's API: https://docs.nats.io/nats-concepts/jetstream/consumers
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, assert_never

from mesh.contract.model import ChangeTrigger, EventTrigger, ScheduleTrigger
from mesh.events import subjects
from mesh.events.broker import streams

if TYPE_CHECKING:
    from mesh.contract.model import GrpcService, Method, Trigger
    from mesh.events.broker.nats_connection import NatsConnection


__all__ = [
    "ACK_WAIT_SECONDS",
    "MAX_ACK_PENDING",
    "PIN_TIMEOUT",
    "PRIORITY_GROUP",
    "Consumer",
    "ConsumerError",
    "consumers_of",
    "ensure",
    "redo_subject",
    "tick_subject",
]

PRIORITY_GROUP = "one"
"""The priority group: within it the broker pins the consumer to one client."""
PIN_TIMEOUT = 5.0
"""Seconds without a pull after which the broker unpins a client."""
ACK_WAIT_SECONDS = 8.0
"""Seconds without an acknowledgement or a progress signal after which an event is redelivered. After a crash a key
waits
this long."""
MAX_ACK_PENDING = 512
"""Maximum events of one partition that a replica holds. They include events that wait behind a failing one."""


class ConsumerError(Exception):
    """The broker refuses a consumer; the text names it and the reason."""


@dataclass(frozen=True, slots=True)
class Consumer:
    """One durable consumer.

    Attributes:
        name: Its durable name.
        stream: The stream that it reads.
        filters: The two subjects that it reads: the trigger's own, and that of redriven and replayed events of the
            method.
        method: The method that is called.
        trigger: The trigger.
    """

    name: str
    stream: str
    filters: tuple[str, str]
    method: Method
    trigger: Trigger

    @property
    def group(self) -> str:
        """The method, ``package.Service/Method``: the name of all its partitions in the inbox and in metrics."""
        return self.method.path.lstrip("/")

    @property
    def ordered(self) -> bool:
        """Whether its messages are published by services: they have an order, and its stream keeps them for a time.

        Ticks are the broker's own. A newer tick replaces an older one, and the last one is kept for ever.
        """
        trigger = self.trigger
        match trigger:
            case EventTrigger() | ChangeTrigger():
                return True
            case ScheduleTrigger():
                return False
            case _:
                assert_never(trigger)

    def config(self, kept: float = 0.0) -> dict[str, Any]:
        """Return its settings on the broker; ``kept``: seconds that the stream keeps events, 0: without limit."""
        expires = kept and self.ordered
        return {
            **({"inactive_threshold": int(kept * 1e9)} if expires else {}),
            "name": self.name,
            "durable_name": self.name,
            "deliver_policy": "all",
            "ack_policy": "explicit",
            "ack_wait": int(ACK_WAIT_SECONDS * 1e9),
            "max_deliver": -1,  # ``mesh.events.consume.outcome`` decides, knowing the error
            "max_ack_pending": MAX_ACK_PENDING,
            "max_waiting": 512,
            "filter_subjects": list(self.filters),
            "replay_policy": "instant",
            "priority_policy": "pinned_client",
            "priority_groups": [PRIORITY_GROUP],
            "priority_timeout": int(PIN_TIMEOUT * 1e9),
        }


def consumers_of(services: Iterable[GrpcService]) -> list[Consumer]:
    """Return the consumers of all triggers of these services."""
    return [consumer for service in services for method in service.methods.values() for consumer in _of(method)]


def _of(method: Method) -> Iterator[Consumer]:
    base = f"{subjects.token_of(method.service)}-{method.name}"
    for index, trigger in enumerate(method.triggers):
        match trigger:
            case ScheduleTrigger():
                filters = (tick_subject(method, index), redo_subject(subjects.TICKS, method, index, 0, "*"))
                yield Consumer(f"{base}-tick{index}", streams.SCHEDULES, filters, method, trigger)
            case EventTrigger(event):
                for part in range(subjects.PARTITIONS):
                    redo = redo_subject(subjects.EVENTS, method, index, part, "*")
                    filters = (subjects.event_filter(event, part), redo)
                    yield Consumer(f"{base}-{part}", streams.EVENTS, filters, method, trigger)
            case ChangeTrigger(service, table):
                digest = zlib.crc32(f"{service}.{table}".encode())
                for part in range(subjects.PARTITIONS):
                    redo = redo_subject(subjects.CHANGES, method, index, part, "*")
                    filters = (subjects.change_filter(service, table, part), redo)
                    yield Consumer(f"{base}-{digest:08x}-{part}", streams.CHANGES, filters, method, trigger)
            case _:
                assert_never(trigger)


def tick_subject(method: Method, index: int) -> str:
    """Return the subject of a schedule's ticks; ``index`` is the index of the trigger in the method."""
    base = subjects.tick_subject(method.service, method.name)
    return f"{base}.{index}" if index else base


def redo_subject(first: str, method: Method, index: int, part: int, key: str) -> str:
    """Return the subject of redriven and replayed events of one method, in order with new events of the key.

    Args:
        first: The first token of the stream: ``events``, ``changes`` or ``ticks``.
        method: The method.
        index: The index of the trigger in the method.
        part: The partition of the key.
        key: The key as a token, or ``*``.
    """
    return f"{first}.redo.{subjects.token_of(method.service)}.{method.name}.{index}.{part}.{key}"


async def ensure(connection: NatsConnection, consumer: Consumer, kept: float = 0.0) -> str:
    """Make the consumer, or update its settings; any number of replicas may do it concurrently.

    Returns the time at which it was made, which tells it from an earlier consumer of the same name.

    Args:
        connection: The connection.
        consumer: The consumer.
        kept: Seconds that its stream keeps events; 0: without limit.

    Raises:
        ConsumerError: The broker refuses it; the text has its reason.
        nats.errors.Error: The broker is away.
    """
    wanted = consumer.config(kept)
    # Reading is cheap; making a consumer that exists already has taken a busy server seconds.
    found = await connection.request(f"CONSUMER.INFO.{consumer.stream}.{consumer.name}")
    if all(found.get("config", {}).get(name) == value for name, value in wanted.items()):
        return str(found["created"])
    subject = f"CONSUMER.CREATE.{consumer.stream}.{consumer.name}"
    body = {"stream_name": consumer.stream, "config": wanted, "action": ""}
    response = await connection.request(subject, body)
    error = response.get("error")
    if error is not None:
        raise ConsumerError(f"consumer {consumer.name} of {consumer.stream}: {error.get('description', error)}")
    return str(response["created"])
