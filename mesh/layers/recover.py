"""Recover layer: turns every exception into a status that reveals nothing of the implementation."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, TypeGuard

from mesh.boundary import OwnCancellationError, as_exception
from mesh.errors import Cancelled, Code, Internal, RemoteError, StatusError, is_own
from mesh.headers import NO_RETRY
from mesh.message_size import oversized

if TYPE_CHECKING:
    from mesh.call import Call, Handler

__all__ = ["recover", "status_of"]

log = logging.getLogger("mesh.layers.recover")

_MAX_CAUSES = 8
"""Longest chain of causes of an error that is followed."""
_PASS_ON = frozenset({Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.RESOURCE_EXHAUSTED, Code.ABORTED})
"""Codes of an outbound call that hold for the calling call too: a later attempt may succeed."""


async def recover(call: Call, next: Handler) -> None:
    """Turn an exception that is no status into one, and log it.

    The log has the traceback of a bug. A failed outbound call that may succeed later is one line with the service and
    the address: nobody can mend it here, and thousands come while a service is down.

    Raises:
        StatusError: The only exception, besides cancellation, that leaves this layer.
    """
    try:
        await next(call)
    except BaseException as raised:  # from a layer; functions raise only an Exception here (``mesh.boundary``)
        if is_own(raised):
            _pass_on_no_retry(call, raised)
            raise
        error = await as_exception(raised, call)
        status = status_of(error)
        name = call.method.path if call.method is not None else "a request without a route"
        if _not_now(error):
            log.warning("%s failed: a call that it made ended with %s", name, error.status)
        else:
            log.exception("%s failed: %s", name, status.code.name, exc_info=error)
        _pass_on_no_retry(call, error)
        raise status from error


def _pass_on_no_retry(call: Call, error: BaseException) -> None:
    """Ask the caller for no retry if the error is due to an outbound call that was retried in vain.

    Retries at each level of a chain of calls would multiply ("Site Reliability Engineering", 2016, chapter 21). The
    outbound call may have failed with the error itself, or the function raised the error while it handled that failure.
    """
    if is_own(error) and error.code is not Code.UNAVAILABLE:
        return
    cause: BaseException | None = error
    for _ in range(_MAX_CAUSES):
        if cause is None:
            return
        if isinstance(cause, RemoteError):
            if cause.no_retry and cause.status.code is Code.UNAVAILABLE and NO_RETRY not in call.trailers:
                call.trailers.append(NO_RETRY)
            return
        cause = cause.__cause__ or cause.__context__


def _not_now(error: Exception) -> TypeGuard[RemoteError]:
    """Whether the error is a failed outbound call that may succeed later. A message that is too large never does."""
    return isinstance(error, RemoteError) and error.status.code in _PASS_ON and oversized(error.status) is None


def status_of(error: Exception) -> StatusError:
    """Return the status that the caller of a failed function gets.

    A ``StatusError`` is that status. A failed outbound call that the function did not catch has the same code if the
    code means "not now", without the text of the other service. A cancellation that the mesh did not request is
    ``CANCELLED``. Every other exception is ``INTERNAL``.
    """
    if is_own(error):
        return error
    if _not_now(error):
        return StatusError.of(error.status.code, "a service that this one depends on did not answer")
    if isinstance(error, OwnCancellationError):
        return Cancelled("the call was cancelled")
    return Internal("internal error")
