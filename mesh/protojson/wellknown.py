"""Well-known types whose JSON is not an object of their fields, such as Timestamp and Struct. Pure.

Each type has a pair of functions: ``fill(message, value)`` sets an empty message from a JSON value, ``dump(message)``
returns the JSON value. Wrappers and ``Any`` need codecs of other types and are in ``mesh.protojson.any``.

Sources: https://protobuf.dev/programming-guides/json/, the comments of google/protobuf/{timestamp,duration,field_mask,
struct}.proto, RFC 3339.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import date, datetime, timedelta
from typing import Any

from mesh.protojson.scalars import BadValue, describe

__all__ = ["WELL_KNOWN", "WRAPPERS", "JsonEncodeError", "fill_mask_text"]

_TIMESTAMP = re.compile(
    r"(?P<year>\d{4})-(?P<month>\d\d)-(?P<day>\d\d)T(?P<hour>\d\d):(?P<minute>\d\d):(?P<second>\d\d)"
    r"(?:\.(?P<nanos>\d{1,9}))?(?:Z|(?P<sign>[+-])(?P<ohour>\d\d):(?P<ominute>\d\d))",
    re.ASCII,
)
_DURATION = re.compile(r"(?P<sign>-?)(?P<seconds>\d{1,12})(?:\.(?P<nanos>\d{1,9}))?s", re.ASCII)
_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001 - naive UTC; an aware time costs more at each print
_EPOCH_DAY = date(1970, 1, 1).toordinal()
_MIN_TIMESTAMP, _MAX_TIMESTAMP = -62_135_596_800, 253_402_300_799
"""Unix times of 0001-01-01T00:00:00Z and 9999-12-31T23:59:59Z."""
_MAX_DURATION_SECONDS = 315_576_000_000
_MAX_HOUR, _MAX_MINUTE = 23, 59
_NANOS_PER_SECOND = 1_000_000_000


WRAPPERS = frozenset(
    f"google.protobuf.{kind}Value"
    for kind in ("Double", "Float", "Int64", "UInt64", "Int32", "UInt32", "Bool", "String", "Bytes")
)
"""Messages whose JSON is the JSON of their only field ``value``."""


class JsonEncodeError(ValueError):
    """A message has no JSON form: a value is out of the range of its type, or an ``Any`` holds an unknown type."""


def _fraction(nanos: int) -> str:
    """Return the decimal point and 3, 6 or 9 digits, or ``""`` for 0."""
    if nanos == 0:
        return ""
    if nanos % 1_000_000 == 0:
        return f".{nanos // 1_000_000:03d}"
    if nanos % 1_000 == 0:
        return f".{nanos // 1_000:06d}"
    return f".{nanos:09d}"


def _fill_timestamp(message: Any, value: Any) -> None:
    match = _TIMESTAMP.fullmatch(value) if type(value) is str else None
    if match is None:
        raise BadValue('expected an RFC 3339 timestamp such as "2026-01-31T12:00:00Z"')
    year, month, day, hour, minute, second = map(int, match.group(1, 2, 3, 4, 5, 6))
    try:
        days = date(year, month, day).toordinal() - _EPOCH_DAY
    except ValueError:
        raise BadValue("expected a timestamp with a date that exists") from None
    seconds = days * 86400 + hour * 3600 + minute * 60 + second
    offset = 0
    if match["sign"]:
        ohour, ominute = int(match["ohour"]), int(match["ominute"])
        offset = (ohour * 3600 + ominute * 60) * (-1 if match["sign"] == "-" else 1)
        if ohour > _MAX_HOUR or ominute > _MAX_MINUTE:
            raise BadValue("expected a timestamp with an offset between -23:59 and +23:59")
    if hour > _MAX_HOUR or minute > _MAX_MINUTE or second > _MAX_MINUTE:
        raise BadValue("expected a timestamp with a time of day from 00:00:00 to 23:59:59")
    seconds -= offset
    if not _MIN_TIMESTAMP <= seconds <= _MAX_TIMESTAMP:
        raise BadValue("expected a timestamp from 0001-01-01T00:00:00Z to 9999-12-31T23:59:59.999999999Z")
    message.seconds = seconds
    nanos = match["nanos"]
    if nanos:
        message.nanos = int(nanos.ljust(9, "0"))


def _dump_timestamp(message: Any) -> str:
    seconds, nanos = message.seconds, message.nanos
    if not (_MIN_TIMESTAMP <= seconds <= _MAX_TIMESTAMP and 0 <= nanos < _NANOS_PER_SECOND):
        raise JsonEncodeError("a Timestamp is outside the years 0001 to 9999, or its nanos outside 0 to 999999999")
    return f"{(_EPOCH + timedelta(seconds=seconds)).isoformat()}{_fraction(nanos)}Z"


def _fill_duration(message: Any, value: Any) -> None:
    match = _DURATION.fullmatch(value) if type(value) is str else None
    if match is None:
        raise BadValue('expected a duration in seconds such as "1.5s"')
    seconds, nanos = int(match["seconds"]), int((match["nanos"] or "").ljust(9, "0"))
    if seconds > _MAX_DURATION_SECONDS:
        raise BadValue(
            f"expected a duration from -{_MAX_DURATION_SECONDS}.999999999s to {_MAX_DURATION_SECONDS}.999999999s"
        )
    if match["sign"]:
        seconds, nanos = -seconds, -nanos
    message.seconds = seconds
    message.nanos = nanos


def _dump_duration(message: Any) -> str:
    seconds, nanos = message.seconds, message.nanos
    if (
        not (
            -_MAX_DURATION_SECONDS <= seconds <= _MAX_DURATION_SECONDS
            and -_NANOS_PER_SECOND < nanos < _NANOS_PER_SECOND
        )
        or seconds * nanos < 0
    ):
        raise JsonEncodeError("a Duration is out of range, or its seconds and nanos differ in sign")
    sign = "-" if seconds < 0 or nanos < 0 else ""
    return f"{sign}{abs(seconds)}{_fraction(abs(nanos))}s"


def _snake(path: str) -> str:
    if not path.isascii() or "_" in path or " " in path:
        raise BadValue('expected field paths in lowerCamelCase, joined by commas, such as "name,homeAddress.zip"')
    return re.sub("[A-Z]", lambda match: "_" + match[0].lower(), path)


def _camel(path: str) -> str:
    camel = re.sub("_([a-z])", lambda match: match[1].upper(), path)
    if "_" in camel or path != path.lower():
        raise JsonEncodeError("a FieldMask holds a path that has no lowerCamelCase form")
    return camel


def _fill_mask(message: Any, value: Any) -> None:
    if type(value) is not str:
        raise BadValue(f"expected a field mask as a string, got {describe(value)}")
    if value:
        message.paths.extend([_snake(path) for path in value.split(",")])


def fill_mask_text(message: Any, value: str) -> None:
    """Set a FieldMask from a query parameter. Clients write proto names there too (``update_mask=display_name``)."""
    if value:
        message.paths.extend([path if "_" in path else _snake(path) for path in value.split(",")])


def _dump_mask(message: Any) -> str:
    return ",".join([_camel(path) for path in message.paths])


def _fill_struct(message: Any, value: Any) -> None:
    if type(value) is not dict:
        raise BadValue(f"expected an object, got {describe(value)}")
    fields = message.fields
    for key, one in value.items():
        _fill_value(fields[key], one)


def _dump_struct(message: Any) -> dict[str, Any]:
    return {key: _dump_value(value) for key, value in message.fields.items()}


def _fill_list(message: Any, value: Any) -> None:
    if type(value) is not list:
        raise BadValue(f"expected an array, got {describe(value)}")
    add = message.values.add
    for one in value:
        _fill_value(add(), one)


def _dump_list(message: Any) -> list[Any]:
    return [_dump_value(value) for value in message.values]


def _fill_value(message: Any, value: Any) -> None:
    kind = type(value)
    if kind is str:
        message.string_value = value
    elif kind is bool:
        message.bool_value = value
    elif value is None:
        message.null_value = 0
    elif kind is dict:
        message.struct_value.SetInParent()
        _fill_struct(message.struct_value, value)
    elif kind is list:
        message.list_value.SetInParent()
        _fill_list(message.list_value, value)
    else:
        message.number_value = float(value)


def _dump_value(message: Any) -> Any:
    kind = message.WhichOneof("kind")
    if kind == "number_value":
        number = message.number_value
        if number - number != 0.0:
            raise JsonEncodeError("a Value holds NaN or Infinity, which JSON numbers cannot")
        return number
    if kind == "struct_value":
        return _dump_struct(message.struct_value)
    if kind == "list_value":
        return _dump_list(message.list_value)
    return None if kind in (None, "null_value") else getattr(message, kind)


WELL_KNOWN: dict[str, tuple[Callable[[Any, Any], None], Callable[[Any], Any]]] = {
    "google.protobuf.Timestamp": (_fill_timestamp, _dump_timestamp),
    "google.protobuf.Duration": (_fill_duration, _dump_duration),
    "google.protobuf.FieldMask": (_fill_mask, _dump_mask),
    "google.protobuf.Struct": (_fill_struct, _dump_struct),
    "google.protobuf.ListValue": (_fill_list, _dump_list),
    "google.protobuf.Value": (_fill_value, _dump_value),
}
"""Full name → (fill, dump)."""
