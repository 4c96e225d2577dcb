"""JSON values ⇄ ``google.protobuf.Value``: what ``mesh.lambdas.json_text`` reads and writes as text.

Written and read byte by byte, because protobuf's maps have no order and JSON objects are expected to keep theirs. What
this reads is what most writers write; anything else that is a ``Value`` is left to protobuf (fields twice, unknown
fields, nesting beyond ``_DEEPEST``).

Numbers are doubles on the way (google/protobuf/struct.proto): an integer is exact up to 2**53, and what comes out whole
comes out as ``int``, because an event says ``1`` far more often than ``1.0``. A number beyond all doubles is refused.
"""

from __future__ import annotations

import json
from decimal import Decimal
from struct import Struct
from typing import Any

from google.protobuf.struct_pb2 import Value

from mesh.text import text_of

__all__ = ["CannotMarshal", "decode", "encode", "pack", "unfit", "unpack"]

_WHOLE = 2.0**53
_DEEPEST = 32
"""Levels: one takes up to three messages, and protobuf reads no message that is nested more than 100 deep."""

# Tags of google.protobuf.Value: field number << 3 | wire type.
_NULL, _NUMBER, _STRING, _BOOL, _OBJECT, _LIST = 0x08, 0x11, 0x1A, 0x20, 0x2A, 0x32
# Of Struct.fields and ListValue.values, and of the entries of a map.
_ITEM, _KEY, _ONE = 0x0A, 0x0A, 0x12

_DOUBLE = Struct("<d")
_SHORT = tuple(bytes((length,)) for length in range(128))
_TEXTS = tuple(bytes((_STRING, length)) for length in range(128))
_CONSTANTS = {None: b"\x08\x00", True: b"\x20\x01", False: b"\x20\x00"}
_BRIEF = 62
"""Bytes: two of these and three more have a length of one byte."""
_KNOWN_KEYS = 1024
_keys: dict[str, bytes] = {}
"""Keys as they stand in an entry; events say the same ones over and over."""


class CannotMarshal(ValueError):
    """The object has no JSON form."""


class _UnusualError(Exception):
    """Not as most writers write it."""


def unfit(error: BaseException) -> CannotMarshal:
    """Return what an error of writing means; it may be of the handler's own objects."""
    if isinstance(error, UnicodeEncodeError):
        return CannotMarshal("a text with lone surrogates")
    if isinstance(error, RecursionError):
        return CannotMarshal("too many levels")
    return error if isinstance(error, CannotMarshal) else CannotMarshal(text_of(error))


def encode(value: Any) -> bytes:
    """Return the serialized ``Value`` of a handler's result; of bytes, that of the JSON that they hold.

    Raises:
        CannotMarshal: It has no JSON form.
    """
    try:
        return _write(_held(value) if isinstance(value, bytes) else value, 0)
    except BaseException as error:  # noqa: BLE001 - what the handler's own objects raise while they are written
        raise unfit(error) from None


def decode(data: bytes) -> Any:
    """Return the object of a serialized ``Value``.

    Raises:
        google.protobuf.message.DecodeError: It is none.
    """
    try:
        return _read(data, 0, len(data), 0)
    except (_UnusualError, IndexError, UnicodeDecodeError):
        return _of_message(Value.FromString(data))


def pack(text: bytes) -> bytes:
    """Return the serialized ``Value`` that holds a text.

    Args:
        text: In UTF-8.
    """
    size = len(text)
    return (_TEXTS[size] if size < 128 else b"\x1a" + _varint(size)) + text  # noqa: PLR2004 - one byte of a varint


def unpack(data: bytes) -> bytes:
    """Return the text that a serialized ``Value`` holds, in UTF-8; nothing if it holds another kind of value.

    Raises:
        google.protobuf.message.DecodeError: It is none.
    """
    try:
        if data[0] == _STRING:
            size, at = _size(data, 1)
            if at + size == len(data):
                return data[at:]
    except (_UnusualError, IndexError):
        pass
    return Value.FromString(data).string_value.encode()


# -- writing --


def _held(result: bytes) -> Any:
    try:
        return json.loads(result.decode())
    except ValueError:
        raise CannotMarshal("bytes that are no JSON") from None


def _write(value: Any, depth: int) -> bytes:
    kind = type(value)
    if kind is str:
        return pack(value.encode())
    if kind is dict:
        return _object(value, depth)
    if value is None or kind is bool:
        return _CONSTANTS[value]
    if kind is list:
        return _list(value, depth)
    if isinstance(value, int | float):
        return b"\x11" + _DOUBLE.pack(_number(value))
    return _write_other(value, depth)


def _write_other(value: Any, depth: int) -> bytes:
    """Write what is none of JSON's own types, in the order in which simplejson asks what it is."""
    if isinstance(value, str):
        return pack(str.__str__(value).encode())
    if isinstance(value, bytes):
        return pack(value.decode().encode())
    if callable(told := getattr(value, "_asdict", None)):
        value = told()
        if not isinstance(value, dict):
            raise CannotMarshal(f"_asdict() must return a dict, not {type(value).__name__}")
    if isinstance(value, list | tuple):
        return _list(value, depth)
    if isinstance(value, dict):
        return _object(value, depth)
    if isinstance(value, Decimal):
        return b"\x11" + _DOUBLE.pack(_number(value))
    raise CannotMarshal(f"Object of type {type(value).__name__} is not JSON serializable")


def _list(value: list[Any] | tuple[Any, ...], depth: int) -> bytes:
    _deeper(depth)
    return b"\x32" + _sized(b"".join([b"\x0a" + _sized(_write(one, depth + 1)) for one in value]))


def _object(value: dict[Any, Any], depth: int) -> bytes:
    _deeper(depth)
    parts = []
    for key, one in value.items():
        entry = _keys.get(key) if type(key) is str else _key(_text_of(key))
        if entry is None:
            entry = _key(key)
        if type(one) is str and len(one) < _BRIEF and len(text := one.encode()) < _BRIEF and len(entry) < _BRIEF:
            size = len(text)  # what most of an event is, without a call for each
            parts.append(b"\x0a" + _SHORT[len(entry) + size + 3] + entry + _SHORT[size + 2] + _TEXTS[size] + text)
        else:
            parts.append(b"\x0a" + _sized(entry + _sized(_write(one, depth + 1))))
    return b"\x2a" + _sized(b"".join(parts))


def _key(key: str) -> bytes:
    """Return the key of an entry and the tag of its value."""
    made = b"\x0a" + _sized(key.encode()) + b"\x12"
    if len(_keys) < _KNOWN_KEYS and len(key) < 128:  # noqa: PLR2004 - what comes from callers must not fill it
        _keys[key] = made
    return made


def _text_of(key: Any) -> str:
    """Return the key as JSON writes it."""
    if isinstance(key, str):
        return str.__str__(key)
    if isinstance(key, bytes):
        return key.decode()
    if key is None or isinstance(key, bool | int | float):
        return json.dumps(key, allow_nan=False)
    raise CannotMarshal(f"keys must be str, int, float, bool or None, not {type(key).__name__}")


def _sized(data: bytes) -> bytes:
    size = len(data)
    return (_SHORT[size] if size < 128 else _varint(size)) + data  # noqa: PLR2004 - one byte of a varint


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:  # noqa: PLR2004 - seven bits a byte
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _deeper(depth: int) -> None:
    if depth >= _DEEPEST:
        raise CannotMarshal(f"more than {_DEEPEST} levels, or an object that holds itself")


def _number(value: float | Decimal) -> float:
    try:
        number = float(value)
    except OverflowError:
        raise CannotMarshal("a number that is too large") from None
    if number - number != 0.0:
        raise CannotMarshal("Out of range float values are not JSON compliant")
    return number


# -- reading --


def _read(data: bytes, at: int, end: int, depth: int) -> Any:
    """Return the value of the message between two places."""
    if at == end:
        return None
    if depth > _DEEPEST:
        raise _UnusualError
    tag = data[at]
    if tag == _NUMBER:
        if at + 9 != end or end > len(data):
            raise _UnusualError
        return _whole(_DOUBLE.unpack_from(data, at + 1)[0])
    if tag in (_BOOL, _NULL):
        if at + 2 != end or data[at + 1] > 1:
            raise _UnusualError
        return data[at + 1] == 1 if tag == _BOOL else None
    if tag not in (_STRING, _OBJECT, _LIST):
        raise _UnusualError
    size, at = _size(data, at + 1)
    if at + size != end or end > len(data):
        raise _UnusualError
    if tag == _STRING:
        return data[at:end].decode()
    return _read_object(data, at, end, depth + 1) if tag == _OBJECT else _read_list(data, at, end, depth + 1)


def _read_object(data: bytes, at: int, end: int, depth: int) -> dict[str, Any]:
    made = {}
    while at < end:
        if data[at] != _ITEM:
            raise _UnusualError
        size = data[at + 1]
        at += 2
        if size > 0x7F:  # noqa: PLR2004 - the only byte
            size, at = _size(data, at - 1)
        stop = at + size
        if stop > end or data[at] != _KEY:
            raise _UnusualError
        size = data[at + 1]
        at += 2
        if size > 0x7F:  # noqa: PLR2004 - as above
            size, at = _size(data, at - 1)
        key = data[at : at + size].decode()
        at += size
        if at >= stop or data[at] != _ONE:
            raise _UnusualError
        size = data[at + 1]
        at += 2
        if size > 0x7F:  # noqa: PLR2004 - as above
            size, at = _size(data, at - 1)
        if at + size != stop:
            raise _UnusualError
        if size > 1 and data[at] == _STRING and data[at + 1] == size - 2 < 0x80:  # noqa: PLR2004 - what most of an event is
            made[key] = data[at + 2 : stop].decode()
        else:
            made[key] = _read(data, at, stop, depth)
        at = stop
    return made


def _read_list(data: bytes, at: int, end: int, depth: int) -> list[Any]:
    made = []
    while at < end:
        if data[at] != _ITEM:
            raise _UnusualError
        size, at = _size(data, at + 1)
        if at + size > end:
            raise _UnusualError
        made.append(_read(data, at, at + size, depth))
        at += size
    return made


def _size(data: bytes, at: int) -> tuple[int, int]:
    """Return the length at a place, and the place after it."""
    byte = data[at]
    if byte < 0x80:  # noqa: PLR2004 - the only byte
        return byte, at + 1
    size, shift = byte & 0x7F, 7
    for index in range(at + 1, at + 5):
        byte = data[index]
        size |= (byte & 0x7F) << shift
        if byte < 0x80:  # noqa: PLR2004 - the last byte
            return size, index + 1
        shift += 7
    raise _UnusualError


def _whole(number: float) -> float:
    return int(number) if -_WHOLE <= number <= _WHOLE and number.is_integer() else number


def _of_message(message: Any) -> Any:
    kind = message.WhichOneof("kind")
    if kind == "struct_value":
        return {key: _of_message(value) for key, value in message.struct_value.fields.items()}
    if kind == "list_value":
        return [_of_message(value) for value in message.list_value.values]
    if kind == "number_value":
        return _whole(message.number_value)
    return None if kind in (None, "null_value") else getattr(message, kind)
