"""Capturing changes on SQLite: four triggers a table, which name each column.

JSON has fewer types than SQLite, so values that it would bend are wrapped: ``{"b": "6869"}`` a blob, ``{"r": "0.1"}`` a
real with all its digits, ``{"t": 1}`` an integer of a boolean column, ``{"j": "…"}`` the text of a JSON column.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from mesh.events.changes_table import ChangeError, Column, Table, literal, name
from mesh.events.subjects import CHANGES, escape

if TYPE_CHECKING:
    from sqlalchemy import Connection

__all__ = ["install", "remove", "triggers"]

PREFIX = "mesh_change_"
"""Of the names of our triggers; no other trigger may have it."""
_NOW = "(CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER) * 1000)"
"""Microseconds since the epoch; SQLite's clock has milliseconds."""


def install(connection: Connection, service: str, tables: Sequence[str]) -> None:
    """Make the triggers of these tables, and no others; see ``changes.install``."""
    wanted = {title: text for table in tables for title, text in triggers(service, _table(connection, table)).items()}
    remove(connection, wanted)
    there = _there(connection)
    for title, text in wanted.items():
        if title not in there:
            connection.exec_driver_sql(text)


def remove(connection: Connection, keep: Mapping[str, str]) -> None:
    """Remove our triggers, but those that are as ``keep`` has them: name → statement."""
    for title, text in _there(connection).items():
        if keep.get(title) != text:
            connection.exec_driver_sql(f"DROP TRIGGER {name(title)}")


def triggers(service: str, table: Table) -> dict[str, str]:
    """Return the statements that make the triggers of a table, by the triggers' names.

    Raises:
        ChangeError: The table has no primary key.
    """
    # IS NOT, because a part of a key may be NULL; BINARY, because the key of a change is text and not a collation.
    moved = " OR ".join(f"OLD.{name(part)} COLLATE BINARY IS NOT NEW.{name(part)}" for part in table.key)
    deleted, inserted = _row(service, table, "DELETE"), _row(service, table, "INSERT")
    bodies = {
        "insert": ("INSERT", "", inserted),
        "update": ("UPDATE", f"WHEN NOT ({moved}) ", _row(service, table, "UPDATE")),
        "move": ("UPDATE", f"WHEN {moved} ", f"{deleted} {inserted}"),
        "delete": ("DELETE", "", deleted),
    }
    made = {}
    for kind, (operation, when, body) in bodies.items():
        title = f"{PREFIX}{kind}_{table.name}"
        made[title] = (
            f"CREATE TRIGGER {name(title)} AFTER {operation} ON {name(table.name)} FOR EACH ROW {when}BEGIN {body} END"
        )
    return made


def _row(service: str, table: Table, operation: str) -> str:
    """Return the statement that writes one change into the outbox."""
    head = json.dumps({"form": "sqlite", "operation": operation, "key": table.key}).removesuffix("}")
    parts = [literal(f'{head}, "time": '), _NOW]
    if operation != "INSERT":
        parts += [literal(', "before": '), _image("OLD", table.columns)]
    if operation != "DELETE":
        parts += [literal(', "after": '), _image("NEW", table.columns)]
    parts.append(literal("}"))
    subject = literal(f"{CHANGES}.{escape(service)}.{escape(table.name)}")
    values = f"lower(hex(randomblob(16))), {subject}, '', CAST({_joined(parts)} AS BLOB), {_NOW}"
    # Names and literals only, and quoted: there is no value to bind in a trigger.
    return f"INSERT INTO mesh_outbox (id, subject, headers, data, created) VALUES ({values});"  # noqa: S608


def _image(row: str, columns: Sequence[Column]) -> str:
    """Return the expression for a row as a JSON object."""
    parts: list[str] = []
    for at, column in enumerate(columns):
        parts += [
            literal(f"{',' if at else '{'}{json.dumps(column.name)}:"),
            _value(f"{row}.{name(column.name)}", column),
        ]
    return _joined([*parts, literal("}")])


def _value(value: str, column: Column) -> str:
    declared = column.type.upper()
    text = f"json_quote({value})"
    if "JSON" in declared:
        text = f"""'{{"j":' || {text} || '}}'"""
    whole = f"""'{{"t":' || {value} || '}}'""" if declared.startswith("BOOL") else value
    return (
        f"CASE typeof({value}) WHEN 'null' THEN 'null' WHEN 'integer' THEN {whole} WHEN 'text' THEN {text} "
        f"""WHEN 'real' THEN '{{"r":"' || printf('%!.17g', {value}) || '"}}' """
        f"""ELSE '{{"b":"' || hex({value}) || '"}}' END"""
    )


def _joined(parts: Sequence[str]) -> str:
    """Return the concatenation, as deep as a balanced tree: SQLite takes no expression deeper than 1,000."""
    if len(parts) == 1:
        return parts[0]
    middle = len(parts) // 2
    return f"({_joined(parts[:middle])} || {_joined(parts[middle:])})"


def _there(connection: Connection) -> dict[str, str]:
    rows = connection.exec_driver_sql("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'")
    return {title: text for title, text in rows if title.startswith(PREFIX)}


def _table(connection: Connection, table: str) -> Table:
    kind = connection.exec_driver_sql("SELECT type, name FROM sqlite_master WHERE name = ?", (table,)).one_or_none()
    if kind is None or kind.type != "table":
        what = "does not exist" if kind is None else f"is a {kind.type}"
        raise ChangeError(f"table {table} {what}; on.change needs a table of this service's database")
    return Table(table, tuple(_columns(connection, table)))


def _columns(connection: Connection, table: str) -> Iterator[Column]:
    # Generated columns (hidden: 2, 3) are part of a row, the hidden ones of a virtual table (1) are not.
    for row in connection.exec_driver_sql("SELECT name, type, pk, hidden FROM pragma_table_xinfo(?)", (table,)):
        if row.hidden != 1:
            yield Column(row.name, row.type, row.pk)
