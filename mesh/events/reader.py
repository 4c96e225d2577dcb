"""Reads one consumer: pulls, keeps the pin, answers. What to do with an event is decided by ``mesh.events.ordering``.

Two pulls are on their way at any time, so the broker never waits for one. While the partition is pinned here they end
after ``KEEP`` seconds, because each new one keeps the pin; else they wait long. Each has a reply subject of its own, so
a status tells which pull it ends.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nats import errors
from nats.js.errors import Error as JetStreamError

from mesh.events import message as wire
from mesh.events.consumers import ACK_WAIT, GROUP, PENDING, PINNED, Consumer, request
from mesh.events.message import Message
from mesh.events.ordering import Action, Again, Begin, GiveBack, Held, Lane, State
from mesh.events.outcome import Decision, Retry

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.aio.msg import Msg
    from nats.aio.subscription import Subscription

__all__ = ["BROKER_AWAY", "Deliver", "Reader"]

log = logging.getLogger("mesh.events")

BROKER_AWAY = (errors.Error, JetStreamError, OSError, TimeoutError)
"""What the client library raises when the broker cannot be reached or does not answer."""
BATCH = PENDING // 2
"""Messages that one pull asks for."""
KEEP = PINNED / 3
"""Seconds that a pull waits while the partition is pinned here."""
LONG = 20.0
"""Seconds that a pull waits while it is not."""
LATE = 1.0
"""Seconds after its end at which a pull that nobody ended counts as lost."""
PROGRESS = ACK_WAIT / 3
"""Seconds between two signs that an event is still held."""
SETTLE = 0.2
"""Seconds between two questions whether a partition has settled."""
PAUSE = 1.0
"""Seconds before the next pull after the broker refused one."""
_TIMEOUT, _WRONG_PIN = "408", "423"

Deliver = Callable[[Consumer, Message, Held], Awaitable[Decision]]
"""Calls the function for a message of a consumer and says what becomes of it; dead letters are kept before it says ``Dead``."""


@dataclass(slots=True)
class _Pull:
    left: int
    pin: str
    until: float


class Reader:
    """Reads one consumer.

    Args:
        client: The connection.
        consumer: Which one; it exists.
        deliver: Calls the function.
        missing: Called when the broker says that the consumer is gone.
    """

    def __init__(
        self, client: Client, consumer: Consumer, deliver: Deliver, missing: Callable[[Consumer], None]
    ) -> None:
        self.consumer = consumer
        self.lane = Lane()
        self.pending = 0
        self._client = client
        self._deliver = deliver
        self._missing = missing
        self._loop = asyncio.get_running_loop()
        self._pulls: dict[str, _Pull] = {}
        self._number = 0
        self._paused = 0.0
        self._inbox = client.new_inbox()
        self._subscription: Subscription | None = None
        self._messages: dict[int, Message] = {}
        self._running: dict[int, asyncio.Task[None]] = {}
        self._timers: dict[int, asyncio.TimerHandle] = {}
        self._settling: asyncio.Task[None] | None = None
        self._progress = 0.0
        self._connection = 0
        self._next = f"$JS.API.CONSUMER.MSG.NEXT.{consumer.stream}.{consumer.name}"

    @property
    def wanting(self) -> bool:
        """Whether it reads."""
        return self._subscription is not None

    async def tick(self, now: float, *, mine: bool) -> None:
        """Do what is due; to be called about twice a second.

        Args:
            now: The loop's time.
            mine: This replica should have the partition.
        """
        if mine and not self.wanting:
            self._subscription = await self._client.subscribe(f"{self._inbox}.*", cb=self._take)
        elif not mine and self.wanting:
            await self.release()
        if now >= self._progress:
            self._progress = now + PROGRESS
            for held in list(self.lane.held.values()):
                await self._answer(held.token, wire.PROGRESS)
        connection = self._client.stats["reconnects"]
        if connection != self._connection:  # pulls are of a connection
            self._connection = connection
            self._pulls.clear()
        for name in [name for name, pull in self._pulls.items() if now > pull.until + LATE]:
            del self._pulls[name]
        await self._pull(now)

    async def release(self) -> None:
        """Stop reading; give back what has not begun, and the pin. What runs goes on."""
        subscription, self._subscription = self._subscription, None
        if subscription is None:
            return
        self._pulls.clear()
        pinned = bool(self.lane.pin)
        try:
            await subscription.unsubscribe()
        except BROKER_AWAY:
            log.debug("%s: the broker is away", self.consumer.name)
        await self._lose()
        if pinned:
            try:
                body = json.dumps({"group": GROUP}).encode()
                await self._client.publish(
                    f"$JS.API.CONSUMER.UNPIN.{self.consumer.stream}.{self.consumer.name}", body, self._inbox
                )
            except BROKER_AWAY:
                log.debug("%s: the broker is away", self.consumer.name)

    async def finish(self, until: float) -> None:
        """Wait for what runs; at ``until`` (the loop's time) cancel it and give it back."""
        if self._running:
            await asyncio.wait(self._running.values(), timeout=max(0.0, until - self._loop.time()))
        tasks = list(self._running.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        if self._settling is not None:
            self._settling.cancel()

    # -- pulls --

    async def _pull(self, now: float) -> None:
        """Ask for more, unless enough has been asked for."""
        if not self.wanting or now < self._paused or not self._client.is_connected:
            return
        while len(self._pulls) < 2 or sum(pull.left for pull in self._pulls.values()) < BATCH // 2:  # noqa: PLR2004
            pin = self.lane.pin
            wait = KEEP if pin else LONG
            self._number += 1
            name = f"{self._inbox}.{self._number}"
            self._pulls[name] = _Pull(BATCH, pin, now + wait)
            body: dict[str, Any] = {"batch": BATCH, "expires": int(wait * 1e9), "group": GROUP}
            if pin:
                body["id"] = pin
            try:
                await self._client.publish(self._next, json.dumps(body).encode(), name)
            except BROKER_AWAY:
                self._pulls.pop(name, None)
                return

    async def _take(self, found: Msg) -> None:
        """Take a message, or a status that ends a pull."""
        if not found.reply:
            await self._ended(found.subject, found.headers or {})
            return
        message = wire.read(found)
        self.pending = message.pending
        if not self.wanting:
            await self._answer(message.reply, wire.NAK)
            return
        for name, pull in self._pulls.items():
            pull.left -= 1
            if not pull.left:
                del self._pulls[name]
            break
        if self.lane.pin != message.pin:  # the pulls that wait without the pin would not keep it
            self._pulls.clear()
        key = message.subject.rpartition(".")[2]
        held = Held(
            message.sequence, str(message.sequence) if key == "_" else key, message.reply, message.deliveries,
            tries=message.deliveries - 1,
        )  # fmt: skip
        actions = self.lane.arrived(held, message.pin)
        if message.sequence in self.lane.held:
            self._messages[message.sequence] = message
        await self._act(actions)
        if self.lane.state is State.SETTLING and (self._settling is None or self._settling.done()):
            self._settling = self._loop.create_task(self._settle())
        await self._pull(self._loop.time())

    async def _ended(self, name: str, headers: Any) -> None:
        pull = self._pulls.pop(name, None)
        status = headers.get("Status", "")
        if status == _WRONG_PIN:
            if pull is not None and pull.pin and pull.pin == self.lane.pin:
                log.info("%s: the partition is another replica's now", self.consumer.name)
                await self._lose()
        elif status != _TIMEOUT:
            described = headers.get("Description", "")
            self._paused = self._loop.time() + PAUSE
            if status == "503" or described == "Consumer Deleted":
                await self._lose()
                self._missing(self.consumer)
            else:
                log.debug("%s: %s %s", self.consumer.name, status, described)
        if pull is not None:
            await self._pull(self._loop.time())

    async def _settle(self) -> None:
        """Ask until all that is pending is held."""
        subject = f"CONSUMER.INFO.{self.consumer.stream}.{self.consumer.name}"
        while self.lane.state is State.SETTLING:
            changes = self.lane.changes
            try:
                pending = (await request(self._client, subject)).get("num_ack_pending", -1)
            except BROKER_AWAY:
                pending = -1
            await self._act(self.lane.settled(pending, changes))
            if self.lane.state is State.SETTLING and changes == self.lane.changes:
                await asyncio.sleep(SETTLE)

    async def _lose(self) -> None:
        await self._act(self.lane.lost())

    # -- what the lane says --

    async def _act(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Begin(held):
                    self._running[held.sequence] = self._loop.create_task(self._run(held))
                case GiveBack(held):
                    self._forget(held)
                    await self._answer(held.token, wire.NAK)
                case Again(token):
                    await self._answer(token, wire.ACK)

    async def _run(self, held: Held) -> None:
        """Call the function for an event, and answer the broker."""
        try:
            decision = await self._deliver(self.consumer, self._messages[held.sequence], held)
        except asyncio.CancelledError:
            self._running.pop(held.sequence, None)
            self._forget(held)
            self.lane.given_back(held)
            await self._answer(held.token, wire.NAK)
            raise
        self._running.pop(held.sequence, None)
        if isinstance(decision, Retry):
            await self._act(self.lane.resting(held))
            if held.rests:
                self._timers[held.sequence] = self._loop.call_later(decision.after, self._rested, held)
            return
        self._forget(held)
        await self._answer(held.token, wire.ACK)
        await self._act(self.lane.done(held))

    def _rested(self, held: Held) -> None:
        self._timers.pop(held.sequence, None)
        for action in self.lane.rested(held):
            if isinstance(action, Begin):
                self._running[held.sequence] = self._loop.create_task(self._run(action.held))

    def _forget(self, held: Held) -> None:
        self._messages.pop(held.sequence, None)
        timer = self._timers.pop(held.sequence, None)
        if timer is not None:
            timer.cancel()

    async def _answer(self, reply: str, what: bytes) -> None:
        """Answer the broker; one that is away delivers again by itself."""
        try:
            await self._client.publish(reply, what)
        except BROKER_AWAY:
            log.debug("%s: the broker is away", self.consumer.name)
