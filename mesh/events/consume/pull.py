"""Consumer reader: pulls the messages of one consumer and acknowledges them. ``ordering`` decides about each event.

A reader outlives connections. It is attached to each connection in turn, and acknowledges over the latest one.

Two pulls are open at any time, so the broker never waits for one. While the partition is pinned to this replica they
end after ``PINNED_PULL_TIMEOUT``, because each new pull keeps the pin. Otherwise they wait for longer.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextvars import copy_context
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mesh.boundary import as_exception, cancel_task
from mesh.events.broker import message as wire
from mesh.events.broker.message import Message
from mesh.events.broker.nats_connection import BROKER_ERRORS
from mesh.events.broker.pull_subscription import TIMED_OUT, WRONG_PIN, PullSubscription
from mesh.events.consume.consumers import ACK_WAIT_SECONDS, MAX_ACK_PENDING, PIN_TIMEOUT, PRIORITY_GROUP, Consumer
from mesh.events.consume.ordering import (
    AcknowledgeAgain,
    Action,
    HeldEvent,
    Partition,
    PartitionState,
    ReturnToBroker,
    Start,
)
from mesh.events.consume.outcome import Decision, Retry

if TYPE_CHECKING:
    from mesh.events.broker.nats_connection import NatsConnection

__all__ = ["ConsumerReader", "Deliver"]

log = logging.getLogger("mesh.events")

BATCH = MAX_ACK_PENDING // 2
"""Messages of one pull."""
PINNED_PULL_TIMEOUT = PIN_TIMEOUT / 3
"""Seconds that a pull waits while the partition is pinned to this replica."""
UNPINNED_PULL_TIMEOUT = 20.0
"""Seconds that a pull waits while it is not."""
LOST_PULL_DELAY = 1.0
"""Seconds after the end of a pull at which it counts as lost if no status ended it."""
PROGRESS_INTERVAL = ACK_WAIT_SECONDS / 3
"""Seconds between two signals that an event is still held."""
SETTLE_INTERVAL = 0.2
"""Seconds between two requests for the state of a settling partition."""
HANDOVER_TIMEOUT = 2.0
"""Seconds that a shutdown asks a broker to unpin a partition. The pin of a broker that hangs ends by itself."""
PAUSE_DELAY = 1.0
"""Seconds before the next pull after the broker refused one."""
CLOSE_TIMEOUT = 1.0
"""Seconds for handling messages that arrive while a subscription closes."""
FAILURE_RETRY_DELAY = 5.0
"""Seconds before the retry of an event whose delivery failed unexpectedly."""
CANCEL_INTERVAL = 1.0
"""Seconds between two cancellations of a function that does not end."""
CANCELLATIONS = 3
"""Number of times that a function that does not end is cancelled before its event is left to the broker."""

Deliver = Callable[[Consumer, Message, HeldEvent], Awaitable[Decision]]
"""Calls the function for a message and returns the decision. A dead letter is stored before ``GiveUp``."""


@dataclass(slots=True)
class _Pull:
    """One open pull: messages that it may still bring, the pin that it was sent under, its end in loop time."""

    left: int
    pin: str
    until: float


class ConsumerReader:
    """Reader of one consumer.

    Args:
        consumer: The consumer.
        deliver: Calls the function.
        missing: Called when the broker has no such consumer.

    Attributes:
        partition: The events that are held.
        pending: Events that the broker has not sent yet.
    """

    def __init__(self, consumer: Consumer, deliver: Deliver, missing: Callable[[Consumer], None]) -> None:
        self.consumer = consumer
        self.partition = Partition(ordered=consumer.ordered)
        self.pending = 0
        self._connection: NatsConnection | None = None
        self._deliver = deliver
        self._missing = missing
        self._loop = asyncio.get_running_loop()
        # An event is often started by the task of another one that ends; the context of that task must not be
        # inherited.
        self._context = copy_context()
        self._pulls: dict[str, _Pull] = {}
        self._paused_until = 0.0
        self._subscription: PullSubscription | None = None
        self._running: dict[HeldEvent, asyncio.Task[None]] = {}
        self._created = ""
        self._settling: asyncio.Task[None] | None = None
        self._progress_due = 0.0

    @property
    def is_reading(self) -> bool:
        """Whether it reads."""
        return self._subscription is not None and self._subscription.is_open

    def consumer_made(self, created: str) -> bool:
        """Note when the broker made the consumer; return whether it is another one than before."""
        other = self._created not in ("", created)
        if other:
            self.partition.reset()
        self._created = created
        return other

    def attach(self, connection: NatsConnection) -> None:
        """Read over this connection; the consumer exists."""
        self._connection = connection
        self._subscription = PullSubscription(
            connection, self.consumer.stream, self.consumer.name, PRIORITY_GROUP, self._receive, self._pull_ended
        )

    def detach(self) -> None:
        """Leave a connection that has ended. Running functions continue; nothing is started until the next one."""
        self._connection = self._subscription = None
        self._pulls.clear()
        self.partition.suspend()

    async def tick(self, now: float, *, mine: bool) -> None:
        """Do what is due; to be called about twice a second.

        Args:
            now: The loop's time.
            mine: This replica should have the partition.
        """
        subscription = self._subscription
        if self._connection is None or subscription is None:
            return
        if mine and not self.is_reading:
            await subscription.open()
        elif not mine and self.is_reading:
            await self.release()
        if now >= self._progress_due:
            self._progress_due = now + PROGRESS_INTERVAL
            for held in list(self.partition.held.values()):
                await self._acknowledge(held.token, wire.IN_PROGRESS)
        for id_ in [id_ for id_, pull in self._pulls.items() if now > pull.until + LOST_PULL_DELAY]:
            del self._pulls[id_]
        settling = self.partition.state is PartitionState.SETTLING
        if settling and (self._settling is None or self._settling.done()):
            self._settling = self._loop.create_task(self._settle())
        await self._pull(now)

    async def release(self) -> None:
        """Stop reading; return events that are not started, and unpin. Running functions continue."""
        connection, pinned = self._connection, bool(self.partition.pin)
        self._pulls.clear()
        if self._subscription is not None:
            # Until the broker knows that nobody listens it could pin the partition to an open pull of this replica.
            # `_receive` returns messages that arrive meanwhile.
            with contextlib.suppress(*BROKER_ERRORS):
                await self._subscription.close(CLOSE_TIMEOUT)
        await self._act(self.partition.lose())
        if connection is not None and pinned:
            name = f"{self.consumer.stream}.{self.consumer.name}"
            with contextlib.suppress(*BROKER_ERRORS):
                async with asyncio.timeout(HANDOVER_TIMEOUT):
                    # This request makes the broker forget pulls that nobody listens for. Otherwise it may pin the
                    # partition to one of those, and the next owner waits until that is over (seen with nats-server
                    # 2.15.1).
                    await connection.request(f"CONSUMER.INFO.{name}")
                    await connection.request(f"CONSUMER.UNPIN.{name}", {"group": PRIORITY_GROUP})

    async def finish(self, until: float) -> None:
        """Wait for running functions; at ``until`` (loop time) cancel them and return their events."""
        if self._running:
            await asyncio.wait(self._running.values(), timeout=max(0.0, until - self._loop.time()))
        for _ in range(CANCELLATIONS):
            if not self._running:
                break
            for task in self._running.values():
                cancel_task(task)
            await asyncio.wait(self._running.values(), timeout=CANCEL_INTERVAL)
        if self._settling is not None:
            self._settling.cancel()

    # -- pulls --

    async def _pull(self, now: float) -> None:
        """Open pulls until enough messages are requested."""
        subscription = self._subscription
        if subscription is None or not subscription.is_open or now < self._paused_until:
            return
        while len(self._pulls) < 2 or sum(pull.left for pull in self._pulls.values()) < BATCH // 2:  # noqa: PLR2004
            pin = self.partition.pin
            wait = PINNED_PULL_TIMEOUT if pin else UNPINNED_PULL_TIMEOUT
            id_ = subscription.next_pull()
            self._pulls[id_] = _Pull(BATCH, pin, now + wait)
            try:
                await subscription.pull(id_, BATCH, wait, pin)
            except BROKER_ERRORS:
                self._pulls.pop(id_, None)
                return

    async def _receive(self, message: Message) -> None:
        self.pending = message.pending
        if not self.is_reading:
            await self._acknowledge(message, wire.NAK)
            return
        for id_, pull in self._pulls.items():
            pull.left -= 1
            if not pull.left:
                del self._pulls[id_]
            break
        if self.partition.pin != message.pin:  # pulls that were sent without the pin would not keep it
            self._pulls.clear()
        key = message.subject.rpartition(".")[2]
        held = HeldEvent(
            message.sequence, str(message.sequence) if key == "_" else key, message.time, message,
            message.deliveries, recalled=message.deliveries == 1,
        )  # fmt: skip
        await self._act(self.partition.receive(held, message.pin))
        if self.partition.state is PartitionState.SETTLING and (self._settling is None or self._settling.done()):
            self._settling = self._loop.create_task(self._settle())
        await self._pull(self._loop.time())

    async def _pull_ended(self, id_: str, headers: Mapping[str, str]) -> None:
        pull = self._pulls.pop(id_, None)
        status = headers.get("Status", "")
        if status == WRONG_PIN:
            if pull is not None and pull.pin and pull.pin == self.partition.pin:
                log.info("%s: the partition belongs to another replica now", self.consumer.name)
                await self._act(self.partition.lose())
        elif status != TIMED_OUT:
            described = headers.get("Description", "")
            self._paused_until = self._loop.time() + PAUSE_DELAY
            if status == "503" or described == "Consumer Deleted":
                if status == "503":  # or there is no JetStream for a moment
                    await self._act(self.partition.lose())
                else:
                    self._created = ""
                    self.partition.reset()
                self._missing(self.consumer)
            else:
                log.debug("%s: %s %s", self.consumer.name, status, described)
        if pull is not None:
            await self._pull(self._loop.time())

    async def _settle(self) -> None:
        """Request the state of the partition until this replica holds every pending event."""
        operation = f"CONSUMER.INFO.{self.consumer.stream}.{self.consumer.name}"
        while self.partition.state is PartitionState.SETTLING:
            changes = self.partition.changes
            try:
                if self._connection is None:
                    return
                info = await self._connection.request(operation)
            except BROKER_ERRORS:
                return
            pin = next((group.get("pinned_client_id", "") for group in info.get("priority_groups") or ()), "")
            floor = info.get("ack_floor", {}).get("stream_seq", 0)
            await self._act(self.partition.settle(pin, info.get("num_ack_pending", -1), floor, changes))
            if self.partition.state is PartitionState.SETTLING and changes == self.partition.changes:
                await asyncio.sleep(SETTLE_INTERVAL)

    # -- actions of the partition --

    async def _act(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Start(held):
                    self._start(held)
                case ReturnToBroker(held):
                    await self._acknowledge(held.token, wire.NAK)
                case AcknowledgeAgain(token):
                    await self._acknowledge(token, wire.ACK)

    def _start(self, held: HeldEvent) -> None:
        self._running[held] = self._loop.create_task(self._run(held, held.token), context=self._context.copy())

    async def _run(self, held: HeldEvent, message: Message) -> None:
        """Call the function for an event, and acknowledge the delivery."""
        try:
            decision = await self._decide(message, held)
        except asyncio.CancelledError:  # by ``finish``
            self._running.pop(held, None)
            self.partition.returned(held)
            await self._acknowledge(held.token, wire.NAK)
            raise
        self._running.pop(held, None)
        if isinstance(decision, Retry):
            await self._act(self.partition.wait_for_retry(held))
            if held.waiting:
                self._loop.call_later(decision.delay, self._retry, held)
            return
        await self._acknowledge(held.token, wire.ACK)
        await self._act(self.partition.complete(held))

    async def _decide(self, message: Message, held: HeldEvent) -> Decision:
        """Return the decision about an event. A delivery that fails unexpectedly is retried.

        Otherwise the event would count as running for ever, and hold its key as long.

        Raises:
            asyncio.CancelledError: The event is returned to the broker.
        """
        try:
            return await self._deliver(self.consumer, message, held)
        except BaseException as raised:
            error = await as_exception(raised)
            log.exception("%s: the delivery of %d failed", self.consumer.name, held.sequence, exc_info=error)
            return Retry(FAILURE_RETRY_DELAY)

    def _retry(self, held: HeldEvent) -> None:
        for action in self.partition.retry_due(held):
            if isinstance(action, Start):
                self._start(action.held)

    async def _acknowledge(self, message: Message | None, acknowledgement: bytes) -> None:
        """Acknowledge a delivery, if the broker expects it. A broker that is away redelivers by itself."""
        if self._connection is not None and message is not None:
            with contextlib.suppress(*BROKER_ERRORS):
                await self._connection.publish(message.reply, acknowledgement)
