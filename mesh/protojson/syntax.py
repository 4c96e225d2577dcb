"""JSON text → Python values: orjson, and a refusal of what it lets pass: duplicate names, bottomless nesting. Pure."""

from __future__ import annotations

import json
import re
from typing import Any

import orjson

__all__ = ["MAX_DEPTH", "JsonSyntaxError", "loads"]

MAX_DEPTH = 100
"""Objects and arrays inside each other; the same limit that protobuf has for messages."""

_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)


class JsonSyntaxError(ValueError):
    """The text is not JSON.

    Attributes:
        text: What is wrong.
        line: Where, from 1.
        column: Where, in characters from 1.
    """

    def __init__(self, text: str, line: int, column: int) -> None:
        super().__init__(f"{text} at line {line}, column {column}")
        self.text = text
        self.line = line
        self.column = column


def loads(data: bytes) -> Any:
    """Parse JSON (RFC 8259, UTF-8 without a byte order mark).

    Raises:
        JsonSyntaxError: It is not JSON, not UTF-8, nested deeper than ``MAX_DEPTH``, or an object has a name twice.
    """
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise _syntax_error(data, error) from None
    if len(data) > 2 * MAX_DEPTH and data.count(b"{") + data.count(b"[") > MAX_DEPTH:
        _check_depth(value)
    # Names are what colons follow, so as many colons as names leaves no room for a name that came twice.
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
    """Find the name that is there twice; the slow way, for the error's sake."""
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
        f"{name} is there twice in one object", before.count("\n") + 1, len(before) - before.rfind("\n")
    )
