"""JSON names of fields and extensions. Pure.

Source: https://protobuf.dev/programming-guides/json/ (field names, extensions).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor

__all__ = ["extension_named", "json_name_of", "json_names"]

_CACHED_TYPES = 1024
"""Message types whose names are cached."""


@lru_cache(_CACHED_TYPES)
def json_names(descriptor: Descriptor) -> Mapping[str, str]:
    """Return field name of the .proto file → JSON name for the fields of a message.

    Several fields can have the same JSON name if the message allows it (``deprecated_legacy_json_field_conflicts``).
    The name belongs to the field with that name in the .proto file. The other fields keep their names of that file.
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
    """Return the extension of a message with a JSON name (``[package.name]``), or None."""
    if not (descriptor.is_extendable and name.startswith("[") and name.endswith("]")):
        return None
    try:
        found: FieldDescriptor = descriptor.file.pool.FindExtensionByName(name[1:-1])
    except KeyError:
        return None
    return found if found.containing_type is descriptor else None
