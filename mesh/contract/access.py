"""Check of a method's ``access``, ``roles`` and ``scopes`` for the caller outside of the mesh."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mesh.contract.model import Access
from mesh.errors import PermissionDenied, StatusError, Unauthenticated

if TYPE_CHECKING:
    from mesh.call import Identity
    from mesh.contract.model import Method

__all__ = ["check_identity"]


def check_identity(method: Method, identity: Identity | None, name: str, error: StatusError | None = None) -> None:
    """Check that a user may call an AUTHENTICATED method, or an API key a KEY method.

    Args:
        method: The method, AUTHENTICATED or KEY.
        identity: The verified caller, or None.
        name: Name of the method in the error's text: its path, or "this" for clients that do not know it.
        error: Raised if there is no caller, because the credentials are not valid.

    Raises:
        Unauthenticated: There is no caller.
        PermissionDenied: It is not one of these, or lacks the role or a scope.
    """
    by_key = method.access is Access.KEY
    if identity is None:
        if error is not None:
            raise error
        kind, wanted = ("an API key", "KEY") if by_key else ("a user", "TOKEN")
        raise Unauthenticated(f"{name} needs {kind}: send `authorization: Bearer {wanted}`")
    if by_key:
        if identity.scopes is None:
            raise PermissionDenied(f"{name} is only for API keys")
        if not method.scopes <= identity.scopes:
            missing = " and ".join(sorted(method.scopes - identity.scopes))
            raise PermissionDenied(f"{name} is only for API keys with the scope {missing}")
    elif identity.scopes is not None:
        raise PermissionDenied(f"{name} is only for users; an API key opens methods with access: KEY")
    elif method.roles and method.roles.isdisjoint(identity.roles):
        raise PermissionDenied(f"{name} is only for users with the role {' or '.join(sorted(method.roles))}")
