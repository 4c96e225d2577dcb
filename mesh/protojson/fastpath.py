"""Generated straight-line code for small messages, in place of the loop of the general codec.

A generated ``fill`` handles only the common case: JSON names, and JSON types that the fields store unchanged. In every
other case it clears the message and calls the general ``fill``, which also writes every error text. So there is one set
of rules. A generated ``dump`` handles all cases.

The source holds field names of the contract, which are identifiers, and JSON names written by ``repr``.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from keyword import iskeyword
from math import copysign
from operator import itemgetter
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from mesh.message_methods import clear, has_field
from mesh.protojson.scalars import exact

__all__ = ["extend_strings", "fast_dump", "fast_fill", "is_fast", "to_list"]

Fill = Callable[[Any, Any], None]
Dump = Callable[[Any], Any]

_MAX_FIELDS = 12
"""Most fields of larger messages are usually unset, and to test each costs more than a loop over the set ones."""

_REAL = (FieldDescriptor.TYPE_FLOAT, FieldDescriptor.TYPE_DOUBLE)
_WIDE_INTEGERS = (FieldDescriptor.CPPTYPE_INT64, FieldDescriptor.CPPTYPE_UINT64)


def is_fast(message: Descriptor) -> bool:
    """Whether code can be generated for a message type and is faster than the general codec."""
    few = len(message.fields) <= _MAX_FIELDS and not message.is_extendable
    return few and not any(iskeyword(field.name) for field in message.fields)


def fast_fill(
    fields: Sequence[FieldDescriptor], json_names: Sequence[str], stores: Sequence[Fill], general: Fill
) -> Fill:
    """Return the ``fill`` of a message.

    Args:
        fields: Fields of the message.
        json_names: JSON name of each field.
        stores: Setter of each field for any JSON value.
        general: The ``fill`` of the general codec.
    """
    lines = [
        "def fill(message, value):",
        " if type(value) is dict:",
        "  get = value.get",
        "  known = 0",
        "  try:",
    ]
    for index, (field, json_name) in enumerate(zip(fields, json_names, strict=True)):
        lines += [f"   one = get({json_name!r})", "   if one is not None:"]
        kind = exact(field) if field.message_type is None and not field.is_repeated else None
        if field.containing_oneof is not None and len(field.containing_oneof.fields) > 1:
            kind = None
        if kind is None or field.type == FieldDescriptor.TYPE_FLOAT or field.enum_type is not None:
            lines += [f"    store{index}(message, one)", "    known += 1"]
            continue
        lines += [f"    if type(one) is {kind.__name__}:", f"     message.{field.name} = one", "     known += 1"]
        if kind is float:
            lines += ["    elif type(one) is int:", f"     message.{field.name} = float(one)", "     known += 1"]
        elif field.cpp_type in _WIDE_INTEGERS:
            lines += [
                "    elif type(one) is str and len(one) < 20 and one.isascii() and one.isdigit():",
                f"     message.{field.name} = int(one)",
                "     known += 1",
            ]
    lines += [
        "   if known == len(value):",
        "    return",
        "  except ValueError:",
        "   pass",
        "  clear(message)",
        " general(message, value)",
    ]
    names = {f"store{index}": store for index, store in enumerate(stores)}
    fill: Fill = _compiled(lines, {**names, "general": general, "clear": clear}, "fill")
    return fill


def fast_dump(
    fields: Sequence[FieldDescriptor],
    json_names: Sequence[str],
    encoders: Sequence[Dump | None],
    always: Container[str] = (),
) -> Dump:
    """Return the ``dump`` of a message.

    Args:
        fields: Fields of the message, in the order of the output.
        json_names: JSON name of each field.
        encoders: Field value → JSON value for each field; None for the value itself.
        always: Names of fields without presence that are printed also with their default value.
    """
    lines = ["def dump(message):", " out = {}"]
    for index, (field, json_name, encode) in enumerate(zip(fields, json_names, encoders, strict=True)):
        own = f"getattr(message, {field.name!r})" if iskeyword(field.name) else f"message.{field.name}"
        value = "value" if encode is None else f"encode{index}(value)"
        if field.has_presence:
            lines += [f" if has_field(message, {field.name!r}):", f"  value = {own}"]
        elif field.name in always:
            lines += [f" value = {own}", " if True:"]
        else:
            # Negative zero is printed; positive zero is the default and is not.
            more = " or copysign(1.0, value) < 0.0" if field.type in _REAL and not field.is_repeated else ""
            lines += [f" value = {own}", f" if value{more}:"]
        lines += [f"  out[{json_name!r}] = {value}"]
    lines += [" return out"]
    names = {f"encode{index}": encode for index, encode in enumerate(encoders)}
    dump: Dump = _compiled(lines, {**names, "copysign": copysign, "has_field": has_field}, "dump")
    return dump


to_list: Callable[[Any], list[Any]] = itemgetter(slice(None))
"""Repeated field → list, in half of the time of ``list``."""


def extend_strings(get: Callable[[Any], Any], store: Fill) -> Fill:
    """Return a setter that appends a list of strings at once and gives every other value to ``store``."""

    def fill(message: Any, value: Any) -> None:
        target = get(message)
        count = len(target)
        try:
            if type(value) is list:
                target.extend(value)
                return
        except (TypeError, ValueError):
            del target[count:]
        store(message, value)

    return fill


def _compiled(lines: list[str], names: dict[str, Any], name: str) -> Any:
    exec("\n".join(lines), names)  # noqa: S102 - the source holds identifiers and literals only
    return names[name]
