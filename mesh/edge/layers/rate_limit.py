"""Rate limits per client address, and per user and API key.

Token buckets in the form of the generic cell rate algorithm (ITU-T I.371). A bucket is one number: the time at which it
is full again. The number of buckets is limited. The one that was used longest ago is dropped first, which gives its
caller a full bucket. The arithmetic is pure: time is an argument.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from math import ceil
from typing import TYPE_CHECKING, cast

from mesh.errors import ResourceExhausted

if TYPE_CHECKING:
    from mesh.call import Call, Handler, Layer
    from mesh.config.values import Rate
    from mesh.edge.calls import HttpCall

__all__ = ["MAX_BUCKETS", "Buckets", "client_rate_limit", "identity_rate_limit"]

MAX_BUCKETS = 65_536
"""Buckets of one limit."""


class Buckets:
    """A token bucket for each key.

    Args:
        rate: Tokens a second.
        burst: Tokens in a full bucket.
        max_buckets: Buckets that are kept.

    Attributes:
        window: Seconds in which an empty bucket fills.
    """

    __slots__ = ("_full_at", "_interval", "_max_buckets", "burst", "window")

    def __init__(self, rate: float, burst: int, max_buckets: int = MAX_BUCKETS) -> None:
        self.burst = burst
        self.window = burst / rate
        self._interval = 1 / rate
        self._max_buckets = max_buckets
        self._full_at: dict[str, float] = {}

    def __len__(self) -> int:
        """Return the number of buckets."""
        return len(self._full_at)

    def take(self, key: str, now: float) -> float:
        """Take a token if there is one.

        Args:
            key: The caller.
            now: Seconds of any monotonic clock.

        Returns:
            0 if a token was taken, else the seconds until there is one.
        """
        full_at = self._full_at.pop(key, now)
        full_at = max(full_at, now)
        wait = full_at + self._interval - self.window - now
        if wait <= self._interval * 1e-9:  # rounding errors
            full_at += self._interval
            wait = 0.0
        self._full_at[key] = full_at  # popped and put back: the dictionary is in the order of use
        if len(self._full_at) > self._max_buckets:
            del self._full_at[next(iter(self._full_at))]
        return wait

    def left(self, key: str, now: float) -> int:
        """Return the tokens in the bucket."""
        return int((self.window - max(self._full_at.get(key, now) - now, 0.0)) / self._interval + 1e-9)


def client_rate_limit(rate: float, burst: int, clock: Callable[[], float] = time.monotonic) -> Layer:
    """Return the layer that limits each client address. An IPv6 client is identified by its /64 network."""
    return _limit("client", Buckets(rate, burst), lambda request: request.network, clock)


def identity_rate_limit(
    per_identity: Rate | None,
    per_key: Rate | None,
    rate_of_key: Callable[[str], Rate | None],
    clock: Callable[[], float] = time.monotonic,
) -> Layer:
    """Return the layer, inside ``authenticate``, that limits each verified user and API key. Other calls pass.

    The rate limit of an API key is its own, else that of all API keys, else that of all identities.

    Args:
        per_identity: Rate limit of each user, or None.
        per_key: Rate limit of each API key that has none of its own, or None.
        rate_of_key: Returns the rate limit of an API key by its subject, or None if it has none.
        clock: Monotonic clock, seconds.
    """
    buckets: dict[tuple[float, int], Buckets] = {}

    def buckets_of(rate: Rate) -> Buckets:
        key = float(rate), rate.burst
        if key not in buckets:
            buckets[key] = Buckets(*key)
        return buckets[key]

    async def layer(call: Call, next: Handler) -> None:
        identity = call.identity
        if identity is not None:
            by_key = identity.scopes is not None
            rate = (rate_of_key(identity.subject) or per_key or per_identity) if by_key else per_identity
            if rate is not None:
                _take("key" if by_key else "user", buckets_of(rate), identity.subject, clock(), cast("HttpCall", call))
        await next(call)

    return layer


def _limit(kind: str, buckets: Buckets, key: Callable[[HttpCall], str], clock: Callable[[], float]) -> Layer:
    async def layer(call: Call, next: Handler) -> None:
        request = cast("HttpCall", call)
        _take(kind, buckets, key(request), clock(), request)
        await next(call)

    return layer


def _take(kind: str, buckets: Buckets, caller: str, now: float, request: HttpCall) -> None:
    """Take a token of the caller and tell the client what is left.

    Raises:
        ResourceExhausted: There is none.
    """
    wait = buckets.take(caller, now)
    # draft-ietf-httpapi-ratelimit-headers-10: structured fields, one member for each policy
    policy = b'"%s";q=%d;w=%d' % (kind.encode(), buckets.burst, max(1, ceil(buckets.window)))
    left = b'"%s";r=%d' % (kind.encode(), 0 if wait else buckets.left(caller, now))
    request.headers += (
        (b"ratelimit-policy", policy), (b"ratelimit", left + b";t=%d" % ceil(wait) if wait else left),
    )  # fmt: skip
    if wait:
        caller_name = "API key" if kind == "key" else kind
        raise ResourceExhausted(f"this {caller_name} sends too many requests; try again later", retry_after=wait)
