"""Service tokens: proof of the calling service, valid for a minute and for one called method.

The token is a JWT (EdDSA), signed with the calling service's own key. ``iss`` is ``mesh``. ``sub`` and ``kid`` are the
calling service's name in mesh.toml. ``aud`` is the path of the called method (``/login.v1.Login/SetCredential``), so
whoever sees the token can use it for no other method. A verifier refuses a token that its signer made valid for longer
than ``MAX_TOKEN_AGE``. A key that was retired is refused within seconds, in tokens that were accepted before as well.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from mesh.auth import key_files
from mesh.auth.verified_cache import VerifiedCache
from mesh.errors import Unauthenticated
from mesh.faults import Faults

if TYPE_CHECKING:
    from mesh.call import Call

__all__ = ["EDGE", "HEADER", "PeerVerifier", "Signer"]

log = logging.getLogger("mesh.auth")

EDGE = "edge"
"""Name of the edge as a caller. It forwards calls of users, and makes none of its own."""
HEADER = b"mesh-identity"

ISSUER = "mesh"
MAX_TOKEN_AGE = 60
"""Seconds from the signature to the expiry of a token."""
LEEWAY_SECONDS = 30
"""Largest tolerated difference between the clocks of two machines."""
MAX_CACHED_TOKENS = 16_384
"""Verified tokens in the cache, about 1 KB each. A caller makes one for each method in half a minute."""


class Signer:
    """Signer of a calling service's tokens.

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

    def use(self, key: Ed25519PrivateKey) -> None:
        """Sign with another key from now on."""
        self._key = key
        self._tokens.clear()

    def token(self, audience: str) -> bytes:
        """Return a token for calls of ``audience`` (a method's path). It is renewed at half its life."""
        now = self._clock()
        cached = self._tokens.get(audience)
        # After the clock went back, the token is from the future, and would be refused.
        if cached is not None and 0 <= now - cached[1] < MAX_TOKEN_AGE / 2:
            return cached[0]
        claims = {
            "iss": ISSUER, "sub": self.service, "aud": audience, "iat": int(now), "exp": int(now) + MAX_TOKEN_AGE,
        }  # fmt: skip
        token = jwt.encode(claims, self._key, algorithm="EdDSA", headers={"kid": self.service}).encode()
        self._tokens[audience] = token, now
        return token


class PeerVerifier:
    """Verifier of service tokens.

    Args:
        folder: Folder of the public keys (``mesh.auth.key_files``).
        clock: The time, seconds since the epoch.

    Raises:
        Faults: The keys cannot be read.
    """

    __slots__ = ("_clock", "_folder", "_keys", "_verified", "_watch")

    def __init__(self, folder: Path, clock: Callable[[], float] = time.time) -> None:
        self._folder = folder
        self._clock = clock
        self._watch = key_files.FolderWatch(folder, clock)
        self._keys = self._read()
        self._verified: VerifiedCache[tuple[str, str]] = VerifiedCache(MAX_CACHED_TOKENS)

    def caller(self, call: Call) -> str | None:
        """Return the verified name of the calling service, or None if the call has no service token.

        Raises:
            Unauthenticated: The token is not valid, or is for another method.
        """
        token = call.metadata.wire(HEADER)
        if token is None:
            return None
        now = self._clock()
        if self._watch.changed(now):
            self._read_again()
        known = self._verified.get(token, now)
        service, audience = known if known is not None else self._verify(token)
        if audience != call.method.path:
            raise Unauthenticated(f"the mesh-identity token is for {audience}, not for {call.method.path}")
        return service

    def _verify(self, token: bytes) -> tuple[str, str]:
        try:
            service = jwt.get_unverified_header(token).get("kid")
            found = self._decode(token, service) if isinstance(service, str) else None
            if found is None:
                raise Unauthenticated("the mesh-identity token is signed with a key that is not known here")
            claims, until = found
            expires = int(claims["exp"])
            lifetime = expires - int(claims["iat"])
        except jwt.ExpiredSignatureError:
            raise Unauthenticated("the mesh-identity token has expired") from None
        except (jwt.InvalidTokenError, ValueError, TypeError, OverflowError):
            raise Unauthenticated("the mesh-identity token is not valid") from None
        if claims["sub"] != service or not isinstance(claims["aud"], str):
            raise Unauthenticated("the mesh-identity token is not valid")
        if lifetime > MAX_TOKEN_AGE:
            raise Unauthenticated(f"the mesh-identity token is valid for more than {MAX_TOKEN_AGE} s")
        verified = service, claims["aud"]
        self._verified.put(token, verified, min(expires + LEEWAY_SECONDS, until))
        return verified

    def _decode(self, token: bytes, service: str) -> tuple[dict[str, Any], float] | None:
        """Return the claims, and the time until which the key is accepted; None if there is no key of the service.

        Raises:
            jwt.InvalidTokenError: The token is not valid with any of its keys.
        """
        now = self._clock()
        keys = [(key, until) for key, until in self._keys.get(service, ()) if now < until]
        for at, (key, until) in enumerate(keys):
            try:
                claims: dict[str, Any] = jwt.decode(
                    token, key, algorithms=["EdDSA"], issuer=ISSUER, leeway=LEEWAY_SECONDS,
                    options={"require": ["iss", "sub", "aud", "iat", "exp"], "verify_aud": False},
                )  # fmt: skip
            except jwt.InvalidSignatureError:
                if at == len(keys) - 1:
                    raise
            else:
                return claims, until
        return None

    def _read(self) -> dict[str, list[tuple[Ed25519PublicKey, float]]]:
        """Return the keys of each service, with the time until which each is accepted.

        Raises:
            Faults: They cannot be read.
        """
        keys = {name: [(key, inf)] for name, key in key_files.load_public(self._folder).items()}
        for old in key_files.load_retired(self._folder):
            keys.setdefault(old.name, []).append((old.key, (old.retired + key_files.OVERLAP).timestamp()))
        return keys

    def _read_again(self) -> None:
        """Take the keys that there are now. What was verified with the keys before is verified again."""
        try:
            self._keys = self._read()
        except Faults as faults:  # a file is being copied, or was damaged since the start
            log.warning("the public keys were not read again: %s", faults)
            self._watch.repeat()
        else:
            self._verified = VerifiedCache(MAX_CACHED_TOKENS)
