"""Delivered message of JetStream as plain values, read from its headers and its reply subject.

The reply subject is ``$JS.ACK.[domain.account.]stream.consumer.deliveries.sequence.delivery.time.pending[.token]``
(ADR-15 of NATS). A message published on it acknowledges the delivery.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nats.aio.msg import Msg

__all__ = ["ACK", "IN_PROGRESS", "NAK", "Message", "own_headers", "read"]

ACK, NAK, IN_PROGRESS = b"+ACK", b"-NAK", b"+WPI"
"""Acknowledgements: processed; redeliver now; still in progress, which restarts the ack wait."""
PIN = "Nats-Pin-Id"
_BROKER_PREFIX = "nats-"
_SHORT = 9


@dataclass(slots=True)
class Message:
    """One delivery of a message.

    Attributes:
        subject: The subject that it was published on.
        headers: Its headers.
        data: Its body.
        reply: The subject that acknowledges it.
        sequence: Its sequence in the stream.
        deliveries: Number of its deliveries, this one included.
        time: Time at which the stream stored it, seconds since the epoch.
        pending: Messages of the consumer after this one.
        pin: Id of the pin that it was sent under.
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
    """Return the values of a delivery."""
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
    """Return an event's own headers: all but those between publisher and broker (``Nats-…``).

    JetStream stores the headers of ids, batches, schedules and ages with the message. A message that is stored a second
    time with them would be refused, or taken for a part of a batch that never ends.
    """
    return {name: value for name, value in headers.items() if not name.lower().startswith(_BROKER_PREFIX)}
