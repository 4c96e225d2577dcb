"""A table whose changes are captured, as both databases describe it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from mesh.database import DatabaseError

__all__ = ["ChangeError", "Column", "Form", "Table", "literal", "name"]

Form: TypeAlias = "str | list[Form] | Mapping[str, Form] | None"
"""Where a value holds bytes that JSON has as hexadecimal: ``"b"`` is such a value, a list of one form is an array of
such values, an object has the forms of a composite type's parts; None holds none."""


class ChangeError(DatabaseError):
    """The changes of a table cannot be captured; one line that says which table and why."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column.

    Attributes:
        name: Its name.
        type: Its declared type, as the database says it.
        key: Its place in the primary key, from 1; 0 if it is not part of it.
        form: Where its values hold bytes (PostgreSQL).
        generated: Its value is computed: when it is read (PostgreSQL), or in either way (SQLite).
    """

    name: str
    type: str = ""
    key: int = 0
    form: Form = None
    generated: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """A table.

    Attributes:
        name: Its name.
        columns: In order of declaration.
        unique: The sets of columns, each with its collation, that no two rows have alike, beside the primary key.
    """

    name: str
    columns: tuple[Column, ...]
    unique: tuple[tuple[tuple[str, str], ...], ...] = ()

    @property
    def key(self) -> tuple[str, ...]:
        """The columns of the primary key, in its order.

        Raises:
            ChangeError: There is none.
        """
        found = sorted((column for column in self.columns if column.key), key=lambda column: column.key)
        if not found:
            raise ChangeError(f"table {self.name} has no primary key, so its rows cannot be told apart; give it one")
        return tuple(column.name for column in found)


def name(text: str) -> str:
    """Return a name as SQL writes it."""
    return '"' + text.replace('"', '""') + '"'


def literal(text: str) -> str:
    """Return a string as standard SQL writes it (both databases take a backslash as it is)."""
    return "'" + text.replace("'", "''") + "'"
