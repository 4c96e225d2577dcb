"""Attempt records: counts of unsuccessful deliveries of an event, kept for the processes that get the event later.

The broker counts deliveries, and those are not attempts: an event that was only returned, because a replica shut down
or a partition was handed over, was delivered too. So the process that makes an attempt counts it. The stream ``TRIES``
has one record for each event of each consumer. It is written

- after a failed attempt, with the number of failed attempts;
- before the call of an event that was delivered before, because its process may have ended because of the event: with
  one more unfinished call. When the call ends, or the event is returned, this is undone. The remaining number counts
  calls whose end nobody saw.

The first call of an event, and a call that succeeds, cost no record. Records are not removed. They are kept for a day,
and an event that is redelivered later than that starts from zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import orjson

from mesh.events import subjects
from mesh.events.broker import history, streams
from mesh.events.broker.nats_connection import Outgoing

if TYPE_CHECKING:
    from mesh.events.broker.message import Message
    from mesh.events.broker.nats_connection import NatsConnection
    from mesh.events.consume.consumers import Consumer

__all__ = ["AttemptRecord", "outgoing", "read"]


@dataclass(frozen=True, slots=True)
class AttemptRecord:
    """Counts of the earlier deliveries of an event.

    Attributes:
        attempts: Calls that failed.
        losses: Calls that were lost with a worker which another call may have ended.
        unfinished: Calls that were started and whose end nobody saw.
    """

    attempts: int = 0
    losses: int = 0
    unfinished: int = 0


def outgoing(consumer: Consumer, message: Message, record: AttemptRecord) -> Outgoing:
    """Return the message that stores a record; it replaces the record before."""
    values = {
        "time": message.time,
        "tries": record.attempts,
        "losses": record.losses,
        "begun": record.unfinished,
    }
    return Outgoing(_subject(consumer, message), {}, orjson.dumps(values))


async def read(connection: NatsConnection, consumer: Consumer, message: Message) -> AttemptRecord:
    """Return the record of an event; one of zeros if there is none.

    Raises:
        nats.errors.Error: The broker is away.
    """
    found = await history.last_stored(connection, streams.TRIES, _subject(consumer, message))
    if found is None:
        return AttemptRecord()
    values = orjson.loads(found.data)
    if values["time"] != message.time:  # of another event with this sequence, in a stream that is gone
        return AttemptRecord()
    return AttemptRecord(values["tries"], values["losses"], values["begun"])


def _subject(consumer: Consumer, message: Message) -> str:
    return f"{subjects.TRIES}.{consumer.name}.{message.sequence}"
