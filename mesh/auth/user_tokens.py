"""Verifier of user tokens: JWTs, checked with the issuers' published keys by the rules of RFC 8725.

A token is verified with the keys of the issuer that its ``iss`` names, and with no others. The algorithm is that of the
key, never that of the token's header. A token must have an issuer, an audience, a subject and an expiry.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import jwt

from mesh.auth.jwks import KeySet
from mesh.auth.revocations import REVOKED, Revocations
from mesh.auth.verified_cache import VerifiedCache
from mesh.call import Identity
from mesh.errors import Unauthenticated, Unavailable

__all__ = ["Issuer", "TokenVerifier"]

MAX_CACHED_TOKENS = 16_384
"""Verified tokens in the cache, about 2 KB each."""
MAX_TOKEN_SIZE = 16_384
"""Bytes of a token."""
MAX_TIME_SECONDS = 253_402_300_799
"""Largest time of a claim, in seconds since the epoch: the end of the year 9999, the last of ``datetime``."""
REVOCATIONS_RETRY_DELAY = 1.0
"""Seconds after which a client may try again that was refused because revocations do not arrive."""
_TIME_CLAIMS = ("exp", "nbf", "iat")
"""Claims of the type NumericDate (RFC 7519, 2). ``jwt.decode`` has checked that they are numbers."""
_SHOWN_CHARACTERS = 200
"""Characters of an unknown issuer that the refusal repeats."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Issuer:
    """Issuer of user tokens.

    Attributes:
        name: The ``iss`` that a token must have, to the character.
        audiences: A token must have one of them as its ``aud``.
        fetch: Returns the issuer's JWK set as JSON (``fetch_url``, ``discover``, or a call of a method of the mesh).
        subject: The claim with the user's subject.
        subject_prefix: Text before every subject. A subject is unique only at its issuer (OpenID Connect Core 1.0,
            section 2).
        roles: The claim that lists the user's roles. Dots lead into nested objects, as in ``realm_access.roles``,
            unless a claim has the whole name, as in ``https://shop.example/roles``.
        role_prefix: Text before every role.
        leeway: Largest tolerated difference between clocks, seconds.
        revocations: The issuer's revocations, or None if it has none.
    """

    name: str
    audiences: tuple[str, ...]
    fetch: Callable[[], Awaitable[bytes]]
    subject: str = "sub"
    subject_prefix: str = ""
    roles: str = "roles"
    role_prefix: str = ""
    leeway: float = 30.0
    revocations: Revocations | None = None


@dataclass(slots=True)
class _Verified:
    """User of a verified token, the key that verified it, and what may still invalidate it.

    Attributes:
        identity: The user.
        kid: The id of the key.
        key: The key.
        keys: The key's set.
        revocations: The revocations of the issuer.
        generation: Their generation when the token was last checked against them.
    """

    identity: Identity
    kid: str | None
    key: jwt.PyJWK
    keys: KeySet
    revocations: Revocations
    generation: int

    def holds(self) -> bool:
        """Whether the issuer still has the key, and has not revoked the token."""
        if not self.keys.holds(self.kid, self.key):
            return False
        revocations = self.revocations
        if self.generation != revocations.generation:
            if revocations.unavailable or revocations.refuse(self.identity.claims):
                return False
            self.generation = revocations.generation
        return True


class TokenVerifier:
    """Verifier of ``authorization: Bearer TOKEN``.

    Args:
        issuers: The issuers whose tokens are accepted. No two have the same name.
        clock: The time, seconds since the epoch.
        monotonic: Monotonic clock, seconds.
    """

    __slots__ = ("_clock", "_issuers", "_none", "_verified")

    def __init__(
        self,
        issuers: Iterable[Issuer],
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._issuers = {issuer.name: (issuer, KeySet(issuer.fetch, monotonic)) for issuer in issuers}
        self._clock = clock
        self._none = Revocations()
        self._verified: VerifiedCache[_Verified] = VerifiedCache(MAX_CACHED_TOKENS)

    def known(self, credentials: bytes) -> Identity | None:
        """Return the user of credentials from the cache.

        None if they are unknown, have expired or are revoked, or if the issuer has withdrawn their key.
        """
        found = self._verified.get(credentials, self._clock())
        return found.identity if found is not None and found.holds() else None

    async def verify(self, credentials: bytes) -> Identity:
        """Verify credentials and return their user.

        Args:
            credentials: The value of ``authorization``.

        Raises:
            Unauthenticated: They are not a valid bearer token. The message has the reason.
            Unavailable: The issuer's keys cannot be fetched, or no token is accepted without its revocations.
        """
        scheme, _, token = credentials.partition(b" ")
        token = token.strip()
        if scheme.lower() != b"bearer" or not token:
            raise Unauthenticated("expected `authorization: Bearer TOKEN`")
        if len(token) > MAX_TOKEN_SIZE:
            raise Unauthenticated(f"the token is longer than {MAX_TOKEN_SIZE} bytes")
        kid, issuer, keys = self._issuer_of(token)
        key = await keys.find(kid)
        if key is None:
            raise Unauthenticated("the token is signed with a key that is not known here; log in again")
        claims = _decode(token, key, issuer)
        subject = claims.get(issuer.subject)
        if not isinstance(subject, str) or not subject:
            raise Unauthenticated(f"the token has no text in the claim {issuer.subject!r}")
        revocations = self._none if issuer.revocations is None else issuer.revocations
        if issuer.revocations is not None:
            await revocations.first.wait()
            if revocations.unavailable:
                text = "no user token is accepted now: whether it is revoked cannot be known"
                raise Unavailable(text, retry_after=REVOCATIONS_RETRY_DELAY)
            if revocations.refuse(claims):
                raise Unauthenticated(REVOKED)
        roles = frozenset(issuer.role_prefix + role for role in _roles(claims, issuer.roles))
        identity = Identity(issuer.subject_prefix + subject, roles, MappingProxyType(claims))
        verified = _Verified(identity, kid, key, keys, revocations, revocations.generation)
        self._verified.put(credentials, verified, int(claims["exp"]) + issuer.leeway)
        return identity

    def _issuer_of(self, token: bytes) -> tuple[str | None, Issuer, KeySet]:
        """Return the key id of an unverified token, the issuer that it names, and the issuer's keys."""
        try:
            kid = jwt.get_unverified_header(token).get("kid")
            name = jwt.decode(token, options={"verify_signature": False}).get("iss")
        except (jwt.InvalidTokenError, ValueError, RecursionError):
            raise Unauthenticated("the token is malformed: expected a signed JWT") from None
        if name is None:
            raise Unauthenticated("the token has no claim 'iss'")
        if not isinstance(name, str) or name not in self._issuers:
            known = " or ".join(self._issuers)
            raise Unauthenticated(
                f"the token is from another issuer, {str(name)[:_SHOWN_CHARACTERS]!r}; expected {known}"
            )
        return kid, *self._issuers[name]


def _decode(token: bytes, key: jwt.PyJWK, issuer: Issuer) -> dict[str, Any]:
    """Return the claims of a token, verified with a key of its issuer."""
    try:
        claims: dict[str, Any] = jwt.decode(
            token, key, algorithms=[key.algorithm_name], issuer=issuer.name, audience=issuer.audiences,
            leeway=issuer.leeway, options={"require": ["iss", "aud", "sub", "exp"]},
        )  # fmt: skip
    except jwt.ExpiredSignatureError:
        raise Unauthenticated("the token has expired; refresh it or log in again") from None
    except jwt.ImmatureSignatureError:
        raise Unauthenticated("the token is not valid yet") from None
    except jwt.InvalidAudienceError:
        expected = " or ".join(issuer.audiences)
        raise Unauthenticated(f"the token is for another audience; expected {expected}") from None
    except jwt.MissingRequiredClaimError as error:
        raise Unauthenticated(f"the token has no claim {error.claim!r}") from None
    except jwt.InvalidSignatureError:
        raise Unauthenticated("the token's signature does not match") from None
    except (jwt.InvalidTokenError, ValueError, TypeError, OverflowError):
        raise Unauthenticated("the token is malformed") from None
    for name in _TIME_CLAIMS:
        if not -MAX_TIME_SECONDS <= int(claims.get(name, 0)) <= MAX_TIME_SECONDS:  # JSON numbers have any length
            raise Unauthenticated(f"the token's claim {name!r} is no time: expected seconds since 1970")
    return claims


def _roles(claims: dict[str, Any], path: str) -> Iterable[str]:
    """Return the roles. The claim is a list, or text with spaces between the roles (like ``scope`` in RFC 8693)."""
    value: Any = claims
    for name in (path,) if path in claims else path.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    if isinstance(value, str):
        value = value.split()
    return (role for role in value if isinstance(role, str)) if isinstance(value, list) else ()
