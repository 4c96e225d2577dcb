"""Table ``[auth]`` of mesh.toml: verification of user tokens."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

import msgspec

from mesh.config.values import Duration
from mesh.faults import Fault

__all__ = ["AuthConfig", "auth_faults"]

MAX_LEEWAY_SECONDS = 3600
"""Largest ``leeway``: by so much longer than its issuer said is a token valid here."""


class AuthConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[auth]``: verification of user tokens (JWT). Without the table no token is accepted.

    Attributes:
        issuer: Required ``iss`` of a token.
        audience: Required ``aud`` of a token.
        jwks: Source of the public keys: a URL, or a method of the mesh (``login.v1.Login/GetKeys``) with an empty
            request that returns a JWK set (RFC 7517).
        roles: Claim that lists the user's roles.
        leeway: Tolerated clock difference.
    """

    issuer: str
    audience: str
    jwks: str
    roles: str = "roles"
    leeway: Duration = Duration(30)


def auth_faults(auth: AuthConfig, place: str) -> Iterator[Fault]:
    """Check the values of the table."""
    for name in ("issuer", "audience", "roles"):
        if not getattr(auth, name).strip():
            yield Fault(f"{place} {name}", "must not be empty")
    if auth.leeway > MAX_LEEWAY_SECONDS:
        yield Fault(
            f"{place} leeway", f"tokens would be valid {auth.leeway / 3600:g} h after their end; at most 1h is allowed"
        )
    if "://" in auth.jwks:
        try:
            parts = urlsplit(auth.jwks)
            right = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            right = False
        if not right:
            yield Fault(f"{place} jwks", "expected https://HOST/PATH, http://HOST/PATH, or a method of the contract")
