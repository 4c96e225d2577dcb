"""Capturing changes on SQLite: triggers that name each column.

JSON has fewer types than SQLite, so values that it would bend are wrapped: ``{"b": "6869"}`` a blob, ``{"r": "0.1"}`` a
real with all its digits, ``{"t": 1}`` an integer of a boolean column, ``{"j": "…"}`` the text of a JSON column.

A row that ``INSERT OR REPLACE`` or ``UPDATE OR REPLACE`` puts out of the way fires no trigger of its own (unless the
connection has ``recursive_triggers`` on). So rows that a new one meets are set aside before it is written; those that
are gone afterwards were replaced.
"""

# ruff: noqa: S608 - there is nothing to bind in a trigger: names and literals, all of them quoted
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
"""Of the names of our triggers; no other trigger may have it."""
ASIDE = "mesh_replaced_"
"""Of the names of the tables where rows are set aside: the key and the image."""
_NOW = "(CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER) * 1000)"
"""Microseconds since the epoch; SQLite's clock has milliseconds."""


def install(connection: Connection, service: str, tables: Sequence[str]) -> None:
    """Make the triggers of these tables, and no others; see ``changes.install``."""
    found = [_table(connection, table) for table in tables]
    wanted = {title: text for table in found for title, text in {**aside(table), **triggers(service, table)}.items()}
    remove(connection, wanted)
    there = _there(connection)
    for title, text in wanted.items():
        if title not in there:
            connection.exec_driver_sql(text)


def remove(connection: Connection, keep: Mapping[str, str]) -> None:
    """Remove our triggers and tables, but those that are as ``keep`` has them: name → statement."""
    for title, text in _there(connection).items():
        if keep.get(title) != text:
            connection.exec_driver_sql(f"DROP {'TABLE' if title.startswith(ASIDE) else 'TRIGGER'} {name(title)}")


def aside(table: Table) -> dict[str, str]:
    """Return the statement that makes the table where rows are set aside, by its name."""
    title = ASIDE + table.name
    columns = ", ".join(f"k{at}" for at in range(len(table.key)))
    return {title: f"CREATE TABLE {name(title)} ({columns}, image)"}


def triggers(service: str, table: Table) -> dict[str, str]:
    """Return the statements that make the triggers of a table, by the triggers' names.

    Raises:
        ChangeError: The table has no primary key.
    """
    # IS NOT, because a part of a key may be NULL; BINARY, because the key of a change is text and not a collation.
    moved = " OR ".join(f"OLD.{name(part)} COLLATE BINARY IS NOT NEW.{name(part)}" for part in table.key)
    kept = name(ASIDE + table.name)
    again, gone = _same(table.key, "NEW", kept), _gone(table)

    def row(operation: str, where: str, *, aside: bool = False) -> str:
        before = f"{kept}.image" if aside else ""
        return _row(service, table, operation, before=before, where=f"FROM {kept} {where}" if aside else where)

    bodies = {
        "meet": ("BEFORE INSERT", _set_aside(table, "")),
        "insert": (
            "AFTER INSERT",
            row("DELETE", f"WHERE NOT ({again}) AND {gone}", aside=True),
            row("UPDATE", f"WHERE {again}", aside=True),
            row("INSERT", f"WHERE NOT EXISTS (SELECT 1 FROM {kept} WHERE {again})"),
            f"DELETE FROM {kept};",
        ),
        "shift": (f"BEFORE UPDATE{_of(table)}", _set_aside(table, "OLD")),
        "update": (  # one trigger: of several it is not said which comes first
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
    """Return the clause for an UPDATE of columns by which rows can meet; none if one of them follows others."""
    meeting = {*table.key, *(part for some in table.unique for part, _ in some)}
    if any(column.generated and column.name in meeting for column in table.columns):
        return ""
    return f" OF {', '.join(name(part) for part in sorted(meeting))}"


def _same(key: Sequence[str], row: str, kept: str) -> str:
    """Return the condition that a row that was set aside has the key of a row."""
    return " AND ".join(f"{kept}.k{at} IS {row}.{name(part)}" for at, part in enumerate(key))


def _gone(table: Table) -> str:
    """Return the condition that a row that was set aside is in the table no more."""
    same = _same(table.key, "t", name(ASIDE + table.name))
    return f"NOT EXISTS (SELECT 1 FROM {name(table.name)} AS t WHERE {same})"


def _set_aside(table: Table, but: str) -> str:
    """Return the statements that set aside the rows that NEW meets, but not the row ``but``."""
    kept = name(ASIDE + table.name)
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
    """Return the statement that writes a change into the outbox.

    Args:
        service: The service that owns the table.
        table: The table.
        operation: Of the change.
        before: The expression for the image before, if it is not that of OLD.
        where: When, or for which rows, it is written.
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
    text = f"json_quote({value} || '')"  # without '' it takes what a generated column's JSON function made for JSON
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
    """Return our triggers, then our tables: name → statement."""
    rows = connection.exec_driver_sql("SELECT name, sql FROM sqlite_master WHERE type IN ('trigger', 'table')").all()
    return {title: text for prefix in (PREFIX, ASIDE) for title, text in rows if title.startswith(prefix)}


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
    # A partial index keeps fewer rows apart than this says: some rows are set aside that are not replaced. No harm.
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
        if origin != "pk" or any(by != "BINARY" for _, by in parts):  # else the key itself says it
            yield parts
