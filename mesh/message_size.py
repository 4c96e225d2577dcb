"""Message size limit: the status of a request or response above ``max_message``.

The status is RESOURCE_EXHAUSTED, as in every gRPC implementation (grpc/doc/statuscodes.md), so stock clients know it.
The code also means "try again later", which is wrong here: the same message stays too large, and a function with a
response that is too large has run. So the status has a ``google.rpc.ErrorInfo`` that names the message. It survives
every hop. Code that translates the status (the edge to HTTP, ``recover`` for a calling function) calls ``oversized``.
"""

from __future__ import annotations

from enum import Enum

from google.rpc import error_details_pb2

from mesh.errors import ResourceExhausted, StatusError

__all__ = ["DOMAIN", "Side", "oversized", "too_large"]

DOMAIN = "meshapi.v1"
"""``google.rpc.ErrorInfo.domain`` of the reasons that the mesh defines."""


class Side(Enum):
    """Request or response of a call. The value is the ``google.rpc.ErrorInfo.reason``."""

    REQUEST = "REQUEST_TOO_LARGE"
    RESPONSE = "RESPONSE_TOO_LARGE"


def too_large(side: Side, limit: int, size: int | None = None) -> ResourceExhausted:
    """Return the status of a message that is too large.

    Args:
        side: Request or response.
        limit: Size limit, bytes.
        size: Size of the message, bytes; None for a compressed message that was not decompressed to its end.
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
    """Return the side whose message was too large, or None for a failure with another reason."""
    for detail in error.details:
        if isinstance(detail, error_details_pb2.ErrorInfo) and detail.domain == DOMAIN:
            return next((side for side in Side if side.value == detail.reason), None)
    return None
