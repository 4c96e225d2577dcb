"""What is consumed: the triggers of a service's methods → durable consumers on the broker.

One consumer reads one partition of one trigger. Its name says which, so every replica means the same one, and a method
that keeps its name keeps its place. A new one begins with the oldest event that the stream still holds: what was
published before its first start is delivered too.

One that nobody reads any more, because its trigger is declared no more or its service is gone, is removed by the broker
itself when it has been idle for as long as events are kept. Nothing is lost or done twice by that, and no replica has
to know of the others: all that the stream holds then has come since, so if the trigger comes back it begins where it
would have gone on. Consumers of ticks stay: the last tick is kept for ever, and would come again.

Names, subjects and settings are of JetStream's API: https://docs.nats.io/nats-concepts/jetstream/consumers
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, assert_never

from mesh.contract.model import ChangeTrigger, EventTrigger, ScheduleTrigger
from mesh.events import subjects
from mesh.events.broker import streams

if TYPE_CHECKING:
    from nats.aio.client import Client

    from mesh.contract.model import GrpcService, Method, Trigger

__all__ = [
    "ACK_WAIT",
    "GROUP",
    "PINNED",
    "Consumer",
    "ConsumerError",
    "consumers_of",
    "ensure",
    "redo_subject",
    "request",
    "tick_subject",
]

GROUP = "one"
"""The priority group: within it the broker pins the consumer to one client."""
PINNED = 5.0
"""Seconds without a pull after which the broker takes the pin from a client."""
ACK_WAIT = 8.0
"""Seconds without a sign after which an event is delivered again. It is how long a key waits after a crash."""
PENDING = 512
"""Events of one partition that a replica holds at most. An event that fails for long holds those of its key here."""
API_TIMEOUT = 5.0


class ConsumerError(Exception):
    """The broker refuses a consumer; the text says which one and why."""


@dataclass(frozen=True, slots=True)
class Consumer:
    """One consumer.

    Attributes:
        name: Its durable name.
        stream: The stream that it reads.
        filters: The subjects of the stream that it reads: the trigger's own, and what is sent to this method once more.
        method: The method that is called.
        trigger: Why.
    """

    name: str
    stream: str
    filters: tuple[str, str]
    method: Method
    trigger: Trigger

    @property
    def group(self) -> str:
        """What its method calls the trigger, over all partitions: the consumer of the inbox and of metrics."""
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

    def passing(self, subject: str) -> bool:
        """Whether a message is of no use once it is done, and its stream would keep it for ever.

        That is a tick that was sent once more. A schedule's own ticks replace each other, and the last one says when
        the schedule fired; events and changes have an age.
        """
        return not self.ordered and subject != self.filters[0]

    def config(self, kept: float = 0.0) -> dict[str, Any]:
        """Return what it should be on the broker; ``kept``: seconds that the stream keeps events, 0: for ever."""
        forgotten = kept and self.ordered
        return {
            **({"inactive_threshold": int(kept * 1e9)} if forgotten else {}),
            "name": self.name,
            "durable_name": self.name,
            "deliver_policy": "all",
            "ack_policy": "explicit",
            "ack_wait": int(ACK_WAIT * 1e9),
            "max_deliver": -1,  # when it is enough is decided here, with the error at hand
            "max_ack_pending": PENDING,
            "max_waiting": 512,
            "filter_subjects": list(self.filters),
            "replay_policy": "instant",
            "priority_policy": "pinned_client",
            "priority_groups": [GROUP],
            "priority_timeout": int(PINNED * 1e9),
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
    """Return where the ticks of a method's schedule go; ``index`` is the trigger's place among the method's."""
    base = subjects.tick_subject(method.service, method.name)
    return f"{base}.{index}" if index else base


def redo_subject(first: str, method: Method, index: int, part: int, key: str) -> str:
    """Return where an event goes that shall be delivered to one method once more, in order with what is new.

    Args:
        first: The first token of the stream: ``events``, ``changes`` or ``ticks``.
        method: The method.
        index: The trigger's place among the method's.
        part: The partition of the key.
        key: The key as a token, or ``*``.
    """
    return f"{first}.redo.{subjects.token_of(method.service)}.{method.name}.{index}.{part}.{key}"


async def request(client: Client, subject: str, body: Any = None) -> dict[str, Any]:
    """Ask JetStream's API.

    Raises:
        nats.errors.Error: The broker is away, or does not answer in time.
    """
    data = b"" if body is None else json.dumps(body).encode()
    reply = await client.request(f"$JS.API.{subject}", data, timeout=API_TIMEOUT)
    answer: dict[str, Any] = json.loads(reply.data)
    return answer


async def ensure(client: Client, consumer: Consumer, kept: float = 0.0) -> str:
    """Make the consumer, or bring it to what it should be; any number of replicas may do it at once.

    Returns when it was made, by which it can be told from one of the same name that was there before.

    Args:
        client: The connection.
        consumer: The consumer.
        kept: Seconds that its stream keeps events; 0: for ever.

    Raises:
        ConsumerError: The broker refuses it; with its reason.
        nats.errors.Error: The broker is away.
    """
    wanted = consumer.config(kept)
    # Asking is cheap; to make what is there already has taken a busy server seconds.
    found = await request(client, f"CONSUMER.INFO.{consumer.stream}.{consumer.name}")
    if all(found.get("config", {}).get(name) == value for name, value in wanted.items()):
        return str(found["created"])
    subject = f"CONSUMER.CREATE.{consumer.stream}.{consumer.name}"
    body = {"stream_name": consumer.stream, "config": wanted, "action": ""}
    answer = await request(client, subject, body)
    error = answer.get("error")
    if error is not None:
        raise ConsumerError(f"consumer {consumer.name} of {consumer.stream}: {error.get('description', error)}")
    return str(answer["created"])
