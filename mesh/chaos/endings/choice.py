"""Choice of the way in which a function ends, by the word of its call or event, so the ledger can predict it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from zlib import crc32

from mesh.chaos.endings.ways import BUGS, CANCELLATIONS

if TYPE_CHECKING:
    from mesh import Context

__all__ = ["Way", "doomed", "key_of", "of_attempt", "of_call", "of_stream", "of_tick"]

_NAMES = (*BUGS, *CANCELLATIONS)
_DOOMED = 40
"""One event in this many fails at every attempt."""
_SHARED, _KEYS = 10, 8
"""One event in ``_SHARED`` has one of ``_KEYS`` keys."""
_MAX_ATTEMPTS = 3
"""Attempts of an event that is not doomed, the successful one included."""


@dataclass(frozen=True, slots=True)
class Way:
    """Way in which a function ends.

    Attributes:
        name: Its name in ``mesh.chaos.endings.ways``.
        late: Whether it ends so after the commit of its writes.
    """

    name: str
    late: bool


def _number(word: str, salt: str) -> int:
    return crc32(f"{salt} {word}".encode())


def _name(word: str, salt: str) -> str:
    return _NAMES[_number(word, salt) % len(_NAMES)]


def key_of(word: str) -> str:
    """Return the key of the event of a word: the word, or one of a few shared keys."""
    number = _number(word, "key")
    return word if number % _SHARED else f"shared{number // _SHARED % _KEYS}"


def doomed(word: str) -> bool:
    """Whether functions that are called for the event of a word never succeed."""
    return _number(word, "doomed") % _DOOMED == 0


def of_call(word: str) -> Way | None:
    """Return the way in which the call with a word ends; every other call succeeds (None)."""
    number = _number(word, "call")
    return None if number % 2 else Way(_name(word, "call way"), late=bool(number // 2 % 2))


def of_stream(word: str) -> str:
    """Return the way in which the streamed requests of a call end; "" for every other call."""
    return "" if _number(word, "stream") % 2 else _name(word, "stream way")


def of_attempt(context: Context, method: str, event: str, word: str) -> Way | None:
    """Return the way in which this attempt of a method for an event ends, and count the attempt."""
    attempts = _counted(context, method, event)
    if doomed(word):
        return Way(_name(f"{event} {attempts}", method), late=False)
    number = _number(event, method)
    if attempts > number % _MAX_ATTEMPTS:
        return None
    return Way(_name(f"{event} {attempts}", method), late=bool(number // _MAX_ATTEMPTS % 2))


def of_tick(context: Context, event: str) -> str:
    """Return the way in which the call for a tick ends; the second call succeeds."""
    return "" if _counted(context, "EverySecond", event) > 1 else _name(event, "tick")


def _counted(context: Context, method: str, event: str) -> int:
    """Return the number of calls of a method for an event, this call included, over all processes."""
    file = Path(context.settings["folder"]) / method / event
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("ab") as attempts:
        attempts.write(b".")
        attempts.flush()
        return attempts.tell()
