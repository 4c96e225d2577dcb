"""Subjects of events, changes, schedules and dead letters on the broker. Pure.

A subject consists of tokens with dots between them. A token has no dot, no space and no wildcard (NATS, "Subject-Based
Messaging"). Names of messages and services have only letters, digits, ``_`` and dots, so their dots become ``-``. Keys
and tables can be any text and are escaped.
"""

from __future__ import annotations

import hashlib
import zlib
from urllib.parse import quote, unquote

__all__ = [
    "CHANGES",
    "DEAD",
    "EVENTS",
    "PARTITIONS",
    "SCHEDULES",
    "TICKS",
    "TRIES",
    "change_filter",
    "change_subject",
    "dead_subject",
    "escape",
    "event_filter",
    "event_subject",
    "key_filter",
    "partition",
    "schedule_subject",
    "tick_subject",
    "token_of",
    "unescape",
]

EVENTS, CHANGES, SCHEDULES, TICKS, DEAD, TRIES = "events", "changes", "schedules", "ticks", "dead", "tries"
"""First tokens."""
PARTITIONS = 8
"""Number of partitions of the keys of a type; never to be changed (see the decisions of ``mesh.events``)."""

_NO_KEY = "_"
_MAX_TOKEN = 256
"""Maximum characters of an escaped key. The server reads no line above 4,096 bytes, and many lines hold a subject."""


def partition(key: str) -> int:
    """Return the partition of a key, 0 to ``PARTITIONS - 1``: the CRC-32 of its UTF-8 bytes, modulo."""
    return zlib.crc32(key.encode()) % PARTITIONS


def escape(text: str) -> str:
    """Return a text as one token: percent-encoded UTF-8, ``_`` for an empty one, a digest for a text that is too long.

    The digest (``~`` and 64 hexadecimal digits) cannot be reversed. Messages have the key itself (``ce-subject``).
    """
    if not text:
        return _NO_KEY
    if text == _NO_KEY:
        return "%5F"
    token = quote(text, safe="").replace(".", "%2E").replace("~", "%7E")
    return token if len(token) <= _MAX_TOKEN else f"~{hashlib.sha256(text.encode()).hexdigest()}"


def unescape(token: str) -> str:
    """Return the text of an escaped token; for a digest, the digest."""
    return "" if token == _NO_KEY else unquote(token)


def token_of(name: str) -> str:
    """Return the full name of a message or a service as one token: ``login.v1.Login`` → ``login-v1-Login``."""
    return name.replace(".", "-")


def event_subject(type: str, key: str, id: str) -> str:  # noqa: A002 - CloudEvents' words
    """Return the subject of an event.

    Args:
        type: Full name of the message.
        key: The value that keeps it in order, or "".
        id: The id of the event, which spreads events without a key over the partitions.
    """
    return f"{EVENTS}.{token_of(type)}.{partition(key or id)}.{escape(key)}"


def event_filter(type: str, part: int | None = None) -> str:  # noqa: A002 - as above
    """Return the subscription of a type of events, or of one partition of it."""
    return f"{EVENTS}.{token_of(type)}.{'*' if part is None else part}.*"


def key_filter(type: str, key: str) -> str:  # noqa: A002 - as above
    """Return the subscription of all events of a key; ``type`` may be "" for any type."""
    return f"{EVENTS}.{token_of(type) or '*'}.{partition(key)}.{escape(key)}"


def change_subject(service: str, table: str, key: str) -> str:
    """Return the subject of a change of a row.

    Args:
        service: The service of mesh.toml that owns the table.
        table: The table.
        key: The row's primary key as text. Changes of one key stay in order.
    """
    return f"{CHANGES}.{escape(service)}.{escape(table)}.{partition(key)}.{escape(key)}"


def change_filter(service: str, table: str, part: int | None = None) -> str:
    """Return the subscription of a table's changes, or of one partition of them."""
    return f"{CHANGES}.{escape(service)}.{escape(table)}.{'*' if part is None else part}.*"


def schedule_subject(service: str, method: str) -> str:
    """Return the subject that stores the schedule of a method; ``service`` is the contract's full name."""
    return f"{SCHEDULES}.{token_of(service)}.{method}"


def tick_subject(service: str, method: str) -> str:
    """Return the subject of the ticks of a method's schedule."""
    return f"{TICKS}.{token_of(service)}.{method}"


def dead_subject(service: str, method: str) -> str:
    """Return the subject of the dead letters of a method."""
    return f"{DEAD}.{token_of(service)}.{method}"
