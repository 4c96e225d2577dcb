"""Codec for ``google.protobuf.Value``: JSON values ⇄ bytes. ``mesh.lambdas.json_text`` is its variant for JSON text.

It encodes and decodes byte by byte, because protobuf's maps are unordered, and JSON objects are expected to keep their
order. The decoder handles the usual encoding. All other valid encodings are left to protobuf: repeated fields, unknown
fields, nesting beyond ``_MAX_DEPTH``.

Numbers are doubles (google/protobuf/struct.proto), so an integer is exact up to 2**53. A number without a fraction is
decoded as ``int``, because ``1`` is far more usual in events than ``1.0``. A number beyond all doubles is refused.
"""

from __future__ import annotations

import json
from decimal import Decimal
from struct import Struct
from typing import Any

from google.protobuf.struct_pb2 import Value

from mesh.text import text_of

__all__ = ["CannotMarshal", "decode", "encode", "marshal_error", "pack", "unpack"]

_MAX_EXACT_INTEGER = 2.0**53
_MAX_DEPTH = 32
"""Levels. One takes up to three messages, and protobuf reads at most 100 nested messages."""

# Tags of google.protobuf.Value: field number << 3 | wire type.
_NULL, _NUMBER, _STRING, _BOOL, _OBJECT, _LIST = 0x08, 0x11, 0x1A, 0x20, 0x2A, 0x32
# Tags of Struct.fields and ListValue.values, and of key and value in a map.
_ITEM, _KEY, _VALUE = 0x0A, 0x0A, 0x12

_DOUBLE = Struct("<d")
_SHORT_LENGTHS = tuple(bytes((length,)) for length in range(128))
_SHORT_TEXT_PREFIXES = tuple(bytes((_STRING, length)) for length in range(128))
_CONSTANTS = {None: b"\x08\x00", True: b"\x20\x01", False: b"\x20\x00"}
_SHORT_TEXT_SIZE = 62
"""Bytes. Two texts below this size and three bytes more still have a length of one byte."""
_MAX_CACHED_KEYS = 1024
_encoded_keys: dict[str, bytes] = {}
"""Cache of encoded keys. Most keys of events repeat."""


class CannotMarshal(ValueError):
    """The object has no JSON form."""


class _UnusualError(Exception):
    """A valid encoding that is left to protobuf."""


def marshal_error(error: BaseException) -> CannotMarshal:
    """Return the ``CannotMarshal`` for an exception during encoding."""
    if isinstance(error, UnicodeEncodeError):
        return CannotMarshal("a text with lone surrogates")
    if isinstance(error, RecursionError):
        return CannotMarshal("too many levels")
    return error if isinstance(error, CannotMarshal) else CannotMarshal(text_of(error))


def encode(value: Any) -> bytes:
    """Return the serialized ``Value`` of a handler's result. A result that is bytes is read as JSON.

    Raises:
        CannotMarshal: The result has no JSON form.
    """
    try:
        return _write(_parse_bytes(value) if isinstance(value, bytes) else value, 0)
    except BaseException as error:  # noqa: BLE001 - raised by objects of the handler during encoding
        raise marshal_error(error) from None


def decode(data: bytes) -> Any:
    """Return the object of a serialized ``Value``.

    Raises:
        google.protobuf.message.DecodeError: The data is not a ``Value``.
    """
    try:
        return _read(data, 0, len(data), 0)
    except (_UnusualError, IndexError, UnicodeDecodeError):
        return _from_message(Value.FromString(data))


def pack(text: bytes) -> bytes:
    """Return the serialized ``Value`` of a text.

    Args:
        text: The text in UTF-8.
    """
    size = len(text)
    return (_SHORT_TEXT_PREFIXES[size] if size < 128 else b"\x1a" + _varint(size)) + text  # noqa: PLR2004 - one byte of a varint


def unpack(data: bytes) -> bytes:
    """Return the text of a serialized ``Value``, in UTF-8. It is empty for another kind of value.

    Raises:
        google.protobuf.message.DecodeError: The data is not a ``Value``.
    """
    try:
        if data[0] == _STRING:
            size, at = _size(data, 1)
            if at + size == len(data):
                return data[at:]
    except (_UnusualError, IndexError):
        pass
    return Value.FromString(data).string_value.encode()


# -- encoding --


def _parse_bytes(result: bytes) -> Any:
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
    """Encode a value of another type than JSON's. The order of the checks is simplejson's."""
    if isinstance(value, str):
        return pack(str.__str__(value).encode())
    if isinstance(value, bytes):
        return pack(value.decode().encode())
    if callable(as_dict := getattr(value, "_asdict", None)):
        value = as_dict()
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
    _check_depth(depth)
    return b"\x32" + _length_prefixed(b"".join([b"\x0a" + _length_prefixed(_write(one, depth + 1)) for one in value]))


def _object(value: dict[Any, Any], depth: int) -> bytes:
    _check_depth(depth)
    parts = []
    limit = _SHORT_TEXT_SIZE
    for key, one in value.items():
        entry = _encoded_keys.get(key) if type(key) is str else _key(_key_text(key))
        if entry is None:
            entry = _key(key)
        if type(one) is str and len(one) < limit and len(text := one.encode()) < limit and len(entry) < limit:
            size = len(text)  # the usual field, without a function call
            entry_size, value_size = _SHORT_LENGTHS[len(entry) + size + 3], _SHORT_LENGTHS[size + 2]
            parts.append(b"\x0a" + entry_size + entry + value_size + _SHORT_TEXT_PREFIXES[size] + text)
        else:
            parts.append(b"\x0a" + _length_prefixed(entry + _length_prefixed(_write(one, depth + 1))))
    return b"\x2a" + _length_prefixed(b"".join(parts))


def _key(key: str) -> bytes:
    """Return the encoded key of a field, with the tag of its value."""
    result = b"\x0a" + _length_prefixed(key.encode()) + b"\x12"
    if len(_encoded_keys) < _MAX_CACHED_KEYS and len(key) < 128:  # noqa: PLR2004 - long keys of callers must not fill it
        _encoded_keys[key] = result
    return result


def _key_text(key: Any) -> str:
    """Return a key as JSON text."""
    if isinstance(key, str):
        return str.__str__(key)
    if isinstance(key, bytes):
        return key.decode()
    if key is None or isinstance(key, bool | int | float):
        return json.dumps(key, allow_nan=False)
    raise CannotMarshal(f"keys must be str, int, float, bool or None, not {type(key).__name__}")


def _length_prefixed(data: bytes) -> bytes:
    size = len(data)
    return (_SHORT_LENGTHS[size] if size < 128 else _varint(size)) + data  # noqa: PLR2004 - one byte of a varint


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:  # noqa: PLR2004 - seven bits a byte
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _check_depth(depth: int) -> None:
    if depth >= _MAX_DEPTH:
        raise CannotMarshal(f"more than {_MAX_DEPTH} levels, or an object that holds itself")


def _number(value: float | Decimal) -> float:
    try:
        number = float(value)
    except OverflowError:
        raise CannotMarshal("a number that is too large") from None
    if number - number != 0.0:
        raise CannotMarshal("Out of range float values are not JSON compliant")
    return number


# -- decoding --


def _read(data: bytes, at: int, end: int, depth: int) -> Any:
    """Return the value of the message between two positions."""
    if at == end:
        return None
    if depth > _MAX_DEPTH:
        raise _UnusualError
    tag = data[at]
    if tag == _NUMBER:
        if at + 9 != end or end > len(data):
            raise _UnusualError
        return _int_if_exact(_DOUBLE.unpack_from(data, at + 1)[0])
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
    result = {}
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
        if at >= stop or data[at] != _VALUE:
            raise _UnusualError
        size = data[at + 1]
        at += 2
        if size > 0x7F:  # noqa: PLR2004 - as above
            size, at = _size(data, at - 1)
        if at + size != stop:
            raise _UnusualError
        if size > 1 and data[at] == _STRING and data[at + 1] == size - 2 < 0x80:  # noqa: PLR2004 - the usual field
            result[key] = data[at + 2 : stop].decode()
        else:
            result[key] = _read(data, at, stop, depth)
        at = stop
    return result


def _read_list(data: bytes, at: int, end: int, depth: int) -> list[Any]:
    result = []
    while at < end:
        if data[at] != _ITEM:
            raise _UnusualError
        size, at = _size(data, at + 1)
        if at + size > end:
            raise _UnusualError
        result.append(_read(data, at, at + size, depth))
        at += size
    return result


def _size(data: bytes, at: int) -> tuple[int, int]:
    """Return the length at a position, and the position after it."""
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


def _int_if_exact(number: float) -> float:
    return int(number) if -_MAX_EXACT_INTEGER <= number <= _MAX_EXACT_INTEGER and number.is_integer() else number


def _from_message(message: Any) -> Any:
    kind = message.WhichOneof("kind")
    if kind == "struct_value":
        return {key: _from_message(value) for key, value in message.struct_value.fields.items()}
    if kind == "list_value":
        return [_from_message(value) for value in message.list_value.values]
    if kind == "number_value":
        return _int_if_exact(message.number_value)
    return None if kind in (None, "null_value") else getattr(message, kind)
