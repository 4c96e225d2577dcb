"""Messages that deliver dead letters (*redrive*) and past events (*replay*) to one method again. Pure but for one read.

Such a message goes to one method, not to every subscriber of the event, and in order with new events of its key. A
redriven event keeps its id, so an effect that it had already is not repeated. A replayed event gets a new id, because
it is meant to have its effect again; ``mesh-replay-of`` names the original event.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from mesh.events.broker import history
from mesh.events.broker.message import Message, own_headers
from mesh.events.broker.nats_connection import Outgoing
from mesh.events.cloudevents import MESSAGE_ID
from mesh.events.consume.dead_letters import LEFT_OUT, original_headers, read_dead_letter
from mesh.events.consume.processing import event_of
from mesh.events.consume.schedules import TICK_DUE
from mesh.events.consume.verification import RefusedError

if TYPE_CHECKING:
    from mesh.events.broker.history import StreamMessage
    from mesh.events.broker.nats_connection import NatsConnection
    from mesh.events.consume.consumers import Consumer
    from mesh.events.consume.verification import EventVerifier

__all__ = [
    "REPLAY_OF",
    "check_dead_letter",
    "check_event",
    "consumer_for",
    "missing_reason",
    "redriven",
    "replayed",
    "with_event",
]

REPLAY_OF = "mesh-replay-of"
TICK_TTL = "168h"
"""Time that a redriven tick is kept. Its stream keeps messages for ever, and the service may not delete one."""


def consumer_for(consumers: Iterable[Consumer], subject: str) -> Consumer | None:
    """Return the consumer that reads a subject (of its trigger, or of redriven events), or None."""
    return next((one for one in consumers if any(_matches(filter_, subject) for filter_ in one.filters)), None)


def redriven(dead_letter: StreamMessage, consumers: Mapping[str, Consumer]) -> Outgoing | None:
    """Return the message that redrives a dead letter, or None if the contract no longer has its trigger.

    Args:
        dead_letter: The dead letter.
        consumers: By name.
    """
    values = read_dead_letter(dead_letter.headers)
    consumer = consumers.get(values.consumer)
    if consumer is None:
        return None
    headers = {**original_headers(dead_letter.headers), MESSAGE_ID: f"redrive/{dead_letter.sequence}"}
    if not consumer.ordered:
        headers["Nats-TTL"] = TICK_TTL
    return Outgoing(_to(consumer, values.subject), headers, dead_letter.data)


async def with_event(connection: NatsConnection, dead_letter: StreamMessage) -> StreamMessage | None:
    """Return a dead letter with its event, which may have been too large for it; None if the event is gone."""
    if LEFT_OUT not in dead_letter.headers:
        return dead_letter
    values = read_dead_letter(dead_letter.headers)
    if not values.stream:  # it was never in a stream (``mesh.events.unpublishable``)
        return None
    event = await history.get(connection, values.stream, values.sequence)
    if event is None or event.subject != values.subject:  # gone, or another event of a stream that was made anew
        return None
    reason = {name: value for name, value in dead_letter.headers.items() if name != LEFT_OUT}
    return replace(dead_letter, headers={**event.headers, **reason}, data=event.data)


def missing_reason(dead_letter: StreamMessage) -> str:
    """Return the reason why a dead letter has no event that could be redriven."""
    values = read_dead_letter(dead_letter.headers)
    return "its stream no longer holds its event" if values.stream else values.reason


def check_event(event: StreamMessage, consumer: Consumer, verifier: EventVerifier) -> None:
    """Check that an event may be delivered, before an operator signs its replay.

    Raises:
        RefusedError: It may not.
        MalformedEventError: It is no event.
    """
    message = Message(
        subject=event.subject, headers=event.headers, data=event.data, reply="", sequence=event.sequence, deliveries=1,
        time=event.time.timestamp(), pending=0, pin="",
    )  # fmt: skip
    verifier.check(consumer, message, event_of(consumer, message))


def check_dead_letter(dead_letter: StreamMessage, consumer: Consumer, verifier: EventVerifier) -> None:
    """Check that the event of a dead letter may be delivered, before an operator signs its redrive.

    A dead letter was stored later than its event. A key that was retired in between counts as retired before.

    Raises:
        RefusedError: It may not.
        MalformedEventError: It is no event.
    """
    subject, headers = read_dead_letter(dead_letter.headers).subject, original_headers(dead_letter.headers)
    original = replace(dead_letter, subject=subject, headers=headers)
    try:
        check_event(original, consumer, verifier)
    except RefusedError:
        if TICK_DUE not in headers:
            raise
        # The dead letter of a tick has its due time, which the broker's tick had not.
        headers = {name: value for name, value in headers.items() if name != TICK_DUE}
        check_event(replace(original, headers=headers), consumer, verifier)


def replayed(event: StreamMessage, consumer: Consumer, run: str) -> Outgoing:
    """Return the message that replays a past event to one method.

    Args:
        event: The event.
        consumer: The consumer of the method.
        run: Name of the replay. Within one replay an event is sent once.
    """
    headers = own_headers(event.headers)
    id_ = headers.get("ce-id", str(event.sequence))
    headers |= {"ce-id": f"{id_}~{run}", REPLAY_OF: id_, MESSAGE_ID: f"replay/{run}/{consumer.name}/{event.sequence}"}
    return Outgoing(_to(consumer, event.subject), headers, event.data)


def _to(consumer: Consumer, subject: str) -> str:
    """Return the subject that only this consumer reads, with the key at the end of the event's subject."""
    return f"{consumer.filters[1].removesuffix('*')}{subject.rpartition('.')[2]}"


def _matches(filter_: str, subject: str) -> bool:
    wanted, found = filter_.split("."), subject.split(".")
    return len(wanted) == len(found) and all(one in ("*", token) for one, token in zip(wanted, found, strict=True))
