"""Environment overrides: sets values of the tables of mesh.toml from environment variables. Pure.

``EDGE_MAX_BODY`` names ``edge.max_body``. A key may contain ``_`` itself, so the types of the tables decide which key a
variable names. A variable that names no key is a fault.
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
"""Start of a text that is meant as a TOML table or array, valid or not."""


def override(
    tables: dict[str, Any],
    kind: type[msgspec.Struct],
    service: type[msgspec.Struct],
    overrides: Mapping[str, str],
    prefix: str,
) -> None:
    """Set the values of the variables in the tables.

    Args:
        tables: Tables of mesh.toml, which are changed.
        kind: Type of the whole file.
        service: Type of a table ``[services.NAME]``.
        overrides: Variable → text. Every name begins with ``prefix``.
        prefix: ``MESH_``.

    Raises:
        Faults: A variable names no key.
    """
    faults = []
    for name, value in sorted(overrides.items()):
        try:
            _set(tables, kind, service, name.removeprefix(prefix), value)
        except KeyError as error:
            known = ", ".join(sorted(tables.get("services", {}))) or "none"
            faults.append(Fault(f"environment variable {name}", f"{error.args[0]} (services: {known})"))
    if faults:
        raise Faults(faults)


def _set(
    table: dict[str, Any], kind: type[msgspec.Struct], service: type[msgspec.Struct], words: str, value: str
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
                    _set(services[name], service, service, rest.removeprefix(prefix), value)
                    return
            raise KeyError(f"there is no such service in mesh.toml: {rest}")
        if field.name == "settings":
            table.setdefault("settings", {})[rest.lower()] = value
            return
        inner = _struct(field)
        if inner is not None:
            inside = table.setdefault(field.name, {})
            if not isinstance(inside, dict):
                raise KeyError(f"{field.name!r} is no table in mesh.toml; write a table, or override the whole value")
            _set(inside, inner, service, rest, value)
            return
    raise KeyError(f"there is no value {words.lower()!r} in mesh.toml")


def _struct(field: msgspec.structs.FieldInfo) -> type[msgspec.Struct] | None:
    """Return the table type among the types of a field, or None.

    Raises:
        KeyError: The field is a list of tables.
    """
    if field.name == "issuers":
        example = """[{ issuer = "…", audience = "…" }]"""
        raise KeyError(f"{field.name!r} is a list of tables, which a variable sets as a whole, as in {example}")
    for one in get_args(field.type) or (field.type,):
        if isinstance(one, type) and issubclass(one, msgspec.Struct):
            return one
    return None


def _value(text: str, kind: Any) -> Any:
    """Return the value of a variable: the text for a text type, else its TOML value; ``a,b`` is a list.

    A text that begins with ``[`` and is no TOML array is a list of addresses (``[::1]:9101,[::1]:9102``).
    """
    if kind in (str, Duration, TimeLimit, Rate | None):
        return text
    words = tuple[str, ...] in (kind, *get_args(kind))
    if not words or text.startswith(("[", "{")):
        try:
            found = tomllib.loads(f"value = {text}")
        except (tomllib.TOMLDecodeError, RecursionError):
            found = {}
        if len(found) == 1:
            return found["value"]
    if words and not _TOML.match(text):
        return [part.strip() for part in text.split(",") if part.strip()]
    return text
