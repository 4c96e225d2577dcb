"""What was raised, as a trace tells it: which of it is a bug, and in what words. The same for every process."""

from __future__ import annotations

import traceback

from mesh.boundary import OwnCancellationError
from mesh.errors import Code, RemoteError, StatusError
from mesh.text import text_of

__all__ = ["SERVER_FAULTS", "bug_behind", "event_of", "summary_of"]

SERVER_FAULTS = frozenset(
    {Code.UNKNOWN, Code.DEADLINE_EXCEEDED, Code.UNIMPLEMENTED, Code.INTERNAL, Code.UNAVAILABLE, Code.DATA_LOSS}
)
"""Codes that make a *server* span an error (semantic conventions for gRPC); on a client span every code but OK does."""


def bug_behind(error: StatusError) -> Exception | None:
    """Return the bug that a status was made of, or None.

    ``raise NotFound(…) from error`` is an answer; ``recover``'s INTERNAL from what was raised is a bug, and so is its
    CANCELLED, when the function ended with a cancellation of its own.
    """
    cause = error.__cause__
    if (
        (error.code in SERVER_FAULTS or isinstance(cause, OwnCancellationError))
        and isinstance(cause, Exception)
        and not isinstance(cause, StatusError | RemoteError)
    ):
        return cause
    return None


def summary_of(bug: BaseException) -> str:
    """Return a bug in one line: type and message."""
    return f"{_type_name(bug)}: {text_of(bug)}"


def event_of(error: BaseException) -> dict[str, str]:
    """Return the attributes of the event ``exception`` (semantic conventions): type, message and traceback."""
    return {
        "exception.type": _type_name(error),
        "exception.message": text_of(error),
        "exception.stacktrace": _traceback_of(error),
    }


def _traceback_of(error: BaseException) -> str:
    try:
        return "".join(traceback.format_exception(error))
    except RecursionError:  # a group of groups, some hundred deep
        return f"{type(error).__name__}, whose traceback is too deep\n"


def _type_name(error: BaseException) -> str:
    """Return the full name of an exception's class; a built-in one without its module."""
    cls = type(error)
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"
