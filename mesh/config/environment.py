"""Values of the environment put in their places in the tables of mesh.toml. Pure: ``mesh.config.manifest`` reads both.

``EDGE_MAX_BODY`` names ``edge.max_body``: a key may hold ``_`` itself, so what a name means is looked up in the types
of the tables. A name that fits none is refused.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from typing import Any, get_args

import msgspec

from mesh.config.values import Duration, Rate, TimeLimit
from mesh.faults import Fault, Faults

__all__ = ["override"]

_TOML = re.compile(r"""\{|\[\s*['"\[\]]""")
"""The beginning of what is meant as TOML, a table or an array, right or not."""


def override(
    tables: dict[str, Any],
    kind: type[msgspec.Struct],
    entry: type[msgspec.Struct],
    overrides: Mapping[str, str],
    prefix: str,
) -> None:
    """Set in the tables what the variables say.

    Args:
        tables: What mesh.toml says; changed.
        kind: The type of the whole file.
        entry: The type of a table ``[services.NAME]``.
        overrides: Variable → text; every name begins with ``prefix``.
        prefix: ``MESH_``.

    Raises:
        Faults: Variables that name no value.
    """
    faults = []
    for name, value in sorted(overrides.items()):
        try:
            _set(tables, kind, entry, name.removeprefix(prefix), value)
        except KeyError as error:
            known = ", ".join(sorted(tables.get("services", {}))) or "none"
            faults.append(Fault(f"environment variable {name}", f"{error.args[0]} (services: {known})"))
    if faults:
        raise Faults(faults)


def _set(
    table: dict[str, Any], kind: type[msgspec.Struct], entry: type[msgspec.Struct], words: str, value: str
) -> None:
    """Set the key that ``words`` (``EDGE_LISTEN``) names in ``table``, whose type is ``kind``."""
    for field in msgspec.structs.fields(kind):
        key = field.encode_name.upper()
        rest = words[len(key) + 1 :]
        if words == key:
            table[field.encode_name] = _value(value, field.type)
            return
        if not words.startswith(f"{key}_"):
            continue
        if field.name == "services":
            services = table.get("services", {})
            for name in sorted(services, key=len, reverse=True):
                prefix = f"{name.upper().replace('-', '_')}_"
                if rest.startswith(prefix):
                    _set(services[name], entry, entry, rest.removeprefix(prefix), value)
                    return
            raise KeyError(f"there is no such service in mesh.toml: {rest}")
        if field.name == "settings":
            table.setdefault("settings", {})[rest.lower()] = value
            return
        inner = _struct(field.type)
        if inner is not None:
            inside = table.setdefault(field.name, {})
            if not isinstance(inside, dict):
                raise KeyError(f"{field.name!r} is no table in mesh.toml; make it one, or override it whole")
            _set(inside, inner, entry, rest, value)
            return
    raise KeyError(f"there is no value {words.lower()!r} in mesh.toml")


def _struct(kind: Any) -> type[msgspec.Struct] | None:
    """Return the table that a field of this type holds, alone or as one of several, or None."""
    for one in get_args(kind) or (kind,):
        if isinstance(one, type) and issubclass(one, msgspec.Struct):
            return one
    return None


def _value(text: str, kind: Any) -> Any:
    """Return the text as the type needs it: text for text, else a TOML value; ``a,b`` is a list.

    A text that begins with ``[`` is a list of addresses (``[::1]:9101,[::1]:9102``) where it is no array of TOML.
    """
    if kind in (str, Duration, TimeLimit, Rate | None):
        return text
    words = tuple[str, ...] in (kind, *get_args(kind))
    if not words or text.startswith(("[", "{")):
        try:
            found = tomllib.loads(f"value = {text}")
        except tomllib.TOMLDecodeError:
            found = {}
        if len(found) == 1:
            return found["value"]
    if words and not _TOML.match(text):
        return [part.strip() for part in text.split(",") if part.strip()]
    return text
