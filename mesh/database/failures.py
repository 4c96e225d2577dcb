"""Database failures: the status that a call ends with, and a reason on one line for the operator.

A transient failure without any effect is ``Aborted`` (a retry works at once) or ``Unavailable`` (a retry works when the
database does). Callers and deliveries may retry both. Failures about the data, and bugs, have no status here. Sources:
PostgreSQL manual, appendix A (SQLSTATEs); https://www.sqlite.org/rescode.html.
"""

from __future__ import annotations

import socket
import sqlite3
import ssl
from collections.abc import Iterator

from sqlalchemy import exc

from mesh.errors import Aborted, InvalidArgument, StatusError, Unavailable

__all__ = ["DatabaseError", "invalidates_connection", "reason", "status"]

RETRY_DELAY = 1.0
"""Seconds after which clients should retry (``retry_after``)."""

_CONFLICT = "another call changed the same data; try again"
_MIGRATED = "the tables were changed while the service runs; try again"
_UNREACHABLE = "the database cannot be reached"
_UNWRITABLE = "the database cannot be written"
_READ_ONLY = "the database takes no writes at the moment"
_TIMED_OUT = "the database took too long"

_ABORTED = {
    "40001": _CONFLICT,  # serialization failure
    "40P01": _CONFLICT,  # deadlock
    "55P03": _CONFLICT,  # lock not available: NOWAIT, lock_timeout
    "72000": _CONFLICT,  # snapshot too old
}
_UNAVAILABLE = {
    "25006": _READ_ONLY,  # read-only transaction: a primary that became a standby
    "25P03": _TIMED_OUT,  # idle_in_transaction_session_timeout
    "25P04": _TIMED_OUT,  # transaction_timeout
    "57014": _TIMED_OUT,  # statement_timeout, or cancelled by an administrator
    "53100": _UNWRITABLE,
    "26000": _UNREACHABLE,  # a prepared statement that the server behind a pooler does not have
    "42P05": _UNREACHABLE,  # or that it has already
}
_CLASSES = {
    "08": _UNREACHABLE,
    "57P": _UNREACHABLE,
    "53": "the database is overloaded",
    "58": "the database cannot be used",
}
"""First characters of SQLSTATEs: connection exception, operator intervention, insufficient resources, system error."""
_UNUSABLE_AFTER = ("25006", "26000", "42P05")
"""SQLSTATEs after which a connection is unusable although the server keeps it open."""
_STALE = ("InvalidCachedStatementError", "OutdatedSchemaCacheError")
"""asyncpg's errors for outdated caches of a changed table or type. Their SQLSTATE 0A000 has other meanings too."""
_TYPE_GONE = "cache lookup failed for type"
"""Text of an XX000 for a prepared statement with a parameter of a dropped type. PostgreSQL does not translate it."""
_NUL = "22021"
"""Character not in repertoire. PostgreSQL's text cannot hold U+0000, but a protobuf string can."""
_REASONS = {
    "28P01": "the password is wrong",
    "28000": "the user may not log in",
    "3D000": "there is no such database on the server",
    "3F000": "there is no such schema; search_path names one that has to be created first",
    "57P03": "the server is still starting",
    "53300": "the server has no connection left",
    "42501": "the user may not do this in the database",
}
_SQLITE = {
    sqlite3.SQLITE_BUSY: "the database is locked by another process",
    sqlite3.SQLITE_LOCKED: "the database is locked by another process",
    sqlite3.SQLITE_PROTOCOL: "the database is locked by another process",  # too many began in the WAL at once
    sqlite3.SQLITE_INTERRUPT: _TIMED_OUT,
    sqlite3.SQLITE_FULL: _UNWRITABLE,
    sqlite3.SQLITE_IOERR: _UNWRITABLE,
    sqlite3.SQLITE_CANTOPEN: _UNWRITABLE,
    sqlite3.SQLITE_READONLY: _UNWRITABLE,
}
"""Primary result codes of SQLite → why it is unavailable."""

_NETWORK: dict[type[BaseException], str] = {
    socket.gaierror: "there is no such host",
    ConnectionRefusedError: "nothing listens there",
    TimeoutError: "it did not answer in time",
}


class DatabaseError(Exception):
    """The database cannot be used. The message is one line that names it and the reason."""


def status(error: BaseException) -> StatusError | None:
    """Return the status of a call that ends with this error, or None if the error is about the data or a bug."""
    causes = list(_causes(error))
    for cause in causes:
        if isinstance(cause, exc.TimeoutError):
            return Unavailable("the database is busy: no connection came free in time", retry_after=RETRY_DELAY)
        if isinstance(cause, sqlite3.Error):
            return _of_sqlite(getattr(cause, "sqlite_errorcode", 0))
        if _stale(cause):
            return Aborted(_MIGRATED)
        found = _of_state(getattr(cause, "sqlstate", None))
        if found is not None:
            return found
    if any(isinstance(one, OSError) or getattr(one, "connection_invalidated", False) for one in causes):
        return Unavailable(_UNREACHABLE, retry_after=RETRY_DELAY)
    return None


def invalidates_connection(error: BaseException) -> bool:
    """Whether a connection must be dropped after this error although the server keeps it open.

    Either its caches are outdated, or the server has become one that takes no writes.
    """
    return any(_stale(cause) or getattr(cause, "sqlstate", None) in _UNUSABLE_AFTER for cause in _causes(error))


def _stale(error: BaseException) -> bool:
    return type(error).__name__ in _STALE or (getattr(error, "sqlstate", None) == "XX000" and _TYPE_GONE in str(error))


def _of_sqlite(code: int) -> StatusError | None:
    """Return the status of an (extended) result code of SQLite."""
    if code == sqlite3.SQLITE_BUSY_SNAPSHOT:
        return Aborted(_CONFLICT)
    if code & 0xFF == sqlite3.SQLITE_SCHEMA:
        return Aborted(_MIGRATED)
    text = _SQLITE.get(code & 0xFF)
    return Unavailable(text, retry_after=RETRY_DELAY) if text else None


def _of_state(state: object) -> StatusError | None:
    """Return the status of an SQLSTATE of PostgreSQL."""
    if not isinstance(state, str):
        return None
    if state in _ABORTED:
        return Aborted(_ABORTED[state])
    if state == _NUL:
        return InvalidArgument("text must not hold the character U+0000")
    text = _UNAVAILABLE.get(state) or next((text for at, text in _CLASSES.items() if state.startswith(at)), "")
    return Unavailable(text, retry_after=RETRY_DELAY) if text else None


def reason(error: BaseException) -> str:
    """Return the reason why a database cannot be used, for the operator."""
    causes = list(_causes(error))
    known = next((text for cause in causes if (text := _known(cause))), "")
    if known:
        return known
    code = next(
        (c.sqlite_errorcode for c in causes if isinstance(c, sqlite3.Error) and hasattr(c, "sqlite_errorcode")), 0
    )
    return {
        sqlite3.SQLITE_CANTOPEN: "the file cannot be opened or made; is its folder writable?",
        sqlite3.SQLITE_READONLY: "the file or its folder is not writable",
        sqlite3.SQLITE_NOTADB: "the file is not a SQLite database",
        sqlite3.SQLITE_BUSY: "it is locked by another process",
    }.get(code & 0xFF) or _line(causes[-1])


def _known(error: BaseException) -> str:
    state = getattr(error, "sqlstate", None)
    if isinstance(state, str):
        return _REASONS.get(state) or _line(error)
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the server's certificate is not accepted: {error.verify_message.rstrip('.')}"
    if (
        isinstance(error, FileNotFoundError) and error.filename is None
    ):  # asyncio does not name the socket, nor ssl the file
        return "there is no such socket (or file of certificates)"
    if type(error).__name__ == "TargetServerAttributeNotMatched":
        return "no host is what target_session_attrs asks for"
    return next((text for kind, text in _NETWORK.items() if isinstance(error, kind)), "")


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield the error and its causes: SQLAlchemy's ``orig`` first, then ``__cause__``."""
    at: BaseException | None = error
    seen: set[int] = set()
    while at is not None and id(at) not in seen:
        seen.add(id(at))
        yield at
        at = getattr(at, "orig", None) or at.__cause__


def _line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror.lower()}"
    text = " ".join(str(error).split())
    return text or type(error).__name__
