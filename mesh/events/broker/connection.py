"""One connection to the broker, and what is stored over it: messages in order, each acknowledged by JetStream.

A connection that breaks is never mended: what waits on it fails at once, and ``mesh.events.broker.broker`` makes
another.

Many messages go as one atomic batch (NATS ADR-50): nats-server brings it to the disk with one sync, where single
messages cost one each (measured with ``sync_interval: always``: 1,500 messages/s one by one, 22,000 in batches). A
batch that the server refuses, because it holds a duplicate or because there is no room for all of it, was not stored at
all; then its messages go one by one, so that the first that is refused is known.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import nats.errors
import orjson

from mesh.errors import InvalidArgument, ResourceExhausted, StatusError, Unavailable

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.aio.msg import Msg
    from nats.js import JetStreamContext

__all__ = ["BATCH", "Link", "Outgoing", "Stored"]

log = logging.getLogger("mesh.events")

BATCH = 1000
"""Messages of one atomic batch, the server's limit."""
FEW = 4
"""As many messages cost less one by one: a batch costs the server about 4 ms."""
PATIENCE = 5.0
"""Seconds that an acknowledgement may take."""

_FULL = frozenset({10002, 10023, 10047, 10076, 10077, 10122})
"""JetStream's error codes for "no room": resources, storage, messages or bytes of the stream or the account."""
_TOO_LARGE = 10054


class Outgoing(NamedTuple):
    """A message to be stored.

    Attributes:
        subject: Where.
        headers: With ``Nats-Msg-Id``, by which the server knows it again.
        data: The body.
    """

    subject: str
    headers: Mapping[str, str]
    data: bytes


class Stored(NamedTuple):
    """What became of messages.

    Attributes:
        number: As many, from the first on, are stored.
        error: Why the next one is not; None when all are.
    """

    number: int
    error: StatusError | None = None


class Link:
    """One connection.

    Args:
        client: A connected client that does not reconnect.

    Attributes:
        client: As given.
        js: Its JetStream interface.
        closed: Set when the connection is no more.
    """

    def __init__(self, client: Client) -> None:
        self.client = client
        self.js: JetStreamContext = client.jetstream()
        self.closed = asyncio.Event()
        self._inbox = client.new_inbox()
        self._count = 0
        self._waiting: dict[str, asyncio.Future[Msg]] = {}

    @property
    def largest(self) -> int:
        """Bytes that the headers and the body of a message may have together: the server's limit.

        The client compares the body alone, and the server ends a connection that sends more.
        """
        return self.client.max_payload

    async def open(self) -> None:
        """Begin to listen for acknowledgements."""
        await self.client.subscribe(f"{self._inbox}.*", cb=self._acknowledged)

    def close(self) -> None:
        """Say that the connection is no more: all that waits fails."""
        self.closed.set()
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(nats.errors.ConnectionClosedError())
        self._waiting.clear()

    async def store(self, messages: Sequence[Outgoing]) -> Stored:
        """Store messages of one stream in their order, at most ``BATCH`` of them; none after one that is refused.

        The error is RESOURCE_EXHAUSTED when the broker is full, INVALID_ARGUMENT when the message is too large for
        it, UNAVAILABLE when it is away or does not answer: then the message may be stored all the same.
        """
        if len(messages) > FEW and await self._batch(messages):
            return Stored(len(messages))
        for at, message in enumerate(messages):
            error = await self._single(message)
            if error is not None:
                return Stored(at, error)
        return Stored(len(messages))

    async def each(self, messages: Sequence[Outgoing]) -> list[StatusError | None]:
        """Store messages that know nothing of each other, all on their way at once; return why each is not stored."""
        return await asyncio.gather(*(self._single(message) for message in messages))

    async def _batch(self, messages: Sequence[Outgoing]) -> bool:
        """Store all as one batch; return whether they are."""
        name = secrets.token_hex(12)
        parts = [
            one._replace(headers={**one.headers, "Nats-Batch-Id": name, "Nats-Batch-Sequence": str(number)})
            for number, one in enumerate(messages, 1)
        ]
        parts[-1] = parts[-1]._replace(headers={**parts[-1].headers, "Nats-Batch-Commit": "1"})
        if any(_size(part) > self.largest for part in parts):
            return False
        try:
            for subject, headers, data in parts[:-1]:
                await self.client.publish(subject, data, headers=dict(headers))
        except nats.errors.Error:
            return False
        return await self._single(parts[-1], batch=True) is None

    async def _single(self, message: Outgoing, *, batch: bool = False) -> StatusError | None:
        """Send one message and wait for the acknowledgement; return why it was refused."""
        if _size(message) > self.largest:
            return InvalidArgument(
                f"the event and its headers are larger than the {self.largest} bytes that the event broker takes"
            )
        self._count += 1
        name = str(self._count)
        waiting = self._waiting[name] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(PATIENCE):
                await self.client.publish(
                    message.subject, message.data, reply=f"{self._inbox}.{name}", headers=dict(message.headers)
                )
                answer = await waiting
        except TimeoutError:
            return Unavailable("the event broker did not answer in time; whether it has the event is not known")
        except (nats.errors.BadSubjectError, nats.errors.BadHeaderError) as error:
            return InvalidArgument(f"no message of the event broker can be made of the event: {error}")
        except nats.errors.Error:
            return Unavailable("the event broker went away; whether it has the event is not known")
        finally:
            self._waiting.pop(name, None)
        return _outcome(answer, message.subject, quiet=batch)

    async def _acknowledged(self, message: Msg) -> None:
        waiting = self._waiting.get(message.subject.rpartition(".")[2])
        if waiting is not None and not waiting.done():
            waiting.set_result(message)


def _size(message: Outgoing) -> int:
    """Return the bytes of a message as the server counts them (NATS ADR-4): a line for each header, and the body."""
    lines = (f"{name}: {value}\r\n" for name, value in message.headers.items())
    return len("NATS/1.0\r\n\r\n") + sum(len(line.encode()) for line in lines) + len(message.data)


def _outcome(answer: Msg, subject: str, *, quiet: bool) -> StatusError | None:
    """Return why a message was refused, if it was."""
    if answer.headers is not None and answer.headers.get("Status") == "503":
        log.error("the event broker has no stream for %s", subject)
        return Unavailable("the event broker cannot store this event now")
    try:
        error = orjson.loads(answer.data).get("error")
    except orjson.JSONDecodeError:
        log.error("the event broker acknowledged an event for %s with no JSON: %.80r", subject, answer.data)  # noqa: TRY400 - the answer is all there is to say
        return Unavailable("the event broker did not say whether it has the event")
    if error is None:
        return None
    code, text = error.get("err_code"), error.get("description")
    if not quiet:
        log.error("the event broker refused an event: %s (%s)", text, code)
    if code in _FULL:
        return ResourceExhausted("the event broker is full", retry_after=1.0)
    if code == _TOO_LARGE:
        return InvalidArgument("the event is larger than the event broker takes")
    return Unavailable("the event broker refused the event")
