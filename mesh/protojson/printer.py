"""Message → JSON value, compiled once for each message type."""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import TYPE_CHECKING, Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from mesh.message_methods import has_field, list_fields
from mesh.protojson.fastpath import fast_dump, to_list
from mesh.protojson.names import json_name_of, json_names
from mesh.protojson.scalars import encoder

if TYPE_CHECKING:
    from mesh.protojson.codec import Codecs

__all__ = ["field_dump", "is_map", "message_dump", "type_name"]

Dump = Callable[[Any], Any]


def message_dump(descriptor: Descriptor, codecs: Codecs, *, small: bool) -> Dump:
    """Return the ``dump`` of a message type without a JSON form of its own.

    Args:
        descriptor: The message type.
        codecs: Codecs of the field types, and the options.
        small: Whether generated code is faster.
    """
    fields = sorted(descriptor.fields, key=lambda field: field.number)
    names = json_names(descriptor)
    plan = [(field, names[field.name], _field_encoder(field, codecs)) for field in fields]
    always = {field.name for field in fields if not field.has_presence and _always(field, codecs)}
    # ListFields confuses fields with the same JSON name (protobuf 7.36 on upb), so each field is read by its name.
    shared = any(field.json_name != name for field, name, _ in plan)
    if codecs.print_defaults:
        dump = _dump_all(plan)
    elif small or shared:
        dump = fast_dump(fields, [name for _, name, _ in plan], [encode for _, _, encode in plan], always)
    else:
        return _dump_set(plan, always, codecs)
    return _dump_with_extensions(dump, codecs) if descriptor.is_extendable else dump


def _always(field: FieldDescriptor, codecs: Codecs) -> bool:
    return codecs.always_print is not None and codecs.always_print(field)


_Plan = list[tuple[FieldDescriptor, str, Dump | None]]


def _dump_set(plan: _Plan, always: Container[str], codecs: Codecs) -> Dump:
    """Return a ``dump`` over the set fields and extensions, which is fast for messages with many fields."""
    encoders = {field: (name, encode) for field, name, encode in plan}
    get = encoders.get
    more = [(field.name, name, encode) for field, name, encode in plan if field.name in always]

    def dump(message: Any) -> dict[str, Any]:
        out = {}
        for field, value in list_fields(message):
            known = get(field)
            if known is None:  # the first use of an extension
                known = encoders[field] = (json_name_of(field), _field_encoder(field, codecs))
            name, encode = known
            out[name] = value if encode is None else encode(value)
        for own, name, encode in more:
            if name not in out:
                value = getattr(message, own)
                out[name] = value if encode is None else encode(value)
        return out

    return dump


def _dump_all(plan: _Plan) -> Dump:
    """Return a ``dump`` of every field except unset fields with presence."""
    steps = [(field.name, name, encode, field.has_presence) for field, name, encode in plan]

    def dump(message: Any) -> dict[str, Any]:
        out = {}
        for own, name, encode, presence in steps:
            if presence and not has_field(message, own):
                continue
            value = getattr(message, own)
            out[name] = value if encode is None else encode(value)
        return out

    return dump


def _dump_with_extensions(dump: Dump, codecs: Codecs) -> Dump:
    known: dict[FieldDescriptor, tuple[str, Dump]] = {}

    def both(message: Any) -> dict[str, Any]:
        out: dict[str, Any] = dump(message)
        for field, value in list_fields(message):
            if field.is_extension:
                if field not in known:
                    known[field] = (json_name_of(field), field_dump(field, codecs))
                name, encode = known[field]
                out[name] = encode(value)
        return out

    return both


def _field_encoder(field: FieldDescriptor, codecs: Codecs) -> Dump | None:
    """Return field value → JSON value, or None if both are the same."""
    if not field.is_repeated:
        return _element_encoder(field, codecs)
    if not is_map(field):
        encode = _element_encoder(field, codecs)
        return to_list if encode is None else lambda values: [encode(value) for value in values]
    entry: Any = field.message_type.fields_by_name  # type: ignore[union-attr]
    is_bool = entry["key"].type == FieldDescriptor.TYPE_BOOL
    key: Callable[[Any], str] = (lambda value: "true" if value else "false") if is_bool else str
    one = _element_encoder(entry["value"], codecs)
    if entry["value"].message_type is not None or one is None:
        each = one or (lambda value: value)
        return lambda values: {key(name): each(values[name]) for name in values}
    return lambda values: {key(name): one(value) for name, value in values.items()}


def _element_encoder(field: FieldDescriptor, codecs: Codecs) -> Dump | None:
    if field.message_type is None:
        if codecs.numbers and field.enum_type is not None and type_name(field) != "google.protobuf.NullValue":
            return None
        return encoder(field)
    codec = codecs.of_descriptor(field.message_type)
    return lambda value: codec.dump(value)  # noqa: PLW0108 - the codec of a recursive type has no ``dump`` yet


def field_dump(field: FieldDescriptor, codecs: Codecs) -> Dump:
    """Return field value → JSON value."""
    return _field_encoder(field, codecs) or _same


def _same(value: Any) -> Any:
    return value


def is_map(field: FieldDescriptor) -> bool:
    """Whether the field is a map."""
    return bool(field.message_type is not None and field.message_type.GetOptions().map_entry)


def type_name(field: FieldDescriptor) -> str:
    """Return the full name of the message or enum of a field, or ``""``."""
    named = field.message_type or field.enum_type
    return str(named.full_name) if named is not None else ""
