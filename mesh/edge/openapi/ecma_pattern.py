"""Regular expressions of RE2 in the dialect of JSON Schema (ECMA-262 with the flag ``u``). Pure.

Sources: https://github.com/google/re2/wiki/Syntax, ECMA-262 (RegExp, with ``u`` only syntax characters are escaped),
JSON Schema 2020-12, 6.4.
"""

from __future__ import annotations

import re

__all__ = ["ecma_pattern", "escaped"]

_SYNTAX = frozenset("^$\\.*+?()[]{}|/")
_SAME = frozenset("dDwWbBtnfrv")
"""Escapes with the same meaning in both."""
_SPACE = "\\t\\n\\f\\r "
"""RE2's ``\\s``. That of ECMA-262 has the spaces of Unicode too."""
_OUTSIDE = {"A": "^", "z": "$", "S": f"[^{_SPACE}]"}
"""Escapes outside of a class, which have no such escape in ECMA-262."""
_REPEAT = re.compile(r"\{\d+(,\d*)?\}")
_GROUP = re.compile(r"\(\?(?::|P?<([A-Za-z_]\w*)>)")


def ecma_pattern(pattern: str) -> str | None:
    r"""Return the pattern with the same meaning, or None if it has syntax that ECMA-262 does not know.

    Left out are flags (``(?i)``), Unicode classes (``\pL``), POSIX classes (``[[:alpha:]]``), quotes (``\Q``), code
    points (``\x{…}``) and octal numbers.
    """
    found: list[str] = []
    at = 0
    while at < len(pattern):
        char = pattern[at]
        if char == "\\":
            text, at = _escape(pattern, at, inside=False)
        elif char == "[":
            text, at = _class(pattern, at)
        elif char == "(" and pattern.startswith("(?", at):
            group = _GROUP.match(pattern, at)
            text = None if group is None else f"(?<{group[1]}>" if group[1] else "(?:"
            at = at if group is None else group.end()
        elif char == "{":
            repeat = _REPEAT.match(pattern, at)
            text, at = (repeat[0], repeat.end()) if repeat else ("\\{", at + 1)
        else:
            text, at = f"\\{char}" if char in "}]" else char, at + 1
        if text is None:
            return None
        found.append(text)
    return "".join(found)


def escaped(text: str) -> str:
    """Return a pattern that matches a text."""
    return "".join(f"\\{char}" if char in _SYNTAX else char for char in text)


def _escape(pattern: str, at: int, *, inside: bool) -> tuple[str | None, int]:
    """Return an escape in ECMA-262, or None, and the place after it."""
    char = pattern[at + 1 : at + 2]
    if char == "x":
        digits = re.compile(r"[0-9A-Fa-f]{2}").match(pattern, at + 2)
        return (None, at) if digits is None else (f"\\x{digits[0]}", digits.end())
    found: str | None = None
    if char == "s":
        found = _SPACE if inside else f"[{_SPACE}]"
    elif not inside and char in _OUTSIDE:
        found = _OUTSIDE[char]
    elif char in _SYNTAX or (char == "-" and inside) or (char in _SAME and not (inside and char in "bB")):
        found = f"\\{char}"
    elif char and char.isascii() and not char.isalnum():
        found = char
    return found, at + 2


def _class(pattern: str, at: int) -> tuple[str | None, int]:
    """Return a character class in ECMA-262, or None, and the place after it."""
    found = ["["]
    at += 1
    if pattern[at : at + 1] == "^":
        found.append("^")
        at += 1
    first = True
    while at < len(pattern) and (pattern[at] != "]" or first):
        first = False
        if pattern.startswith("[:", at):
            return None, at
        if pattern[at] == "\\":
            text, at = _escape(pattern, at, inside=True)
            if text is None:
                return None, at
            found.append(text)
        else:
            found.append(f"\\{pattern[at]}" if pattern[at] in "[]" else pattern[at])
            at += 1
    return "".join([*found, "]"]), at + 1
