"""function-mesh: a proto contract, plain Python functions, one command.

These names are what a function needs. Everything else is found in the room it belongs to.
"""

from mesh.call import Identity, Metadata
from mesh.context import Context, Service, Transaction
from mesh.errors import (
    Aborted,
    AlreadyExists,
    Cancelled,
    Code,
    DataLoss,
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    OutOfRange,
    PermissionDenied,
    ResourceExhausted,
    StatusError,
    Unauthenticated,
    Unavailable,
    Unimplemented,
    Unknown,
)

__all__ = [
    "Aborted",
    "AlreadyExists",
    "Cancelled",
    "Code",
    "Context",
    "DataLoss",
    "DeadlineExceeded",
    "FailedPrecondition",
    "Identity",
    "Internal",
    "InvalidArgument",
    "Metadata",
    "NotFound",
    "OutOfRange",
    "PermissionDenied",
    "ResourceExhausted",
    "Service",
    "StatusError",
    "Transaction",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "Unknown",
]
