"""JSON parser: orjson with two more checks, for duplicate names and for the nesting depth. Pure."""

from __future__ import annotations

import json
import re
from typing import Any

import orjson

__all__ = ["MAX_DEPTH", "JsonSyntaxError", "loads"]

MAX_DEPTH = 100
"""Most levels of nested objects and arrays; protobuf has the same limit for messages."""

_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)


class JsonSyntaxError(ValueError):
    """The text is not JSON.

    Attributes:
        text: Description of the error.
        line: Line number, from 1.
        column: Column in characters, from 1.
    """

    def __init__(self, text: str, line: int, column: int) -> None:
        super().__init__(f"{text} at line {line}, column {column}")
        self.text = text
        self.line = line
        self.column = column


def loads(data: bytes) -> Any:
    """Parse JSON (RFC 8259, UTF-8 without a byte order mark).

    Raises:
        JsonSyntaxError: The text is not JSON or not UTF-8, is nested deeper than ``MAX_DEPTH``, or an object has a
            name twice.
    """
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise _syntax_error(data, error) from None
    if len(data) > 2 * MAX_DEPTH and data.count(b"{") + data.count(b"[") > MAX_DEPTH:
        _check_depth(value)
    # A colon follows each name. If there are as many colons as names in the parsed value, no name was dropped as a
    # duplicate.
    colons = data.count(b":")
    if colons != (len(value) if type(value) is dict else 0):
        names = _count_names(value)
        if colons != names and _STRING.sub(b"", data).count(b":") != names:
            raise _duplicate(data)
    return value


def _syntax_error(data: bytes, error: orjson.JSONDecodeError) -> JsonSyntaxError:
    try:
        data.decode()
    except UnicodeDecodeError as wrong:
        before = data[: wrong.start].decode()
        return JsonSyntaxError("not UTF-8", before.count("\n") + 1, len(before) - before.rfind("\n"))
    return JsonSyntaxError(error.msg.removesuffix("."), error.lineno, max(error.colno, 1))


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for one in level:
            if type(one) is dict:
                below.extend(one.values())
            elif type(one) is list:
                below.extend(one)
        if not below:
            return
        level = below
    if any(type(one) in (dict, list) for one in level):
        raise JsonSyntaxError(f"nested deeper than {MAX_DEPTH} levels", 1, 1)


def _count_names(value: Any) -> int:
    if type(value) is dict:
        return len(value) + sum([_count_names(one) for one in value.values() if type(one) in (dict, list)])
    if type(value) is list:
        return sum([_count_names(one) for one in value if type(one) in (dict, list)])
    return 0


def _duplicate(data: bytes) -> JsonSyntaxError:
    """Return the error for a duplicate name. Parses the text again to find the name."""
    found: list[str] = []

    def pairs(items: list[tuple[str, Any]]) -> None:
        seen: set[str] = set()
        for name, _ in items:
            if name in seen:
                found.append(name)
            seen.add(name)

    json.loads(data, object_pairs_hook=pairs)
    name = json.dumps(found[0], ensure_ascii=False) if found else "a name"
    places = [match.start() for match in re.finditer(re.escape(name.encode()), data)]
    before = data[: places[1] if len(places) > 1 else 0].decode()
    return JsonSyntaxError(
        f"{name} occurs twice in one object", before.count("\n") + 1, len(before) - before.rfind("\n")
    )
