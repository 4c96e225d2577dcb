"""Cache of a token issuer's public keys (a JWK set, RFC 7517), which it fetches and refreshes."""

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

REFRESH_INTERVAL = 300.0
"""Seconds after which the set is fetched again. A key that the issuer has withdrawn is refused from then on, also for
tokens that were verified before."""
MAX_STALE_AGE = 3600.0
"""Seconds for which the last set is used while the issuer cannot be reached, for example during its restart."""
REFRESH_TIMEOUT = 0.2
"""Seconds that a call waits for a refresh while its key is still usable. A hanging issuer must not block calls."""
RETRY_DELAY = 5.0
"""Seconds between two fetches. Tokens with made-up key ids must not overload the issuer."""
_ASYMMETRIC = frozenset({"OKP", "EC", "RSA"})
"""Key types with a public key. A symmetric key in a published set would let every reader sign."""


class KeySet:
    """Public keys by ``kid``.

    Args:
        fetch: Returns the set as JSON. It may raise any exception.
        clock: Monotonic clock, seconds.
    """

    __slots__ = ("_attempted_at", "_clock", "_failed", "_fetch", "_fetched_at", "_keys", "_pending")

    def __init__(self, fetch: Callable[[], Awaitable[bytes]], clock: Callable[[], float]) -> None:
        self._fetch = fetch
        self._clock = clock
        self._keys: dict[str | None, jwt.PyJWK] = {}
        self._fetched_at = float("-inf")
        self._attempted_at = float("-inf")
        self._failed = False
        self._pending: asyncio.Task[None] | None = None

    async def find(self, kid: str | None) -> jwt.PyJWK | None:
        """Return the key with this id (None: the only key of the set), or None if the issuer has no such key.

        Raises:
            Unavailable: The keys cannot be fetched.
        """
        key = self._find(kid)
        age = self._clock() - self._fetched_at
        if key is None or age > REFRESH_INTERVAL:
            await self._refresh(None if key is None or age > MAX_STALE_AGE else REFRESH_TIMEOUT)
            key = self._find(kid)
        usable = self._clock() - self._fetched_at <= MAX_STALE_AGE
        if self._failed and (key is None or not usable):
            raise Unavailable("the keys that user tokens are verified with cannot be fetched", retry_after=RETRY_DELAY)
        return key

    def holds(self, kid: str | None, key: jwt.PyJWK) -> bool:
        """Whether the set still has a key that ``find`` returned. It never waits: an old set is refreshed meanwhile."""
        age = self._clock() - self._fetched_at
        if age > REFRESH_INTERVAL:
            if age > MAX_STALE_AGE:
                return False
            self._begin_refresh()
        return self._find(kid) is key

    def _find(self, kid: str | None) -> jwt.PyJWK | None:
        if kid is None and len(self._keys) == 1:
            return next(iter(self._keys.values()))
        return self._keys.get(kid)

    async def _refresh(self, max_wait: float | None) -> None:
        """Fetch the set. Return after ``max_wait`` seconds even if the fetch is still in progress."""
        pending = self._begin_refresh()
        if pending is not None:  # all callers share one fetch; the cancellation of a caller does not cancel it
            await asyncio.wait([pending], timeout=max_wait)

    def _begin_refresh(self) -> asyncio.Task[None] | None:
        """Return the fetch in progress, begun now if need be; None soon after the last one."""
        if self._pending is None and self._clock() - self._attempted_at >= RETRY_DELAY:
            # A context of its own: the fetch must not carry the user whose token waits for it.
            self._pending = asyncio.get_running_loop().create_task(self._load(), context=contextvars.Context())
        return self._pending

    async def _load(self) -> None:
        self._attempted_at = self._clock()
        try:
            fresh = _parse(await self._fetch())
            # A key that stays the same stays the same object, by which ``holds`` knows it.
            old = self._keys
            self._keys = {kid: old[kid] if kid in old and _same(old[kid], key) else key for kid, key in fresh.items()}
        except Exception as error:  # noqa: BLE001 - a fetch may fail in any way; the effect is the same
            self._failed = True
            log.warning("the keys that user tokens are verified with cannot be fetched: %s", error)
        else:
            self._failed = False
            self._fetched_at = self._clock()
        finally:
            self._pending = None


def _same(one: jwt.PyJWK, other: jwt.PyJWK) -> bool:
    return bool(one._jwk_data == other._jwk_data)  # noqa: SLF001 - the class has no equality


def _parse(text: bytes) -> dict[str | None, jwt.PyJWK]:
    """Return the usable keys of a set. Keys of unknown kinds are ignored (RFC 7517, section 5).

    Raises:
        ValueError: The text is not a JWK set.
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
