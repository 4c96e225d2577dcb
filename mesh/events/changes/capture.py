"""Change capture: triggers on the declared tables of a service, which insert each change of a row into the outbox.

A database trigger also captures changes that are made by hand in SQL, and a change must commit with its outbox row or
not at all. The framework's own statements could do neither. The trigger writes the row's image as JSON with functions
of the database only; ``change_event`` makes the ``meshapi.v1.Change`` of it when the relay publishes the row.

Decisions:

- *The order of a key is the order of commits.* A transaction that changes a row locks it until its end, so the next
  change of the same key draws its place in the outbox after that commit. On SQLite there is one writer.
- *A changed key is a DELETE of the old key and an INSERT of the new one.* So no change has to be in the order of two
  keys.
- *Triggers are made when the owner starts, after its migrations and in their transaction.* A trigger that is current is
  not touched, so no lock is taken on a table in use. A trigger that is no longer declared is removed.
- *PostgreSQL's trigger names no column*, so it works on when a column is added or dropped. SQLite's trigger must name
  each column, so SQLite refuses to drop a column while the trigger exists; migrations run without triggers.
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
    """Remove triggers that would block a migration; in its transaction, before it. ``install`` makes them again."""
    if connection.dialect.name == "sqlite":
        sqlite_triggers.remove(connection, {})


def install(connection: Connection, service: str, tables: Sequence[str]) -> None:
    """Make the triggers of these tables and remove all others.

    To be called in a transaction, after the migrations and ``outbox.create``.

    Args:
        connection: A connection to the service's database.
        service: The service's name in mesh.toml.
        tables: The tables (``Contract.captured_tables``); may be empty.

    Raises:
        ChangeError: A table does not exist, is not a table, or has no primary key.
    """
    if connection.dialect.name == "sqlite":
        sqlite_triggers.install(connection, service, tables)
    else:
        postgresql_triggers.install(connection, service, tables)
