"""JSON scalar ⇄ field value: a decoder and an encoder for each scalar type of protobuf. Pure.

A decoder takes one JSON value as orjson parses it, or a string of a URL. It returns a value within the range of the
field, or raises ``BadValue`` with the expected form. This module knows no messages.

Source: https://protobuf.dev/programming-guides/json/ and the JSON cases of protobuf's conformance suite.
"""

from __future__ import annotations

import re
import struct
from binascii import a2b_base64, b2a_base64
from collections.abc import Callable
from decimal import Decimal
from math import isinf, isnan
from typing import Any

from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor

__all__ = [
    "BadValue",
    "JsonError",
    "UnknownEnumName",
    "decoder",
    "describe",
    "encoder",
    "exact",
    "key_decoder",
]

Decode = Callable[[Any], Any]
Encode = Callable[[Any], Any]

_NUMBER = re.compile(r"-?[0-9]+(?P<real>\.[0-9]+)?(?P<exponent>[eE][+-]?[0-9]+)?", re.ASCII)
_FLOAT_SAFE = 3.4028234e38
_URLSAFE = bytes.maketrans(b"-_", b"+/")
_SPECIAL = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf")}
_MAX_DIGITS = 20
_MAX_MAGNITUDE = 1e20
"""Above every 64-bit integer. A larger number is refused before its exact conversion, which costs memory."""


class BadValue(ValueError):
    """A JSON value that a field cannot hold.

    Attributes:
        text: Description of the expected value.
        path: Path of the field, innermost part first: names, ``[2]`` for elements, ``["a"]`` for map entries.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text
        self.path: list[str] = []


class UnknownEnumName(BadValue):
    """A name that the enum does not have: an error, or ignored where unknown fields are ignored."""


class JsonError(ValueError):
    """A JSON value does not fit the message.

    Attributes:
        path: Path of the field with the names of the JSON text: ``address.zip``, ``items[2].name``, ``labels["a"]``;
            ``""`` for the whole value.
        text: Description of the expected value.
    """

    def __init__(self, path: str, text: str) -> None:
        super().__init__(f"{path}: {text}" if path else text)
        self.path = path
        self.text = text

    @classmethod
    def of(cls, error: BadValue) -> JsonError:
        """Return the error with the path that ``BadValue`` collected."""
        path = ""
        for part in reversed(error.path):
            path += part if part.startswith("[") or not path else f".{part}"
        return cls(path, error.text)


_KINDS = {str: "a string", bool: "a boolean", int: "a number", float: "a number", dict: "an object", list: "an array"}


def describe(value: Any) -> str:
    """Return the kind of a JSON value (``a string``), never the value, which may be a secret."""
    return "null" if value is None else _KINDS.get(type(value), "something else")


def _integer(low: int, high: int) -> Decode:
    expected = f"expected an integer from {low} to {high}"

    def decode(value: Any) -> int:
        if type(value) is int:
            if low <= value <= high:
                return value
            raise BadValue(f"{expected}, and the number is out of range")
        if type(value) is str and len(value) <= _MAX_DIGITS and value.isascii() and value.isdigit():
            number = int(value)
        else:
            number = _whole(value, expected)
        if low <= number <= high:
            return number
        raise BadValue(f"{expected}, and the number is out of range")

    return decode


def _whole(value: Any, expected: str) -> int:
    """Return the integer of a string or a float (``"5"``, ``5.0``, ``5e1``), without rounding."""
    if type(value) is str:
        match = _NUMBER.fullmatch(value)
        if match is None:
            raise BadValue(f"{expected}, got a string that is no number")
        rough = float(value)
        if abs(rough) > _MAX_MAGNITUDE:
            raise BadValue(f"{expected}, and the number is out of range")
        if match["real"] is None and match["exponent"] is None:
            return int(value)
        exact = Decimal(value)
        if exact == exact.to_integral_value():
            return int(exact)
        raise BadValue(f"{expected}, got a fraction")
    if type(value) is float:
        if value.is_integer():
            return int(value)
        raise BadValue(f"{expected}, got a fraction")
    raise BadValue(f"{expected}, got {describe(value)}")


def _double(value: Any) -> float:
    if type(value) is float:
        return value
    if type(value) is int:
        return float(value)
    if type(value) is str:
        special = _SPECIAL.get(value)
        if special is not None:
            return special
        if _NUMBER.fullmatch(value):
            number = float(value)
            if isinf(number):
                raise BadValue("expected a number within the range of a double")
            return number
    raise BadValue(f'expected a number, "NaN", "Infinity" or "-Infinity", got {describe(value)}')


def _single(value: Any) -> float:
    number = _double(value)
    if -_FLOAT_SAFE <= number <= _FLOAT_SAFE or (type(value) is str and value in _SPECIAL):
        return number
    try:
        struct.pack("<f", number)  # rounds to nearest, so 3.4028235e38, as others print FLT_MAX, is in range
    except OverflowError:
        raise BadValue("expected a number within the range of a float") from None
    return number


def _bool(value: Any) -> bool:
    if value is True or value is False:
        return value
    raise BadValue(f"expected true or false, got {describe(value)}")


def _string(value: Any) -> str:
    if type(value) is str:
        return value
    raise BadValue(f"expected a string, got {describe(value)}")


def _bytes(value: Any) -> bytes:
    if type(value) is not str:
        raise BadValue(f"expected bytes as a base64 string, got {describe(value)}")
    try:
        data = value.encode("ascii").translate(_URLSAFE)
        if len(data) % 4 and not data.endswith(b"="):
            data += b"=" * (-len(data) % 4)
        return a2b_base64(data, strict_mode=True)
    except ValueError:
        raise BadValue("expected bytes in base64 (standard or URL-safe alphabet)") from None


_INT32 = _integer(-(2**31), 2**31 - 1)


def _enum(enum: EnumDescriptor) -> Decode:
    numbers = {name: value.number for name, value in enum.values_by_name.items()}
    known = frozenset(numbers.values())
    closed = enum.is_closed
    shown = ", ".join(list(numbers)[:20]) + (", …" if len(numbers) > 20 else "")  # noqa: PLR2004 - enough to help
    expected = f"expected one of {shown}"

    def decode(value: Any) -> int:
        if type(value) is str:
            named = numbers.get(value)
            if named is not None:
                return named
            if _NUMBER.fullmatch(value) is None:
                raise UnknownEnumName(f"{expected}, got another name")
        if value is None or value is True or value is False or type(value) in (dict, list):
            raise BadValue(f"{expected}, got {describe(value)}")
        number: int = _INT32(value)
        if closed and number not in known:
            raise BadValue(f"{expected}, got another number")
        return number

    return decode


def _null(value: Any) -> int:
    if value is None or (value in ("NULL_VALUE", 0) and value is not False):
        return 0
    raise BadValue(f"expected null, got {describe(value)}")


_DECODERS: dict[int, Decode] = {
    FieldDescriptor.TYPE_INT32: _INT32,
    FieldDescriptor.TYPE_SINT32: _INT32,
    FieldDescriptor.TYPE_SFIXED32: _INT32,
    FieldDescriptor.TYPE_UINT32: _integer(0, 2**32 - 1),
    FieldDescriptor.TYPE_FIXED32: _integer(0, 2**32 - 1),
    FieldDescriptor.TYPE_INT64: _integer(-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_SINT64: _integer(-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_SFIXED64: _integer(-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_UINT64: _integer(0, 2**64 - 1),
    FieldDescriptor.TYPE_FIXED64: _integer(0, 2**64 - 1),
    FieldDescriptor.TYPE_DOUBLE: _double,
    FieldDescriptor.TYPE_FLOAT: _single,
    FieldDescriptor.TYPE_BOOL: _bool,
    FieldDescriptor.TYPE_STRING: _string,
    FieldDescriptor.TYPE_BYTES: _bytes,
}


def decoder(field: FieldDescriptor) -> Decode:
    """Return the decoder of a scalar field or its elements: JSON value → field value."""
    if field.enum_type is not None:
        return _null if field.enum_type.full_name == "google.protobuf.NullValue" else _enum(field.enum_type)
    return _DECODERS[field.type]


_EXACT: dict[int, type] = {
    **dict.fromkeys(
        (
            FieldDescriptor.CPPTYPE_INT32,
            FieldDescriptor.CPPTYPE_INT64,
            FieldDescriptor.CPPTYPE_UINT32,
            FieldDescriptor.CPPTYPE_UINT64,
        ),
        int,
    ),
    FieldDescriptor.CPPTYPE_DOUBLE: float,
    FieldDescriptor.CPPTYPE_BOOL: bool,
    FieldDescriptor.CPPTYPE_STRING: str,
}


def exact(field: FieldDescriptor) -> type | None:
    """Return the Python type that a scalar field stores unchanged. A value out of range raises ``ValueError``."""
    return None if field.type == FieldDescriptor.TYPE_BYTES else _EXACT.get(field.cpp_type)


def _bool_key(value: str) -> bool:
    if value in ("true", "false"):
        return value == "true"
    raise BadValue("expected true or false")


def key_decoder(field: FieldDescriptor) -> Decode:
    """Return the decoder of a map key: JSON object key → map key. Numbers and booleans are quoted there."""
    return _bool_key if field.type == FieldDescriptor.TYPE_BOOL else _DECODERS[field.type]


# -- values to JSON --


def _print_double(value: float) -> float | str:
    if value - value == 0.0:
        return value
    return "NaN" if isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _print_single(value: float) -> float | str:
    if value - value != 0.0:
        return _print_double(value)
    packed = struct.pack("<f", value)
    for digits in (6, 7, 8):
        short = float(f"{value:.{digits}g}")
        try:
            if struct.pack("<f", short) == packed:
                return short
        except OverflowError:  # FLT_MAX rounded up to fewer digits
            continue
    return float(f"{value:.9g}")


def _print_bytes(value: bytes) -> str:
    return b2a_base64(value, newline=False).decode()


def _print_enum(enum: EnumDescriptor) -> Encode:
    names: dict[int, str] = {}
    for value in enum.values:
        names.setdefault(value.number, value.name)
    get = names.get
    return lambda value: get(value, value)


def _print_null(_value: int) -> None:
    return None


_ENCODERS: dict[int, Encode] = {
    FieldDescriptor.TYPE_INT64: str,
    FieldDescriptor.TYPE_SINT64: str,
    FieldDescriptor.TYPE_SFIXED64: str,
    FieldDescriptor.TYPE_UINT64: str,
    FieldDescriptor.TYPE_FIXED64: str,
    FieldDescriptor.TYPE_DOUBLE: _print_double,
    FieldDescriptor.TYPE_FLOAT: _print_single,
    FieldDescriptor.TYPE_BYTES: _print_bytes,
}


def encoder(field: FieldDescriptor) -> Encode | None:
    """Return the encoder of a scalar field or its elements, or None if the field value is the JSON value."""
    if field.enum_type is not None:
        return _print_null if field.enum_type.full_name == "google.protobuf.NullValue" else _print_enum(field.enum_type)
    return _ENCODERS.get(field.type)
