"""One delivery of JetStream as plain values: what its headers and its reply subject say.

The reply subject is ``$JS.ACK.[domain.account.]stream.consumer.deliveries.sequence.delivery.time.pending[.token]``
(ADR-15 of NATS); answering there acknowledges.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nats.aio.msg import Msg

__all__ = ["ACK", "NAK", "PROGRESS", "Message", "own_headers", "read"]

ACK, NAK, PROGRESS = b"+ACK", b"-NAK", b"+WPI"
"""Answers: done; deliver again now; still at it."""
PIN = "Nats-Pin-Id"
_BROKERS = "nats-"
_SHORT = 9


@dataclass(slots=True)
class Message:
    """One delivery.

    Attributes:
        subject: Where it was published.
        headers: Its headers.
        data: Its body.
        reply: Where to answer.
        sequence: Its place in the stream.
        deliveries: How often it was delivered, this time included.
        time: When the stream took it, seconds since the epoch.
        pending: Messages of the consumer that come after it.
        pin: The id of the pin that it was sent under.
    """

    subject: str
    headers: Mapping[str, str]
    data: bytes
    reply: str
    sequence: int
    deliveries: int
    time: float
    pending: int
    pin: str


def read(found: Msg) -> Message:
    """Return a delivery's values."""
    parts = found.reply.split(".")
    deliveries, sequence, _, time, pending = parts[4:9] if len(parts) == _SHORT else parts[6:11]
    headers = found.headers or {}
    return Message(
        subject=found.subject,
        headers=headers,
        data=found.data,
        reply=found.reply,
        sequence=int(sequence),
        deliveries=int(deliveries),
        time=int(time) / 1e9,
        pending=int(pending),
        pin=headers.get(PIN, ""),
    )


def own_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Return the headers that are an event's own: all but those between publisher and broker (``Nats-…``).

    JetStream keeps those of ids, batches, schedules and ages with the message. Stored once more with them, it would be
    refused, or taken for a part of a batch that never ends.
    """
    return {name: value for name, value in headers.items() if not name.lower().startswith(_BROKERS)}
