"""Change events: outbox rows of a table's trigger as events with a ``meshapi.v1.Change``. Pure.

A column's value becomes a value of ``google.protobuf.Struct`` (table in docs/events.md). Numbers that a double
represents exactly as written are numbers, others their decimal text. Bytes are base64. JSON columns are their content,
or their text when they nest too deep. Types that JSON does not have (times, UUIDs, …) are the text that the database
writes.
"""

from __future__ import annotations

import base64
import contextlib
import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from mesh.events.broker.nats_connection import Outgoing
from mesh.events.cloudevents import Event
from mesh.events.publish.relay import as_stored
from mesh.events.subjects import change_subject, unescape

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from mesh.contract.model import Contract
    from mesh.events.publish.outbox import Row
    from mesh.events.publish.relay import Encode

__all__ = ["TYPE", "Change", "encoder"]

TYPE = "meshapi.v1.Change"
_MAX_DEPTH = 16
"""Maximum levels of a JSON column. Each takes up to three levels of a protobuf message, which may have 100."""
_EXACT = 2**53
"""A double represents every integer up to this one."""
_EPOCH = datetime.fromtimestamp(0, UTC)


def encoder(contract: Contract) -> Encode:
    """Return the function that makes the message of an outbox row, of a trigger or of ``tx.publish``."""

    def encode(row: Row) -> Outgoing:
        if row.headers.startswith("{"):
            return as_stored(row)
        try:
            hops = int(row.headers) if row.headers.isdecimal() else 0
            change = Change(contract.message(TYPE), row.id, row.subject, row.data, hops)
        except (LookupError, RecursionError) as error:
            raise ValueError(f"no change of a row can be read from it: {type(error).__name__}: {error}") from error
        return Outgoing(change.subject, change.event.to_headers(), change.event.data)

    return encode


class Change:
    """One change of a row.

    Args:
        kind: The contract's class of ``meshapi.v1.Change``.
        id: The id of the outbox row, which becomes the event's.
        subject: The subject of the outbox row: ``changes.<service>.<table>``.
        data: The data of the outbox row.
        hops: Consecutive deliveries that led to the change.

    Attributes:
        event: The event.
        subject: The subject that it is published on.
    """

    __slots__ = ("event", "subject")

    def __init__(self, kind: type[Message], id: str, subject: str, data: bytes, hops: int = 0) -> None:  # noqa: A002 - as in Event
        _, service, table = (unescape(token) for token in subject.split("."))
        row = json.loads(data.decode(errors="replace"), parse_int=_integer, parse_float=_decimal)
        images = {at: _image(row, row[at]) for at in ("before", "after") if at in row}
        latest = images.get("after") or images["before"]
        key = {column: latest.get(column) for column in row["key"]}
        message: Any = kind(service=service, table=table)
        message.operation = message.Operation.Value(row["operation"])
        _fill(message.key, key)
        for at, image in images.items():
            _fill(getattr(message, at), image)
        microseconds = int(row["time"])
        message.commit_time.FromMicroseconds(microseconds)
        text = _text(list(key.values()))
        self.event = Event(
            id=id,
            type=TYPE,
            source=service,
            key=text,
            time=_EPOCH + timedelta(microseconds=microseconds),
            data=message.SerializeToString(),
            hops=hops,
        )
        self.subject = change_subject(service, table, text)


def _integer(text: str) -> float | str:
    return float(text) if len(text) < 18 and abs(int(text)) <= _EXACT else text  # noqa: PLR2004 - digits of _EXACT


def _decimal(text: str) -> float | str:
    value = float(text)
    try:
        return value if math.isfinite(value) and Decimal(repr(value)) == Decimal(text) else text
    except ArithmeticError:  # an exponent of more digits than Decimal takes
        return text


def _image(row: Mapping[str, Any], columns: Mapping[str, Any]) -> dict[str, Any]:
    if row["form"] == "sqlite":
        return {name: _unwrapped(value) for name, value in columns.items()}
    # A trigger of an earlier release names columns of bytea only.
    forms = row["forms"] if "forms" in row else dict.fromkeys(row["bytes"], "b")
    return {name: _bounded(_formed(value, forms.get(name))) for name, value in columns.items()}


def _formed(value: Any, form: Any) -> Any:
    """Return a value with its bytes as base64, at the places of the form (``captured_table.Form``).

    A value that does not match the form is of a column whose type was changed since. It stays as it is.
    """
    match form, value:
        case "b", str():
            return _of_hex(value)
        case [inner], list():
            # An array of several dimensions is one type: all its levels share the form of the first.
            return [
                _formed(one, form if isinstance(one, list) and not isinstance(inner, list) else inner) for one in value
            ]
        case dict(), dict():
            return {name: _formed(one, form.get(name)) for name, one in value.items()}
    return value


def _unwrapped(value: Any) -> Any:
    """Return a value that ``sqlite_triggers`` wrapped."""
    if not isinstance(value, dict):
        return value
    ((kind, held),) = value.items()
    match kind:
        case "b":
            return base64.b64encode(bytes.fromhex(held)).decode()
        case "r":
            number = float(held)
            return number if math.isfinite(number) else ("Infinity" if number > 0 else "-Infinity")
        case "t":
            return bool(held) if held in (0, 1) else held
        case _:
            try:
                return _bounded(json.loads(held, parse_int=_integer, parse_float=_decimal))
            except (ValueError, RecursionError):
                return held


def _of_hex(text: str) -> str:
    """Return bytea in hex format as base64; other text unchanged."""
    if text.startswith("\\x"):
        with contextlib.suppress(ValueError):
            return base64.b64encode(bytes.fromhex(text[2:])).decode()
    return text


def _bounded(value: Any, depth: int = 0) -> Any:
    """Return the value, or its JSON text when it nests too deep."""
    return json.dumps(value, ensure_ascii=False) if _deep(value, depth) else value


def _deep(value: Any, depth: int) -> bool:
    if isinstance(value, dict):
        value = list(value.values())
    return isinstance(value, list) and (depth >= _MAX_DEPTH or any(_deep(item, depth + 1) for item in value))


def _fill(struct: Any, values: Mapping[str, Any]) -> None:
    struct.SetInParent()  # an image without columns is set too
    for name, value in values.items():
        _set(struct.fields[_valid_utf8(name)], value)


def _set(field: Any, value: Any) -> None:
    """Set a ``google.protobuf.Value``."""
    match value:
        case None:
            field.null_value = 0
        case bool():
            field.bool_value = value
        case float():
            field.number_value = value
        case str():
            field.string_value = _valid_utf8(value)
        case dict():
            _fill(field.struct_value, value)
        case _:
            field.list_value.SetInParent()
            for item in value:
                _set(field.list_value.values.add(), item)


def _text(key: list[Any]) -> str:
    """Return the key of the subject: the value of one column as text, of several columns as a JSON array."""
    plain = [int(part) if isinstance(part, float) and part.is_integer() else part for part in key]
    if len(plain) == 1 and isinstance(plain[0], str):
        return _valid_utf8(plain[0])
    return _valid_utf8(json.dumps(plain[0] if len(plain) == 1 else plain, ensure_ascii=False, separators=(",", ":")))


def _valid_utf8(text: str) -> str:
    """Return the text as valid UTF-8: JSON may contain half of a surrogate pair."""
    return text.encode(errors="replace").decode()
