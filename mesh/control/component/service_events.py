"""Events of one sidecar: connection to the broker, publisher, outbox, relay and deliveries.

A service without events, schedules and captured tables has none of them, and a mesh of such services needs no broker.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from mesh.auth import key_files
from mesh.config.manifest import Manifest
from mesh.contract.model import Contract
from mesh.control import identity_keys, topology
from mesh.control.component import event_keys
from mesh.errors import StatusError
from mesh.events.broker import nkey_files
from mesh.events.broker.broker import Broker, Settings, inbox_of
from mesh.events.broker.streams import Retention
from mesh.events.consume.delivery import Delivery, DeliverySettings
from mesh.events.consume.outcome import RetryLimits
from mesh.events.publish.publisher import Publications, Publisher
from mesh.events.signatures import EventSigner
from mesh.faults import Fault, Faults

if TYPE_CHECKING:
    from mesh.call import Handler
    from mesh.database import Database
    from mesh.database.migrations import PrepareStep
    from mesh.events.publish.outbox import Outbox
    from mesh.events.publish.relay import Relay

__all__ = ["ServiceEvents", "broker_settings", "needs_broker"]

log = logging.getLogger("mesh.events")

PRUNE_INTERVAL = 3600.0
"""Seconds between two deletions of rows of the inbox that are too old."""


def needs_broker(manifest: Manifest, contract: Contract, name: str) -> bool:
    """Whether a service publishes, has triggers, or owns a table whose changes trigger others."""
    services = topology.served(manifest, contract, name)
    return (
        any(service.publishes for service in services)
        or any(method.triggers for service in services for method in service.methods.values())
        or bool(contract.captured_tables(name))
    )


def broker_settings(manifest: Manifest, name: str) -> Settings:
    """Return the settings of the connection to the broker.

    A component that mesh.toml gives no other credentials authenticates with its own NKEY, if there is one.

    Args:
        manifest: The manifest.
        name: The service, or ``operator``.

    Raises:
        Faults: mesh.toml names no broker.
    """
    if not manifest.broker:
        raise Faults(
            [
                Fault(
                    f"{manifest.file.name} broker",
                    f'{name} uses events, and no broker is named: set broker = "nats://HOST:PORT" or the environment '
                    "variable MESH_BROKER; `mesh up` runs a broker by itself",
                )
            ]
        )
    table = manifest.events
    own = nkey_files.path_of(identity_keys.folder_of(manifest), name)
    given = table.user or table.token or table.credentials or table.nkey
    return Settings(
        urls=tuple(url.strip() for url in manifest.broker.split(",")),
        inbox=inbox_of(name),
        user=table.user,
        password=table.password,
        token=table.token,
        credentials=table.credentials,
        nkey=table.nkey or (str(own) if not given and own.is_file() else ""),
        ca=table.ca,
        certificate=table.certificate,
        private_key=table.private_key,
        retention=Retention(
            age=float(table.retention),
            dead=float(table.dead_retention),
            size=int(table.max_bytes),
            replicas=table.replicas,
        ),
    )


class ServiceEvents:
    """Events of one sidecar.

    Args:
        manifest: The manifest.
        contract: The contract.
        name: The service.

    Attributes:
        broker: The connection to the broker.
        publisher: Implements ``context.publish``.
        outbox: Implements ``tx.publish``; None without a database.

    Raises:
        Faults: mesh.toml names no broker, or a key cannot be read.
    """

    def __init__(self, manifest: Manifest, contract: Contract, name: str) -> None:
        config = manifest.services[name]
        self._name = name
        self._contract = contract
        folder = identity_keys.folder_of(manifest)
        self._folder = folder
        self._key = key_files.load(folder, name)
        self._signer = EventSigner(name, self._key)
        self.broker = Broker(broker_settings(manifest, name), name, self._signer)
        publications = Publications(contract, config.serves, name)
        self.publisher = Publisher(publications, self.broker)
        self.outbox: Outbox | None = None
        self._relay: Relay | None = None
        self._sqlite = config.database.startswith("sqlite:")
        self._drain = float(config.drain)
        self._served = topology.served(manifest, contract, name)
        self._triggered = any(method.triggers for service in self._served for method in service.methods.values())
        self._verifier = event_keys.verifier(manifest, contract, folder)
        self._delivery: Delivery | None = None
        self._pruning: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._delivery_settings = DeliverySettings(
            limits=RetryLimits(attempts=manifest.events.max_deliveries),
            concurrency=config.concurrency,
            hops=manifest.events.max_hops,
        )
        if config.database:
            from mesh.events.publish import outbox  # noqa: PLC0415 - SQLAlchemy is a third of the imports

            self.outbox = outbox.Outbox(publications, sqlite=self._sqlite)

    @property
    def database_steps(self) -> Sequence[PrepareStep]:
        """Steps that run in the service's database after its migrations: outbox, inbox, capture triggers."""
        if self.outbox is None:
            return ()
        from mesh.events.changes import capture  # noqa: PLC0415 - loaded already
        from mesh.events.consume import inbox  # noqa: PLC0415 - loaded already
        from mesh.events.publish import outbox  # noqa: PLC0415 - loaded already

        capturing = partial(capture.install, service=self._name, tables=self._contract.captured_tables(self._name))
        return (outbox.create, *([inbox.prepare] if self._triggered else []), capturing)

    def start(self, database: Database | None) -> None:
        """Connect to the broker, and start the relay and the pruning in the open database."""
        self.broker.start()
        self._watching = asyncio.get_running_loop().create_task(
            key_files.watch_private(self._folder, self._name, self._key, self._signer.use)
        )
        if database is not None and self._triggered:
            self._pruning = asyncio.get_running_loop().create_task(_prune(database))
        if database is not None and self.outbox is not None:
            from mesh.events.changes.change_event import encoder  # noqa: PLC0415 - loaded already
            from mesh.events.publish.relay import Relay  # noqa: PLC0415 - loaded already
            from mesh.events.unpublishable import dead_letter_maker  # noqa: PLC0415 - loaded already

            self._relay = Relay(
                database, self.broker, sqlite=self._sqlite, encode=encoder(self._contract),
                make_dead_letters=dead_letter_maker(self._contract, self._name),
            )  # fmt: skip
            self.outbox.tell = self._relay.tell
            self._relay.start()

    def deliver(self, handlers: Mapping[str, Handler]) -> None:
        """Start the deliveries to the functions. The service must be ready.

        Args:
            handlers: Path of a method → the chain that handles its deliveries.
        """
        if self._triggered:
            self._delivery = Delivery(
                self.broker, self._name, self._served, handlers, self._delivery_settings, self._verifier
            )
            self._delivery.start()

    async def stop_deliveries(self) -> None:
        """Take no more deliveries; finish those in progress up to the drain time, and return the rest to the broker."""
        if self._delivery is not None:
            await self._delivery.stop(self._drain)

    async def stop(self) -> None:
        """Publish the rows of the outbox, if the broker is connected, and disconnect. The database is still open."""
        if self._pruning is not None:
            self._pruning.cancel()
            await asyncio.wait([self._pruning])
        if self._relay is not None:
            await self._relay.stop()
        await self.broker.stop()
        if self._watching is not None:
            self._watching.cancel()


async def _prune(database: Database) -> None:
    from mesh.events.consume import inbox  # noqa: PLC0415 - loaded already

    while True:
        try:
            async with database.housekeeping() as tx:
                await inbox.prune(tx, time.time())
        except StatusError as error:
            log.debug("the inbox was not pruned: %s", error)
        except Exception:  # an unexpected error must not end the pruning for the life of the process
            log.exception("the inbox was not pruned")
        await asyncio.sleep(PRUNE_INTERVAL)
