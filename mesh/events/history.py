"""Reads what a stream holds, oldest first, without a consumer: JetStream's direct get in batches (NATS ADR-31)."""

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

__all__ = ["Stored", "count", "read"]

BATCH = 256
TIMEOUT = 10.0
_SEQUENCE, _SUBJECT, _TIME = "Nats-Sequence", "Nats-Subject", "Nats-Time-Stamp"
_ADDED = frozenset({_SEQUENCE, _SUBJECT, _TIME, "Nats-Stream", "Nats-Num-Pending", "Nats-Last-Sequence"})
_END, _NOTHING = "204", "404"


@dataclass(frozen=True, slots=True)
class Stored:
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
) -> AsyncIterator[Stored]:
    """Yield the messages of a stream that match a subject, and end when there are no more.

    Args:
        client: The connection.
        stream: The stream.
        filter: The subject, with wildcards.
        after: Begin after this sequence.
        since: Begin at this time instead.

    Raises:
        nats.errors.Error: The broker is away.
        TimeoutError: It does not answer.
    """
    first: dict[str, Any] = {"seq": after + 1}
    if since is not None:
        first = {"start_time": since.astimezone(UTC).isoformat().replace("+00:00", "Z")}
    while True:
        found, more = await _batch(client, stream, {**first, "next_by_subj": filter, "batch": BATCH})
        for one in found:
            yield one
        if not more or not found:
            return
        first = {"seq": found[-1].sequence + 1}


async def count(client: Client, stream: str, filter: str, since: datetime | None) -> int:  # noqa: A002 - as above
    """Return how many messages ``read`` would yield."""
    async for one in read(client, stream, filter, since=since):
        return one.left + 1
    return 0


async def _batch(client: Client, stream: str, question: Mapping[str, Any]) -> tuple[list[Stored], bool]:
    """Return the messages of one batch, and whether more follow."""
    inbox = client.new_inbox()
    done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
    found: list[Stored] = []

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


def _stored(message: Msg, headers: Mapping[str, str]) -> Stored:
    return Stored(
        sequence=int(headers[_SEQUENCE]),
        subject=headers[_SUBJECT],
        headers={name: value for name, value in headers.items() if name not in _ADDED},
        data=message.data,
        time=datetime.fromisoformat(headers[_TIME]),
        left=int(headers.get("Nats-Num-Pending", "0")),
    )
