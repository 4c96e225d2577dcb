"""JSON names of fields and extensions: what a member of an object is called. Pure.

Source: https://protobuf.dev/programming-guides/json/ (field names, extensions).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor

__all__ = ["extension_named", "json_name_of", "json_names"]

_REMEMBERED = 1024
"""Message types whose names are kept."""


@lru_cache(_REMEMBERED)
def json_names(descriptor: Descriptor) -> Mapping[str, str]:
    """Return the JSON name of each field of a message, by its name in the .proto file.

    Fields can have one JSON name in common where the message allows it (``deprecated_legacy_json_field_conflicts``).
    It belongs to the field that is called so in the .proto file; the others are called as they are there.
    """
    count = Counter(field.json_name for field in descriptor.fields)
    return {field.name: field.json_name if count[field.json_name] == 1 else field.name for field in descriptor.fields}


def json_name_of(field: FieldDescriptor) -> str:
    """Return the JSON name of a field, or ``[package.name]`` of an extension."""
    if field.is_extension:
        return f"[{field.full_name}]"
    holder: Any = field.containing_type
    return json_names(holder)[field.name]


def extension_named(descriptor: Descriptor, name: str) -> FieldDescriptor | None:
    """Return the extension of a message that a JSON name (``[package.name]``) stands for; None if there is none."""
    if not (descriptor.is_extendable and name.startswith("[") and name.endswith("]")):
        return None
    try:
        found: FieldDescriptor = descriptor.file.pool.FindExtensionByName(name[1:-1])
    except KeyError:
        return None
    return found if found.containing_type is descriptor else None
