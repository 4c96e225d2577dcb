"""function-mesh: a proto contract, plain Python functions, one command.

The names of ``__all__`` are the API for functions. ``mesh.testing`` is the API for their tests. Everything else is
internal.

Names are imported at their first use (PEP 562). Commands that need none of them start sooner: ``mesh health`` runs
every few seconds in a container.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mesh.call import Identity, Metadata, note_wait
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
    from mesh.rules.message_checks import validate
    from mesh.secret import Secret

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
    "Secret",
    "Service",
    "StatusError",
    "Transaction",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "Unknown",
    "note_wait",
    "validate",
]

_MODULES = {
    "Context": "mesh.context", "Identity": "mesh.call", "Metadata": "mesh.call", "Service": "mesh.context",
    "Secret": "mesh.secret", "Transaction": "mesh.context", "note_wait": "mesh.call",
    "validate": "mesh.rules.message_checks",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import a public name (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value = getattr(import_module(_MODULES.get(name, "mesh.errors")), name)
    return value
