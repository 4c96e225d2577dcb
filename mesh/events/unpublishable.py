"""Dead letters of rows of an outbox that no broker takes: too large, or nothing that a message can be made of. Pure.

Such an event reaches no consumer, so nobody would miss it. Each method that it would have been delivered to gets a dead
letter that says so. The letter is without the event, which stays in its row.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from mesh.events.broker.connection import Outgoing
from mesh.events.cloudevents import MESSAGE_ID
from mesh.events.consume.consumers import consumers_of
from mesh.events.consume.dead_letters import LEFT_OUT, Letter, letter_headers
from mesh.events.subjects import dead_subject

if TYPE_CHECKING:
    from mesh.contract.model import Contract
    from mesh.events.consume.consumers import Consumer
    from mesh.events.publish.outbox import Row
    from mesh.events.publish.relay import Letters

__all__ = ["letters"]

_KEPT = ("ce-specversion", "ce-id", "ce-type", "ce-source", "ce-time")
"""Headers that a letter has of its event. Others may be what is too large: a key, above all."""

_LONGEST = 1000
"""Characters of a subject or an id; those of a row that somebody wrote by hand may be of any length."""


def letters(contract: Contract, service: str) -> Letters:
    """Return what makes the dead letters of the rows of a service.

    Args:
        contract: Whose methods are called for what.
        service: The service, as mesh.toml calls it.
    """
    consumers = [one for one in consumers_of(contract.services.values()) if one.ordered]

    def made(row: Row, message: Outgoing | None, reason: str) -> Sequence[Outgoing]:
        subject = message.subject if message is not None else row.subject
        headers = {name: value for name, value in (message.headers if message else {}).items() if name in _KEPT}
        now = datetime.now(UTC)
        id_ = "".join(one if one.isascii() and one.isprintable() else "?" for one in row.id)[:_LONGEST]
        return [
            Outgoing(
                dead_subject(one.method.service, one.method.name),
                letter_headers(
                    Letter(
                        reason=f"{reason}; it stays in the outbox of {service}, sequence {row.sequence}",
                        code="", error="", tries=0, trace="", consumer=one.name, method=one.method.path,
                        subject=subject[:_LONGEST], stream="", sequence=0, time=now,
                    ),
                    {"ce-id": id_, **headers, LEFT_OUT: str(len(row.data))},
                )
                | {MESSAGE_ID: f"{one.name}/outbox/{id_}"},
                b"",
            )
            for one in _hearing(consumers, subject)
        ]  # fmt: skip

    return made


def _hearing(consumers: Sequence[Consumer], subject: str) -> list[Consumer]:
    """Return the consumers that would have had an event: one of each trigger, by its partition.

    Args:
        consumers: All that there are.
        subject: Of the event. That of a change that cannot be read ends before the partition.
    """
    found = []
    for one in consumers:
        base, part, _ = one.filters[0].rsplit(".", 2)
        if subject.startswith(f"{base}.{part}.") or (subject == base and part == "0"):
            found.append(one)
    return found
