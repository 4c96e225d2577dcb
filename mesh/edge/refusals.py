"""What the edge refuses by itself, with the HTTP statuses that no gRPC code stands for."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING

from mesh.errors import Code, StatusError
from mesh.message_size import Side, oversized

if TYPE_CHECKING:
    from mesh.edge.call import HttpCall

log = logging.getLogger("mesh.edge")

__all__ = [
    "STOPPING",
    "not_found",
    "refuse",
    "sized",
    "too_large",
    "too_slow",
    "unacceptable",
    "unsupported_media",
    "wrong_verb",
]

STOPPING = "the edge is stopping; try again"


def refuse(call: HttpCall, status: int, code: Code, message: str) -> StatusError:
    """Return the refusal with an HTTP status of its own."""
    call.status = status
    return StatusError.of(code, message)


def not_found(call: HttpCall) -> StatusError:
    """404: no route has this path."""
    return refuse(call, 404, Code.NOT_FOUND, f"there is nothing at {call.path[:200]}")


def wrong_verb(call: HttpCall, allowed: Iterable[str]) -> StatusError:
    """405 with ``Allow`` (RFC 9110, 15.5.6)."""
    text = ", ".join(allowed)
    call.headers.append((b"allow", text.encode()))
    return refuse(call, 405, Code.UNIMPLEMENTED, f"{call.path[:200]} takes {text}, not {call.verb}")


def too_large(call: HttpCall, limit: int, what: str = "the request body") -> StatusError:
    """413."""
    return refuse(call, 413, Code.OUT_OF_RANGE, f"{what} is larger than {limit} bytes")


def sized(call: HttpCall, error: StatusError) -> StatusError:
    """Return the status of an onward call as HTTP has it: 413 for a request that is too large, 500 for a response.

    RESOURCE_EXHAUSTED is 429, which asks the client to send the same request again; neither may be.
    """
    match oversized(error):
        case Side.REQUEST:
            if not call.answered:
                call.status = 413
            return StatusError.of(Code.OUT_OF_RANGE, error.message, error.details).at(error.where)
        case Side.RESPONSE:
            log.error("%s: %s", call.method.path, error.message)
            return StatusError.of(Code.INTERNAL, error.message, error.details).at(error.where)
    return error


def too_slow(call: HttpCall) -> StatusError:
    """408."""
    return refuse(call, 408, Code.DEADLINE_EXCEEDED, "the request body did not come in time")


def unsupported_media(call: HttpCall, what: str) -> StatusError:
    """415."""
    return refuse(call, 415, Code.INVALID_ARGUMENT, what)


def unacceptable(call: HttpCall, offered: Iterable[str]) -> StatusError:
    """406."""
    return refuse(call, 406, Code.INVALID_ARGUMENT, f"`accept` must allow {' or '.join(offered)}")
