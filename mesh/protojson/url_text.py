"""Field values from URL text: path variables and query parameters. Pure.

The text is the JSON value without quotes: numbers, booleans and enum names; base64 for bytes; the JSON strings of
Timestamp, Duration and FieldMask; the wrapped value of a wrapper. Other messages have no text form. Booleans are also
read as Python writes them, ``True`` and ``False``: Google's Python clients and ``requests`` send them so.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from mesh.message_methods import clear, set_in_parent
from mesh.protojson.scalars import BadValue, decoder
from mesh.protojson.wellknown import WELL_KNOWN, WRAPPERS, fill_mask_text

__all__ = ["text_setter"]

Setter = Callable[[Any, str], None]

_BOOLEANS = {"true": True, "True": True, "false": False, "False": False}


def text_setter(field: FieldDescriptor) -> Setter | None:
    """Return the setter of a field from text, or None if the field has no text form.

    The setter appends to a repeated field. It raises ``BadValue``.
    """
    name = field.name
    inner = field.message_type
    if inner is None:
        decode = _boolean if field.type == FieldDescriptor.TYPE_BOOL else decoder(field)
        if field.is_repeated:
            return lambda message, text: getattr(message, name).append(decode(text))
        return lambda message, text: setattr(message, name, decode(text))
    fill = _fill(inner)
    if fill is None:
        return None
    if field.is_repeated:
        return lambda message, text: fill(getattr(message, name).add(), text)

    def setter(message: Any, text: str) -> None:
        sub = getattr(message, name)
        clear(sub)
        set_in_parent(sub)
        fill(sub, text)

    return setter


def _boolean(text: str) -> bool:
    value = _BOOLEANS.get(text)
    if value is None:
        raise BadValue("expected true or false")
    return value


def _fill(descriptor: Descriptor) -> Setter | None:
    name = descriptor.full_name
    if name == "google.protobuf.FieldMask":
        return fill_mask_text
    if name in ("google.protobuf.Timestamp", "google.protobuf.Duration"):
        return WELL_KNOWN[name][0]
    return text_setter(descriptor.fields_by_name["value"]) if name in WRAPPERS else None
