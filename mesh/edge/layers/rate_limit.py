"""How often one caller may ask. The arithmetic is pure: time is an argument.

A token bucket in the form of the generic cell rate algorithm (ITU-T I.371): of each caller it keeps one number, the
time at which its bucket is full again. The callers that are remembered are bounded; the one that asked longest ago is
forgotten first, which gives it a full bucket.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from ipaddress import IPv6Address, IPv6Network
from math import ceil
from typing import TYPE_CHECKING, cast

from mesh.edge.layers.forwarded import host_of
from mesh.errors import ResourceExhausted

if TYPE_CHECKING:
    from mesh.call import Call, Handler, Layer
    from mesh.edge.call import HttpCall

__all__ = ["MOST", "Buckets", "client_limit", "identity_limit"]

MOST = 65_536
"""Callers that one limit remembers."""

_SITE = 64
"""Bits of an IPv6 address that are one client: a site gets no less, and may use any address in it."""


class Buckets:
    """A token bucket for each key.

    Args:
        rate: Tokens a second.
        burst: Tokens that a full bucket holds.
        most: Keys that are remembered.
    """

    __slots__ = ("_every", "_full_at", "_most", "_span", "burst")

    def __init__(self, rate: float, burst: int, most: int = MOST) -> None:
        self.burst = burst
        self._every = 1 / rate
        self._span = burst / rate
        self._most = most
        self._full_at: dict[str, float] = {}

    def __len__(self) -> int:
        """Return how many keys are remembered."""
        return len(self._full_at)

    @property
    def window(self) -> float:
        """Seconds in which an empty bucket fills."""
        return self._span

    def take(self, key: str, now: float) -> float:
        """Take a token if there is one.

        Args:
            key: Whose.
            now: Seconds of any steady clock.

        Returns:
            0 when it was taken, else the seconds until there is one.
        """
        full_at = self._full_at.pop(key, now)
        full_at = max(full_at, now)
        wait = full_at + self._every - self._span - now
        if wait <= self._every * 1e-9:  # what rounding leaves
            full_at += self._every
            wait = 0.0
        self._full_at[key] = full_at  # popped and put back: the order of the dictionary is that of use
        if len(self._full_at) > self._most:
            del self._full_at[next(iter(self._full_at))]
        return wait

    def left(self, key: str, now: float) -> int:
        """Return the tokens that are there now."""
        return int((self._span - max(self._full_at.get(key, now) - now, 0.0)) / self._every + 1e-9)


def client_limit(rate: float, burst: int, clock: Callable[[], float] = time.monotonic) -> Layer:
    """Return the layer that limits each client address; IPv6 clients by their network of 64 bits."""

    def key(request: HttpCall) -> str:
        host = request.address
        if ":" not in host:
            return host
        address = host_of(host)
        return str(IPv6Network((int(address), _SITE), strict=False)) if isinstance(address, IPv6Address) else host

    return _limit("client", Buckets(rate, burst), key, clock)


def identity_limit(rate: float, burst: int, clock: Callable[[], float] = time.monotonic) -> Layer:
    """Return the layer, inside ``authenticate``, that limits each verified user; callers without one pass."""

    def key(request: HttpCall) -> str | None:
        return request.identity.subject if request.identity is not None else None

    return _limit("user", Buckets(rate, burst), key, clock)


def _limit(what: str, buckets: Buckets, key: Callable[[HttpCall], str | None], clock: Callable[[], float]) -> Layer:
    # draft-ietf-httpapi-ratelimit-headers-10: structured fields, one member for each policy
    policy = (b"ratelimit-policy", b'"%s";q=%d;w=%d' % (what.encode(), buckets.burst, max(1, ceil(buckets.window))))
    text = f"this {what} asks too often; try again later"

    async def layer(call: Call, next: Handler) -> None:
        request = cast("HttpCall", call)
        who = key(request)
        if who is not None:
            now = clock()
            wait = buckets.take(who, now)
            left = b'"%s";r=%d' % (what.encode(), 0 if wait else buckets.left(who, now))
            request.headers += (policy, (b"ratelimit", left + b";t=%d" % ceil(wait) if wait else left))
            if wait:
                raise ResourceExhausted(text, retry_after=wait)
        await next(call)

    return layer
