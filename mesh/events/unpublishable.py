"""Dead letters of outbox rows that no broker takes: rows that are too large, or of which no message can be made. Pure.

Such an event reaches no consumer, so no method would miss it. Each method that would have received it gets a dead
letter with the reason. The dead letter is without the event, which stays in its row.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from mesh.events.broker.nats_connection import Outgoing
from mesh.events.cloudevents import MESSAGE_ID
from mesh.events.consume.consumers import consumers_of
from mesh.events.consume.dead_letters import LEFT_OUT, DeadLetter, dead_letter_headers
from mesh.events.subjects import dead_subject

if TYPE_CHECKING:
    from mesh.contract.model import Contract
    from mesh.events.consume.consumers import Consumer
    from mesh.events.publish.outbox import Row
    from mesh.events.publish.relay import MakeDeadLetters

__all__ = ["dead_letter_maker"]

_KEPT = ("ce-specversion", "ce-id", "ce-type", "ce-source", "ce-time")
"""Headers that a dead letter keeps of its event. Others may be the ones that are too large, above all a key."""

_LONGEST = 1000
"""Maximum characters of a subject or an id; those of a row that was inserted by hand may have any length."""


def dead_letter_maker(contract: Contract, service: str) -> MakeDeadLetters:
    """Return the function that makes the dead letters of the rows of a service.

    Args:
        contract: The contract with the triggers.
        service: The service's name in mesh.toml.
    """
    consumers = [one for one in consumers_of(contract.services.values()) if one.ordered]

    def make(row: Row, message: Outgoing | None, reason: str) -> Sequence[Outgoing]:
        subject = message.subject if message is not None else row.subject
        headers = {name: value for name, value in (message.headers if message else {}).items() if name in _KEPT}
        now = datetime.now(UTC)
        id_ = "".join(one if one.isascii() and one.isprintable() else "?" for one in row.id)[:_LONGEST]
        return [
            Outgoing(
                dead_subject(one.method.service, one.method.name),
                dead_letter_headers(
                    DeadLetter(
                        reason=f"{reason}; it stays in the outbox of {service}, sequence {row.sequence}",
                        code="", error="", attempts=0, trace="", consumer=one.name, method=one.method.path,
                        subject=subject[:_LONGEST], stream="", sequence=0, time=now,
                    ),
                    {"ce-id": id_, **headers, LEFT_OUT: str(len(row.data))},
                )
                | {MESSAGE_ID: f"{one.name}/outbox/{id_}"},
                b"",
            )
            for one in _subscribers(consumers, subject)
        ]  # fmt: skip

    return make


def _subscribers(consumers: Sequence[Consumer], subject: str) -> list[Consumer]:
    """Return the consumers that would have received an event: one of each trigger, by its partition.

    Args:
        consumers: All consumers.
        subject: The subject of the event. The subject of a change that cannot be read ends before the partition.
    """
    found = []
    for one in consumers:
        base, part, _ = one.filters[0].rsplit(".", 2)
        if subject.startswith(f"{base}.{part}.") or (subject == base and part == "0"):
            found.append(one)
    return found
