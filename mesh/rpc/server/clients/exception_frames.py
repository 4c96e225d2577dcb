"""Release of what the frames of an exception hold."""

from __future__ import annotations

from traceback import clear_frames

__all__ = ["release_frames"]

MAX_CONTEXTS = 8
"""Exceptions in the context of one that are followed."""


def release_frames(error: BaseException | None) -> None:
    """Clear the variables of the code that an exception has left.

    They hold the request or the response for as long as something holds the exception: the sending of its status to a
    client that does not read, or an exporter of spans.
    """
    for _ in range(MAX_CONTEXTS):
        if error is None:
            return
        clear_frames(error.__traceback__)
        error = error.__context__
