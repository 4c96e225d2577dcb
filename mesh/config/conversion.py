"""Conversion of tables of mesh.toml into typed values, with one fault for each mistake.

msgspec stops at the first mistake. It is removed from the table, and the conversion is made again: the key then has its
default, and the checks that follow find further faults.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, TypeVar, get_args, get_origin

import msgspec

from mesh.faults import Fault

__all__ = ["PREFIX", "consequence", "convert", "place_of"]

PREFIX = "MESH_"
"""Prefix of environment variables that override values."""

_PATH = re.compile(r"\.?([^.\[\]]+)|\[(\d+)\]")
"""Part of a path in a message of msgspec: a key, or an index in a list."""

TableT = TypeVar("TableT", bound=msgspec.Struct)


def convert(
    table: dict[str, Any], kind: type[TableT], file: str, prefix: str, overrides: Mapping[str, str]
) -> tuple[TableT | None, list[Fault]]:
    """Return a table as its type, without what is wrong, and the faults. The value is None if nothing remains.

    Args:
        table: The table. Wrong keys are removed from it.
        kind: Its type.
        file: Name of the file, for faults.
        prefix: Path of the table in the file (``services.login``), or ``""``.
        overrides: Names of environment variables whose values are in the table.
    """
    faults: list[Fault] = []
    while True:
        try:
            return msgspec.convert(table, kind, dec_hook=_parse), faults
        except msgspec.ValidationError as error:
            text, _, found = str(error).partition(" - at `$")
            parts = _PATH.findall(found.removesuffix("`"))
            path = [int(index) if index else name for name, index in parts]
            fault, removed = _fault(text, path, kind, file, prefix, overrides)
            if not consequence(fault, faults):
                faults.append(fault)
            if not _remove(table, removed):
                return None, faults


def consequence(fault: Fault, found: Sequence[Fault]) -> bool:
    """Return whether a fault is only there because ``convert`` has removed what has the faults ``found``.

    A key that was removed is missing, and one with its default value may be wrong beside the others. Unknown keys of
    one table have the same place.
    """
    if fault.text.startswith("unknown key"):
        return False
    lacks = "missing" in fault.text or fault.text.startswith("name at least")
    table = fault.place.partition("]")[0]
    return any(fault.place == one.place or (lacks and one.place.startswith(table)) for one in found)


def place_of(file: str, keys: str) -> str:
    """Return ``mesh.toml [services.login] listen`` for ``services.login.listen``."""
    if keys == "auth.issuers" or keys.startswith("auth.issuers."):
        return f"{file} [[auth.issuers]] {keys[len('auth.issuers.') :]}".rstrip()
    parts = [part for part in keys.split(".") if part]
    depth = 2 if parts[:1] == ["services"] else 1
    table = f" [{'.'.join(parts[:depth])}]" if parts else ""
    key = f" {'.'.join(parts[depth:])}" if len(parts) > depth else ""
    return file + table + key


def _parse(kind: type, value: object) -> object:
    return kind.parse(value)  # type: ignore[attr-defined]


def _fault(
    text: str, path: list[str | int], kind: type[msgspec.Struct], file: str, prefix: str, overrides: Mapping[str, str]
) -> tuple[Fault, list[str | int]]:
    """Return the fault of msgspec's message, and the path of what has to go."""
    names = [part for part in path if isinstance(part, str)]
    keys = ".".join(part for part in (prefix, *names) if part)
    where, removed = place_of(file, keys), path
    unknown = re.search(r"unknown field `(.*)`", text)
    if unknown:
        text = f"unknown key {unknown[1]!r}{_near(unknown[1], _table_at(kind, names))}"
        removed = [*path, unknown[1]]
    if text.startswith("Invalid enum value"):
        choices = [f"{value!r}" for value in _choices(_type_at(kind, names))]
        text += f"; expected {' or '.join(choices)}"
    missing = re.search(r"missing required field `(.*)`", text)
    if missing:
        text = f"the key {missing[1]!r} is missing"
    if re.match(r"Expected `object( \| null)?`", text):
        example = ", as in workers = { max = 3 }" if names == ["workers"] else ""
        text = f"expected a table{example}; {text.partition(', ')[2]}"
    variable = PREFIX + keys.upper().replace(".", "_").replace("-", "_")
    if variable in overrides:
        where = f"environment variable {variable}"
    return Fault(where, (text[:1].lower() + text[1:]).replace("`", "")), removed


def _remove(table: Any, path: Sequence[str | int]) -> bool:
    """Remove what is at a path; return whether it was there."""
    if not path:
        return False
    *parents, last = path
    try:
        for part in parents:
            table = table[part]
        del table[last]
    except (KeyError, IndexError, TypeError):
        return False
    return True


def _type_at(kind: Any, names: Sequence[str]) -> Any:
    """Return the type of the value at a path of keys, or None."""
    for name in names:
        fields = [field for one in _structs(kind) for field in msgspec.structs.fields(one)]
        kind = next((field.type for field in fields if field.encode_name == name), None)
    return kind


def _table_at(kind: type[msgspec.Struct], names: Sequence[str]) -> type[msgspec.Struct] | None:
    return next(_structs(_type_at(kind, names)), None)


def _structs(kind: Any) -> Iterator[type[msgspec.Struct]]:
    """Yield the tables among the members of a type: of a union, or of a list."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        yield kind
    for one in get_args(kind):
        yield from _structs(one)


def _choices(kind: Any) -> Iterator[str]:
    """Yield the allowed values of an enumerated key."""
    for one in get_args(kind):
        if get_origin(kind) is Literal:
            yield str(one)
        else:
            yield from _choices(one)


def _near(key: str, table: type[msgspec.Struct] | None) -> str:
    known = () if table is None else table.__struct_encode_fields__
    close = difflib.get_close_matches(key, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(known)}"
