"""What is known of an event that did not end well the first time, for the processes that get it after this one.

The broker counts deliveries, and those are no tries: what was only given back, because a replica stopped or a partition
was handed over, has been delivered too. So tries are counted by who makes them, and written into the stream ``TRIES``,
where each event of each consumer has one record:

- when a try has failed: how many have;
- before the call of an event that was delivered before, since its process may have ended because of it: that it was
  begun. When its end is seen, or it is given back, that is taken back. What stays are calls whose end nobody saw.

The first call of an event, and one that ends well, cost nothing. Records are not removed: they are kept for a day, and
what comes again later than that begins anew.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import TYPE_CHECKING

import orjson

from mesh.events import subjects
from mesh.events.broker import streams
from mesh.events.broker.connection import Outgoing
from mesh.events.consume.consumers import request

if TYPE_CHECKING:
    from nats.aio.client import Client

    from mesh.events.broker.message import Message
    from mesh.events.consume.consumers import Consumer

__all__ = ["Record", "outgoing", "read"]


@dataclass(frozen=True, slots=True)
class Record:
    """What earlier deliveries of an event came to.

    Attributes:
        tries: Calls that failed.
        losses: Calls that were lost with a worker which another call may have ended.
        begun: Calls that were begun and that nobody saw the end of.
    """

    tries: int = 0
    losses: int = 0
    begun: int = 0


def outgoing(consumer: Consumer, message: Message, record: Record) -> Outgoing:
    """Return the message that keeps a record; it takes the place of the one before."""
    told = {"time": message.time, "tries": record.tries, "losses": record.losses, "begun": record.begun}
    return Outgoing(_subject(consumer, message), {}, orjson.dumps(told))


async def read(client: Client, consumer: Consumer, message: Message) -> Record:
    """Return the record of an event; one of zeros if there is none.

    Raises:
        nats.errors.Error: The broker is away.
    """
    answer = await request(client, f"STREAM.MSG.GET.{streams.TRIES}", {"last_by_subj": _subject(consumer, message)})
    found = answer.get("message")
    if found is None:
        return Record()
    told = orjson.loads(base64.b64decode(found["data"]))
    if told["time"] != message.time:  # of another event that had its place in a stream that is gone
        return Record()
    return Record(told["tries"], told["losses"], told["begun"])


def _subject(consumer: Consumer, message: Message) -> str:
    return f"{subjects.TRIES}.{consumer.name}.{message.sequence}"
