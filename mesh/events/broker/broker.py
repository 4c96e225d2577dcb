"""Broker client of a component: keeps one connection to NATS, reconnects with backoff, and stores messages durably.

A component starts whether the broker is reachable or not, and only callers that need the broker wait for it. When a
``NatsConnection`` breaks, the next one is opened after a growing, jittered delay. The streams are checked each time, so
a broker that lost its disk gets new ones. Acknowledgements that a dead server still owes are not waited for.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import SplitResult, unquote, urlsplit

import nats.errors
from nats.aio.client import Client

from mesh.errors import StatusError, Unavailable
from mesh.events.broker import streams
from mesh.events.broker.nats_client import NatsClient
from mesh.events.broker.nats_connection import BATCH, NatsConnection, Outgoing, Stored
from mesh.events.broker.streams import Retention, StreamError
from mesh.events.cloudevents import Event

if TYPE_CHECKING:
    from mesh.events.signatures import EventSigner

__all__ = ["Broker", "Settings", "away", "inbox_of"]

log = logging.getLogger("mesh.events")

MIN_RECONNECT_DELAY, MAX_RECONNECT_DELAY = 0.05, 5.0
"""Seconds between two attempts to connect."""
CONNECT_TIMEOUT = 5
"""Seconds for one connection attempt, and for each response about streams."""
CLOSE_TIMEOUT = 1.0
"""Seconds that closing a connection may take."""
RECONNECT_TIMEOUT = 2.0
"""Seconds that a publication waits for a broker that is away. A broker that was killed is back by then."""
MAX_SINGLE = 12
"""Publications up to which single messages, all in flight together, cost less than a batch: a batch costs the server
4 ms and more, each of those 0.3 ms (measured with ``sync_interval: always``)."""
CLOSED_CHECK_INTERVAL = 1.0
"""Seconds between two checks for a client that closed without calling back. nats-py 2.16 does so when it cannot send
its buffered data while it closes."""
PING_INTERVAL = 10
"""Seconds between two pings. A peer that misses two of them counts as gone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Connection settings of the broker.

    Attributes:
        urls: ``nats://host:port`` or ``tls://host:port``, with user and password or a token in them, or without.
        user: User name, if no URL has one.
        password: Its password.
        token: Token instead of both.
        credentials: Path of a ``.creds`` file.
        nkey: Path of a file with an NKEY seed.
        inbox: Prefix of the subjects on which responses arrive.
        ca: Path of the trusted CA certificates; ``""``: the system's.
        certificate: Path of the client certificate.
        private_key: Path of its private key.
        retention: Retention of the streams.
    """

    urls: tuple[str, ...]
    user: str = ""
    password: str = field(default="", repr=False)
    token: str = field(default="", repr=False)
    credentials: str = ""
    nkey: str = ""
    inbox: str = "_INBOX"
    ca: str = ""
    certificate: str = ""
    private_key: str = ""
    retention: Retention = field(default_factory=Retention)


def inbox_of(name: str) -> str:
    """Return the prefix of a component's responses. Other components may not subscribe to it."""
    return f"_INBOX.{name}"


def away() -> Unavailable:
    """Return the error of an operation that needs the broker while it is away."""
    return Unavailable("the event broker cannot be reached", retry_after=1.0)


_Group: TypeAlias = list[tuple[Outgoing, asyncio.Future[None]]]
"""Messages, each with the future that its publisher awaits."""


class Broker:
    """Client of the broker.

    Args:
        settings: Connection settings.
        name: Client name that the broker's own tools show.
        signer: Signs the events that it publishes; None for a component that publishes none.
    """

    def __init__(self, settings: Settings, name: str, signer: EventSigner | None = None) -> None:
        self._signer = signer
        self._settings = settings
        self._name = name
        self._connection: NatsConnection | None = None
        self._connected = asyncio.Event()
        self._reconnecting: asyncio.Task[None] | None = None
        self._queue: _Group = []
        self._sending: asyncio.Task[None] | None = None

    @property
    def connection(self) -> NatsConnection | None:
        """The connection, with all streams made; None while the broker is away."""
        connection = self._connection
        # The client calls back later than it knows of its end.
        return None if connection is None or connection.client.is_closed else connection

    @property
    def kept(self) -> float:
        """Seconds that events and changes are kept; 0: without limit."""
        return self._settings.retention.age

    async def ready(self) -> NatsConnection:
        """Wait for the broker, without a time limit, and return the connection."""
        while (connection := self.connection) is None:
            self._connected.clear()
            await self._connected.wait()
        return connection

    async def _ready_within(self, seconds: float) -> NatsConnection | None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                return await self.ready()
        return None

    def start(self) -> None:
        """Start to connect, on the running loop."""
        self._reconnecting = asyncio.get_running_loop().create_task(self._reconnect())

    async def make_streams(self) -> None:
        """Connect once, make or update the streams, and disconnect.

        Raises:
            StreamError: The server refuses a stream.
            nats.errors.Error: The server cannot be used.
            OSError: The server cannot be reached.
            TimeoutError: The server does not respond.
        """
        async with self._connect(self._settings.urls[0]):
            return

    async def stop(self) -> None:
        """Send the queued messages, and disconnect for good."""
        if self._sending is not None:
            await asyncio.wait([self._sending])
        while self._reconnecting is not None and not self._reconnecting.done():
            self._reconnecting.cancel()
            await asyncio.wait([self._reconnecting], timeout=0.1)  # the client swallows some cancellations

    async def publish(self, event: Event) -> None:
        """Publish an event; returns when the broker has it on its disk.

        Raises:
            Unavailable: The broker is away for longer than ``RECONNECT_TIMEOUT``, or did not respond; then it may have
                the event nevertheless.
            ResourceExhausted: The broker is full.
            InvalidArgument: The event is larger than the broker takes.
        """
        await self.store(Outgoing(event.subject, event.to_headers(), event.data))

    async def store(self, message: Outgoing) -> None:
        """Store a message; concurrent messages share a batch.

        Raises:
            StatusError: As for ``publish``.
        """
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        self._queue.append((message, done))
        if self._sending is None or self._sending.done():
            self._sending = loop.create_task(self._send())
        await done

    async def _send(self) -> None:
        while self._queue:
            stream = _stream(self._queue[0][0])
            group = [one for one in self._queue[:BATCH] if _stream(one[0]) == stream]
            taken = set(map(id, group))
            self._queue = [one for one in self._queue if id(one) not in taken]
            try:
                await self._store(group)
            except Exception:  # else all of their publishers would wait for ever
                log.exception("%d publications failed", len(group))
                for _, done in group:
                    _settle(
                        done, Unavailable("the event could not be sent; whether the event broker has it is not known")
                    )

    async def _store(self, group: _Group) -> None:
        connection, at = await self._ready_within(RECONNECT_TIMEOUT), 0
        if connection is not None and len(group) <= MAX_SINGLE:
            errors = await connection.each([message for message, _ in group])
            for (_, done), error in zip(group, errors, strict=True):
                _settle(done, error)
            return
        while at < len(group):
            messages = [message for message, _ in group[at:]]
            stored = Stored(0, away()) if connection is None else await connection.store(messages)
            for _, done in group[at : at + stored.number]:
                _settle(done, None)
            at += stored.number
            if stored.error is not None:
                last = len(group) if isinstance(stored.error, Unavailable) else at + 1
                for _, done in group[at:last]:
                    _settle(done, stored.error)
                at = last

    # -- the connection --

    async def _reconnect(self) -> None:
        """Connect again each time the connection has ended; runs until it is cancelled."""
        failures = 0
        logged = ""
        while True:
            url = self._settings.urls[failures % len(self._settings.urls)]
            try:
                async with self._connect(url) as connection:
                    if failures:
                        log.info("the event broker is back")
                    failures, logged = 0, ""
                    self._connection = connection
                    self._connected.set()
                    while not connection.closed.is_set():
                        with contextlib.suppress(TimeoutError):
                            await asyncio.wait_for(connection.closed.wait(), CLOSED_CHECK_INTERVAL)
                        if connection.client.is_closed:
                            connection.close()
                    log.warning("the event broker went away")
            except Exception as error:  # the end of this task would cut off the process for its whole life
                reason = f"{_shown(urlsplit(url))}: {str(error) or type(error).__name__}"
                if reason != logged:
                    expected = isinstance(error, (nats.errors.Error, OSError, TimeoutError, StreamError))
                    log.warning("the event broker cannot be used: %s", reason, exc_info=not expected)
                    logged = reason
            finally:
                self._connection = None
                self._connected.clear()
            delay = min(MIN_RECONNECT_DELAY * 2.0 ** min(failures, 16), MAX_RECONNECT_DELAY)
            failures += 1
            await asyncio.sleep(delay * random.uniform(0.5, 1.0))  # noqa: S311 - spreads load, guards nothing

    @contextlib.asynccontextmanager
    async def _connect(self, url: str) -> AsyncIterator[NatsConnection]:
        client = NatsClient()
        connection: NatsConnection | None = None

        async def closed() -> None:
            if connection is not None:
                connection.close()

        async def failed(error: Exception) -> None:
            if connection is not None:  # else ``connect`` raises it
                connection.server_error(error)

        try:
            async with asyncio.timeout(2 * CONNECT_TIMEOUT):
                await client.connect(**self._options(url), closed_cb=closed, error_cb=failed)
                _mark_tls(client)
                connection = NatsConnection(client, self._signer)
                await connection.open()
                await streams.ensure(connection, self._settings.retention)
            if client.is_closed:
                connection.close()
            yield connection
        finally:
            if connection is not None:  # a client that is not connected has a transport at most, and fails to close
                connection.close()
                with contextlib.suppress(TimeoutError):  # the client waits without limit for a silent TLS peer
                    async with asyncio.timeout(CLOSE_TIMEOUT):
                        await client.close()
            _release(client)

    def _options(self, url: str) -> dict[str, Any]:
        parts, settings = urlsplit(url), self._settings
        user = unquote(parts.username or "") or settings.user
        password = unquote(parts.password or "") or settings.password
        credentials: dict[str, Any] = {}
        if user and password:
            credentials = {"user": user, "password": password}
        elif user or settings.token:  # NATS: a URL with a user alone holds a token
            credentials = {"token": user or settings.token}
        elif settings.credentials:
            credentials = {"user_credentials": settings.credentials}
        elif settings.nkey:
            credentials = {"nkeys_seed": settings.nkey}
        if parts.scheme == "tls" or settings.ca or settings.certificate:
            credentials["tls"] = _tls(settings)
        return {
            "servers": [_shown(parts)],
            "name": self._name,
            "allow_reconnect": False,
            "max_reconnect_attempts": 1,
            "reconnect_time_wait": 0.05,
            "connect_timeout": CONNECT_TIMEOUT,
            "ping_interval": PING_INTERVAL,
            "inbox_prefix": settings.inbox,
            **credentials,
        }


def _tls(settings: Settings) -> ssl.SSLContext:
    """Return the TLS context.

    Raises:
        OSError: A file cannot be read. The text names the files; the errors of ``ssl`` do not.
    """
    try:
        context = ssl.create_default_context(cafile=settings.ca or None)
        if settings.certificate:
            context.load_cert_chain(settings.certificate, settings.private_key)
    except OSError as error:
        files = ", ".join(filter(None, (settings.ca, settings.certificate, settings.private_key)))
        raise OSError(f"TLS with {files}: {error}") from None
    return context


def _mark_tls(client: Client) -> None:
    """Tell asyncio's protocol that it is above TLS, which the client does not; asyncio warns at each end otherwise."""
    writer = getattr(client._transport, "_io_writer", None)  # noqa: SLF001 - no public access
    if writer is not None and writer.get_extra_info("ssl_object") is not None:
        protocol = writer.transport.get_protocol()
        if hasattr(protocol, "_over_ssl"):
            protocol._over_ssl = True  # noqa: SLF001 - as above


def _release(client: Client) -> None:
    """Close the transport of a client whose close failed, and read the error of its task.

    asyncio would warn of both otherwise.
    """
    if client._transport is not None:  # noqa: SLF001 - no public access
        client._transport.close()  # type: ignore[no-untyped-call]  # noqa: SLF001 - as above
    flusher = client._flusher_task  # noqa: SLF001 - as above
    if flusher is not None and flusher.done() and not flusher.cancelled():
        flusher.exception()


def _shown(parts: SplitResult) -> str:
    """Return the URL without user and password."""
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def _stream(message: Outgoing) -> str:
    return message.subject.partition(".")[0]


def _settle(done: asyncio.Future[None], error: StatusError | None) -> None:
    if done.done():  # the publisher was cancelled
        return
    if error is None:
        done.set_result(None)
    else:
        done.set_exception(error)
