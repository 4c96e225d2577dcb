"""Calls a function again: for dead letters (*redrive*) and for past events (*replay*).

What is sent again goes to one method, not to all that hear of the event, and in order with what is new of its key. A
redriven event keeps its id: what it did not do yet it does once. A replayed one gets a new id, because it shall have
its effect again; ``mesh-replay-of`` says which event it was.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from nats.js.errors import NotFoundError

from mesh.events.broker.connection import Outgoing
from mesh.events.broker.message import own_headers
from mesh.events.cloudevents import MESSAGE_ID
from mesh.events.consume.dead_letters import LEFT_OUT, original_headers, read_letter

if TYPE_CHECKING:
    from nats.js import JetStreamContext

    from mesh.events.broker.history import StreamMessage
    from mesh.events.consume.consumers import Consumer

__all__ = ["REPLAY_OF", "absent", "consumer_for", "redriven", "replayed", "whole"]

REPLAY_OF = "mesh-replay-of"


def consumer_for(consumers: Iterable[Consumer], subject: str) -> Consumer | None:
    """Return the consumer that reads a subject (of its trigger, or of what is sent again), or None."""
    return next((one for one in consumers if any(_matches(filter_, subject) for filter_ in one.filters)), None)


def redriven(letter: StreamMessage, consumers: Mapping[str, Consumer]) -> Outgoing | None:
    """Return what delivers a dead letter to its method again, or None if the contract has its trigger no more.

    Args:
        letter: The dead letter.
        consumers: By name.
    """
    told = read_letter(letter.headers)
    consumer = consumers.get(told.consumer)
    if consumer is None:
        return None
    headers = {**original_headers(letter.headers), MESSAGE_ID: f"redrive/{letter.sequence}"}
    return Outgoing(_to(consumer, told.subject), headers, letter.data)


async def whole(js: JetStreamContext, letter: StreamMessage) -> StreamMessage | None:
    """Return a dead letter with its event, which may be too large to be in it; None if its stream holds it no more."""
    if LEFT_OUT not in letter.headers:
        return letter
    told = read_letter(letter.headers)
    if not told.stream:  # it never came to one (``mesh.events.unpublishable``)
        return None
    try:
        event = await js.get_msg(told.stream, told.sequence)
    except NotFoundError:
        return None
    if event.subject != told.subject:  # of a stream that was made anew
        return None
    ours = {name: value for name, value in letter.headers.items() if name != LEFT_OUT}
    return replace(letter, headers={**(event.headers or {}), **ours}, data=event.data or b"")


def absent(letter: StreamMessage) -> str:
    """Return why a dead letter has no event to be delivered again."""
    told = read_letter(letter.headers)
    return "its stream holds its event no more" if told.stream else told.reason


def replayed(event: StreamMessage, consumer: Consumer, run: str) -> Outgoing:
    """Return what delivers a past event to one method again.

    Args:
        event: The event.
        consumer: Whose method is called.
        run: Names the replay; the same event is replayed once in it.
    """
    headers = own_headers(event.headers)
    id_ = headers.get("ce-id", str(event.sequence))
    headers |= {"ce-id": f"{id_}~{run}", REPLAY_OF: id_, MESSAGE_ID: f"replay/{run}/{consumer.name}/{event.sequence}"}
    return Outgoing(_to(consumer, event.subject), headers, event.data)


def _to(consumer: Consumer, subject: str) -> str:
    """Return where a message goes for the consumer alone, with the key that its subject ends with."""
    return f"{consumer.filters[1].removesuffix('*')}{subject.rpartition('.')[2]}"


def _matches(filter_: str, subject: str) -> bool:
    wanted, found = filter_.split("."), subject.split(".")
    return len(wanted) == len(found) and all(one in ("*", token) for one, token in zip(wanted, found, strict=True))
