"""Which call and which event ends how: all of it by its word, so that the ledger can tell what has to come of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from zlib import crc32

from mesh.chaos.endings.ways import BUGS, CANCELLATIONS

if TYPE_CHECKING:
    from mesh import Context

__all__ = ["Way", "doomed", "key_of", "of_call", "of_stream", "of_tick", "of_try"]

_NAMES = (*BUGS, *CANCELLATIONS)
_DOOMED = 40
"""One event in so many ends badly at every try."""
_SHARED, _KEYS = 10, 8
"""One event in so many has one of so many keys."""
_MOST = 3
"""Tries of an event that is not doomed, the good one included."""


@dataclass(frozen=True, slots=True)
class Way:
    """How a function ends.

    Attributes:
        name: See ``mesh.chaos.endings.ways``.
        late: After what it has written is committed.
    """

    name: str
    late: bool


def _number(word: str, salt: str) -> int:
    return crc32(f"{salt} {word}".encode())


def _name(word: str, salt: str) -> str:
    return _NAMES[_number(word, salt) % len(_NAMES)]


def key_of(word: str) -> str:
    """Return the key of the event of a word: its own, or one of a few."""
    number = _number(word, "key")
    return word if number % _SHARED else f"shared{number // _SHARED % _KEYS}"


def doomed(word: str) -> bool:
    """Whether functions that are called for the event of a word never end well."""
    return _number(word, "doomed") % _DOOMED == 0


def of_call(word: str) -> Way | None:
    """Return how the call with a word ends; every other one ends well."""
    number = _number(word, "call")
    return None if number % 2 else Way(_name(word, "call way"), late=bool(number // 2 % 2))


def of_stream(word: str) -> str:
    """Return the way in which the requests end that are streamed for a call; "" for every other one."""
    return "" if _number(word, "stream") % 2 else _name(word, "stream way")


def of_try(context: Context, method: str, event: str, word: str) -> Way | None:
    """Return how this try of a method for an event ends, and count it."""
    tries = _counted(context, method, event)
    if doomed(word):
        return Way(_name(f"{event} {tries}", method), late=False)
    number = _number(event, method)
    if tries > number % _MOST:
        return None
    return Way(_name(f"{event} {tries}", method), late=bool(number // _MOST % 2))


def of_tick(context: Context, event: str) -> str:
    """Return how the call for a tick ends; the second one ends well."""
    return "" if _counted(context, "EverySecond", event) > 1 else _name(event, "tick")


def _counted(context: Context, method: str, event: str) -> int:
    """Return how often a method has been called for an event, this call included, over all processes."""
    file = Path(context.settings["folder"]) / method / event
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("ab") as tries:
        tries.write(b".")
        tries.flush()
        return tries.tell()
