"""Inbox: table of processed events, so that an event that is delivered twice has its effect once.

The transaction in which a delivery writes inserts a row with the event's id, so effect and row commit together. If the
row exists, the effect does too: the function is ended at that point and the event acknowledged.

This holds for one writing transaction of a delivery. A second one would be lost if the process died between the two,
since the first has inserted the row. It is refused, so the loss cannot be written by accident. Transactions that only
read are free, and a transaction that failed may be repeated.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Any

from sqlalchemy import text

from mesh.call import current
from mesh.database.transaction import is_read_only
from mesh.errors import FailedPrecondition
from mesh.events.consume.delivery_call import AlreadyProcessedError, Delivered

if TYPE_CHECKING:
    from google.protobuf.message import Message
    from sqlalchemy import Connection

    from mesh.context import Transaction
    from mesh.database import StatementExecutor

__all__ = ["KEPT_SECONDS", "TABLE", "guarded", "prepare", "prune"]

TABLE = "mesh_inbox"
KEPT_SECONDS = 30 * 86400.0
"""Seconds that a row is kept. An event that is redelivered later than that has its effect again."""
_CREATE = (
    f"CREATE TABLE IF NOT EXISTS {TABLE} ("
    "consumer VARCHAR(400) NOT NULL, event VARCHAR(400) NOT NULL, time DOUBLE PRECISION NOT NULL, "
    "PRIMARY KEY (consumer, event))"
)
_INSERT = text(
    f"INSERT INTO {TABLE} (consumer, event, time) VALUES (:consumer, :event, :time) ON CONFLICT DO NOTHING"  # noqa: S608 - a constant
)
_PRUNE = text(f"DELETE FROM {TABLE} WHERE time < :before")  # noqa: S608 - a constant


def prepare(connection: Connection) -> None:
    """Create the table if it does not exist."""
    connection.execute(text(_CREATE))


async def prune(tx: StatementExecutor, now: float) -> None:
    """Remove rows that are older than ``KEPT_SECONDS``; ``now`` is in seconds since the epoch."""
    await tx.execute(_PRUNE, {"before": now - KEPT_SECONDS})


def guarded(transaction: AbstractAsyncContextManager[Transaction]) -> AbstractAsyncContextManager[Transaction]:
    """Return the transaction that a function gets: in a delivery one that inserts the inbox row, else as it is."""
    call = current.get()
    return transaction if call is None or call.delivery is None else _once(transaction, call.delivery)


@asynccontextmanager
async def _once(
    transaction: AbstractAsyncContextManager[Transaction], delivered: Delivered
) -> AsyncIterator[Transaction]:
    guarded_tx: _InboxTransaction | None = None
    try:
        async with transaction as tx:
            guarded_tx = _InboxTransaction(tx, delivered)
            yield guarded_tx
    except BaseException:
        if guarded_tx is not None and guarded_tx.writes:
            delivered.wrote = False
        raise


class _InboxTransaction:
    """Transaction that inserts the inbox row before its first write."""

    __slots__ = ("_delivered", "_processed", "_tx", "writes")

    def __init__(self, tx: Transaction, delivered: Delivered) -> None:
        self._tx = tx
        self._delivered = delivered
        self._processed = False
        self.writes = False

    async def execute(self, statement: Any, parameters: Any = None) -> Any:
        """Execute an SQLAlchemy statement and return its (buffered) result (see ``Transaction.execute``)."""
        if not is_read_only(statement):
            await self._insert_row()
        return await self._tx.execute(statement, parameters)

    async def publish(self, event: Message) -> None:
        """Publish an event that commits with the transaction (see ``Transaction.publish``)."""
        await self._insert_row()
        await self._tx.publish(event)

    async def _insert_row(self) -> None:
        if self._processed:
            raise AlreadyProcessedError
        if self.writes:
            return
        if self._delivered.wrote:
            raise FailedPrecondition(
                f"{self._delivered.consumer} writes in a second transaction for one event, which would be lost if the "
                "process died between the two; write all of it in one"
            )
        # Set before the insert: a concurrent transaction of this delivery must not take the row for another delivery's.
        self.writes = self._delivered.wrote = True
        row = {"consumer": self._delivered.consumer, "event": self._delivered.event, "time": time.time()}
        if (await self._tx.execute(_INSERT, row)).rowcount == 0:
            self._processed = True
            raise AlreadyProcessedError
