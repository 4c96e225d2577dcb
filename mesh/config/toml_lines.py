"""Lines of the keys of a TOML file, for faults. Pure.

``tomllib`` tells no lines of keys. A statement (a key with its value, or the header of a table) may have several lines.
It ends at the first line with which it is valid by itself.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from typing import Any

from mesh.faults import Fault

__all__ = ["TomlLines", "syntax_fault"]

_PLACE = re.compile(r" \[\[?(?P<table>[^\]]*)\]\]?(?: (?P<key>.*))?$")
_AT_LINE = re.compile(r" \(at (?:line (?P<line>\d+), column (?P<column>\d+)|end of document)\)$")


class TomlLines:
    """Lines of one file.

    Args:
        file: Name of the file, as in the places of faults.
        text: Its text.
    """

    def __init__(self, file: str, text: str) -> None:
        self._file = file
        self._lines: dict[tuple[str, ...], int] = {}
        table: tuple[str, ...] = ()
        counts: dict[tuple[str, ...], int] = {}
        for line, statement in _statements(text):
            try:
                found = tomllib.loads(statement)
            except tomllib.TOMLDecodeError:
                continue
            if statement.lstrip().startswith("["):
                table = next(_paths(found, deepest=True), ())
                if statement.lstrip().startswith("[["):
                    counts[table] = counts.get(table, 0) + 1
                    self._lines.setdefault((*table, str(counts[table])), line)
                    self._lines.setdefault(table, line)
                    table = (*table, str(counts[table]))
                self._lines[table] = line
            else:
                for path in _paths(found):
                    self._lines.setdefault((*table, *path), line)

    def located(self, fault: Fault) -> Fault:
        """Return the fault with the line of its key, or of the table that lacks the key."""
        if not fault.place.startswith(self._file):
            return fault
        rest = fault.place.removeprefix(self._file)
        if not rest:
            unknown = re.match(r"unknown key '([^']*)'", fault.text)
            line = self._first(unknown[1]) if unknown else 1
            return Fault(f"{self._file}:{line}", fault.text)
        if rest[1:].isidentifier():  # a key outside of tables
            return Fault(f"{self._file}:{self._first(rest[1:])}", f"{rest[1:]}: {fault.text}")
        match = _PLACE.match(rest)
        if match is None:
            return fault
        names = [*_split(match["table"]), *re.split(r"[. ]", match["key"] or "")]
        unknown = re.match(r"unknown key '([^']*)'", fault.text)
        path = tuple(name for name in (*names, unknown[1] if unknown else "") if name)
        while path and path not in self._lines:
            path = path[:-1]
        return Fault(f"{self._file}:{self._lines.get(path, 1)}", f"{rest.strip()}: {fault.text}")

    def _first(self, key: str) -> int:
        """Return the first line of a key, or of a table whose name begins with it (``[key.name]``)."""
        return min((line for path, line in self._lines.items() if path[0] == key), default=1)


def syntax_fault(file: str, text: str, error: Exception) -> Fault:
    """Return the fault of a file that is not TOML, with the line of the mistake.

    Args:
        file: Name of the file.
        text: Its text.
        error: The error of ``tomllib``.
    """
    message = str(error)
    match = _AT_LINE.search(message)
    line = int(match["line"]) if match and match["line"] else None
    began = max((first for first, _ in _statements(text) if line is None or first <= line), default=1)
    what = message[: match.start()] if match else message
    if line is None:
        return Fault(f"{file}:{began}", f"not TOML: {what}, in the statement that begins here")
    column = f" (column {match['column']})" if match else ""
    begins = f", in the statement that begins in line {began}" if began < line else ""
    return Fault(f"{file}:{line}", f"not TOML: {what}{column}{begins}")


def _statements(text: str) -> Iterator[tuple[int, str]]:
    """Yield the number of the first line, and the text, of each statement. The last one may be incomplete."""
    first, lines = 0, list[str]()
    for number, line in enumerate(text.split("\n"), 1):
        if not lines:
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            first = number
        lines.append(line)
        statement = "\n".join(lines)
        if _is_complete(statement):
            yield first, statement
            lines.clear()
    if lines:
        yield first, "\n".join(lines)


def _is_complete(statement: str) -> bool:
    """Return whether a statement ends: it is valid, or wrong in a way that more lines do not mend."""
    try:
        tomllib.loads(statement)
    except tomllib.TOMLDecodeError as error:
        return not _continues(statement, str(error))
    except RecursionError:
        return True
    return True


def _continues(statement: str, message: str) -> bool:
    opened = any(mark in statement for mark in ("[", "{", '"""', "'''"))
    return opened and "end of document" in message and "=" in statement


def _paths(table: Any, *, deepest: bool = False) -> Iterator[tuple[str, ...]]:
    """Yield the paths of the keys of a table, the outer ones first."""
    if isinstance(table, list):
        table = next((one for one in table if isinstance(one, dict)), {})
    if not isinstance(table, dict):
        return
    for key, value in table.items():
        inner = list(_paths(value, deepest=deepest))
        if not (deepest and inner):
            yield (key,)
        for path in inner:
            yield (key, *path)


def _split(table: str) -> list[str]:
    return table.split(".")
