"""Errors of stubs' calls: one class for each code, which is the function's own status and grpcio's error at once.

What a called function raised as ``mesh.NotFound`` is ``except mesh.NotFound`` for its caller, and still
``grpc.aio.AioRpcError``. The two interfaces meet in two attributes, which have both meanings: ``error.code`` is a
``mesh.Code`` and ``error.code()`` grpcio's ``StatusCode``; ``error.details`` are the details and ``error.details()`` is
the message.
"""

from __future__ import annotations

from typing import Any, cast

import grpc
import grpc.aio

from mesh import errors
from mesh.errors import Code, RemoteError, StatusError
from mesh.headers import PUSHBACK

__all__ = ["GRPC_CODES", "CallError", "call_error"]

_PUSHBACK = PUSHBACK.decode()
GRPC_CODES = {Code(code.value[0]): code for code in grpc.StatusCode}
"""grpcio's codes by ours."""
errors.grpc_codes.update(GRPC_CODES)


class _Details(tuple[Any, ...]):  # noqa: SLOT001 - a tuple's subclass cannot have any
    """Details of a status, which return the status message when they are called, as ``grpc.Call.details`` does."""

    text: str

    def __call__(self) -> str:
        return self.text


class CallError(grpc.aio.AioRpcError, RemoteError):
    """The failure of a stub's call. ``call_error`` makes one of a subclass that is also the class of its code.

    Attributes:
        status: Its status, as the mesh's own exception.
        no_retry: As in ``RemoteError``: the trailers say so.
    """

    def __init__(self, error: StatusError, headers: grpc.aio.Metadata, trailers: grpc.aio.Metadata) -> None:
        grpc.aio.AioRpcError.__init__(
            self, GRPC_CODES[error.code], headers, trailers, error.message, str(error)
        )  # which calls the initializer of ``StatusError`` too, without arguments
        details = _Details(error.details)
        details.text = error.message
        own = cast("Any", self)
        own.code, own.message, own.details, own.where = error.code, error.message, details, error.where
        self.status = error
        self.no_retry = str(trailers.get(_PUSHBACK, "")).startswith("-")

    def __reduce__(self) -> tuple[Any, ...]:
        return (call_error, (self.status, self.initial_metadata(), self.trailing_metadata()))


_CLASSES: dict[Code, type[CallError]] = {
    code: type(f"{cls.__name__}CallError", (CallError, cls), {"__module__": __name__, "__doc__": CallError.__doc__})
    for code in Code
    if code is not Code.OK
    for cls in [type(StatusError.of(code))]
}


def call_error(error: StatusError, headers: grpc.aio.Metadata, trailers: grpc.aio.Metadata) -> CallError:
    """Return the failure of a call, which is an instance of the class of its code (``mesh.NotFound``) too.

    Args:
        error: The status.
        headers: Initial metadata.
        trailers: Trailing metadata.
    """
    return _CLASSES.get(error.code, CallError)(error, headers, trailers)
