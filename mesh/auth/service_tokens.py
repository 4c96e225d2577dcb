"""Service identity: a token of a minute, signed with the calling service's own key, for the service that is called.

The token is a JWT (EdDSA): ``iss`` is ``mesh``, ``sub`` and ``kid`` are the calling service's name in mesh.toml,
``aud`` is the full name of the called service, so that whoever receives one cannot use it elsewhere.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from mesh.auth import key_files
from mesh.auth.verified_cache import Cache
from mesh.errors import Unauthenticated

if TYPE_CHECKING:
    from mesh.call import Call

__all__ = ["EDGE", "HEADER", "PeerVerifier", "Signer"]

EDGE = "edge"
"""The peer that only passes users on: it is known, but calls nothing on its own account."""
HEADER = b"mesh-identity"

ISSUER = "mesh"
LIFE = 60
"""Seconds."""
LEEWAY = 30
"""Seconds by which the clocks of two machines may differ."""
REREAD = 1.0
"""Seconds between two looks into the folder for a key that is not known."""
CACHED = 4096
"""Tokens; each pair of services makes one in half a minute."""


class Signer:
    """Proves which service makes a call.

    Args:
        service: The service's name in mesh.toml, or ``edge``.
        key: Its private key.
        clock: The time, seconds since the epoch.
    """

    __slots__ = ("_clock", "_key", "_tokens", "service")

    def __init__(self, service: str, key: Ed25519PrivateKey, clock: Callable[[], float] = time.time) -> None:
        self.service = service
        self._key = key
        self._clock = clock
        self._tokens: dict[str, tuple[bytes, float]] = {}

    def token(self, audience: str) -> bytes:
        """Return a token for calls of ``audience`` (a service's full name), made anew after half its life."""
        now = self._clock()
        held = self._tokens.get(audience)
        # A clock that went back makes it one of the future, which nobody takes.
        if held is not None and 0 <= now - held[1] < LIFE / 2:
            return held[0]
        claims = {
            "iss": ISSUER, "sub": self.service, "aud": audience, "iat": int(now), "exp": int(now) + LIFE,
        }  # fmt: skip
        token = jwt.encode(claims, self._key, algorithm="EdDSA", headers={"kid": self.service}).encode()
        self._tokens[audience] = token, now
        return token


class PeerVerifier:
    """Tells which service makes a call, from its token.

    Args:
        folder: Where the public keys are (``mesh.auth.key_files``).
        clock: The time, seconds since the epoch.

    Raises:
        Faults: The keys cannot be read.
    """

    __slots__ = ("_clock", "_folder", "_keys", "_read_at", "_verified")

    def __init__(self, folder: Path, clock: Callable[[], float] = time.time) -> None:
        self._folder = folder
        self._clock = clock
        self._keys = key_files.load_public(folder)
        self._read_at = clock()
        self._verified: Cache[tuple[str, str]] = Cache(CACHED)

    def caller(self, call: Call) -> str | None:
        """Return the verified name of the service that makes the call, or None when it shows no token.

        Raises:
            Unauthenticated: The token is not valid, or is for another service.
        """
        token = call.metadata.wire(HEADER)
        if token is None:
            return None
        known = self._verified.get(token, self._clock())
        service, audience = known if known is not None else self._verify(token)
        if audience != call.method.service:
            raise Unauthenticated(f"the mesh-identity token is for {audience}, not for {call.method.service}")
        return service

    def _verify(self, token: bytes) -> tuple[str, str]:
        try:
            service = jwt.get_unverified_header(token).get("kid")
            key = self._key(service) if isinstance(service, str) else None
            if key is None:
                raise Unauthenticated("the mesh-identity token is signed with a key that is not known here")
            claims: dict[str, Any] = jwt.decode(
                token, key, algorithms=["EdDSA"], issuer=ISSUER, leeway=LEEWAY,
                options={"require": ["iss", "sub", "aud", "exp"], "verify_aud": False},
            )  # fmt: skip
        except jwt.ExpiredSignatureError:
            raise Unauthenticated("the mesh-identity token has expired") from None
        except (jwt.InvalidTokenError, ValueError, TypeError, OverflowError):
            raise Unauthenticated("the mesh-identity token is not valid") from None
        if claims["sub"] != service or not isinstance(claims["aud"], str):
            raise Unauthenticated("the mesh-identity token is not valid")
        verified = service, claims["aud"]
        self._verified.put(token, verified, int(claims["exp"]) + LEEWAY)
        return verified

    def _key(self, service: str) -> Ed25519PublicKey | None:
        now = self._clock()
        if service not in self._keys and not 0 <= now - self._read_at < REREAD:
            self._read_at = now
            self._keys = key_files.load_public(self._folder)
        return self._keys.get(service)
