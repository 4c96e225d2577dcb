"""Stored events of a running mesh, read with a new contract: rows of outboxes, retained events and dead letters."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import orjson
from sqlalchemy import text

from mesh.config.manifest import Manifest
from mesh.contract.breaks.break_rules import Break
from mesh.contract.breaks.declared_elements import DeclaredElements
from mesh.contract.breaks.decoded_bytes import decoding_fault
from mesh.contract.model import Contract
from mesh.control.commands import operator_broker
from mesh.control.component.service_events import needs_broker
from mesh.database import Database
from mesh.database.failures import reason
from mesh.database_url import parse
from mesh.errors import InvalidArgument, StatusError
from mesh.events import subjects
from mesh.events.broker import history, streams
from mesh.events.consume import redrive_replay
from mesh.events.consume.consumers import consumers_of
from mesh.events.consume.dead_letters import original_headers, read_dead_letter
from mesh.faults import Fault, Faults
from mesh.message_methods import parser
from mesh.rules.message_checks import validate

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from mesh.events.broker.nats_connection import NatsConnection

__all__ = ["applied_versions", "stored_breaks"]

NAMED = 3
"""Ids that a break names."""
PER_PAGE = 500
"""Rows of one read of an outbox."""
PER_LINE = 20_000
"""Events between two lines of progress."""
OUTBOX, RETAINED, DEAD = "the outbox of", "the retained events", "the dead letters"

_ROWS = text(
    "SELECT sequence, id, headers, data FROM mesh_outbox WHERE sequence > :after ORDER BY sequence LIMIT :limit"
).columns()
_VERSIONS = text("SELECT version FROM mesh_migrations").columns()
_HAS_TABLE = {
    True: text("SELECT 1 FROM sqlite_master WHERE name = :table").columns(),
    False: text("SELECT 1 WHERE to_regclass(CAST(:table AS TEXT)) IS NOT NULL").columns(),
}
"""Whether the database is SQLite → the statement that finds a table."""


def stored_breaks(manifest: Manifest, old: Contract, new: Contract) -> list[Break]:
    """Return a break for each kind of stored event that the new contract cannot read, accept or deliver.

    Args:
        manifest: The manifest, with the secrets of databases and broker.
        old: The contract of the running mesh.
        new: The new contract.

    Raises:
        Faults: A database or the broker cannot be read.
    """
    reader = _Reader(old, new)
    asyncio.run(_read(manifest, old, reader))
    return reader.breaks()


async def _read(manifest: Manifest, old: Contract, reader: _Reader) -> None:
    for name, config in manifest.services.items():
        if config.database:
            async for id_, type_, data in _outbox_rows(name, config.database):
                reader.read(f"{OUTBOX} {name}", id_, type_, data)
    if not any(needs_broker(manifest, old, name) for name in manifest.services):
        return
    async with operator_broker.connected(manifest, "mesh-check") as (_, connection):
        try:
            async for event in history.read(connection, streams.EVENTS, f"{subjects.EVENTS}.>"):
                headers = event.headers
                reader.read(RETAINED, headers.get("ce-id", str(event.sequence)), headers.get("ce-type", ""), event.data)
                reader.progress(event.left)
            await _dead_letters(connection, reader)
        except (StatusError, TimeoutError) as error:
            raise Faults([Fault("broker", str(error) or "it did not respond")]) from None


async def _dead_letters(connection: NatsConnection, reader: _Reader) -> None:
    async for found in history.read(connection, streams.DEAD, f"{subjects.DEAD}.>"):
        complete = await redrive_replay.with_event(connection, found)
        values = read_dead_letter(found.headers)
        number = str(found.sequence)
        if values.consumer not in reader.consumers:
            method = values.method.lstrip("/")
            reader.undeliverable(DEAD, number, method, f"nothing calls {method} for {values.subject.split('.')[0]} now")
        if complete is not None:
            reader.read(DEAD, number, original_headers(complete.headers).get("ce-type", ""), complete.data)


async def _outbox_rows(name: str, url: str) -> AsyncIterator[tuple[str, str, bytes]]:
    """Yield id, type and bytes of the events in the outbox of a service. Rows of changes have no event yet."""
    async with _opened(name, url, "mesh_outbox") as database:
        after, more = 0, database is not None
        while more and database is not None:
            async with database.housekeeping() as tx:
                rows = [tuple(row) for row in await tx.execute(_ROWS, {"after": after, "limit": PER_PAGE})]
            for sequence, id_, headers, data in rows:
                after = sequence
                if headers.startswith("{"):
                    yield id_, orjson.loads(headers).get("ce-type", ""), data if isinstance(data, bytes) else b""
            more = len(rows) == PER_PAGE


@asynccontextmanager
async def _opened(name: str, url: str, table: str) -> AsyncIterator[Database | None]:
    """Open the database of a service for the time of a block; None if it has no such table of the mesh.

    Raises:
        Faults: It cannot be read.
    """
    file = parse(url).file
    if file is not None and not file.is_file():
        yield None  # the service has never run
        return
    database = Database(url, migrations=None, name=name)
    database.open()
    try:
        async with database.housekeeping() as tx:
            has_table = list(await tx.execute(_HAS_TABLE[file is not None], {"table": table}))
        yield database if has_table else None
    except Exception as error:
        text_ = f"the database cannot be read: {error.message if isinstance(error, StatusError) else reason(error)}"
        raise Faults([Fault(f"[services.{name}] database", text_)]) from error
    finally:
        await database.stop()


def applied_versions(manifest: Manifest) -> dict[str, set[str]]:
    """Return the migrations that the database of each service has run, by name.

    Raises:
        Faults: A database cannot be read.
    """
    return asyncio.run(_applied_versions(manifest))


async def _applied_versions(manifest: Manifest) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for name, config in manifest.services.items():
        if config.database:
            async with _opened(name, config.database, "mesh_migrations") as database:
                if database is not None:
                    async with database.housekeeping() as tx:
                        found[name] = {str(version) for (version,) in await tx.execute(_VERSIONS)}
    return found


@dataclass(slots=True)
class _Found:
    """Events of one kind in one store with the same fault."""

    number: int = 0
    first: list[str] = field(default_factory=list)
    reason: str = ""

    def add(self, id_: str, reason: str) -> None:
        self.number += 1
        self.reason = self.reason or reason
        if len(self.first) < NAMED:
            self.first.append(id_)


class _Reader:
    """Reader of stored events with two contracts; it counts what the new one cannot read."""

    def __init__(self, old: Contract, new: Contract) -> None:
        self._old, self._new = old, new
        self._totals: dict[tuple[str, str], int] = {}
        self._found: dict[tuple[str, str, str], _Found] = {}
        self._types: dict[str, tuple[type[Message] | None, type[Message] | None]] = {}
        self.consumers = {one.name for one in consumers_of(new.services.values())}

    def read(self, store: str, id_: str, type_: str, data: bytes) -> None:
        """Read one event."""
        self._totals[store, type_] = self._totals.get((store, type_), 0) + 1
        if type_ not in self._types:
            self._types[type_] = _message(self._old, type_), _message(self._new, type_)
        old, new = self._types[type_]
        is_event = type_ in self._new.events or type_ not in self._old.events
        if new is None or not is_event:
            self._add(store, "STORED_UNDELIVERABLE", type_, id_, "the new contract has no such event")
            return
        fault = decoding_fault(data, old, new)
        if fault:
            self._add(store, "STORED_UNREADABLE", type_, id_, fault)
            return
        try:
            validate(parser(new)(data))
        except InvalidArgument as error:
            self._add(store, "STORED_INVALID", type_, id_, error.message)
        except RuntimeError as error:  # a rule fails, as by a division by zero
            self._add(store, "STORED_INVALID", type_, id_, str(error))

    def undeliverable(self, store: str, id_: str, element: str, reason: str) -> None:
        """Count an event whose trigger the new contract does not have."""
        self._totals[store, element] = self._totals.get((store, element), 0) + 1
        self._add(store, "STORED_UNDELIVERABLE", element, id_, reason)

    def progress(self, left: int) -> None:
        """Print a line now and then."""
        done = sum(number for (store, _), number in self._totals.items() if store == RETAINED)
        if done % PER_LINE == 0:
            print(f"read {done:,} retained events, about {left:,} to go", file=sys.stderr, flush=True)

    def breaks(self) -> list[Break]:
        """Return a break for each store, rule and type."""
        places = DeclaredElements(self._new.files)
        return [
            Break(
                places.place(element, file="stored events"), rule, element,
                f"{one.number} of {self._totals[store, element]} in {store} ({', '.join(one.first)}): {one.reason}",
                _AFFECTED[rule], _COMPATIBLE[rule],
            )
            for (store, rule, element), one in self._found.items()
        ]  # fmt: skip

    def _add(self, store: str, rule: str, element: str, id_: str, reason: str) -> None:
        self._found.setdefault((store, rule, element), _Found()).add(id_, reason)


_AFFECTED = {
    "STORED_UNREADABLE": "they become dead letters, or have other values, when they are delivered or replayed",
    "STORED_INVALID": "they become dead letters when they are delivered or replayed",
    "STORED_UNDELIVERABLE": "they cannot be delivered, replayed or redriven",
}
_COMPATIBLE = {
    "STORED_UNREADABLE": "keep the field as it was and add a new one",
    "STORED_INVALID": "keep the rule as it was until they have been delivered and expired",
    "STORED_UNDELIVERABLE": "keep event and trigger until they have been delivered, redriven and expired",
}


def _message(contract: Contract, name: str) -> type[Message] | None:
    try:
        return contract.message(name)
    except KeyError:
        return None
