"""The status codes of gRPC, one exception each, and the one table from code to HTTP status.

A function raises these; every other part of the mesh moves them. What is not a ``StatusError`` is a bug, and its text
stays inside (see ``mesh.layers.recover``).

Sources: https://grpc.io/docs/guides/status-codes/ and google/rpc/code.proto (the HTTP mapping).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import Any, Self

from google.protobuf.message import Message
from google.rpc import error_details_pb2

from mesh.text import utf8

__all__ = [
    "Aborted",
    "AlreadyExists",
    "Cancelled",
    "Code",
    "DataLoss",
    "DeadlineExceeded",
    "FailedPrecondition",
    "Internal",
    "InvalidArgument",
    "NotFound",
    "OutOfRange",
    "PermissionDenied",
    "RemoteError",
    "ResourceExhausted",
    "StatusError",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "Unknown",
    "http_status",
]


class Code(IntEnum):
    """The canonical status codes (google/rpc/code.proto)."""

    OK = 0
    """The call succeeded."""
    CANCELLED = 1
    """The caller went away."""
    UNKNOWN = 2
    """A peer failed without saying how."""
    INVALID_ARGUMENT = 3
    """The request is wrong whatever the state of the system."""
    DEADLINE_EXCEEDED = 4
    """Time ran out; the effect may have happened."""
    NOT_FOUND = 5
    """What was asked for does not exist."""
    ALREADY_EXISTS = 6
    """What was to be created exists."""
    PERMISSION_DENIED = 7
    """The caller is known and may not do this."""
    RESOURCE_EXHAUSTED = 8
    """A limit was reached: in-flight calls, message size, quota."""
    FAILED_PRECONDITION = 9
    """The state of the system forbids it; trying again does not help until that changes."""
    ABORTED = 10
    """A conflict with a concurrent call; the whole sequence may be tried again."""
    OUT_OF_RANGE = 11
    """Past the end."""
    UNIMPLEMENTED = 12
    """No such method here."""
    INTERNAL = 13
    """A bug; the text stays inside."""
    UNAVAILABLE = 14
    """Not now; safe to try again for methods that declare retry safety."""
    DATA_LOSS = 15
    """Data is gone or corrupt beyond repair."""
    UNAUTHENTICATED = 16
    """The caller is not known: no credentials, or invalid ones."""


_HTTP: dict[int, int] = {
    Code.OK: 200,
    Code.CANCELLED: 499,
    Code.UNKNOWN: 500,
    Code.INVALID_ARGUMENT: 400,
    Code.DEADLINE_EXCEEDED: 504,
    Code.NOT_FOUND: 404,
    Code.ALREADY_EXISTS: 409,
    Code.PERMISSION_DENIED: 403,
    Code.RESOURCE_EXHAUSTED: 429,
    Code.FAILED_PRECONDITION: 400,
    Code.ABORTED: 409,
    Code.OUT_OF_RANGE: 400,
    Code.UNIMPLEMENTED: 501,
    Code.INTERNAL: 500,
    Code.UNAVAILABLE: 503,
    Code.DATA_LOSS: 500,
    Code.UNAUTHENTICATED: 401,
}


def http_status(code: int) -> int:
    """Return the HTTP status for a gRPC code (google/rpc/code.proto); 500 for a code that is not canonical."""
    return _HTTP.get(code, 500)


class StatusError(Exception):
    """A call ended with a status other than OK.

    Args:
        message: For the caller: what was wrong, and what would be right.
        details: Messages that make the status rich (``google.rpc.BadRequest``, ``RetryInfo``, …); they travel in
            ``grpc-status-details-bin``.
        code: Only for the base class; each subclass has its own.

    Attributes:
        where: What failed where, addresses and all, when the transport and not the peer says so: for logs and spans.
            It is never sent; ``str()`` has it.
    """

    code: Code = Code.UNKNOWN
    where: str = ""
    message: str
    details: tuple[Message, ...]

    def __init__(self, message: str = "", *, details: Sequence[Message] = (), code: int | None = None) -> None:
        message = utf8(message)  # it may quote what a caller sent; it must not be what keeps the status from going out
        super().__init__(message)
        self.message = message
        self.details = tuple(details)
        if code is not None:
            self.code = Code(code) if code in _CODES else Code.UNKNOWN

    def __str__(self) -> str:
        text = f"{self.code.name}: {self.message}" if self.message else self.code.name
        return f"{text} ({self.where})" if self.where else text

    def at(self, where: str) -> Self:
        """Say where, and return the error."""
        self.where = where
        return self

    @staticmethod
    def of(code: int, message: str = "", details: Sequence[Message] = ()) -> StatusError:
        """Return the exception of the class that belongs to ``code``; ``Unknown`` for a code that is not canonical."""
        cls: Any = _CLASSES.get(code, Unknown)
        error: StatusError = cls.__new__(cls)
        StatusError.__init__(error, message, details=details)
        return error


_CODES = frozenset(int(code) for code in Code)


class Cancelled(StatusError):
    """The caller went away."""

    code = Code.CANCELLED


class Unknown(StatusError):
    """A peer failed without saying how."""

    code = Code.UNKNOWN


class InvalidArgument(StatusError):
    """The request is wrong, whatever the state of the system.

    Args:
        message: What is wrong with the request as a whole.
        violations: Field path → what would be right; becomes a ``google.rpc.BadRequest`` detail.
        details: Further details.
    """

    code = Code.INVALID_ARGUMENT

    def __init__(
        self, message: str = "", *, violations: Mapping[str, str] | None = None, details: Sequence[Message] = ()
    ) -> None:
        if violations:
            found = [
                error_details_pb2.BadRequest.FieldViolation(field=utf8(field), description=utf8(text))
                for field, text in violations.items()
            ]
            details = (error_details_pb2.BadRequest(field_violations=found), *details)
        super().__init__(message, details=details)


class DeadlineExceeded(StatusError):
    """Time ran out; the effect may have happened all the same."""

    code = Code.DEADLINE_EXCEEDED


class NotFound(StatusError):
    """What was asked for does not exist."""

    code = Code.NOT_FOUND


class AlreadyExists(StatusError):
    """What was to be created exists."""

    code = Code.ALREADY_EXISTS


class PermissionDenied(StatusError):
    """The caller is known and may not do this."""

    code = Code.PERMISSION_DENIED


class ResourceExhausted(StatusError):
    """A limit was reached.

    Args:
        message: Which limit.
        retry_after: Seconds after which another try has a chance; becomes a ``google.rpc.RetryInfo`` detail and the
            HTTP ``Retry-After`` header.
        details: Further details.
    """

    code = Code.RESOURCE_EXHAUSTED

    def __init__(self, message: str = "", *, retry_after: float | None = None, details: Sequence[Message] = ()) -> None:
        if retry_after is not None:
            details = (_retry_info(retry_after), *details)
        super().__init__(message, details=details)


class FailedPrecondition(StatusError):
    """The state of the system forbids it; trying again does not help until that changes."""

    code = Code.FAILED_PRECONDITION


class Aborted(StatusError):
    """A conflict with a concurrent call; the whole sequence may be tried again."""

    code = Code.ABORTED


class OutOfRange(StatusError):
    """Past the end."""

    code = Code.OUT_OF_RANGE


class Unimplemented(StatusError):
    """No such method here."""

    code = Code.UNIMPLEMENTED


class Internal(StatusError):
    """A bug. Its text should say nothing of the inside."""

    code = Code.INTERNAL


class Unavailable(StatusError):
    """Not now; another try may succeed.

    Args:
        message: What is not available.
        retry_after: Seconds after which another try has a chance (see ``ResourceExhausted``).
        details: Further details.
    """

    code = Code.UNAVAILABLE

    def __init__(self, message: str = "", *, retry_after: float | None = None, details: Sequence[Message] = ()) -> None:
        if retry_after is not None:
            details = (_retry_info(retry_after), *details)
        super().__init__(message, details=details)


class DataLoss(StatusError):
    """Data is gone or corrupt beyond repair."""

    code = Code.DATA_LOSS


class Unauthenticated(StatusError):
    """The caller is not known: no credentials, or invalid ones."""

    code = Code.UNAUTHENTICATED


_CLASSES: dict[int, type[StatusError]] = {
    int(cls.code): cls
    for cls in (
        Cancelled,
        Unknown,
        InvalidArgument,
        DeadlineExceeded,
        NotFound,
        AlreadyExists,
        PermissionDenied,
        ResourceExhausted,
        FailedPrecondition,
        Aborted,
        OutOfRange,
        Unimplemented,
        Internal,
        Unavailable,
        DataLoss,
        Unauthenticated,
    )
}


class RemoteError:
    """Marks an exception that reports how *another* call ended: the one a stub raises when its call fails.

    It is not this call's status. A function that lets it pass has said nothing to its own caller, so only what is true
    for both calls passes on (see ``mesh.layers.recover``). Raisers set ``status``.
    """

    status: StatusError


def _retry_info(seconds: float) -> error_details_pb2.RetryInfo:
    info = error_details_pb2.RetryInfo()
    info.retry_delay.FromNanoseconds(int(seconds * 1e9))
    return info
