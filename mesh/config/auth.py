"""Tables ``[auth]`` and ``[[auth.issuers]]`` of mesh.toml: issuers of user tokens."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal
from urllib.parse import urlsplit

import msgspec

from mesh.config.values import Duration
from mesh.faults import Fault

__all__ = ["AuthConfig", "IssuerConfig", "auth_faults"]

MAX_LEEWAY_SECONDS = 3600
"""Largest ``leeway``: by so much longer than its issuer said is a token valid here."""


class IssuerConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[[auth.issuers]]``: an issuer of user tokens (JWT).

    Attributes:
        issuer: Required ``iss`` of a token, to the character.
        audience: Required ``aud`` of a token: one, or several of which a token must have one.
        jwks: Source of the public keys: a URL, or a method of the mesh (``login.v1.Login/GetKeys``) with an empty
            request that returns a JWK set (RFC 7517). Empty: the ``jwks_uri`` of the issuer's OpenID configuration.
        subject: Claim with the user's subject.
        subject_prefix: Text before every subject, which tells the users of two issuers apart.
        roles: Claim that lists the user's roles. Dots lead into nested objects, unless a claim has the whole name.
        role_prefix: Text before every role.
        leeway: Tolerated clock difference.
        revocations: Method of the mesh that streams revoked sessions, users and tokens
            (``login.v1.Login/WatchRevocations``; protos/meshapi/v1/revocations.proto). Empty: no token is revoked.
        revocation_stale: While no revocations arrive: ``"open"`` accepts tokens, ``"closed"`` accepts none.
    """

    issuer: str
    audience: str | tuple[str, ...]
    jwks: str = ""
    subject: str = "sub"
    subject_prefix: str = ""
    roles: str = "roles"
    role_prefix: str = ""
    leeway: Duration = Duration(30)
    revocations: str = ""
    revocation_stale: Literal["open", "closed"] = "open"

    @property
    def revocation_path(self) -> str:
        """Path of the method ``revocations``, ``/package.Service/Method``; "" without one."""
        return f"/{self.revocations.lstrip('/')}" if self.revocations else ""

    @property
    def audiences(self) -> tuple[str, ...]:
        """The accepted audiences."""
        return (self.audience,) if isinstance(self.audience, str) else self.audience

    @property
    def url(self) -> str:
        """URL that the verification of this issuer's tokens begins with; "" if the keys come from the mesh."""
        return self.issuer if not self.jwks else self.jwks if "://" in self.jwks else ""


class AuthConfig(IssuerConfig, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``[auth]``: verification of user tokens. Without the table no token is accepted.

    Its own keys describe one issuer. They may all be left out.

    Attributes:
        issuers: Further issuers, or all of them.
    """

    issuer: str = ""
    audience: str | tuple[str, ...] = ()
    issuers: tuple[IssuerConfig, ...] = ()

    def places(self) -> Iterator[tuple[str, IssuerConfig]]:
        """Yield every issuer after its place in mesh.toml."""
        if msgspec.structs.replace(self, issuers=()) != AuthConfig():
            yield "[auth]", self
        for number, issuer in enumerate(self.issuers, 1):
            yield f"[[auth.issuers]] {number}", issuer

    def revocation_paths(self) -> frozenset[str]:
        """Return the paths of all methods that stream revocations."""
        return frozenset(issuer.revocation_path for _, issuer in self.places() if issuer.revocations)


def auth_faults(auth: AuthConfig, file: str) -> Iterator[Fault]:
    """Check the values of the tables."""
    issuers: dict[str, str] = {}
    for table, issuer in auth.places():
        yield from _issuer_faults(issuer, f"{file} {table}")
        other = issuers.setdefault(issuer.issuer, table)
        if other != table:
            yield Fault(f"{file} {table} issuer", f"{issuer.issuer!r} is the issuer of {other} already")
    if not issuers:
        yield Fault(f"{file} [auth] issuer", "is missing; or write a table [[auth.issuers]] for each issuer")


def _issuer_faults(issuer: IssuerConfig, place: str) -> Iterator[Fault]:
    for name in ("issuer", "subject", "roles"):
        if not getattr(issuer, name).strip():
            yield Fault(f"{place} {name}", "must not be empty")
    if not issuer.audiences or not all(one.strip() for one in issuer.audiences):
        yield Fault(f"{place} audience", "must not be empty")
    if issuer.leeway > MAX_LEEWAY_SECONDS:
        text = f"tokens would be valid {issuer.leeway / 3600:g} h after their end; at most 1h is allowed"
        yield Fault(f"{place} leeway", text)
    if issuer.revocation_stale == "closed" and not issuer.revocations:
        yield Fault(f"{place} revocation_stale", "is for issuers with revocations; name their method, or leave it out")
    if "://" in issuer.jwks and not _is_url(issuer.jwks):
        yield Fault(f"{place} jwks", "expected https://HOST/PATH, http://HOST/PATH, or a method of the contract")
    if not issuer.jwks and not (_is_url(issuer.issuer) and "?" not in issuer.issuer and "#" not in issuer.issuer):
        text = "is missing; only an issuer that is an https URL without a query can be asked for its keys"
        yield Fault(f"{place} jwks", text)


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
