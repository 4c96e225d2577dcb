"""Text output: replaces characters that a protocol or a terminal cannot encode, so that no write fails.

A Python string may contain a lone surrogate, from JSON or from a file name, and UTF-8 cannot encode it. Standard output
may accept ASCII only (``PYTHONIOENCODING``, the locale), and it may be closed.
"""

from __future__ import annotations

import codecs
import io
import json
import os
import sys
from typing import Any, TextIO

__all__ = ["can_encode", "json_for", "prepare_output", "text_of", "utf8"]

_REPLACEMENTS = {"│": "|", "─": "-", "├": "|", "└": "`", "✗": "x", "→": "->", "…": "..."}
"""Replacements of characters that the mesh itself prints."""
_ERROR_HANDLER = "mesh.plain"


def utf8(text: str) -> str:
    """Return the text with ``?`` in place of each lone surrogate."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace").decode()
    return text


def prepare_output(encoding: str | None = None) -> None:
    """Make standard output and error accept any text, with ``?`` in place of characters that the encoding lacks.

    Streams that were closed at the start of the process are opened on the null device. Otherwise the next file or
    connection would get their descriptor numbers, and printed text would go there.

    Args:
        encoding: Encoding of both streams; None: that of the environment.
    """
    while (spare := os.open(os.devnull, os.O_RDWR)) <= 2:  # noqa: PLR2004 - standard error
        os.set_inheritable(spare, True)  # noqa: FBT003 - the standard library's own signature
    os.close(spare)
    sys.stdout = sys.stdout or _opened(1)
    sys.stderr = sys.stderr or _opened(2)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding=encoding, errors=_ERROR_HANDLER)


def _opened(number: int) -> TextIO:
    return open(number, "w", encoding="utf-8", closefd=False, buffering=1)


def _replaced(error: UnicodeError) -> tuple[str, int]:
    """Error handler of ``codecs.register_error``: return the replacement and the position to continue at."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(_REPLACEMENTS.get(char, "?") for char in error.object[error.start : error.end]), error.end


codecs.register_error(_ERROR_HANDLER, _replaced)


def can_encode(stream: TextIO, text: str) -> bool:
    """Whether the encoding of the stream has all characters of the text."""
    try:
        text.encode(stream.encoding or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


def json_for(stream: TextIO, value: Any, *, indent: int | None = None) -> str:
    """Return the value as JSON for a stream: with its characters if the encoding has them, otherwise with escapes."""
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    return text if can_encode(stream, text) else json.dumps(value, indent=indent)


def text_of(thing: object) -> str:
    """Return ``str(thing)``, or a placeholder if ``__str__`` raises."""
    try:
        return utf8(str(thing))
    except BaseException:  # noqa: BLE001 - a broken __str__ must not break the call that reports it
        return f"<{type(thing).__name__} without a text>"
