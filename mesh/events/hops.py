"""How many deliveries in a row led to the call being answered: what bounds a cycle of events.

The count travels with the calls that a delivery makes, so a cycle that goes through other services' methods is seen
too. A caller from outside is not believed.
"""

from __future__ import annotations

from mesh.call import Call, Handler, current
from mesh.events.cloudevents import HOPS

__all__ = ["carry", "hops"]

_KEY = HOPS.encode()
_DIGITS = 6
"""More than any event has; Python refuses to read thousands."""


def hops(call: Call | None) -> int:
    """Return the count of a call: of what is published while it is answered, one more than the event's behind it."""
    if call is None:
        return 0
    if call.delivery is not None:
        return int(call.delivery.hops) + 1
    told = call.metadata.wire(_KEY) if call.caller is not None else None
    return int(told) if told is not None and len(told) <= _DIGITS and told.isdigit() else 0


async def carry(call: Call, next: Handler) -> None:
    """The layer that tells the count to whom an onward call goes."""
    count = hops(current.get())
    if count:
        call.metadata.append(_KEY, str(count).encode())
    await next(call)
