"""Change capture on SQLite: triggers that name each column.

JSON has fewer types than SQLite, so some values are wrapped: ``{"b": "6869"}`` is a blob, ``{"r": "0.1"}`` a real with
all its digits, ``{"t": 1}`` an integer of a boolean column, ``{"j": "…"}`` the text of a JSON column.

A row that ``INSERT OR REPLACE`` or ``UPDATE OR REPLACE`` replaces fires no trigger of its own (unless the connection
has ``recursive_triggers`` on). So rows that conflict with a new one are copied before it is written; those that are
missing afterwards were replaced.
"""

# ruff: noqa: S608 - a trigger cannot bind parameters; all names and literals are quoted
from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from mesh.events.changes.captured_table import ChangeError, Column, Table, literal, name
from mesh.events.subjects import CHANGES, escape

if TYPE_CHECKING:
    from sqlalchemy import Connection

__all__ = ["install", "remove", "triggers"]

PREFIX = "mesh_change_"
"""Prefix of the mesh's triggers; no other trigger may have it."""
REPLACED_PREFIX = "mesh_replaced_"
"""Prefix of the tables that hold copies of conflicting rows: the key and the image."""
_NOW = "(CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER) * 1000)"
"""SQL expression of the microseconds since the epoch; SQLite's clock has milliseconds."""


def install(connection: Connection, service: str, tables: Sequence[str]) -> None:
    """Make the triggers of these tables and remove all others (see ``capture.install``)."""
    found = [_table(connection, table) for table in tables]
    wanted = {
        title: text for table in found for title, text in {**copies_table(table), **triggers(service, table)}.items()
    }
    remove(connection, wanted)
    existing = _existing(connection)
    for title, text in wanted.items():
        if title not in existing:
            connection.exec_driver_sql(text)


def remove(connection: Connection, keep: Mapping[str, str]) -> None:
    """Remove the mesh's triggers and tables that differ from ``keep``: name → statement."""
    for title, text in _existing(connection).items():
        if keep.get(title) != text:
            connection.exec_driver_sql(
                f"DROP {'TABLE' if title.startswith(REPLACED_PREFIX) else 'TRIGGER'} {name(title)}"
            )


def copies_table(table: Table) -> dict[str, str]:
    """Return the CREATE statement of the table for copies of conflicting rows, by its name."""
    title = REPLACED_PREFIX + table.name
    columns = ", ".join(f"k{at}" for at in range(len(table.key)))
    return {title: f"CREATE TABLE {name(title)} ({columns}, image)"}


def triggers(service: str, table: Table) -> dict[str, str]:
    """Return the CREATE statements of a table's triggers, by the triggers' names.

    Raises:
        ChangeError: The table has no primary key.
    """
    # IS NOT, because a part of a key may be NULL; BINARY, because the key of a change is compared as text.
    moved = " OR ".join(f"OLD.{name(part)} COLLATE BINARY IS NOT NEW.{name(part)}" for part in table.key)
    kept = name(REPLACED_PREFIX + table.name)
    again, gone = _same(table.key, "NEW", kept), _gone(table)

    def row(operation: str, where: str, *, aside: bool = False) -> str:
        before = f"{kept}.image" if aside else ""
        return _row(service, table, operation, before=before, where=f"FROM {kept} {where}" if aside else where)

    bodies = {
        "meet": ("BEFORE INSERT", _copy_conflicts(table, "")),
        "insert": (
            "AFTER INSERT",
            row("DELETE", f"WHERE NOT ({again}) AND {gone}", aside=True),
            row("UPDATE", f"WHERE {again}", aside=True),
            row("INSERT", f"WHERE NOT EXISTS (SELECT 1 FROM {kept} WHERE {again})"),
            f"DELETE FROM {kept};",
        ),
        "shift": (f"BEFORE UPDATE{_of(table)}", _copy_conflicts(table, "OLD")),
        "update": (  # one trigger: the order of several is undefined
            "AFTER UPDATE",
            row("DELETE", f"WHERE ({moved}) AND {again} OR NOT ({again}) AND {gone}", aside=True),
            row("UPDATE", f"WHERE NOT ({moved})"),
            row("DELETE", f"WHERE {moved}"),
            row("INSERT", f"WHERE {moved}"),
            f"DELETE FROM {kept};",
        ),
        "delete": ("AFTER DELETE", row("DELETE", ""), f"DELETE FROM {kept} WHERE {_same(table.key, 'OLD', kept)};"),
    }
    made = {}
    for kind, (event, *body) in bodies.items():
        title = f"{PREFIX}{kind}_{table.name}"
        on = f"{event} ON {name(table.name)} FOR EACH ROW"
        made[title] = f"CREATE TRIGGER {name(title)} {on} BEGIN {' '.join(body)} END"
    return made


def _of(table: Table) -> str:
    """Return the OF clause with the columns that can cause a conflict; none if one of them is generated."""
    meeting = {*table.key, *(part for some in table.unique for part, _ in some)}
    if any(column.generated and column.name in meeting for column in table.columns):
        return ""
    return f" OF {', '.join(name(part) for part in sorted(meeting))}"


def _same(key: Sequence[str], row: str, kept: str) -> str:
    """Return the condition that a copied row has the key of a row."""
    return " AND ".join(f"{kept}.k{at} IS {row}.{name(part)}" for at, part in enumerate(key))


def _gone(table: Table) -> str:
    """Return the condition that a copied row is no longer in the table."""
    same = _same(table.key, "t", name(REPLACED_PREFIX + table.name))
    return f"NOT EXISTS (SELECT 1 FROM {name(table.name)} AS t WHERE {same})"


def _copy_conflicts(table: Table, but: str) -> str:
    """Return the statements that copy the rows that conflict with NEW, except the row ``but``."""
    kept = name(REPLACED_PREFIX + table.name)
    alike = [[f"t.{name(part)} = NEW.{name(part)}" for part in table.key]]
    alike += [[f"t.{name(part)} = NEW.{name(part)} COLLATE {name(by)}" for part, by in some] for some in table.unique]
    meets = " OR ".join(f"({' AND '.join(some)})" for some in alike)
    if but:
        meets = (
            f"({meets}) AND NOT (" + " AND ".join(f"t.{name(part)} IS {but}.{name(part)}" for part in table.key) + ")"
        )
    columns = ", ".join([*(f"t.{name(part)}" for part in table.key), _image("t", table.columns)])
    return f"DELETE FROM {kept}; INSERT INTO {kept} SELECT {columns} FROM {name(table.name)} AS t WHERE {meets};"


def _row(service: str, table: Table, operation: str, *, before: str = "", where: str = "") -> str:
    """Return the statement that inserts a change into the outbox.

    Args:
        service: The service that owns the table.
        table: The table.
        operation: The operation of the change.
        before: The expression of the image before, if it is not that of OLD.
        where: The condition for the insert, or the rows.
    """
    head = json.dumps({"form": "sqlite", "operation": operation, "key": table.key}).removesuffix("}")
    parts = [literal(f'{head}, "time": '), _NOW]
    if operation != "INSERT":
        parts += [literal(', "before": '), before or _image("OLD", table.columns)]
    if operation != "DELETE":
        parts += [literal(', "after": '), _image("NEW", table.columns)]
    parts.append(literal("}"))
    subject = literal(f"{CHANGES}.{escape(service)}.{escape(table.name)}")
    values = f"lower(hex(randomblob(16))), {subject}, '', CAST({_joined(parts)} AS BLOB), {_NOW} {where}".rstrip()
    return f"INSERT INTO mesh_outbox (id, subject, headers, data, created) SELECT {values};"


def _image(row: str, columns: Sequence[Column]) -> str:
    """Return the expression of a row as a JSON object."""
    parts: list[str] = []
    for at, column in enumerate(columns):
        parts += [
            literal(f"{',' if at else '{'}{json.dumps(column.name)}:"),
            _value(f"{row}.{name(column.name)}", column),
        ]
    return _joined([*parts, literal("}")])


def _value(value: str, column: Column) -> str:
    declared = column.type.upper()
    text = f"json_quote({value} || '')"  # without '' it takes the result of a generated column's JSON function for JSON
    if "JSON" in declared:
        text = f"""'{{"j":' || {text} || '}}'"""
    whole = f"""'{{"t":' || {value} || '}}'""" if declared.startswith("BOOL") else value
    return (
        f"CASE typeof({value}) WHEN 'null' THEN 'null' WHEN 'integer' THEN {whole} WHEN 'text' THEN {text} "
        f"""WHEN 'real' THEN '{{"r":"' || printf('%!.17g', {value}) || '"}}' """
        f"""ELSE '{{"b":"' || hex({value}) || '"}}' END"""
    )


def _joined(parts: Sequence[str]) -> str:
    """Return the concatenation as a balanced tree: SQLite takes no expression deeper than 1,000."""
    if len(parts) == 1:
        return parts[0]
    middle = len(parts) // 2
    return f"({_joined(parts[:middle])} || {_joined(parts[middle:])})"


def _existing(connection: Connection) -> dict[str, str]:
    """Return the mesh's triggers, then its tables: name → statement."""
    rows = connection.exec_driver_sql("SELECT name, sql FROM sqlite_master WHERE type IN ('trigger', 'table')").all()
    return {title: text for prefix in (PREFIX, REPLACED_PREFIX) for title, text in rows if title.startswith(prefix)}


def _table(connection: Connection, table: str) -> Table:
    query = (
        "SELECT CASE WHEN sql LIKE 'CREATE VIRTUAL %' THEN 'virtual table' ELSE type END "
        "FROM sqlite_master WHERE name = ?"
    )
    kind = connection.exec_driver_sql(query, (table,)).scalar_one_or_none()
    if kind != "table":
        what = "does not exist" if kind is None else f"is a {kind}"
        raise ChangeError(f"table {table} {what}; on.change needs a table of this service's database")
    return Table(table, tuple(_columns(connection, table)), tuple(_unique(connection, table)))


def _columns(connection: Connection, table: str) -> Iterator[Column]:
    # Generated columns (hidden: 2, 3) are part of a row, the hidden ones of a virtual table (1) are not.
    for row in connection.exec_driver_sql("SELECT name, type, pk, hidden FROM pragma_table_xinfo(?)", (table,)):
        if row.hidden != 1:
            yield Column(row.name, row.type, row.pk, generated=row.hidden != 0)


def _unique(connection: Connection, table: str) -> Iterator[tuple[tuple[str, str], ...]]:
    # A partial index constrains fewer rows than this assumes: some copied rows are not replaced, which does no harm.
    indexes = connection.exec_driver_sql(
        'SELECT name, origin FROM pragma_index_list(?) WHERE "unique" ORDER BY name', (table,)
    )
    for index, origin in indexes.all():
        columns = connection.exec_driver_sql(
            'SELECT name, coll FROM pragma_index_xinfo(?) WHERE "key" ORDER BY seqno', (index,)
        )
        parts = tuple((part, by) for part, by in columns)
        if any(part is None for part, _ in parts):  # an expression has no name
            continue
        if origin != "pk" or any(by != "BINARY" for _, by in parts):  # otherwise the key covers it
            yield parts
