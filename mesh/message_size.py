"""Message size limit: the status of a message beyond ``max_message``, in either direction.

The status is RESOURCE_EXHAUSTED, as of every gRPC implementation (grpc/doc/statuscodes.md), so that stock clients know
it. That code also means "try again later", which is wrong here: the same message is as large the next time, and a
function whose answer is too large has run. So the status carries a ``google.rpc.ErrorInfo`` that says which message it
was. It survives every hop, and whoever translates the status (the edge to HTTP, ``recover`` for a calling function)
asks ``oversized``.
"""

from __future__ import annotations

from enum import Enum

from google.rpc import error_details_pb2

from mesh.errors import ResourceExhausted, StatusError

__all__ = ["DOMAIN", "Side", "oversized", "too_large"]

DOMAIN = "meshapi.v1"
"""``google.rpc.ErrorInfo.domain`` of the mesh's own reasons."""


class Side(Enum):
    """Which message of a call; the value is the ``google.rpc.ErrorInfo.reason``."""

    REQUEST = "REQUEST_TOO_LARGE"
    RESPONSE = "RESPONSE_TOO_LARGE"


def too_large(side: Side, limit: int, size: int | None = None) -> ResourceExhausted:
    """Return the status of a message that is too large.

    Args:
        side: Which message.
        limit: The largest that is allowed, bytes.
        size: Its size, bytes; None for a compressed message that was not unpacked to its end.
    """
    what = side.name.lower()
    text = (
        f"the {what} message decompresses to more than the {limit} bytes that are allowed"
        if size is None
        else f"the {what} message has {size} bytes, more than the {limit} that are allowed"
    )
    info = error_details_pb2.ErrorInfo(reason=side.value, domain=DOMAIN, metadata={"limit_bytes": str(limit)})
    return ResourceExhausted(text, details=(info,))


def oversized(error: StatusError) -> Side | None:
    """Return which message of the call was too large, None if that is not why it failed."""
    for detail in error.details:
        if isinstance(detail, error_details_pb2.ErrorInfo) and detail.domain == DOMAIN:
            return next((side for side in Side if side.value == detail.reason), None)
    return None
