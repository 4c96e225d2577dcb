"""Outbox: table of the service's own database with the events that commit together with the service's rows.

The mesh creates it when the service starts, after the service's migrations. No Alembic version contains it.

The order of a key is the order of commits. On SQLite there is one writer, so ``sequence`` gives the order. On
PostgreSQL a transaction draws its numbers when it publishes and not when it commits. So it holds an advisory lock on
each key that it publishes until its end, and the next transaction draws a number for that key only after that commit.
Keys do not wait for each other. A transaction that commits late with an early number is not overlooked, because
published rows are deleted one by one.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson
from sqlalchemy import text

from mesh.call import current
from mesh.events.hops import hops
from mesh.events.publish.publisher import Publications

if TYPE_CHECKING:
    from google.protobuf.message import Message
    from sqlalchemy import Connection

    from mesh.context import Transaction
    from mesh.database import StatementExecutor
    from mesh.events.cloudevents import Event

__all__ = ["NAME", "Outbox", "Row", "create", "delete", "insert", "read", "refuse", "waiting"]

NAME = "mesh_outbox"
"""Name of the table, of the lock for emptying it, and of PostgreSQL's channel that notifies of new rows."""
MAX_ROWS, MAX_SIZE = 1000, 8 * 2**20
"""Maximum rows, and bytes of data, of one read."""

_SQLITE = """
CREATE TABLE IF NOT EXISTS mesh_outbox (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL, subject TEXT NOT NULL, headers TEXT NOT NULL,
    data BLOB NOT NULL, created INTEGER NOT NULL, refused TEXT
)"""
_POSTGRESQL = """
CREATE TABLE mesh_outbox (
    sequence BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY, id TEXT NOT NULL, subject TEXT NOT NULL,
    headers TEXT NOT NULL, data BYTEA NOT NULL, created BIGINT NOT NULL, refused TEXT
)"""
_NOTIFY = """
CREATE FUNCTION mesh_outbox_notify() RETURNS trigger LANGUAGE plpgsql AS
$mesh$ BEGIN PERFORM pg_notify('mesh_outbox', ''); RETURN NULL; END $mesh$"""
_TRIGGER = """
CREATE TRIGGER mesh_outbox_notify AFTER INSERT ON mesh_outbox
FOR EACH STATEMENT EXECUTE FUNCTION mesh_outbox_notify()"""

_INSERT = text(
    "INSERT INTO mesh_outbox (id, subject, headers, data, created) VALUES (:id, :subject, :headers, :data, :created)"
)
_INSERT_LOCKED = text(
    "WITH own AS MATERIALIZED (SELECT pg_advisory_xact_lock(:key)) "
    "INSERT INTO mesh_outbox (id, subject, headers, data, created) "
    "SELECT CAST(:id AS TEXT), CAST(:subject AS TEXT), CAST(:headers AS TEXT), CAST(:data AS BYTEA), "
    "CAST(:created AS BIGINT) FROM own"
)
# `columns()` marks it as a statement that only reads, for which no SQLite writer has to wait.
_READ = text(f"""
SELECT sequence, id, subject, headers, data FROM (
    SELECT *, sum(length(data)) OVER (ORDER BY sequence) - length(data) AS ahead FROM (
        SELECT * FROM mesh_outbox WHERE refused IS NULL ORDER BY sequence LIMIT {MAX_ROWS}
    ) AS first
) AS bounded WHERE ahead < {MAX_SIZE} ORDER BY sequence""").columns()  # noqa: S608 - constants
_DELETE = {
    True: text("DELETE FROM mesh_outbox WHERE sequence IN (SELECT value FROM json_each(:list))"),
    False: text("DELETE FROM mesh_outbox WHERE sequence IN (SELECT json_array_elements_text(:list ::json)::bigint)"),
}
_HOPS = text("SELECT set_config('mesh.hops', :hops, true)")
_LAST = text("SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'mesh_outbox'")
_MARK = text("UPDATE mesh_outbox SET headers = :hops WHERE headers = '' AND sequence > :last")
_REFUSE = text("UPDATE mesh_outbox SET refused = :reason WHERE sequence = :sequence")
_WAITING = text(
    "SELECT count(*) - count(refused), min(CASE WHEN refused IS NULL THEN created END), count(refused) FROM mesh_outbox"
).columns()


class Row(NamedTuple):
    """One row: an event that waits.

    Attributes:
        sequence: Its place in the order.
        id: The id of the event.
        subject: The subject of the event.
        headers: The headers of its message as JSON; for a row of a table's trigger, the hops of the call, or ``""``.
        data: The body of its message.
    """

    sequence: int
    id: str
    subject: str
    headers: str
    data: bytes


class Waiting(NamedTuple):
    """Counts of an outbox.

    Attributes:
        rows: Number of rows that wait.
        age: Seconds since the oldest of them was inserted; 0 when there is none, or the clock was set back.
        refused: Number of other rows, which are set aside because no broker takes them.
    """

    rows: int
    age: float
    refused: int


class Outbox:
    """Outbox of one service, which ``tx.publish`` writes to (``mesh.database.TransactionOutbox``).

    Args:
        publications: The events that the service may publish.
        sqlite: The database is SQLite, not PostgreSQL.

    Attributes:
        tell: Called after each commit that may have inserted rows.
    """

    def __init__(self, publications: Publications, *, sqlite: bool) -> None:
        self.tell: Callable[[], None] = _no_relay
        self._publications = publications
        self._sqlite = sqlite

    async def put(self, tx: Transaction, event: Message) -> None:
        """Insert an event in a transaction.

        Raises:
            FailedPrecondition: The contract does not let this service publish it.
            InvalidArgument: The event violates a rule, or is too large.
            StatusError: As for ``tx.execute``.
        """
        with self._publications.span(event) as span:
            await insert(tx, self._publications.event(event, span), sqlite=self._sqlite)

    async def enter(self, tx: Transaction) -> int | None:
        """Prepare that rows of a table's trigger in this transaction get the hops of the call, if it has any.

        PostgreSQL's triggers read them from a setting of the transaction. SQLite has no such setting, but one writer at
        a time: every row behind the last one will be of this transaction.
        """
        count = hops(current.get()) if self._publications.captures else 0
        if not count:
            return None
        if not self._sqlite:
            await tx.execute(_HOPS, {"hops": str(count)})
            return None
        return int((await tx.execute(_LAST)).scalar_one())

    async def leave(self, tx: Transaction, mark: int | None) -> None:
        """Set the hops of the trigger's rows behind ``mark`` (SQLite)."""
        if mark is not None:
            await tx.execute(_MARK, {"hops": str(hops(current.get())), "last": mark})

    def committed(self) -> None:
        """Wake the relay."""
        self.tell()


def create(connection: Connection) -> None:
    """Create the table if it does not exist; in a transaction that one replica has at a time."""
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql(_SQLITE)
        return
    found = connection.exec_driver_sql(
        "SELECT 1 FROM pg_class WHERE relname = 'mesh_outbox' AND relnamespace = current_schema()::regnamespace"
    )
    if found.first() is None:
        for statement in (_POSTGRESQL, _NOTIFY, _TRIGGER):
            connection.exec_driver_sql(statement)


async def insert(tx: Transaction, event: Event, *, sqlite: bool) -> None:
    """Insert an event; on PostgreSQL, lock its key to the end of the transaction."""
    values: dict[str, Any] = {
        "id": event.id,
        "subject": event.subject,
        "headers": orjson.dumps(event.to_headers()).decode(),
        "data": event.data,
        "created": time.time_ns() // 1000,
    }
    if sqlite or not event.key:
        await tx.execute(_INSERT, values)
    else:
        await tx.execute(_INSERT_LOCKED, {**values, "key": _lock(event)})


async def read(tx: StatementExecutor) -> list[Row]:
    """Return the first rows, in their order."""
    return [_typed(Row(*row)) for row in await tx.execute(_READ)]


async def delete(tx: StatementExecutor, rows: Sequence[Row], *, sqlite: bool) -> None:
    """Delete published rows."""
    await tx.execute(_DELETE[sqlite], {"list": orjson.dumps([row.sequence for row in rows]).decode()})


async def refuse(tx: StatementExecutor, row: Row, reason: str) -> None:
    """Set a row aside, with the reason why it cannot be published."""
    await tx.execute(_REFUSE, {"sequence": row.sequence, "reason": reason})


async def waiting(tx: StatementExecutor) -> Waiting:
    """Return the counts of the outbox."""
    [(rows, oldest, refused)] = await tx.execute(_WAITING)
    return Waiting(rows, max(0.0, time.time() - oldest / 1e6) if rows else 0.0, refused)


def _typed(row: Row) -> Row:
    """Return a row with the declared types: SQLite stores bytes, text and numbers in any column."""
    texts = (row.id, row.subject, row.headers)
    if type(row.data) is bytes and all(type(one) is str for one in texts):
        return row
    id_, subject, headers = (one.decode(errors="replace") if isinstance(one, bytes) else str(one) for one in texts)
    return Row(row.sequence, id_, subject, headers, row.data if isinstance(row.data, bytes) else str(row.data).encode())


def _lock(event: Event) -> int:
    """Return the number of the advisory lock on an event's key: 64 bits of a digest, signed."""
    digest = hashlib.blake2b(f"{event.type}\0{event.key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


def _no_relay() -> None:
    """Wake no relay: none has started yet."""
