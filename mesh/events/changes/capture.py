"""``on.change``: triggers on the declared tables of a service, which write each change of a row into the outbox.

A trigger and not the framework's own statements: what somebody does by hand in SQL is a change too, and it must commit
with its outbox row or not at all. The trigger writes the row's image as JSON with nothing but the database's own
functions; ``change_rows`` makes the ``meshapi.v1.Change`` of it when the relay takes it away.

Decisions:

- *The order of a key is the order of commits.* Whoever changes a row holds its lock until the end of the transaction,
  so the next change of the same key draws its place in the outbox after that commit. On SQLite there is one writer.
- *A key that changes is a row that ends and another that begins*: DELETE of the old key, INSERT of the new one. So no
  change has to be in the order of two keys.
- *Triggers are made when the owner starts, after its migrations and in their transaction.* What is as it should be is
  not touched: no lock is taken on a table in use. What is no longer declared is removed.
- *PostgreSQL's trigger names no column*, so it goes on when a column comes or goes. SQLite's must name each, so
  SQLite refuses to drop a column as long as the trigger is there; migrations run without triggers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mesh.events.changes import postgresql_triggers, sqlite_triggers
from mesh.events.changes.captured_table import ChangeError

if TYPE_CHECKING:
    from sqlalchemy import Connection

__all__ = ["ChangeError", "install", "suspend"]


def suspend(connection: Connection) -> None:
    """Remove what would stand in the way of a migration; in its transaction, before it. ``install`` brings it back."""
    if connection.dialect.name == "sqlite":
        sqlite_triggers.remove(connection, {})


def install(connection: Connection, service: str, tables: Sequence[str]) -> None:
    """Make the triggers of these tables, and no others; in a transaction, after the migrations and the outbox table.

    Args:
        connection: To the service's database.
        service: Its name in mesh.toml.
        tables: Whose changes are captured; ``Contract.captured_tables`` says which. May be empty.

    Raises:
        ChangeError: A table does not exist, is none, or has no primary key.
    """
    if connection.dialect.name == "sqlite":
        sqlite_triggers.install(connection, service, tables)
    else:
        postgresql_triggers.install(connection, service, tables)
