"""What a failing database means: a status for a call, one line for whoever starts the service."""

from __future__ import annotations

import socket
import sqlite3
from collections.abc import Iterator

from sqlalchemy import exc

from mesh.errors import Aborted, InvalidArgument, StatusError, Unavailable

__all__ = ["DatabaseError", "reason", "status"]

RETRY_AFTER = 1.0
"""Seconds."""

_CONFLICTS = ("40001", "40P01", "55P03")
"""SQLSTATE of serialization failure, deadlock, lock not available (PostgreSQL manual, appendix A)."""
_LOST = ("08", "57P", "53")
"""SQLSTATE classes: connection exception, operator intervention, insufficient resources."""
_NUL = "22021"
"""Character not in repertoire: PostgreSQL's text cannot hold U+0000, and a protobuf string can."""
_WORDS = {
    "28P01": "the password is wrong",
    "28000": "the user may not log in",
    "3D000": "there is no such database on the server",
    "57P03": "the server is still starting",
    "53300": "the server has no connection left",
    "42501": "the user may not do this in the database",
}


class DatabaseError(Exception):
    """The database cannot be used; ``str()`` is one line that says which one and why."""


def status(error: BaseException) -> StatusError | None:
    """Return the status of a call that failed so, or None when the error is about the data or a bug."""
    for cause in _causes(error):
        if isinstance(cause, exc.TimeoutError):
            return Unavailable("the database is busy: no connection came free in time", retry_after=RETRY_AFTER)
        if isinstance(cause, sqlite3.Error):
            return _of_sqlite(getattr(cause, "sqlite_errorcode", 0))
        found = _of_state(getattr(cause, "sqlstate", None))
        if found is not None:
            return found
        if isinstance(cause, OSError) or (isinstance(cause, exc.DBAPIError) and cause.connection_invalidated):
            return Unavailable("the database cannot be reached", retry_after=RETRY_AFTER)
    return None


def _of_sqlite(code: int) -> StatusError | None:
    """Return the status of an (extended) result code of SQLite: https://www.sqlite.org/rescode.html."""
    if code == sqlite3.SQLITE_BUSY_SNAPSHOT:
        return Aborted("another call changed the same data; try again")
    if code & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return Unavailable("the database is locked by another process", retry_after=RETRY_AFTER)
    if code & 0xFF in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY):
        return Unavailable("the database cannot be written", retry_after=RETRY_AFTER)
    return None


def _of_state(state: object) -> StatusError | None:
    """Return the status of an SQLSTATE of PostgreSQL."""
    if state in _CONFLICTS:
        return Aborted("another call changed the same data; try again")
    if state == _NUL:
        return InvalidArgument("text must not hold the character U+0000")
    if isinstance(state, str) and state.startswith(_LOST):
        return Unavailable("the database cannot be reached", retry_after=RETRY_AFTER)
    return None


def reason(error: BaseException) -> str:
    """Return why a database cannot be used, in the words of whoever must mend it."""
    causes = list(_causes(error))
    for cause in causes:
        state = getattr(cause, "sqlstate", None)
        if isinstance(state, str):
            return _WORDS.get(state) or _line(cause)
        if isinstance(cause, socket.gaierror):
            return "there is no such host"
        if isinstance(cause, ConnectionRefusedError):
            return "nothing listens there"
        if isinstance(cause, TimeoutError):
            return "it did not answer in time"
    code = next(
        (c.sqlite_errorcode for c in causes if isinstance(c, sqlite3.Error) and hasattr(c, "sqlite_errorcode")), 0
    )
    return {
        sqlite3.SQLITE_CANTOPEN: "the file cannot be opened or made; is its folder writable?",
        sqlite3.SQLITE_READONLY: "the file or its folder is not writable",
        sqlite3.SQLITE_NOTADB: "the file is not a SQLite database",
        sqlite3.SQLITE_BUSY: "it is locked by another process",
    }.get(code & 0xFF) or _line(causes[-1])


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield the error and what it came from: SQLAlchemy's ``orig``, then the causes."""
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
