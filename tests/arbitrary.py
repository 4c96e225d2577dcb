"""Arbitrary messages of any type, for Hypothesis: every field, map, oneof, well-known type and extension."""

from __future__ import annotations

import functools
import math
from collections.abc import Collection
from typing import Any

from google.protobuf import json_format
from google.protobuf.descriptor import FieldDescriptor as F
from hypothesis import strategies as st

from mesh.message_methods import extensions, set_in_parent

_INTS = {
    F.CPPTYPE_INT32: st.integers(-(2**31), 2**31 - 1),
    F.CPPTYPE_INT64: st.integers(-(2**63), 2**63 - 1),
    F.CPPTYPE_UINT32: st.integers(0, 2**32 - 1),
    F.CPPTYPE_UINT64: st.integers(0, 2**64 - 1),
}
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
_JSON = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
_SECONDS = st.integers(-62_135_596_800, 253_402_300_799)


def one_nan(value):
    """JSON has one NaN; floats have many."""
    return math.nan if value != value else value  # noqa: PLR0124


def scalar(field, *, unknown=True):
    if field.type == F.TYPE_BYTES:
        return st.binary(max_size=8)
    if field.type == F.TYPE_FLOAT:
        return st.floats(width=32).map(one_nan)
    if field.enum_type is not None:
        if field.enum_type.full_name == "google.protobuf.NullValue":
            return st.just(0)
        known = st.sampled_from([value.number for value in field.enum_type.values])
        return known if field.enum_type.is_closed or not unknown else known | st.integers(-(2**31), 2**31 - 1)
    if field.cpp_type in _INTS:
        return _INTS[field.cpp_type]
    return {F.CPPTYPE_DOUBLE: st.floats().map(one_nan), F.CPPTYPE_BOOL: st.booleans(), F.CPPTYPE_STRING: TEXT}[
        field.cpp_type
    ]


@st.composite
def duration(draw):
    longest = 315_576_000_000 * 10**9 + 999_999_999
    nanos = draw(st.integers(-longest, longest))
    sign = -1 if nanos < 0 else 1
    seconds, rest = divmod(abs(nanos), 10**9)
    return {"seconds": sign * seconds, "nanos": sign * rest}


def extensions_of(descriptor):
    """Return the extensions of a message type that its pool has."""
    return descriptor.file.pool.FindAllExtensions(descriptor) if descriptor.is_extendable else []


def value_of(message, field):
    """Return the value of a field or an extension."""
    return extensions(message)[field] if field.is_extension else getattr(message, field.name)


class Made:
    """Makes one message."""

    def __init__(self, draw, *, unknown, without):
        self._draw = draw
        self._without = without
        self._scalar = functools.partial(scalar, unknown=unknown)

    def _is_out(self, descriptor):
        entry = descriptor.GetOptions().map_entry
        inner = descriptor.fields_by_name["value"].message_type if entry else descriptor
        return inner is not None and inner.full_name in self._without

    def fill(self, message, depth):
        """Set a random part of the fields; returns the message."""
        draw = self._draw
        name = type(message).DESCRIPTOR.full_name
        if name == "google.protobuf.Timestamp":
            message.seconds = draw(_SECONDS)
            message.nanos = draw(st.integers(0, 999_999_999) | st.sampled_from([0, 10**6, 5000]))
        elif name == "google.protobuf.Duration":
            for key, value in draw(duration()).items():
                setattr(message, key, value)
        elif name == "google.protobuf.FieldMask":
            message.paths.extend(draw(st.lists(st.from_regex(r"\A[a-z]{1,3}(_[a-z]{1,3})?(\.[a-z])?\Z"), max_size=3)))
        elif name in ("google.protobuf.Struct", "google.protobuf.ListValue", "google.protobuf.Value"):
            kinds = {"Struct": st.dictionaries(TEXT, _JSON, max_size=3), "ListValue": st.lists(_JSON, max_size=3)}
            json_format.ParseDict(draw(kinds.get(message.DESCRIPTOR.name, _JSON)), message)
        elif name == "google.protobuf.Any":
            return message
        else:
            every = [*type(message).DESCRIPTOR.fields, *extensions_of(type(message).DESCRIPTOR)]
            fields = [field for field in every if field.message_type is None or not self._is_out(field.message_type)]
            few = (
                st.lists(st.sampled_from(fields), max_size=4, unique_by=lambda field: field.full_name)
                if fields
                else st.just([])
            )
            chosen = [*(fields if len(fields) < 6 else draw(few)), *(field for field in fields if field.is_required)]
            for field in chosen:
                self._set(message, field, depth)
        return message

    def _set(self, message, field, depth):
        draw, scalar = self._draw, self._scalar
        if field.message_type is not None and depth == 0:
            return
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            entry = field.message_type.fields_by_name
            target = getattr(message, field.name)
            for key in draw(st.lists(scalar(entry["key"]), max_size=3, unique=True)):
                if entry["value"].message_type is not None:
                    self.fill(target[key], depth - 1)
                else:
                    target[key] = draw(scalar(entry["value"]))
        elif field.is_repeated:
            target = value_of(message, field)
            for _ in range(draw(st.integers(0, 3))):
                if field.message_type is not None:
                    self.fill(target.add(), depth - 1)
                else:
                    target.append(draw(scalar(field)))
        elif field.message_type is not None:
            sub = value_of(message, field)
            set_in_parent(sub)
            self.fill(sub, depth - 1)
        elif field.is_extension:
            extensions(message)[field] = draw(scalar(field))
        else:
            setattr(message, field.name, draw(scalar(field)))


@st.composite
def messages(draw, message: Any, depth: int = 3, *, unknown: bool = True, without: Collection[str] = ()):
    """A message of a class.

    Args:
        draw: Hypothesis' own.
        message: The class.
        depth: Levels of messages in it.
        unknown: Enums can have numbers without a name.
        without: Full names of message types that are nowhere in it.
    """
    return Made(draw, unknown=unknown, without=without).fill(message(), depth)
