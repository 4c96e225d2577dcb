"""Pulls messages of one consumer and acknowledges them; ``mesh.events.consume.ordering`` decides about each.

A reader outlives connections: it is attached to each in turn, and answers on the latest.

Two pulls are on their way at any time, so the broker never waits for one. While the partition is pinned here they end
after ``KEEP`` seconds, because each new one keeps the pin; else they wait long. Each has a reply subject of its own, so
a status tells which pull it ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Awaitable, Callable
from contextvars import copy_context
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nats import errors
from nats.js.errors import Error as JetStreamError

from mesh.boundary import as_exception, cancel_task
from mesh.events.broker import message as wire
from mesh.events.broker.message import Message
from mesh.events.consume.consumers import ACK_WAIT, GROUP, PENDING, PINNED, Consumer, request
from mesh.events.consume.ordering import Action, Again, Begin, GiveBack, Held, Lane, State
from mesh.events.consume.outcome import Decision, Retry

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
HANDOVER = 2.0
"""Seconds that a stop asks a broker to take back a partition; one that hangs does so by itself when the pin ends."""
PAUSE = 1.0
"""Seconds before the next pull after the broker refused one."""
FAILED = 5.0
"""Seconds before an event is tried again whose delivery failed in a way that nobody thought of."""
ASKED = 3
"""How often a function that does not end is cancelled, a second apart, before its event is left to the broker."""
_TIMEOUT, _WRONG_PIN = "408", "423"

Deliver = Callable[[Consumer, Message, Held], Awaitable[Decision]]
"""Calls the function for a message and says what becomes of it; a dead letter is kept before it says ``Dead``."""


@dataclass(slots=True)
class _Pull:
    left: int
    pin: str
    until: float


class Reader:
    """Reads one consumer.

    Args:
        consumer: Which one.
        deliver: Calls the function.
        missing: Called when the broker says that the consumer is gone.

    Attributes:
        lane: What is held.
        pending: Events that the broker has not sent yet.
    """

    def __init__(self, consumer: Consumer, deliver: Deliver, missing: Callable[[Consumer], None]) -> None:
        self.consumer = consumer
        self.lane = Lane(ordered=consumer.ordered)
        self.pending = 0
        self._client: Client | None = None
        self._deliver = deliver
        self._missing = missing
        self._loop = asyncio.get_running_loop()
        # An event is often begun as another one ends, in the task of that; its context must not be inherited.
        self._context = copy_context()
        self._pulls: dict[str, _Pull] = {}
        self._number = 0
        self._paused = 0.0
        self._inbox = ""
        self._subscription: Subscription | None = None
        self._running: dict[Held, asyncio.Task[None]] = {}
        self._created = ""
        self._settling: asyncio.Task[None] | None = None
        self._progress = 0.0
        self._next = f"$JS.API.CONSUMER.MSG.NEXT.{consumer.stream}.{consumer.name}"

    @property
    def wanting(self) -> bool:
        """Whether it reads."""
        return self._subscription is not None

    def reads(self, created: str) -> bool:
        """Read the consumer that was made at that time; True if it is another one than before."""
        other = self._created not in ("", created)
        if other:
            self.lane.anew()
        self._created = created
        return other

    def attach(self, client: Client) -> None:
        """Read on this connection; the consumer exists."""
        self._client = client
        self._inbox = client.new_inbox()

    def detach(self) -> None:
        """The connection is no more. What runs goes on; nothing is begun until another one is there."""
        self._client = self._subscription = None
        self._pulls.clear()
        self.lane.suspend()

    async def tick(self, now: float, *, mine: bool) -> None:
        """Do what is due; to be called about twice a second.

        Args:
            now: The loop's time.
            mine: This replica should have the partition.
        """
        if self._client is None:
            return
        if mine and not self.wanting:
            self._subscription = await self._client.subscribe(f"{self._inbox}.*", cb=self._take)
        elif not mine and self.wanting:
            await self.release()
        if now >= self._progress:
            self._progress = now + PROGRESS
            for held in list(self.lane.held.values()):
                await self._answer(held.token, wire.PROGRESS)
        for name in [name for name, pull in self._pulls.items() if now > pull.until + LATE]:
            del self._pulls[name]
        if self.lane.state is State.SETTLING and (self._settling is None or self._settling.done()):
            self._settling = self._loop.create_task(self._settle())
        await self._pull(now)

    async def release(self) -> None:
        """Stop reading; give back what has not begun, and the pin. What runs goes on."""
        subscription, self._subscription = self._subscription, None
        client, pinned = self._client, bool(self.lane.pin)
        self._pulls.clear()
        if client is not None and subscription is not None:
            # Until the broker knows that nobody listens it could pin the partition to a pull of ours; and what is on
            # its way meanwhile is given back by `_take`.
            with contextlib.suppress(*BROKER_AWAY):
                await asyncio.wait_for(subscription.drain(), PAUSE)  # type: ignore[no-untyped-call]
        await self._act(self.lane.lost())
        if client is not None and pinned:
            name = f"{self.consumer.stream}.{self.consumer.name}"
            with contextlib.suppress(*BROKER_AWAY):
                async with asyncio.timeout(HANDOVER):
                    # The question makes the broker forget pulls that nobody listens for. Else it may pin the partition
                    # to one of those, and the next owner waits until that is over (seen with nats-server 2.15.1).
                    await request(client, f"CONSUMER.INFO.{name}")
                    await request(client, f"CONSUMER.UNPIN.{name}", {"group": GROUP})

    async def finish(self, until: float) -> None:
        """Wait for what runs; at ``until`` (the loop's time) cancel it and give it back."""
        if self._running:
            await asyncio.wait(self._running.values(), timeout=max(0.0, until - self._loop.time()))
        for _ in range(ASKED):
            if not self._running:
                break
            for task in self._running.values():
                cancel_task(task)
            await asyncio.wait(self._running.values(), timeout=PAUSE)
        if self._settling is not None:
            self._settling.cancel()

    # -- pulls --

    async def _pull(self, now: float) -> None:
        """Ask for more, unless enough has been asked for."""
        client = self._client
        if client is None or not self.wanting or now < self._paused:
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
                await client.publish(self._next, json.dumps(body).encode(), name)
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
            await self._answer(message, wire.NAK)
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
            message.sequence, str(message.sequence) if key == "_" else key, message.time, message,
            message.deliveries, known=message.deliveries == 1,
        )  # fmt: skip
        await self._act(self.lane.arrived(held, message.pin))
        if self.lane.state is State.SETTLING and (self._settling is None or self._settling.done()):
            self._settling = self._loop.create_task(self._settle())
        await self._pull(self._loop.time())

    async def _ended(self, name: str, headers: Any) -> None:
        pull = self._pulls.pop(name, None)
        status = headers.get("Status", "")
        if status == _WRONG_PIN:
            if pull is not None and pull.pin and pull.pin == self.lane.pin:
                log.info("%s: the partition is another replica's now", self.consumer.name)
                await self._act(self.lane.lost())
        elif status != _TIMEOUT:
            described = headers.get("Description", "")
            self._paused = self._loop.time() + PAUSE
            if status == "503" or described == "Consumer Deleted":
                if status == "503":  # or there is no JetStream for a moment
                    await self._act(self.lane.lost())
                else:
                    self._created = ""
                    self.lane.anew()
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
                if self._client is None:
                    return
                info = await request(self._client, subject)
            except BROKER_AWAY:
                return
            pin = next((group.get("pinned_client_id", "") for group in info.get("priority_groups") or ()), "")
            floor = info.get("ack_floor", {}).get("stream_seq", 0)
            await self._act(self.lane.settled(pin, info.get("num_ack_pending", -1), floor, changes))
            if self.lane.state is State.SETTLING and changes == self.lane.changes:
                await asyncio.sleep(SETTLE)

    # -- what the lane says --

    async def _act(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Begin(held):
                    self._begin(held)
                case GiveBack(held):
                    await self._answer(held.token, wire.NAK)
                case Again(token):
                    await self._answer(token, wire.ACK)

    def _begin(self, held: Held) -> None:
        self._running[held] = self._loop.create_task(self._run(held, held.token), context=self._context.copy())

    async def _run(self, held: Held, message: Message) -> None:
        """Call the function for an event, and answer the broker."""
        try:
            decision = await self._decide(message, held)
        except asyncio.CancelledError:  # asked for by ``finish``
            self._running.pop(held, None)
            self.lane.given_back(held)
            await self._answer(held.token, wire.NAK)
            raise
        self._running.pop(held, None)
        if isinstance(decision, Retry):
            await self._act(self.lane.resting(held))
            if held.rests:
                self._loop.call_later(decision.after, self._rested, held)
            return
        await self._answer(held.token, wire.ACK)
        await self._act(self.lane.done(held))

    async def _decide(self, message: Message, held: Held) -> Decision:
        """Return what becomes of an event; a delivery that fails in a way that nobody thought of is made again.

        Else it would run for ever, and its key be held as long.

        Raises:
            asyncio.CancelledError: It is given back.
        """
        try:
            return await self._deliver(self.consumer, message, held)
        except BaseException as raised:
            error = await as_exception(raised)
            log.exception("%s: the delivery of %d failed", self.consumer.name, held.sequence, exc_info=error)
            return Retry(FAILED)

    def _rested(self, held: Held) -> None:
        for action in self.lane.rested(held):
            if isinstance(action, Begin):
                self._begin(action.held)

    async def _answer(self, message: Message | None, what: bytes) -> None:
        """Answer the broker, if it waits for it; one that is away delivers again by itself."""
        if self._client is not None and message is not None:
            with contextlib.suppress(*BROKER_AWAY):
                await self._client.publish(message.reply, what)
                if what is wire.ACK and self.consumer.passing(message.subject):
                    deletion = json.dumps({"seq": message.sequence, "no_erase": True}).encode()
                    await self._client.publish(f"$JS.API.STREAM.MSG.DELETE.{self.consumer.stream}", deletion)
