"""Exceptions in traces: tells bugs from intended statuses, and describes both. The same in every process."""

from __future__ import annotations

import traceback

from mesh.boundary import OwnCancellationError
from mesh.errors import Code, RemoteError, StatusError
from mesh.text import text_of

__all__ = ["SERVER_FAULTS", "bug_behind", "exception_attributes", "summary_of"]

SERVER_FAULTS = frozenset(
    {Code.UNKNOWN, Code.DEADLINE_EXCEEDED, Code.UNIMPLEMENTED, Code.INTERNAL, Code.UNAVAILABLE, Code.DATA_LOSS}
)
"""Codes that make a *server* span an error (semantic conventions for gRPC). On a client span every code but OK does."""


def bug_behind(error: StatusError) -> Exception | None:
    """Return the exception that ``recover`` turned into a status, or None if the function chose the status.

    ``raise NotFound(…) from error`` is a chosen status. INTERNAL from an exception is a bug. So is CANCELLED, if the
    function ended with a cancellation of its own.
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
    """Return an exception on one line: type and message."""
    return f"{_type_name(bug)}: {text_of(bug)}"


def exception_attributes(error: BaseException) -> dict[str, str]:
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
    """Return the full name of an exception's class. A built-in class has no module in it."""
    cls = type(error)
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"
