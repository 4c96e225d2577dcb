"""One connection to NATS: publishes, subscribes, calls JetStream's API, and stores messages in order.

A broken connection is never repaired. Whatever waits on it fails at once, and ``mesh.events.broker.broker`` opens
another connection.

The server tells of a subject that the user has no right to, but not which message it was for: it sends one error on
the connection, and never responds to the message. So everything that waits for a response on such a subject fails at
once with ``DeniedError``, and each denied subject is logged.

``store`` sends many messages as one atomic batch (NATS ADR-50). nats-server brings a batch to the disk with one sync,
where single messages cost one sync each (measured with ``sync_interval: always``: 1,500 messages/s one by one, 22,000
in batches). A batch that the server refuses, because it holds a duplicate or because there is no space for all of it,
was not stored at all. Its messages then go one by one, so that the first refused message is known.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import nats.errors
import nats.js.errors
import orjson

from mesh.errors import InvalidArgument, ResourceExhausted, StatusError, Unavailable
from mesh.events import subjects
from mesh.events.signatures import SIGNATURE, SignedMessage

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.aio.msg import Msg
    from nats.js import JetStreamContext

    from mesh.events.signatures import EventSigner

__all__ = ["BATCH", "BROKER_ERRORS", "DeniedError", "NatsConnection", "Outgoing", "Stored"]

log = logging.getLogger("mesh.events")

BROKER_ERRORS = (nats.errors.Error, nats.js.errors.Error, OSError, TimeoutError)
"""Exceptions of a broker that cannot be reached, or that does not respond in time."""
BATCH = 1000
"""Messages of one atomic batch, the server's limit."""
MIN_BATCH = 5
"""Fewer messages cost less one by one: a batch costs the server about 4 ms."""
ACK_TIMEOUT = 5.0
"""Seconds to wait for an acknowledgement."""
API_TIMEOUT = 5.0
"""Seconds to wait for a response of JetStream's API."""

_FULL = frozenset({10002, 10023, 10047, 10076, 10077, 10122})
"""JetStream's error codes for "no space": resources, storage, messages or bytes of the stream or the account."""
_TOO_LARGE = 10054
_SIGNED = frozenset({subjects.EVENTS, subjects.CHANGES, subjects.TICKS})
"""First tokens of the subjects of signed messages."""
_NO_RESPONDERS = "503"
_NOBODY = "", None
_DENIED = re.compile(r"permissions violation for (publish|subscription) to \"([^\"]*)\"", re.IGNORECASE)
_MAX_DENIALS = 1000
"""Denied subjects of one connection that are logged. A subject ends in a key, so there may be any number of them."""


class DeniedError(nats.errors.Error):
    """The broker denies this component the right to a subject."""

    def __init__(self, subject: str) -> None:
        super().__init__(f"the event broker denies this service the right to publish on {subject}")


class Outgoing(NamedTuple):
    """Message to be stored in a stream.

    Attributes:
        subject: The subject that it is published on.
        headers: Its headers. ``Nats-Msg-Id`` lets the server drop duplicates.
        data: The body.
    """

    subject: str
    headers: Mapping[str, str]
    data: bytes


class Stored(NamedTuple):
    """Result of storing messages in order.

    Attributes:
        number: Number of messages that are stored, counted from the first.
        error: Error of the next message; None when all are stored.
    """

    number: int
    error: StatusError | None = None


class NatsConnection:
    """One connection to NATS.

    All methods but ``store`` and ``each`` raise one of ``BROKER_ERRORS`` when the broker is away.

    Args:
        client: A connected client that does not reconnect.
        signer: Signs events, changes and ticks; None for a component that publishes none.

    Attributes:
        client: The client.
        js: The JetStream interface of the client.
        closed: Set when the connection has ended.
    """

    def __init__(self, client: Client, signer: EventSigner | None = None) -> None:
        self.client = client
        self._signer = signer
        self.js: JetStreamContext = client.jetstream()
        self.closed = asyncio.Event()
        self._inbox = client.new_inbox()
        self._count = 0
        self._waiting: dict[str, tuple[str, asyncio.Future[Msg]]] = {}
        self._denied: set[str] = set()

    @property
    def largest(self) -> int:
        """Maximum bytes of a message's headers and body together: the server's limit.

        The client compares the body alone, and the server ends a connection that sends more.
        """
        return self.client.max_payload

    async def open(self) -> None:
        """Subscribe to acknowledgements."""
        await self.client.subscribe(f"{self._inbox}.*", cb=self._acknowledged)

    def close(self) -> None:
        """Mark the connection as ended: everything that waits on it fails."""
        self.closed.set()
        for _, waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(nats.errors.ConnectionClosedError())
        self._waiting.clear()

    def server_error(self, error: Exception) -> None:
        """Note an error that the server sent: log a denied right, and fail what waits for it.

        Other errors end the connection, and are logged there.
        """
        found = _DENIED.search(str(error))
        if found is None:
            return
        operation, denied = found[1].lower(), found[2].lower()  # the client writes the subject in lower case
        subject = denied
        for known, waiting in self._waiting.values():
            if known.lower() == denied:
                subject = known
                if not waiting.done():
                    waiting.set_exception(DeniedError(known))
        if denied not in self._denied and len(self._denied) < _MAX_DENIALS:
            self._denied.add(denied)
            log.error(
                "the event broker denies this service the right to %s %s; its rights follow from the contract: "
                "`mesh export nats` writes those of every service for the broker's configuration",
                "publish on" if operation == "publish" else "subscribe to", subject,
            )  # fmt: skip

    # -- NATS without streams --

    async def publish(self, subject: str, data: bytes) -> None:
        """Send a message without waiting for an acknowledgement."""
        await self.client.publish(subject, data)

    async def flush(self, seconds: int) -> None:
        """Wait at most this long until the server has read all that was sent."""
        await self.client.flush(seconds)

    async def subscribe(self, subject: str, receive: Callable[[bytes], Awaitable[None]]) -> None:
        """Call ``receive`` with the body of each message of a subject, for as long as the connection lives."""

        async def unwrap(message: Msg) -> None:
            await receive(message.data)

        await self.client.subscribe(subject, cb=unwrap)

    # -- JetStream --

    async def request(self, operation: str, body: Any = None) -> dict[str, Any]:
        """Return the response of JetStream's API to one operation; ``error`` in it says what was refused.

        Args:
            operation: The subject behind ``$JS.API.``.
            body: Encoded as JSON; None: no body.
        """
        data = b"" if body is None else json.dumps(body).encode()
        async with asyncio.timeout(API_TIMEOUT):
            reply = await self._exchange(Outgoing(f"$JS.API.{operation}", {}, data))
        if reply.headers is not None and reply.headers.get("Status") == _NO_RESPONDERS:
            raise nats.errors.NoRespondersError
        response: dict[str, Any] = json.loads(reply.data)
        return response

    async def publish_acknowledged(self, subject: str, headers: Mapping[str, str]) -> dict[str, Any] | None:
        """Publish a message without a body into a stream; return JetStream's error, or None."""
        (message,) = self.signed([Outgoing(subject, headers, b"")])
        async with asyncio.timeout(API_TIMEOUT):
            reply = await self._exchange(message)
        if reply.headers is not None and reply.headers.get("Status") == _NO_RESPONDERS:
            raise nats.errors.NoRespondersError
        error: dict[str, Any] | None = json.loads(reply.data).get("error")
        return error

    @property
    def signing_key(self) -> str:
        """Id of the key that signs now; empty without one."""
        return "" if self._signer is None else self._signer.key_id

    def signed(self, messages: Sequence[Outgoing]) -> Sequence[Outgoing]:
        """Return the messages with this component's signature on events, changes and ticks, in place of others."""
        if self._signer is None or not messages or messages[0].subject.partition(".")[0] not in _SIGNED:
            return messages
        # The client sends values without outer spaces.
        stripped = [
            one._replace(headers={name: value.strip() for name, value in one.headers.items()}) for one in messages
        ]
        signatures = self._signer.sign([SignedMessage(*one) for one in stripped])
        return [
            one._replace(headers={**one.headers, SIGNATURE: signature})
            for one, signature in zip(stripped, signatures, strict=True)
        ]

    async def store(self, messages: Sequence[Outgoing]) -> Stored:
        """Store messages of one stream in their order, at most ``BATCH`` of them; none after a refused one.

        The error is RESOURCE_EXHAUSTED when the broker is full, INVALID_ARGUMENT when the message is too large for
        it, UNAVAILABLE when it is away or does not respond: then the message may be stored nevertheless.
        """
        messages = self.signed(messages)
        if len(messages) >= MIN_BATCH and await self._batch(messages):
            return Stored(len(messages))
        for at, message in enumerate(messages):
            error = await self._single(message)
            if error is not None:
                return Stored(at, error)
        return Stored(len(messages))

    async def each(self, messages: Sequence[Outgoing]) -> list[StatusError | None]:
        """Store independent messages of one stream concurrently; return the error of each, or None."""
        return await asyncio.gather(*(self._single(message) for message in self.signed(messages)))

    async def _batch(self, messages: Sequence[Outgoing]) -> bool:
        """Store all messages as one batch; return whether they are stored."""
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
        """Send one message and wait for its acknowledgement; return the error of a refused message."""
        if _size(message) > self.largest:
            return InvalidArgument(
                f"the event and its headers are larger than the {self.largest} bytes that the event broker takes"
            )
        try:
            async with asyncio.timeout(ACK_TIMEOUT):
                acknowledgement = await self._exchange(message)
        except TimeoutError:
            return Unavailable("the event broker did not answer in time; whether it has the event is not known")
        except (nats.errors.BadSubjectError, nats.errors.BadHeaderError) as error:
            return InvalidArgument(f"no message of the event broker can be made of the event: {error}")
        except DeniedError as error:
            return Unavailable(str(error))
        except nats.errors.Error:
            return Unavailable("the event broker went away; whether it has the event is not known")
        return _error(acknowledgement, message.subject, quiet=batch)

    async def _exchange(self, message: Outgoing) -> Msg:
        """Send one message and return the response to it; the caller limits the time.

        Raises:
            DeniedError: The user has no right to the subject.
            nats.errors.Error: The message cannot be sent, or the connection ended.
        """
        self._count += 1
        name = str(self._count)
        waiting: asyncio.Future[Msg] = asyncio.get_running_loop().create_future()
        self._waiting[name] = message.subject, waiting
        try:
            await self.client.publish(
                message.subject, message.data, reply=f"{self._inbox}.{name}", headers=dict(message.headers)
            )
            return await waiting
        finally:
            self._waiting.pop(name, None)

    async def _acknowledged(self, message: Msg) -> None:
        _, waiting = self._waiting.get(message.subject.rpartition(".")[2], _NOBODY)
        if waiting is not None and not waiting.done():
            waiting.set_result(message)


def _size(message: Outgoing) -> int:
    """Return the bytes of a message as the server counts them (NATS ADR-4): a line for each header, and the body."""
    lines = (f"{name}: {value}\r\n" for name, value in message.headers.items())
    return len("NATS/1.0\r\n\r\n") + sum(len(line.encode()) for line in lines) + len(message.data)


def _error(acknowledgement: Msg, subject: str, *, quiet: bool) -> StatusError | None:
    """Return the error of a refused message, or None."""
    if acknowledgement.headers is not None and acknowledgement.headers.get("Status") == _NO_RESPONDERS:
        log.error("the event broker has no stream for %s", subject)
        return Unavailable("the event broker cannot store this event now")
    try:
        error = orjson.loads(acknowledgement.data).get("error")
    except orjson.JSONDecodeError:
        log.error("the event broker acknowledged an event for %s with no JSON: %.80r", subject, acknowledgement.data)  # noqa: TRY400 - the traceback says nothing more
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
