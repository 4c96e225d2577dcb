"""The recover layer: whatever happens inside, the caller gets a status, and nothing of the inside leaks with it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, TypeGuard

from mesh.boundary import OwnCancellationError, ordinary
from mesh.errors import Cancelled, Code, Internal, RemoteError, StatusError
from mesh.message_size import oversized

if TYPE_CHECKING:
    from mesh.call import Call, Handler

__all__ = ["recover", "status_of"]

log = logging.getLogger("mesh.layers.recover")

_PASS_ON = frozenset({Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.RESOURCE_EXHAUSTED, Code.ABORTED})
"""Codes of an onward call that are as true for the call that made it: try again later."""


async def recover(call: Call, next: Handler) -> None:
    """Turn any exception that is not a status into one, and log it.

    A bug is logged with its traceback; an onward call that failed for now, which nobody here can mend and which comes
    by the thousand while a service is away, as one line that says which service and where.

    Raises:
        StatusError: The only exception, besides cancellation, that leaves this layer.
    """
    try:
        await next(call)
    except StatusError:
        raise
    except BaseException as raised:  # of a layer; what functions raise is an Exception here (``mesh.boundary``)
        error = await ordinary(raised, call)
        status = status_of(error)
        name = call.method.path if call.method is not None else "a request without a route"
        if _not_now(error):
            log.warning("%s failed: a call that it made ended with %s", name, error.status)
        else:
            log.exception("%s failed: %s", name, status.code.name, exc_info=error)
        raise status from error


def _not_now(error: Exception) -> TypeGuard[RemoteError]:
    """Whether it is an onward call that may succeed later. A message that is too large is as large the next time."""
    return isinstance(error, RemoteError) and error.status.code in _PASS_ON and oversized(error.status) is None


def status_of(error: Exception) -> StatusError:
    """Return the status that the caller of a failed function sees.

    A ``StatusError`` is what it says. An onward call's failure that the function let pass is this call's failure too,
    by the same code if the code means "not now", without the other service's text. A cancellation that the mesh did not
    ask for is ``CANCELLED``. Everything else is ``INTERNAL``.
    """
    if isinstance(error, StatusError):
        return error
    if _not_now(error):
        return StatusError.of(error.status.code, "a service that this one depends on did not answer")
    if isinstance(error, OwnCancellationError):
        return Cancelled("the call was cancelled")
    return Internal("internal error")
