"""Reads of stored messages without a consumer: JetStream's direct get in batches (NATS ADR-31), and single gets.

The server finds a subject or a time in its index, so only the requested messages are read. It cannot read backwards
from the end, so ``latest`` reads the end of the stream, then four times as many sequences before that, and so on.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from nats.js.errors import NotFoundError

if TYPE_CHECKING:
    from nats.aio.msg import Msg

    from mesh.events.broker.nats_connection import NatsConnection

__all__ = ["StreamMessage", "backwards", "delete", "get", "last_sequence", "last_stored", "latest", "read"]

BATCH = 256
"""Messages of one request."""
FIRST_SPAN = 256
"""Sequences that ``backwards`` reads first, from the end."""
GROWTH = 4
"""Factor by which ``backwards`` reads more with each part."""
RESPONSE_TIMEOUT = 10.0
"""Seconds to wait for the end of a batch."""
_SEQUENCE, _SUBJECT, _TIME = "Nats-Sequence", "Nats-Subject", "Nats-Time-Stamp"
_ADDED = frozenset({_SEQUENCE, _SUBJECT, _TIME, "Nats-Stream", "Nats-Num-Pending", "Nats-Last-Sequence"})
_END, _NOTHING = "204", "404"


@dataclass(frozen=True, slots=True)
class StreamMessage:
    """One stored message of a stream.

    Attributes:
        sequence: Its sequence in the stream.
        subject: The subject that it was published on.
        headers: Its headers.
        data: Its body.
        time: Time at which the stream stored it.
        left: Messages after it, among those that are read.
    """

    sequence: int
    subject: str
    headers: Mapping[str, str]
    data: bytes
    time: datetime
    left: int = 0


async def read(
    connection: NatsConnection,
    stream: str,
    filter: str,  # noqa: A002 - JetStream's word
    *,
    after: int = 0,
    since: datetime | None = None,
    before: int | None = None,
    batch: int = BATCH,
) -> AsyncIterator[StreamMessage]:
    """Yield the messages of a stream that match a subject, oldest first, and end after the last one.

    Args:
        connection: The connection.
        stream: The stream.
        filter: The subject, with wildcards.
        after: Begin after this sequence.
        since: Begin at this time instead.
        before: End before this sequence.
        batch: Messages of one request.

    Raises:
        nats.errors.Error: The broker is away.
        TimeoutError: The broker does not respond.
    """
    first: dict[str, Any] = {"seq": after + 1}
    if since is not None:
        first = {"start_time": since.astimezone(UTC).isoformat().replace("+00:00", "Z")}
    while True:
        found, more = await _batch(connection, stream, {**first, "next_by_subj": filter, "batch": batch})
        for one in found:
            if before is not None and one.sequence >= before:
                return
            yield one
        if not more or not found:
            return
        first = {"seq": found[-1].sequence + 1}


async def backwards(
    connection: NatsConnection,
    stream: str,
    filter: str,  # noqa: A002 - as above
    *,
    last: int,
    since: datetime | None = None,
) -> AsyncIterator[list[StreamMessage]]:
    """Yield the messages that match a subject in parts, the newest part first; each part is oldest first.

    Args:
        connection: The connection.
        stream: The stream.
        filter: The subject, with wildcards.
        last: The last sequence of the stream.
        since: Older messages are left out.

    Raises:
        nats.errors.Error: The broker is away.
        TimeoutError: The broker does not respond.
    """
    floor, before, span = 0, last + 1, FIRST_SPAN
    async for oldest in read(connection, stream, filter, since=since, batch=1):
        floor = oldest.sequence
        break
    while floor and before > floor:
        after = max(floor, before - span) - 1
        # A request for more than the part holds would also send the messages behind it.
        size = min(BATCH, before - after - 1)
        yield [one async for one in read(connection, stream, filter, after=after, before=before, batch=size)]
        before, span = after + 1, span * GROWTH


async def latest(
    connection: NatsConnection,
    stream: str,
    filter: str,  # noqa: A002 - as above
    number: int,
    *,
    last: int,
    since: datetime | None = None,
) -> list[StreamMessage]:
    """Return the last ``number`` messages that match a subject, oldest first (see ``backwards``)."""
    found: list[StreamMessage] = []
    async for part in backwards(connection, stream, filter, last=last, since=since):
        found = part[-(number - len(found)) :] + found
        if len(found) >= number:
            break
    return found


async def last_stored(connection: NatsConnection, stream: str, subject: str) -> StreamMessage | None:
    """Return the last message of one subject, or None.

    The stream's leader responds (direct gets may come from a server of the cluster that is behind).

    Raises:
        nats.errors.Error: The broker is away.
    """
    response = await connection.request(f"STREAM.MSG.GET.{stream}", {"last_by_subj": subject})
    found = response.get("message")
    if found is None:
        return None
    lines = base64.b64decode(found.get("hdrs", "")).decode().split("\r\n")[1:]
    headers = {name: value.strip() for name, _, value in (line.partition(":") for line in lines) if name}
    data = base64.b64decode(found.get("data", ""))
    return StreamMessage(found["seq"], subject, headers, data, datetime.fromisoformat(found["time"]))


async def get(connection: NatsConnection, stream: str, sequence: int) -> StreamMessage | None:
    """Return the message with a sequence, or None if the stream does not hold it.

    Raises:
        nats.errors.Error: The broker is away.
        nats.js.errors.Error: The broker refuses.
    """
    try:
        found = await connection.js.get_msg(stream, sequence)
    except NotFoundError:
        return None
    time = found.time or datetime.fromtimestamp(0, UTC)
    return StreamMessage(sequence, found.subject or "", found.headers or {}, found.data or b"", time)


async def last_sequence(connection: NatsConnection, stream: str) -> int:
    """Return the last sequence of a stream; 0 if it never held a message.

    Raises:
        nats.errors.Error: The broker is away.
        nats.js.errors.Error: The broker refuses.
    """
    return int((await connection.js.stream_info(stream)).state.last_seq)


async def delete(connection: NatsConnection, stream: str, sequence: int) -> None:
    """Delete one message from a stream and erase its data.

    Raises:
        nats.errors.Error: The broker is away.
        nats.js.errors.Error: The broker refuses, as when the stream does not hold it.
    """
    await connection.js.delete_msg(stream, sequence)


async def _batch(
    connection: NatsConnection, stream: str, request: Mapping[str, Any]
) -> tuple[list[StreamMessage], bool]:
    """Return the messages of one batch, and whether more follow."""
    client = connection.client
    inbox = client.new_inbox()
    done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
    found: list[StreamMessage] = []

    async def receive(message: Msg) -> None:
        headers = message.headers or {}
        if _SEQUENCE in headers:
            found.append(_stored(message, headers))
        elif not done.done():
            status = headers.get("Status", "")
            if status in (_END, _NOTHING):
                done.set_result(int(headers.get("Nats-Num-Pending", "0")) > 0)
            else:
                done.set_exception(TimeoutError(f"{stream}: {status} {headers.get('Description', '')}"))

    subscription = await client.subscribe(inbox, cb=receive)
    try:
        await client.publish(f"$JS.API.DIRECT.GET.{stream}", json.dumps(request).encode(), reply=inbox)
        async with asyncio.timeout(RESPONSE_TIMEOUT):
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
