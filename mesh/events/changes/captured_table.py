"""Captured table: its columns, keys and unique constraints as the database describes them, and SQL quoting."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from mesh.database import DatabaseError

__all__ = ["ChangeError", "Column", "Form", "Table", "literal", "name"]

Form: TypeAlias = "str | list[Form] | Mapping[str, Form] | None"
"""Places of bytes in a value, which JSON has as hexadecimal: ``"b"`` is such a value, a list of one form an array of
such
values, an object has the forms of a composite type's parts; None: no bytes."""


class ChangeError(DatabaseError):
    """The changes of a table cannot be captured; one line that names the table and the reason."""


@dataclass(frozen=True, slots=True)
class Column:
    """Column of a captured table.

    Attributes:
        name: Its name.
        type: Its declared type, as the database writes it.
        key: Its place in the primary key, from 1; 0 if it is not part of it.
        form: The places of bytes in its values (PostgreSQL).
        generated: Its value is computed: a virtual column (PostgreSQL), or a virtual or stored one (SQLite).
    """

    name: str
    type: str = ""
    key: int = 0
    form: Form = None
    generated: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """Captured table.

    Attributes:
        name: Its name.
        columns: In order of declaration.
        unique: The unique constraints besides the primary key: columns, each with its collation.
    """

    name: str
    columns: tuple[Column, ...]
    unique: tuple[tuple[tuple[str, str], ...], ...] = ()

    @property
    def key(self) -> tuple[str, ...]:
        """The columns of the primary key, in its order.

        Raises:
            ChangeError: The table has none.
        """
        found = sorted((column for column in self.columns if column.key), key=lambda column: column.key)
        if not found:
            raise ChangeError(f"table {self.name} has no primary key, so its rows cannot be told apart; give it one")
        return tuple(column.name for column in found)


def name(text: str) -> str:
    """Return a name as a quoted SQL identifier."""
    return '"' + text.replace('"', '""') + '"'


def literal(text: str) -> str:
    """Return a text as a SQL string literal (both databases take a backslash literally)."""
    return "'" + text.replace("'", "''") + "'"
