"""Token-expiry layer: ends a stream when the token of its user expires.

A unary call ends soon by itself. A stream may stay open for days, for a user whose token was valid when it began.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Mapping
from time import monotonic  # the clock of the event loops
from typing import TYPE_CHECKING

from mesh.errors import StatusError, Unauthenticated
from mesh.layers.deadline import cancel_at

if TYPE_CHECKING:
    from mesh.call import Call, Handler, Layer

__all__ = ["end_with_token"]


def end_with_token(leeways: Mapping[str, float]) -> Layer:
    """Return the layer, inside ``authenticate``, that cancels a stream when the token of its user expires.

    The status is UNAUTHENTICATED. A stream without a user, and one whose token has no ``exp`` claim, has no such end.

    Args:
        leeways: Issuer → largest tolerated difference between clocks, seconds, as of the token's verifier.
    """

    def layer(call: Call, next: Handler) -> Awaitable[None]:
        expiry = None if call.identity is None else _seconds(call.identity.claims.get("exp"))
        if call.identity is None or expiry is None:
            return next(call)
        leeway = leeways.get(call.identity.claims.get("iss", ""), 0.0)
        now = monotonic()
        return cancel_at(max(now, now + expiry + leeway - time.time()), call, next, _expired)

    return layer


def _seconds(claim: object) -> float | None:
    """Return a time of a claim as a number. PyJWT accepts digits in a text too, so the verifier of tokens does."""
    try:
        return float(claim)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return None


def _expired() -> StatusError:
    return Unauthenticated("the token has expired; refresh it and open the stream again")
