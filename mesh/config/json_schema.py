"""JSON Schema of mesh.toml, for editors: every key with its type, its default and its description. Pure.

The schema is made from the types of the tables and from their docstrings, as ``mesh.config.manifest`` takes them. It
knows no rule between two keys; ``mesh check`` does.

Sources: JSON Schema draft 7, which editors of TOML read (taplo, Even Better TOML, tombi).
"""

from __future__ import annotations

import inspect
import re
from types import NoneType, UnionType
from typing import Any, Literal, TypeAlias, Union, get_args, get_origin

import msgspec

from mesh.config.manifest import ManifestFile
from mesh.config.service import ServiceConfig
from mesh.config.values import Duration, Rate, Size, TimeLimit

__all__ = ["document"]

Schema: TypeAlias = dict[str, Any]

_DURATION = r"[0-9]+(\.[0-9]+)?(ms|s|m|h|d)"
_TEXTS: dict[type, Schema] = {
    Duration: {"type": "string", "pattern": f"^{_DURATION}$"},
    TimeLimit: {"type": "string", "pattern": f"^({_DURATION}|none)$"},
    Rate: {"type": "string", "pattern": "^[0-9]{1,9}/(s|m|h)( burst [0-9]{1,9})?$"},
    Size: {
        "anyOf": [
            {"type": "integer", "minimum": 0},
            {"type": "string", "pattern": r"^[0-9]+\s*([KMG]i?B|B)?$"},
        ]
    },
}
_SECRET: Schema = {
    "description": "A secret, by its name.",
    "type": "object",
    "properties": {"secret": {"type": "string"}, "optional": {"type": "boolean"}},
    "required": ["secret"],
    "additionalProperties": False,
}
_SCALARS: dict[type, Schema] = {
    str: {"anyOf": [{"type": "string"}, {"$ref": "#/definitions/Secret"}]},
    int: {"type": "integer"},
    bool: {"type": "boolean"},
    NoneType: {},
}
_ATTRIBUTE = re.compile(r"^(?P<name>\w+): (?P<text>.*(?:\n(?![\w`]+: |$) *.*)*)", re.MULTILINE)


def document() -> Schema:
    """Return the schema of mesh.toml."""
    definitions: dict[str, Schema] = {"Secret": _SECRET}
    top = _table(ManifestFile, definitions, _descriptions(ManifestFile))
    services = top["properties"]["services"]
    services["additionalProperties"] = _kind(ServiceConfig, definitions)
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "mesh.toml",
        "description": "Deployment of a function mesh: addresses, databases and limits.",
        **top,
        "definitions": definitions,
    }


def _table(kind: type[msgspec.Struct], definitions: dict[str, Schema], texts: dict[str, str]) -> Schema:
    """Return the schema of a table. The types of tables inside of it are added to the definitions."""
    properties: dict[str, Schema] = {}
    for field in msgspec.structs.fields(kind):
        schema = _kind(field.type, definitions)
        about = {"description": texts[field.name]} if field.name in texts else {}
        default = _default(field.default)
        if default is not None:
            about["default"] = default
        # Draft 7 ignores what stands beside a $ref.
        properties[field.encode_name] = {"allOf": [schema], **about} if "$ref" in schema else {**schema, **about}
    required = [field.encode_name for field in msgspec.structs.fields(kind) if field.required]
    return {
        "type": "object",
        "properties": properties,
        **({"required": required} if required else {}),
        "additionalProperties": False,
    }


def _kind(kind: Any, definitions: dict[str, Schema]) -> Schema:  # noqa: PLR0911 - one for each kind of type
    """Return the schema of a type."""
    if kind in _SCALARS:
        return dict(_SCALARS[kind])
    if kind in _TEXTS:
        return dict(_TEXTS[kind])
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return {"enum": list(inner)}
    if origin in (Union, UnionType):
        kinds = [_kind(one, definitions) for one in inner if one is not NoneType]
        return kinds[0] if len(kinds) == 1 else {"anyOf": kinds}
    if origin is tuple:
        return {"type": "array", "items": _kind(inner[0], definitions)}
    if origin is dict:
        return {"type": "object", "additionalProperties": _kind(inner[1], definitions)}
    if kind is Any:
        return {}
    name = kind.__name__.removesuffix("Config")
    if name not in definitions:
        definitions[name] = {}  # a table inside of itself would be seen here
        texts = _descriptions(kind)
        definitions[name] = {"description": texts[""], **_table(kind, definitions, texts)}
    return {"$ref": f"#/definitions/{name}"}


def _default(value: Any) -> Any:
    """Return a default as mesh.toml writes it; None if there is none to show."""
    if isinstance(value, Duration):
        return "none" if value == float("inf") else _duration(value)
    if isinstance(value, Size):
        return int(value)
    if isinstance(value, tuple):
        return list(value)
    return value if isinstance(value, str | int | bool) else None


def _duration(seconds: float) -> str:
    """Return a duration in the largest unit that divides it."""
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= size and seconds % size == 0:
            return f"{seconds / size:g}{unit}"
    return f"{seconds:g}s"


def _descriptions(kind: type) -> dict[str, str]:
    """Return the first sentence of a class's docstring as ``""``, and the texts of its attributes by name."""
    texts: dict[str, str] = {"": ""}
    for one in reversed(kind.__mro__):
        summary, _, attributes = inspect.cleandoc(one.__dict__.get("__doc__") or "").partition("Attributes:\n")
        texts[""] = _plain(summary.partition("\n\n")[0])
        block = inspect.cleandoc(attributes.partition("\n\n")[0])
        texts |= {match["name"]: _plain(match["text"]) for match in _ATTRIBUTE.finditer(block)}
    return texts


def _plain(text: str) -> str:
    """Return a docstring's text on one line, with Markdown's backquotes."""
    return " ".join(text.replace("``", "`").split())
