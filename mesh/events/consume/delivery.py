"""Delivery loop of one service: reads its consumers over each connection and assigns partitions to live replicas.

It starts when the service is ready and is the first part to stop. While the broker is away no event is lost and no call
fails: running functions continue, and reading starts again when the broker is back.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING
from uuid import uuid4

from opentelemetry import metrics

from mesh.events.broker.nats_connection import BROKER_ERRORS
from mesh.events.consume import assignment, schedules
from mesh.events.consume.consumers import Consumer, ConsumerError, consumers_of, ensure
from mesh.events.consume.processing import DeliverySettings, Processor
from mesh.events.consume.pull import ConsumerReader
from mesh.events.subjects import token_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from opentelemetry.metrics import CallbackOptions, Observation

    from mesh.call import Handler
    from mesh.contract.model import GrpcService
    from mesh.events.broker.broker import Broker
    from mesh.events.broker.nats_connection import NatsConnection
    from mesh.events.consume.verification import EventVerifier

__all__ = ["Delivery", "DeliverySettings", "replica_channel"]

log = logging.getLogger("mesh.events")

TICK_INTERVAL = 0.5
"""Seconds between two rounds of the loop."""
PREPARE_RETRY_DELAY = 2.0
"""Seconds before the next attempt to make consumers and schedules that the broker refused."""


def replica_channel(name: str) -> str:
    """Return the subject of the heartbeats of a service's replicas; ``name`` is its name in mesh.toml."""
    return f"mesh.replicas.{token_of(name)}"


class Delivery:
    """Delivers events, changes and ticks to the methods of one service of mesh.toml.

    Args:
        broker: The broker.
        name: The service's name in mesh.toml.
        services: The services of the contract that it hosts.
        handlers: Path of a method → the chain that handles its deliveries.
        settings: Settings of deliveries.
        verifier: Checks who published a message.
    """

    def __init__(
        self,
        broker: Broker,
        name: str,
        services: Sequence[GrpcService],
        handlers: Mapping[str, Handler],
        settings: DeliverySettings,
        verifier: EventVerifier,
    ) -> None:
        self._broker = broker
        self._services = services
        self._replicas = assignment.LiveReplicas(uuid4().hex)
        self._channel = replica_channel(name)
        self.processor = Processor(broker, handlers, settings, verifier)
        self._readers = [
            ConsumerReader(consumer, self.processor.process, self._consumer_gone) for consumer in consumers_of(services)
        ]
        self._missing: set[str] = set()
        self._task: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()
        meter = metrics.get_meter("mesh.events")
        meter.create_observable_gauge("mesh.events.lag", [self._lag], "{event}", "Events that wait for a method")

    def start(self) -> None:
        """Start to deliver; return at once, whether the broker is reachable or not."""
        if self._readers:
            self._task = self._loop.create_task(self._run())

    async def stop(self, drain: float) -> None:
        """Stop reading, return events that are not started, wait ``drain`` seconds for the others, return the rest."""
        if self._task is None:
            return
        while not self._task.done():  # the client library swallows some cancellations
            self._task.cancel()
            await asyncio.wait([self._task], timeout=TICK_INTERVAL)
        until = self._loop.time() + drain
        await asyncio.gather(*(reader.release() for reader in self._readers))
        await asyncio.gather(*(reader.finish(until) for reader in self._readers))
        connection = self._broker.connection
        if connection is not None:
            with contextlib.suppress(*BROKER_ERRORS):
                await connection.publish(self._channel, f"-{self._replicas.name}".encode())
                await connection.flush(1)

    async def _run(self) -> None:
        while True:
            connection = await self._broker.ready()
            try:
                await self._deliver_over(connection)
            except BROKER_ERRORS as error:
                log.debug("the broker is away: %s", error)
            except Exception:
                log.exception("delivery failed, and starts again")
            for reader in self._readers:
                reader.detach()
            await asyncio.sleep(TICK_INTERVAL)

    async def _deliver_over(self, connection: NatsConnection) -> None:
        """Deliver over one connection, until it ends."""
        while not await self._prepare(connection):  # noqa: ASYNC110 - the broker does not notify
            await asyncio.sleep(PREPARE_RETRY_DELAY)
        await connection.subscribe(self._channel, self._replica_signal)
        for reader in self._readers:
            reader.attach(connection)
        heartbeat_due = 0.0
        check_due = self._loop.time() + schedules.CHECK_INTERVAL if schedules.wanted(self._services) else math.inf
        signing_key = connection.signing_key
        while not connection.closed.is_set():
            now = self._loop.time()
            if now >= heartbeat_due:
                heartbeat_due = now + assignment.HEARTBEAT_INTERVAL
                await connection.publish(self._channel, f"+{self._replicas.name}".encode())
            if now >= check_due:
                check_due = now + schedules.CHECK_INTERVAL
                with contextlib.suppress(*BROKER_ERRORS, schedules.TickError):  # again at the next check
                    if signing_key != connection.signing_key:
                        await schedules.ensure(connection, self._services)
                        signing_key = connection.signing_key
                    time = await schedules.broker_time(connection)
                    await schedules.publish_missed(connection, self._services, time, schedules.MISSED_DELAY)
            await self._tick(connection, now)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(connection.closed.wait(), TICK_INTERVAL)

    async def _prepare(self, connection: NatsConnection) -> bool:
        """Make consumers and schedules; return False if the broker refuses one."""
        try:
            kept = self._broker.kept
            made = await asyncio.gather(*(ensure(connection, reader.consumer, kept) for reader in self._readers))
            others = [reader.consumer_made(created) for reader, created in zip(self._readers, made, strict=True)]
            if any(others):
                log.warning("the broker has lost %d consumers: their earlier deliveries are forgotten", sum(others))
            await schedules.ensure(connection, self._services)
            if schedules.wanted(self._services):
                time = await schedules.broker_time(connection)
                await schedules.publish_missed(connection, self._services, time)
        except (ConsumerError, schedules.TickError) as error:
            log.error("nothing is delivered yet: %s", error)  # noqa: TRY400 - the traceback says nothing more
            return False
        return True

    async def _tick(self, connection: NatsConnection, now: float) -> None:
        if self._missing and await self._prepare(connection):
            self._missing.clear()
        live = self._replicas.live(now)
        for reader in self._readers:
            await reader.tick(now, mine=assignment.owner(reader.consumer.name, live) == self._replicas.name)

    async def _replica_signal(self, data: bytes) -> None:
        """Note a heartbeat (``+NAME``) or a shutdown (``-NAME``) of a replica."""
        sign, name = data[:1], data[1:].decode()
        if sign == b"-":
            self._replicas.left(name)
        elif self._replicas.heartbeat(name, self._loop.time()):
            connection = self._broker.connection
            if connection is not None:
                with contextlib.suppress(*BROKER_ERRORS):  # a new replica need not wait for the next heartbeat
                    await connection.publish(self._channel, f"+{self._replicas.name}".encode())

    def _consumer_gone(self, consumer: Consumer) -> None:
        self._missing.add(consumer.name)

    def _lag(self, _: CallbackOptions) -> Iterable[Observation]:
        found: dict[str, int] = {}
        for reader in self._readers:
            if reader.is_reading:
                group = reader.consumer.group
                found[group] = found.get(group, 0) + reader.pending + len(reader.partition.held)
        return [metrics.Observation(count, {"rpc.method": group}) for group, count in found.items()]
