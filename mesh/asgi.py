"""ASGI's types, and the reader that discards the rest of a request body.

Source: https://asgi.readthedocs.io/en/latest/specs/www.html.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias

__all__ = ["AsgiEvent", "Receive", "Scope", "Send", "discard_body", "is_body_expected"]

Scope: TypeAlias = MutableMapping[str, Any]
AsgiEvent: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[AsgiEvent]]
Send: TypeAlias = Callable[[AsgiEvent], Awaitable[None]]

DISCARD_SIZE = 64 * 2**20
"""Bytes of an unread request body that are discarded at most."""
DISCARD_TIMEOUT = 2.0
"""Seconds that discarding may take."""


def is_body_expected(scope: Scope) -> bool:
    """Whether a request has a body that is to be discarded if nothing reads it.

    A client of HTTP/2 that declares no length may keep the stream open for the response.
    """
    return scope["http_version"] != "2" or any(
        name == b"content-length" and value != b"0" for name, value in scope["headers"]
    )


async def discard_body(receive: Receive) -> None:
    """Read and discard the rest of a request body before the response is sent, within the limits.

    An HTTP/1.1 client that is still sending would meet a reset connection instead of the response (RFC 9112, 9.6). Some
    HTTP/2 clients (curl 7.88) lose the response to the RST_STREAM(NO_ERROR) that follows it (RFC 9113, 8.1). Beyond the
    limits the client gets the response, perhaps followed by a reset.
    """
    size = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DISCARD_TIMEOUT):
            more = True
            while more and size < DISCARD_SIZE:
                event = await receive()
                more = event["type"] == "http.request" and event.get("more_body", False)
                size += len(event.get("body", b""))
