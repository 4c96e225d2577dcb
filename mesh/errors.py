"""gRPC status codes: one exception for each code, and the table from code to HTTP status.

Functions raise these exceptions. Any other exception is a bug, and callers do not get its text (see
``mesh.layers.recover``).

Sources: https://grpc.io/docs/guides/status-codes/ and google/rpc/code.proto (the HTTP mapping).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import Any, Self, TypeGuard

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
    "is_own",
]


class Code(IntEnum):
    """Canonical status codes (google/rpc/code.proto)."""

    OK = 0
    """The call succeeded."""
    CANCELLED = 1
    """The caller cancelled the call or disconnected."""
    UNKNOWN = 2
    """A peer failed without a known status."""
    INVALID_ARGUMENT = 3
    """The request is invalid in every state of the system."""
    DEADLINE_EXCEEDED = 4
    """The deadline passed. The call may have had its effect."""
    NOT_FOUND = 5
    """The requested resource does not exist."""
    ALREADY_EXISTS = 6
    """The resource to create exists already."""
    PERMISSION_DENIED = 7
    """The caller is known and has no permission."""
    RESOURCE_EXHAUSTED = 8
    """A limit was reached: concurrency, message size, quota."""
    FAILED_PRECONDITION = 9
    """The state of the system does not allow the call. A retry does not help until the state changes."""
    ABORTED = 10
    """A conflict with a concurrent call. The caller may retry the whole sequence."""
    OUT_OF_RANGE = 11
    """A value is outside of the valid range, such as past the end of a file."""
    UNIMPLEMENTED = 12
    """The server does not have the method."""
    INTERNAL = 13
    """A bug. The caller does not get its text."""
    UNAVAILABLE = 14
    """The service is unavailable for now. Methods that declare retry safety may be retried."""
    DATA_LOSS = 15
    """Data is lost or corrupt beyond repair."""
    UNAUTHENTICATED = 16
    """The caller is unknown: it sent no credentials or invalid ones."""

    @property
    def connect_name(self) -> str:
        """Name in the Connect protocol: ``not_found``. (https://connectrpc.com/docs/protocol/#error-codes)."""
        return "canceled" if self is Code.CANCELLED else self.name.lower()

    def __call__(self) -> Any:
        """Return grpcio's ``StatusCode``: the ``code`` of a failed call is also grpcio's method ``code()``."""
        return grpc_codes[self]


grpc_codes: dict[Code, Any] = {}
"""grpcio's codes. ``mesh.rpc.client.call_error`` fills it, since grpcio is imported in ``mesh.rpc`` only."""

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
    """Return the HTTP status of a gRPC code (google/rpc/code.proto), or 500 for an unknown code.

    Connect has the same table (https://connectrpc.com/docs/protocol/#error-codes).
    """
    return _HTTP.get(code, 500)


class StatusError(Exception):
    """Status of a call other than OK.

    Args:
        message: Text for the caller: the error and its correction.
        details: Details of the status (``google.rpc.BadRequest``, ``RetryInfo``, …), sent in
            ``grpc-status-details-bin``.
        code: Status code, for the base class only. Each subclass has its own.

    Attributes:
        where: Address and cause of a transport failure, for logs and spans. It is part of ``str()`` and is never sent.
    """

    code: Code = Code.UNKNOWN
    where: str = ""
    message: str
    details: tuple[Message, ...]

    def __init__(self, message: str = "", *, details: Sequence[Message] = (), code: int | None = None) -> None:
        message = utf8(message)  # the text may quote a request, and must not prevent the status from being sent
        super().__init__(message)
        self.message = message
        self.details = tuple(details)
        if code is not None:
            self.code = Code(code) if code in _CODES else Code.UNKNOWN

    def __str__(self) -> str:
        text = f"{self.code.name}: {self.message}" if self.message else self.code.name
        return f"{text} ({self.where})" if self.where else text

    def at(self, where: str) -> Self:
        """Set ``where`` and return the error."""
        self.where = where
        return self

    @staticmethod
    def of(code: int, message: str = "", details: Sequence[Message] = ()) -> StatusError:
        """Return an exception of the class for ``code``, or ``Unknown`` for an unknown code."""
        cls: Any = _CLASSES.get(code, Unknown)
        error: StatusError = cls.__new__(cls)
        StatusError.__init__(error, message, details=details)
        return error


_CODES = frozenset(int(code) for code in Code)


class Cancelled(StatusError):
    """The caller cancelled the call or disconnected."""

    code = Code.CANCELLED


class Unknown(StatusError):
    """A peer failed without a known status."""

    code = Code.UNKNOWN


class InvalidArgument(StatusError):
    """The request is invalid in every state of the system.

    Args:
        message: Error of the request as a whole.
        violations: Field path → correct form; becomes a ``google.rpc.BadRequest`` detail.
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

    @property
    def violations(self) -> dict[str, str]:
        """Field path → correct form, of all ``google.rpc.BadRequest`` details."""
        requests = (detail for detail in self.details if isinstance(detail, error_details_pb2.BadRequest))
        return {found.field: found.description for request in requests for found in request.field_violations}


class DeadlineExceeded(StatusError):
    """The deadline passed. The call may have had its effect."""

    code = Code.DEADLINE_EXCEEDED


class NotFound(StatusError):
    """The requested resource does not exist."""

    code = Code.NOT_FOUND


class AlreadyExists(StatusError):
    """The resource to create exists already."""

    code = Code.ALREADY_EXISTS


class PermissionDenied(StatusError):
    """The caller is known and has no permission."""

    code = Code.PERMISSION_DENIED


class ResourceExhausted(StatusError):
    """A limit was reached.

    Args:
        message: Text for the caller: the limit that was reached.
        retry_after: Seconds after which a retry may succeed; becomes a ``google.rpc.RetryInfo`` detail and the HTTP
            header ``Retry-After``.
        details: Further details.
    """

    code = Code.RESOURCE_EXHAUSTED

    def __init__(self, message: str = "", *, retry_after: float | None = None, details: Sequence[Message] = ()) -> None:
        if retry_after is not None:
            details = (_retry_info(retry_after), *details)
        super().__init__(message, details=details)

    @property
    def retry_after(self) -> float | None:
        """Seconds after which a retry may succeed, of the ``google.rpc.RetryInfo`` detail; None if there is none."""
        return _retry_delay(self.details)


class FailedPrecondition(StatusError):
    """The state of the system does not allow the call. A retry does not help until the state changes."""

    code = Code.FAILED_PRECONDITION


class Aborted(StatusError):
    """A conflict with a concurrent call. The caller may retry the whole sequence."""

    code = Code.ABORTED


class OutOfRange(StatusError):
    """A value is outside of the valid range, such as past the end of a file."""

    code = Code.OUT_OF_RANGE


class Unimplemented(StatusError):
    """The server does not have the method."""

    code = Code.UNIMPLEMENTED


class Internal(StatusError):
    """A bug. Its text should reveal nothing of the implementation."""

    code = Code.INTERNAL


class Unavailable(StatusError):
    """The service is unavailable for now. A retry may succeed.

    Args:
        message: Text for the caller: what is unavailable.
        retry_after: Seconds after which a retry may succeed (see ``ResourceExhausted``).
        details: Further details.
    """

    code = Code.UNAVAILABLE

    def __init__(self, message: str = "", *, retry_after: float | None = None, details: Sequence[Message] = ()) -> None:
        if retry_after is not None:
            details = (_retry_info(retry_after), *details)
        super().__init__(message, details=details)

    @property
    def retry_after(self) -> float | None:
        """Seconds after which a retry may succeed, of the ``google.rpc.RetryInfo`` detail; None if there is none."""
        return _retry_delay(self.details)


class DataLoss(StatusError):
    """Data is lost or corrupt beyond repair."""

    code = Code.DATA_LOSS


class Unauthenticated(StatusError):
    """The caller is unknown: it sent no credentials or invalid ones."""

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
    """Base of exceptions that report the status of an outbound call, as a stub raises them.

    They are instances of the class of their code too: a function catches ``NotFound``, whoever raised it. They are not
    the status of the current call. If a function does not catch one, the caller gets only a code that holds for both
    calls (see ``mesh.layers.recover``). Code that handles the status of the current call therefore asks ``is_own``.
    Subclasses set the attributes.

    Attributes:
        status: The status.
        no_retry: The server, or the channel that has retried the call in vain, asks for no further retry.
    """

    status: StatusError
    no_retry: bool = False


def is_own(error: BaseException) -> TypeGuard[StatusError]:
    """Return whether an exception is the status of the current call, not that of an outbound one."""
    return isinstance(error, StatusError) and not isinstance(error, RemoteError)


def _retry_delay(details: Sequence[Message]) -> float | None:
    found = next((detail for detail in details if isinstance(detail, error_details_pb2.RetryInfo)), None)
    return None if found is None else found.retry_delay.ToNanoseconds() / 1e9


def _retry_info(seconds: float) -> error_details_pb2.RetryInfo:
    info = error_details_pb2.RetryInfo()
    info.retry_delay.FromNanoseconds(int(seconds * 1e9))
    return info
