"""Pull subscription on one durable consumer: sends pull requests, receives messages and the statuses that end pulls.

Each pull has a reply subject of its own, so a status tells which pull it ends.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from mesh.events.broker import message as wire

if TYPE_CHECKING:
    from nats.aio.msg import Msg
    from nats.aio.subscription import Subscription

    from mesh.events.broker.message import Message
    from mesh.events.broker.nats_connection import NatsConnection

__all__ = ["TIMED_OUT", "WRONG_PIN", "PullSubscription"]

TIMED_OUT, WRONG_PIN = "408", "423"
"""Statuses that end a pull: its time is over; the consumer is pinned to another client."""

ReceiveMessage = Callable[["Message"], Awaitable[None]]
"""Called for each message."""
ReceiveStatus = Callable[[str, Mapping[str, str]], Awaitable[None]]
"""Called with the id of a pull and the headers of the status that ends it."""


class PullSubscription:
    """Pull subscription over one connection. It can be opened and closed any number of times.

    Its methods raise one of ``BROKER_ERRORS`` when the broker is away.

    Args:
        connection: The connection.
        stream: The stream.
        consumer: Name of the durable consumer.
        group: Priority group of the pulls.
        message: Called for each message.
        status: Called for each status that ends a pull.
    """

    def __init__(
        self,
        connection: NatsConnection,
        stream: str,
        consumer: str,
        group: str,
        message: ReceiveMessage,
        status: ReceiveStatus,
    ) -> None:
        self._client = connection.client
        self._inbox = self._client.new_inbox()
        self._next = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}"
        self._group = group
        self._message = message
        self._status = status
        self._number = 0
        self._subscription: Subscription | None = None

    @property
    def is_open(self) -> bool:
        """Whether messages are received."""
        return self._subscription is not None

    async def open(self) -> None:
        """Subscribe to the reply subjects of all pulls."""
        self._subscription = await self._client.subscribe(f"{self._inbox}.*", cb=self._receive)

    async def close(self, timeout: float) -> None:  # noqa: ASYNC109 - the wait is part of what is done
        """Unsubscribe and wait, at most this many seconds, until messages received before are handled."""
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            await asyncio.wait_for(subscription.drain(), timeout)  # type: ignore[no-untyped-call]

    def next_pull(self) -> str:
        """Return the id of a new pull, for ``pull``."""
        self._number += 1
        return f"{self._inbox}.{self._number}"

    async def pull(self, id: str, batch: int, wait: float, pin: str) -> None:  # noqa: A002 - the noun
        """Request messages.

        Args:
            id: The id of the pull.
            batch: Messages at most.
            wait: Seconds after which the broker ends the pull.
            pin: Id of the pin under which this client reads, or "".
        """
        body: dict[str, Any] = {"batch": batch, "expires": int(wait * 1e9), "group": self._group}
        if pin:
            body["id"] = pin
        await self._client.publish(self._next, json.dumps(body).encode(), id)

    async def _receive(self, found: Msg) -> None:
        if found.reply:
            await self._message(wire.read(found))
        else:
            await self._status(found.subject, found.headers or {})
