"""Text on its way out of the process: what UTF-8 cannot carry is replaced, so that no text keeps a call from ending.

A Python string may hold half a surrogate pair, which JSON from outside can bring; no protocol of ours can carry it.
"""

from __future__ import annotations

__all__ = ["text_of", "utf8"]


def utf8(text: str) -> str:
    """Return the text, itself if UTF-8 can carry it; else with ``?`` for each half of a surrogate pair."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace").decode()
    return text


def text_of(thing: object) -> str:
    """Return a thing's text, whatever its ``__str__`` raises."""
    try:
        return utf8(str(thing))
    except BaseException:  # noqa: BLE001 - a broken __str__ must not break the call that reports it
        return f"<{type(thing).__name__} without a text>"
