"""Verifier of user tokens: JWTs, checked with the issuer's published keys by the rules of RFC 8725.

The algorithm is that of the key, never that of the token's header. A token must have an issuer, an audience, a subject
and an expiry.
"""

from __future__ import annotations

import asyncio
import time
import urllib.request
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import jwt

from mesh.auth.jwks import KeySet
from mesh.auth.verified_cache import VerifiedCache
from mesh.call import Identity
from mesh.errors import Unauthenticated

__all__ = ["TokenVerifier", "fetch_url"]

MAX_CACHED_TOKENS = 16_384
"""Verified tokens in the cache, about 2 KB each."""
MAX_TOKEN_SIZE = 16_384
"""Bytes of a token."""
FETCH_TIMEOUT = 5.0
"""Seconds for the fetch of a JWK set."""
MAX_TIME_SECONDS = 253_402_300_799
"""Largest time of a claim, in seconds since the epoch: the end of the year 9999, the last of ``datetime``."""
_TIME_CLAIMS = ("exp", "nbf", "iat")
"""Claims of the type NumericDate (RFC 7519, 2). ``jwt.decode`` has checked that they are numbers."""
MAX_KEY_SET_SIZE = 1 << 20
"""Bytes of a JWK set."""


@dataclass(frozen=True, slots=True)
class _Verified:
    """User of a verified token, and the key that verified it."""

    identity: Identity
    kid: str | None
    key: jwt.PyJWK


class TokenVerifier:
    """Verifier of ``authorization: Bearer TOKEN``.

    Args:
        fetch: Returns the issuer's JWK set as JSON (``fetch_url``, or a call of a method of the mesh).
        issuer: The ``iss`` that a token must have.
        audience: The ``aud`` that a token must have.
        roles: The claim that lists the user's roles.
        leeway: Largest tolerated difference between clocks, seconds.
        clock: The time, seconds since the epoch.
        monotonic: Monotonic clock, seconds.
    """

    __slots__ = ("_audience", "_clock", "_issuer", "_keys", "_leeway", "_roles", "_verified")

    def __init__(
        self,
        fetch: Callable[[], Awaitable[bytes]],
        *,
        issuer: str,
        audience: str,
        roles: str = "roles",
        leeway: float = 30.0,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._keys = KeySet(fetch, monotonic)
        self._issuer = issuer
        self._audience = audience
        self._roles = roles
        self._leeway = leeway
        self._clock = clock
        self._verified: VerifiedCache[_Verified] = VerifiedCache(MAX_CACHED_TOKENS)

    def known(self, credentials: bytes) -> Identity | None:
        """Return the user of credentials from the cache.

        None if they are unknown or have expired, or if the issuer has withdrawn their key.
        """
        found = self._verified.get(credentials, self._clock())
        return found.identity if found is not None and self._keys.holds(found.kid, found.key) else None

    async def verify(self, credentials: bytes) -> Identity:
        """Verify credentials and return their user.

        Args:
            credentials: The value of ``authorization``.

        Raises:
            Unauthenticated: They are not a valid bearer token. The message has the reason.
            Unavailable: The issuer's keys cannot be fetched.
        """
        scheme, _, token = credentials.partition(b" ")
        token = token.strip()
        if scheme.lower() != b"bearer" or not token:
            raise Unauthenticated("expected `authorization: Bearer TOKEN`")
        if len(token) > MAX_TOKEN_SIZE:
            raise Unauthenticated(f"the token is longer than {MAX_TOKEN_SIZE} bytes")
        try:
            header = jwt.get_unverified_header(token)
        except jwt.InvalidTokenError:
            raise Unauthenticated("the token is malformed: expected a signed JWT") from None
        kid = header.get("kid")
        key = await self._keys.find(kid)
        if key is None:
            raise Unauthenticated("the token is signed with a key that is not known here; log in again")
        claims = self._decode(token, key)
        identity = Identity(claims["sub"], self._roles_of(claims), MappingProxyType(claims))
        self._verified.put(credentials, _Verified(identity, kid, key), int(claims["exp"]) + self._leeway)
        return identity

    def _decode(self, token: bytes, key: jwt.PyJWK) -> dict[str, Any]:
        try:
            claims: dict[str, Any] = jwt.decode(
                token, key, algorithms=[key.algorithm_name], issuer=self._issuer, audience=self._audience,
                leeway=self._leeway, options={"require": ["iss", "aud", "sub", "exp"]},
            )  # fmt: skip
        except jwt.ExpiredSignatureError:
            raise Unauthenticated("the token has expired; refresh it or log in again") from None
        except jwt.ImmatureSignatureError:
            raise Unauthenticated("the token is not valid yet") from None
        except jwt.InvalidIssuerError:
            raise Unauthenticated(f"the token is from another issuer; expected {self._issuer}") from None
        except jwt.InvalidAudienceError:
            raise Unauthenticated(f"the token is for another audience; expected {self._audience}") from None
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

    def _roles_of(self, claims: dict[str, Any]) -> frozenset[str]:
        """Return the roles. The claim is a list, or text with spaces between the roles (like ``scope`` in RFC 8693)."""
        value = claims.get(self._roles)
        if isinstance(value, str):
            value = value.split()
        return frozenset(role for role in value if isinstance(role, str)) if isinstance(value, list) else frozenset()


def fetch_url(url: str) -> Callable[[], Awaitable[bytes]]:
    """Return a function that fetches ``url`` (http or https) in a thread, with limits on time and size.

    Raises:
        ValueError: The URL has another scheme.
    """
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"expected an http or https URL, got {url!r}")

    def get() -> bytes:
        request = urllib.request.Request(url, headers={"accept": "application/json"})  # noqa: S310 - checked above
        with urllib.request.urlopen(request, timeout=FETCH_TIMEOUT) as response:  # noqa: S310 - checked above
            body: bytes = response.read(MAX_KEY_SET_SIZE + 1)
        if len(body) > MAX_KEY_SET_SIZE:
            raise ValueError(f"{url} answers with more than {MAX_KEY_SET_SIZE} bytes")
        return body

    async def fetch() -> bytes:
        return await asyncio.to_thread(get)

    return fetch
