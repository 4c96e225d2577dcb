"""Reads what a stream holds, without a consumer: JetStream's direct get in batches (NATS ADR-31).

The server looks for a subject or a time in its index, so what is asked for is all that is read. It has no way back from
the end: ``latest`` looks at the end of the stream, then at four times as much before that, and so on.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.aio.msg import Msg

__all__ = ["StreamMessage", "backwards", "latest", "read"]

BATCH = 256
FIRST = 256
"""Sequences that are looked at first, from the end."""
GROWTH = 4
TIMEOUT = 10.0
_SEQUENCE, _SUBJECT, _TIME = "Nats-Sequence", "Nats-Subject", "Nats-Time-Stamp"
_ADDED = frozenset({_SEQUENCE, _SUBJECT, _TIME, "Nats-Stream", "Nats-Num-Pending", "Nats-Last-Sequence"})
_END, _NOTHING = "204", "404"


@dataclass(frozen=True, slots=True)
class StreamMessage:
    """One message of a stream.

    Attributes:
        sequence: Its place.
        subject: Where it was published.
        headers: Its headers.
        data: Its body.
        time: When the stream took it.
        left: Messages that come after it, of those that are read.
    """

    sequence: int
    subject: str
    headers: Mapping[str, str]
    data: bytes
    time: datetime
    left: int


async def read(
    client: Client,
    stream: str,
    filter: str,  # noqa: A002 - JetStream's word
    *,
    after: int = 0,
    since: datetime | None = None,
    before: int | None = None,
    batch: int = BATCH,
) -> AsyncIterator[StreamMessage]:
    """Yield the messages of a stream that match a subject, oldest first, and end when there are no more.

    Args:
        client: The connection.
        stream: The stream.
        filter: The subject, with wildcards.
        after: Begin after this sequence.
        since: Begin at this time instead.
        before: End before this sequence.
        batch: How many messages one question asks for.

    Raises:
        nats.errors.Error: The broker is away.
        TimeoutError: It does not answer.
    """
    first: dict[str, Any] = {"seq": after + 1}
    if since is not None:
        first = {"start_time": since.astimezone(UTC).isoformat().replace("+00:00", "Z")}
    while True:
        found, more = await _batch(client, stream, {**first, "next_by_subj": filter, "batch": batch})
        for one in found:
            if before is not None and one.sequence >= before:
                return
            yield one
        if not more or not found:
            return
        first = {"seq": found[-1].sequence + 1}


async def backwards(
    client: Client,
    stream: str,
    filter: str,  # noqa: A002 - as above
    *,
    last: int,
    since: datetime | None = None,
) -> AsyncIterator[list[StreamMessage]]:
    """Yield the messages that match a subject in parts, the newest part first; each part is oldest first.

    Args:
        client: The connection.
        stream: The stream.
        filter: The subject, with wildcards.
        last: The last sequence of the stream.
        since: What is older is left out.

    Raises:
        nats.errors.Error: The broker is away.
        TimeoutError: It does not answer.
    """
    floor, before, span = 0, last + 1, FIRST
    async for oldest in read(client, stream, filter, since=since, batch=1):
        floor = oldest.sequence
        break
    while floor and before > floor:
        after = max(floor, before - span) - 1
        # No larger question than what is looked for: its answer would come all the same.
        size = min(BATCH, before - after - 1)
        yield [one async for one in read(client, stream, filter, after=after, before=before, batch=size)]
        before, span = after + 1, span * GROWTH


async def latest(
    client: Client,
    stream: str,
    filter: str,  # noqa: A002 - as above
    number: int,
    *,
    last: int,
    since: datetime | None = None,
) -> list[StreamMessage]:
    """Return the last ``number`` messages that match a subject, oldest first (see ``backwards``)."""
    found: list[StreamMessage] = []
    async for part in backwards(client, stream, filter, last=last, since=since):
        found = part[-(number - len(found)) :] + found
        if len(found) >= number:
            break
    return found


async def _batch(client: Client, stream: str, question: Mapping[str, Any]) -> tuple[list[StreamMessage], bool]:
    """Return the messages of one batch, and whether more follow."""
    inbox = client.new_inbox()
    done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
    found: list[StreamMessage] = []

    async def take(message: Msg) -> None:
        headers = message.headers or {}
        if _SEQUENCE in headers:
            found.append(_stored(message, headers))
        elif not done.done():
            status = headers.get("Status", "")
            if status in (_END, _NOTHING):
                done.set_result(int(headers.get("Nats-Num-Pending", "0")) > 0)
            else:
                done.set_exception(TimeoutError(f"{stream}: {status} {headers.get('Description', '')}"))

    subscription = await client.subscribe(inbox, cb=take)
    try:
        await client.publish(f"$JS.API.DIRECT.GET.{stream}", json.dumps(question).encode(), reply=inbox)
        async with asyncio.timeout(TIMEOUT):
            return found, await done
    finally:
        await subscription.unsubscribe()


def _stored(message: Msg, headers: Mapping[str, str]) -> StreamMessage:
    return StreamMessage(
        sequence=int(headers[_SEQUENCE]),
        subject=headers[_SUBJECT],
        headers={name: value for name, value in headers.items() if name not in _ADDED},
        data=message.data,
        time=datetime.fromisoformat(headers[_TIME]),
        left=int(headers.get("Nats-Num-Pending", "0")),
    )
