"""The broker, as a component sees it for its whole life: there, or away and coming back.

A start never fails because the broker is away, and nothing waits for it that does not need it. Each connection is a
``Link``; when one breaks, the next is made with a growing, jittered delay, and the streams are checked again: a broker
that lost its disk is filled with new ones, and what a dead server still owes is not waited for.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias
from urllib.parse import SplitResult, unquote, urlsplit

import nats.errors
from nats.aio.client import Client

from mesh.errors import StatusError, Unavailable
from mesh.events.broker import streams
from mesh.events.broker.connection import BATCH, Link, Outgoing, Stored
from mesh.events.broker.streams import Retention, StreamError
from mesh.events.cloudevents import Event

__all__ = ["Broker", "Settings", "away"]

log = logging.getLogger("mesh.events")

FIRST, LONGEST = 0.05, 5.0
"""Seconds between two tries to connect: at first, and at most."""
CONNECT = 5
"""Seconds that a connection, or one answer about streams, may take."""
GOODBYE = 1.0
"""Seconds that the end of a connection may take."""
GRACE = 2.0
"""Seconds that a publication waits for a broker that is away: one that was killed is back by then."""
FEW = 12
"""As many publications cost less one by one, all on their way at once: a batch costs the server 4 ms and more, each of
those 0.3 ms (measured with ``sync_interval: always``)."""
LOOK = 1.0
"""Seconds between two looks whether the client has closed without a word: nats-py 2.16 does, when what it had not sent
yet cannot be sent while it closes."""
HEARTBEAT = 10
"""Seconds between two pings; a peer that misses two of them is gone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How the broker is reached.

    Attributes:
        urls: ``nats://host:port`` or ``tls://host:port``, with user and password or a token in them, or without.
        user: Who this is, if no URL says so.
        password: Its proof.
        token: Instead of both.
        credentials: Path of a ``.creds`` file.
        nkey: Path of a file with an NKEY seed.
        ca: Path of the certificates to trust; ``""``: the system's.
        certificate: Path of this side's certificate.
        private_key: Path of its key.
        retention: What the streams keep.
    """

    urls: tuple[str, ...]
    user: str = ""
    password: str = field(default="", repr=False)
    token: str = field(default="", repr=False)
    credentials: str = ""
    nkey: str = ""
    ca: str = ""
    certificate: str = ""
    private_key: str = ""
    retention: Retention = field(default_factory=Retention)


def away() -> Unavailable:
    """Return the error for what needs the broker while it is away."""
    return Unavailable("the event broker cannot be reached", retry_after=1.0)


_Group: TypeAlias = list[tuple[Outgoing, asyncio.Future[None]]]
"""Messages, and what whoever publishes each of them waits for."""


class Broker:
    """The broker.

    Args:
        settings: Where it is.
        name: Who connects, as the broker's own tools show it.
    """

    def __init__(self, settings: Settings, name: str) -> None:
        self._settings = settings
        self._name = name
        self._link: Link | None = None
        self._there = asyncio.Event()
        self._keeping: asyncio.Task[None] | None = None
        self._queue: _Group = []
        self._sending: asyncio.Task[None] | None = None

    @property
    def link(self) -> Link | None:
        """The connection, with all streams there; None while there is none."""
        link = self._link
        return None if link is None or link.client.is_closed else link  # the client says so later than it knows

    @property
    def kept(self) -> float:
        """Seconds that events and changes are kept; 0: for ever."""
        return self._settings.retention.age

    async def ready(self) -> Link:
        """Wait for the broker, for ever if need be, and return the connection."""
        while (link := self.link) is None:
            self._there.clear()
            await self._there.wait()
        return link

    async def _within(self, seconds: float) -> Link | None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                return await self.ready()
        return None

    def start(self) -> None:
        """Begin to connect, on the running loop."""
        self._keeping = asyncio.get_running_loop().create_task(self._keep())

    async def stop(self) -> None:
        """Send what waits, and disconnect for good."""
        if self._sending is not None:
            await asyncio.wait([self._sending])
        while self._keeping is not None and not self._keeping.done():
            self._keeping.cancel()
            await asyncio.wait([self._keeping], timeout=0.1)  # the client swallows a cancellation here and there

    async def publish(self, event: Event) -> None:
        """Publish an event; returns when the broker has it on its disk.

        Raises:
            Unavailable: The broker is away for longer than a moment, or did not answer; then it may have the event all
                the same.
            ResourceExhausted: It is full.
            InvalidArgument: The event is larger than it takes.
        """
        await self.store(Outgoing(event.subject, event.to_headers(), event.data))

    async def store(self, message: Outgoing) -> None:
        """Store a message; those that come at the same time share a batch.

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
            except Exception:  # else all of them would wait for ever
                log.exception("%d publications failed", len(group))
                for _, done in group:
                    _settle(
                        done, Unavailable("the event could not be sent; whether the event broker has it is not known")
                    )

    async def _store(self, group: _Group) -> None:
        link, at = await self._within(GRACE), 0
        if link is not None and len(group) <= FEW:
            errors = await link.each([message for message, _ in group])
            for (_, done), error in zip(group, errors, strict=True):
                _settle(done, error)
            return
        while at < len(group):
            messages = [message for message, _ in group[at:]]
            stored = Stored(0, away()) if link is None else await link.store(messages)
            for _, done in group[at : at + stored.number]:
                _settle(done, None)
            at += stored.number
            if stored.error is not None:
                last = len(group) if isinstance(stored.error, Unavailable) else at + 1
                for _, done in group[at:last]:
                    _settle(done, stored.error)
                at = last

    # -- the connection --

    async def _keep(self) -> None:
        """Connect, for ever, each time the connection has ended."""
        failures = 0
        said = ""
        while True:
            url = self._settings.urls[failures % len(self._settings.urls)]
            try:
                async with self._connected(url) as link:
                    if failures:
                        log.info("the event broker is back")
                    failures, said = 0, ""
                    self._link = link
                    self._there.set()
                    while not link.closed.is_set():
                        with contextlib.suppress(TimeoutError):
                            await asyncio.wait_for(link.closed.wait(), LOOK)
                        if link.client.is_closed:
                            link.close()
                    log.warning("the event broker went away")
            except Exception as error:  # if this ended, the broker would be away for the life of the process
                reason = f"{_shown(urlsplit(url))}: {str(error) or type(error).__name__}"
                if reason != said:
                    expected = isinstance(error, (nats.errors.Error, OSError, TimeoutError, StreamError))
                    log.warning("the event broker cannot be used: %s", reason, exc_info=not expected)
                    said = reason
            finally:
                self._link = None
                self._there.clear()
            delay = min(FIRST * 2.0 ** min(failures, 16), LONGEST)
            failures += 1
            await asyncio.sleep(delay * random.uniform(0.5, 1.0))  # noqa: S311 - spreads load, guards nothing

    @contextlib.asynccontextmanager
    async def _connected(self, url: str) -> AsyncIterator[Link]:
        client = Client()
        link: Link | None = None

        async def closed() -> None:
            if link is not None:
                link.close()

        try:
            async with asyncio.timeout(2 * CONNECT):
                await client.connect(**self._options(url), closed_cb=closed)
                link = Link(client)
                await link.open()
                await streams.ensure(link.js, self._settings.retention)
            if client.is_closed:
                link.close()
            yield link
        finally:
            if link is not None:  # a client that is not connected has a transport at most, and fails to close
                link.close()
                with contextlib.suppress(TimeoutError):  # a TLS peer that says nothing any more is waited for, for ever
                    async with asyncio.timeout(GOODBYE):
                        await client.close()
            _let_go(client)

    def _options(self, url: str) -> dict[str, Any]:
        parts, settings = urlsplit(url), self._settings
        user = unquote(parts.username or "") or settings.user
        password = unquote(parts.password or "") or settings.password
        proof: dict[str, Any] = {}
        if user and password:
            proof = {"user": user, "password": password}
        elif user or settings.token:  # NATS: a URL with a user alone holds a token
            proof = {"token": user or settings.token}
        elif settings.credentials:
            proof = {"user_credentials": settings.credentials}
        elif settings.nkey:
            proof = {"nkeys_seed": settings.nkey}
        if parts.scheme == "tls" or settings.ca or settings.certificate:
            proof["tls"] = _tls(settings)
        return {
            "servers": [_shown(parts)],
            "name": self._name,
            "allow_reconnect": False,
            "max_reconnect_attempts": 1,
            "reconnect_time_wait": 0.05,
            "connect_timeout": CONNECT,
            "ping_interval": HEARTBEAT,
            "error_cb": _ignore,
            **proof,
        }


def _tls(settings: Settings) -> ssl.SSLContext:
    """Return how TLS is spoken.

    Raises:
        OSError: A file cannot be read; the text names those that are (those of ``ssl`` do not).
    """
    try:
        context = ssl.create_default_context(cafile=settings.ca or None)
        if settings.certificate:
            context.load_cert_chain(settings.certificate, settings.private_key)
    except OSError as error:
        files = ", ".join(filter(None, (settings.ca, settings.certificate, settings.private_key)))
        raise OSError(f"TLS with {files}: {error}") from None
    return context


def _let_go(client: Client) -> None:
    """Close what a client whose close failed leaves open, and hear why it failed; asyncio would complain of both."""
    if client._transport is not None:  # noqa: SLF001 - there is no public way
        client._transport.close()  # type: ignore[no-untyped-call]  # noqa: SLF001 - as above
    flusher = client._flusher_task  # noqa: SLF001 - as above
    if flusher is not None and flusher.done() and not flusher.cancelled():
        flusher.exception()


async def _ignore(_: Exception) -> None:
    """What breaks a connection ends it, and is said there."""


def _shown(parts: SplitResult) -> str:
    """Return the URL without user and password."""
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def _stream(message: Outgoing) -> str:
    return message.subject.partition(".")[0]


def _settle(done: asyncio.Future[None], error: StatusError | None) -> None:
    if done.done():  # whoever waited has gone
        return
    if error is None:
        done.set_result(None)
    else:
        done.set_exception(error)
