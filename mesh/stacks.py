"""Stacks of threads that run now, for the logs of watchdogs: text, innermost function, and the call that they serve."""

from __future__ import annotations

import logging
import sys
import traceback
from types import FrameType

from mesh.call import Call

__all__ = ["innermost", "log_with_stack", "method_of", "stack_text", "thread_frame"]

_MAX_FRAMES = 30
"""Innermost frames of a stack that are shown."""
_PACKAGE = "mesh."


def thread_frame(ident: int) -> FrameType | None:
    """Return the innermost frame of a thread; None if the thread has ended."""
    return sys._current_frames().get(ident)  # noqa: SLF001 - the documented way


def stack_text(frame: FrameType) -> str:
    """Return a stack as text, as in a traceback: the innermost function last."""
    return "".join(traceback.format_stack(frame, _MAX_FRAMES)).rstrip("\n")


def innermost(frame: FrameType) -> str:
    """Return the place of a frame: ``services/login/functions.py:31 in login``."""
    return f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_name}"


def method_of(frame: FrameType) -> str:
    """Return the path of the method that a stack of an event loop serves; ``""`` if it serves none.

    The context variables of another thread cannot be read. The frames of the mesh's own layers hold the call.
    """
    at: FrameType | None = frame
    while at is not None:
        if str(at.f_globals.get("__name__", "")).startswith(_PACKAGE):
            call = at.f_locals.get("call")
            if isinstance(call, Call):
                method = getattr(call, "method", None)  # an HTTP request has none before it is routed
                return method.path if method is not None else ""
        at = at.f_back
    return ""


def log_with_stack(log: logging.Logger, message: str, stack: str) -> None:
    """Log a warning with the stack of another thread, where a record has its traceback."""
    if log.isEnabledFor(logging.WARNING):
        record = log.makeRecord(log.name, logging.WARNING, __file__, 0, message, (), None, sinfo=stack)
        log.handle(record)
