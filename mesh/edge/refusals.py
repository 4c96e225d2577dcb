"""Errors that the edge raises itself, with HTTP statuses that no gRPC code has."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING

from mesh.errors import Code, StatusError
from mesh.message_size import Side, oversized

if TYPE_CHECKING:
    from mesh.edge.calls import HttpCall

log = logging.getLogger("mesh.edge")

__all__ = ["STOPPING", "not_found", "translate_oversize", "unacceptable", "unsupported_media", "wrong_verb"]

STOPPING = "the edge is stopping; try again"


def not_found(call: HttpCall) -> StatusError:
    """Return 404: no route has this path."""
    return call.http_error(404, Code.NOT_FOUND, f"no route has the path {call.path[:200]}")


def wrong_verb(call: HttpCall, allowed: Iterable[str]) -> StatusError:
    """Return 405 with ``Allow`` (RFC 9110, 15.5.6)."""
    text = ", ".join(allowed)
    call.headers.append((b"allow", text.encode()))
    return call.http_error(405, Code.UNIMPLEMENTED, f"{call.path[:200]} takes {text}, not {call.verb}")


def translate_oversize(call: HttpCall, error: StatusError) -> StatusError:
    """Return the error of an outbound call whose message is too large: 413 for a request, 500 for a response.

    Its RESOURCE_EXHAUSTED would be 429, which invites the client to send the same request again. Other errors are
    returned unchanged.
    """
    match oversized(error):
        case Side.REQUEST:
            if not call.response_started:
                call.status = 413
            return StatusError.of(Code.OUT_OF_RANGE, error.message, error.details).at(error.where)
        case Side.RESPONSE:
            log.error("%s: %s", call.method.path, error.message)
            return StatusError.of(Code.INTERNAL, error.message, error.details).at(error.where)
    return error


def unsupported_media(call: HttpCall, message: str) -> StatusError:
    """Return 415."""
    return call.http_error(415, Code.INVALID_ARGUMENT, message)


def unacceptable(call: HttpCall, offered: Iterable[str]) -> StatusError:
    """Return 406."""
    return call.http_error(406, Code.INVALID_ARGUMENT, f"`accept` must allow {' or '.join(offered)}")
