"""The public keys of a token issuer (a JWK set, RFC 7517): fetched, kept, and fetched again when they must be."""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import jwt
import orjson

from mesh.errors import Unavailable

__all__ = ["KeySet"]

log = logging.getLogger("mesh.auth")

FRESH = 300.0
"""Seconds after which the set is fetched again: a key that the issuer withdrew is refused after this time."""
STALE = 3600.0
"""Seconds for which a set that cannot be fetched again is used all the same: the issuer may restart."""
PATIENCE = 0.2
"""Seconds that a call waits for a fetch when the key at hand still serves: an issuer that hangs must stall nobody."""
PAUSE = 5.0
"""Seconds between two fetches, whoever asks: tokens with made-up key ids must not hammer the issuer."""
_ASYMMETRIC = frozenset({"OKP", "EC", "RSA"})
"""Key types that can be public. A symmetric key in a published set would let every reader sign."""


class KeySet:
    """Keys by ``kid``.

    Args:
        fetch: Returns the set as JSON; may raise anything when it cannot.
        clock: A monotonic time, seconds.
    """

    __slots__ = ("_clock", "_failed", "_fetch", "_fetched_at", "_keys", "_pending", "_tried_at")

    def __init__(self, fetch: Callable[[], Awaitable[bytes]], clock: Callable[[], float]) -> None:
        self._fetch = fetch
        self._clock = clock
        self._keys: dict[str | None, jwt.PyJWK] = {}
        self._fetched_at = float("-inf")
        self._tried_at = float("-inf")
        self._failed = False
        self._pending: asyncio.Task[None] | None = None

    async def find(self, kid: str | None) -> jwt.PyJWK | None:
        """Return the key with this id (None: the only key of the set), or None when the issuer has no such key.

        Raises:
            Unavailable: The keys cannot be fetched.
        """
        key = self._find(kid)
        age = self._clock() - self._fetched_at
        if key is None or age > FRESH:
            await self._refresh(None if key is None or age > STALE else PATIENCE)
            key = self._find(kid)
        usable = self._clock() - self._fetched_at <= STALE
        if self._failed and (key is None or not usable):
            raise Unavailable("the keys that user tokens are verified with cannot be fetched", retry_after=PAUSE)
        return key

    def _find(self, kid: str | None) -> jwt.PyJWK | None:
        if kid is None and len(self._keys) == 1:
            return next(iter(self._keys.values()))
        return self._keys.get(kid)

    async def _refresh(self, patience: float | None) -> None:
        """Fetch the set; with ``patience`` (seconds), go on without it when that takes longer."""
        if self._pending is None:
            if self._clock() - self._tried_at < PAUSE:
                return
            # Its own context: the fetch is nobody's call, so it must not carry the user whose token waits for it.
            self._pending = asyncio.get_running_loop().create_task(self._load(), context=contextvars.Context())
        # One fetch for all who wait; a caller that goes away does not take it along.
        await asyncio.wait([self._pending], timeout=patience)

    async def _load(self) -> None:
        self._tried_at = self._clock()
        try:
            self._keys = _parse(await self._fetch())
        except Exception as error:  # noqa: BLE001 - a fetch may fail in any way; all mean "no keys now"
            self._failed = True
            log.warning("the keys that user tokens are verified with cannot be fetched: %s", error)
        else:
            self._failed = False
            self._fetched_at = self._clock()
        finally:
            self._pending = None


def _parse(text: bytes) -> dict[str | None, jwt.PyJWK]:
    """Return the usable keys of a set; keys of unknown kinds are passed over (RFC 7517, section 5).

    Raises:
        ValueError: It is no JWK set.
    """
    parsed: Any = orjson.loads(text)
    entries = parsed.get("keys") if isinstance(parsed, dict) else None
    if not isinstance(entries, list):
        raise ValueError('not a JWK set: expected {"keys": […]}')  # noqa: TRY004 - a wrong value, from outside
    found: dict[str | None, jwt.PyJWK] = {}
    for entry in entries:
        if isinstance(entry, dict) and entry.get("kty") in _ASYMMETRIC and entry.get("use") in (None, "", "sig"):
            try:
                found[entry.get("kid")] = jwt.PyJWK({name: value for name, value in entry.items() if value})
            except (jwt.PyJWTError, ValueError):
                continue
    return found
