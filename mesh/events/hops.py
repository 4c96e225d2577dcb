"""Hop count: number of consecutive deliveries that led to a call, which limits cycles of events.

The count travels with the calls that a delivery makes, so a cycle through methods of other services is counted too. A
count from an unverified caller is ignored.
"""

from __future__ import annotations

from collections.abc import Awaitable

from mesh.call import Call, Handler, current
from mesh.events.cloudevents import HOPS

__all__ = ["carry", "hops"]

_KEY = HOPS.encode()
_DIGITS = 6
"""Maximum digits of a count. No event has as many; Python refuses to parse thousands of digits."""


def hops(call: Call | None) -> int:
    """Return the count for events that are published during a call: one more than that of its event, or 0."""
    if call is None:
        return 0
    if call.delivery is not None:
        return int(call.delivery.hops) + 1
    count = call.metadata.wire(_KEY) if call.caller is not None else None
    return int(count) if count is not None and len(count) <= _DIGITS and count.isdigit() else 0


def carry(call: Call, next: Handler) -> Awaitable[None]:
    """Layer that adds the count to the metadata of an outbound call."""
    count = hops(current.get())
    if count:
        call.metadata.append(_KEY, str(count).encode())
    return next(call)
