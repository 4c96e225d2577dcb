"""Text on its way out of the process: what a wire or a terminal cannot carry is replaced, so that it ends nothing.

A Python string may hold half a surrogate pair, which JSON from outside and names of files can bring; no protocol of
ours can carry it. Standard output may take ASCII only (``PYTHONIOENCODING``, the locale), and be closed.
"""

from __future__ import annotations

import codecs
import io
import json
import os
import sys
from typing import Any, TextIO

__all__ = ["carries", "json_for", "ready_output", "text_of", "utf8"]

_PLAIN = {"│": "|", "─": "-", "├": "|", "└": "`", "✗": "x", "→": "->", "…": "..."}
"""What stands for the signs that the mesh itself writes, where the encoding lacks them."""
_ERRORS = "mesh.plain"


def utf8(text: str) -> str:
    """Return the text, itself if UTF-8 can carry it; else with ``?`` for each half of a surrogate pair."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace").decode()
    return text


def ready_output(encoding: str | None = None) -> None:
    """Make standard output and error take any text: ``?`` stands for what the encoding lacks.

    Those that were closed when the process began lead nowhere; without that, the next file or connection would have
    their numbers, and what is printed would go there.

    Args:
        encoding: Of both from now on, where whoever reads them is known; None for what the environment says.
    """
    while (spare := os.open(os.devnull, os.O_RDWR)) <= 2:  # noqa: PLR2004 - standard error
        os.set_inheritable(spare, True)  # noqa: FBT003 - the standard library's own signature
    os.close(spare)
    sys.stdout = sys.stdout or _opened(1)
    sys.stderr = sys.stderr or _opened(2)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding=encoding, errors=_ERRORS)


def _opened(number: int) -> TextIO:
    return open(number, "w", encoding="utf-8", closefd=False, buffering=1)


def _replaced(error: UnicodeError) -> tuple[str, int]:
    """Return what is written in place of what cannot be encoded, and where to go on (``codecs.register_error``)."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(_PLAIN.get(char, "?") for char in error.object[error.start : error.end]), error.end


codecs.register_error(_ERRORS, _replaced)


def carries(stream: TextIO, text: str) -> bool:
    """Whether the stream can carry the text whole."""
    try:
        text.encode(stream.encoding or "utf-8")
    except UnicodeEncodeError:
        return False
    return True


def json_for(stream: TextIO, value: Any, *, indent: int | None = None) -> str:
    """Return the value as JSON that the stream can carry whole: readable in UTF-8, with escapes elsewhere."""
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    return text if carries(stream, text) else json.dumps(value, indent=indent)


def text_of(thing: object) -> str:
    """Return a thing's text, whatever its ``__str__`` raises."""
    try:
        return utf8(str(thing))
    except BaseException:  # noqa: BLE001 - a broken __str__ must not break the call that reports it
        return f"<{type(thing).__name__} without a text>"
