"""Redaction: hides the fields of a message that its contract marks as secret (``debug_redact`` of descriptor.proto)."""

from __future__ import annotations

from typing import Any

from google.protobuf.descriptor import FieldDescriptor

from mesh.message_methods import clear_field, list_fields

__all__ = ["REDACTED", "redact"]

REDACTED = "[REDACTED]"
"""Text in place of a secret text, as in the text formats of protobuf."""


def redact(message: Any) -> None:
    """Replace each secret text of a message by ``REDACTED``, and remove secret values of other types, at any depth.

    Values inside ``google.protobuf.Any`` are not seen, because their type may be unknown.
    """
    for field, value in list_fields(message):
        if field.GetOptions().debug_redact:
            clear_field(message, field.name)
            if field.type == FieldDescriptor.TYPE_STRING and not field.is_repeated:
                setattr(message, field.name, REDACTED)
        elif field.message_type is not None:
            _redact_inner(field, value)


def _redact_inner(field: Any, value: Any) -> None:
    entry = field.message_type
    if not field.is_repeated:
        redact(value)
    elif entry.GetOptions().map_entry:
        if entry.fields_by_name["value"].message_type is not None:
            for one in value.values():
                redact(one)
    else:
        for one in value:
            redact(one)
