"""Straight-line code for small messages: what the general codec does in a loop, written out field by field.

A generated ``fill`` takes only the plain case (the JSON names, the JSON types that the fields hold as they are). On
anything else it clears the message and leaves it to the general one, which also words every error; so there is one set
of rules, and this is a short cut through it. A generated ``dump`` is the whole of it.

The source is made of field names of the contract, which are identifiers, and of JSON names by ``repr``.
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

__all__ = ["fast_dump", "fast_fill", "suits", "texts_first", "whole"]

Fill = Callable[[Any, Any], None]
Dump = Callable[[Any], Any]

_FEW = 12
"""Fields; with more, most are unset in most messages and asking each costs more than a loop over what is there."""

_REAL = (FieldDescriptor.TYPE_FLOAT, FieldDescriptor.TYPE_DOUBLE)
_WIDE_INTEGERS = (FieldDescriptor.CPPTYPE_INT64, FieldDescriptor.CPPTYPE_UINT64)


def suits(message: Descriptor) -> bool:
    """Whether code can be generated for a message type and is faster."""
    few = len(message.fields) <= _FEW and not message.is_extendable
    return few and not any(iskeyword(field.name) for field in message.fields)


def fast_fill(
    fields: Sequence[FieldDescriptor], json_names: Sequence[str], stores: Sequence[Fill], general: Fill
) -> Fill:
    """Return the ``fill`` of a message.

    Args:
        fields: Its fields.
        json_names: Their JSON names.
        stores: How each is set from any JSON value.
        general: The ``fill`` for everything else.
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
        fields: Its fields, in the order in which they are printed.
        json_names: Their JSON names.
        encoders: What makes the JSON value of each; None for the value itself.
        always: Names of those without presence that are printed at their defaults too.
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
            # Negative zero is a value; positive zero is none.
            more = " or copysign(1.0, value) < 0.0" if field.type in _REAL and not field.is_repeated else ""
            lines += [f" value = {own}", f" if value{more}:"]
        lines += [f"  out[{json_name!r}] = {value}"]
    lines += [" return out"]
    names = {f"encode{index}": encode for index, encode in enumerate(encoders)}
    dump: Dump = _compiled(lines, {**names, "copysign": copysign, "has_field": has_field}, "dump")
    return dump


whole: Callable[[Any], list[Any]] = itemgetter(slice(None))
"""A repeated field as a list, in half of the time that ``list`` takes to walk it."""


def texts_first(get: Callable[[Any], Any], store: Fill) -> Fill:
    """Return what appends to a repeated string field all at once; what is no list of texts it leaves to ``store``."""

    def all_at_once(message: Any, value: Any) -> None:
        target = get(message)
        count = len(target)
        try:
            if type(value) is list:
                target.extend(value)
                return
        except (TypeError, ValueError):
            del target[count:]
        store(message, value)

    return all_at_once


def _compiled(lines: list[str], names: dict[str, Any], name: str) -> Any:
    exec("\n".join(lines), names)  # noqa: S102 - made here, of identifiers and literals
    return names[name]
