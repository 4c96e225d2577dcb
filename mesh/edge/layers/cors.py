"""CORS layer (Fetch standard): lets pages of other origins read responses, errors included.

The layer only grants reading. A request of another origin is executed all the same, without the grant: whether it may
be is decided by authentication.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, cast

from mesh.headers import EXPOSED

if TYPE_CHECKING:
    from mesh.call import Call, Handler, Layer
    from mesh.edge.calls import HttpCall

__all__ = ["cors"]

_TOKEN = re.compile(rb"[0-9A-Za-z!#$%&'*+\-.^_`|~]+\Z")
_TOKENS = re.compile(rb"[0-9A-Za-z!#$%&'*+\-.^_`|~, \t]*\Z")

_CACHED = frozenset({"GET", "HEAD"})
_VARY = (b"vary", b"origin")
_VARY_PREFLIGHT = (b"vary", b"access-control-request-method, access-control-request-headers")


def cors(origins: Iterable[str], *, credentials: bool, expose: Iterable[str], max_age: float) -> Layer:
    """Return the layer that answers preflights and adds the grant to every other response.

    Args:
        origins: Exact origins, or ``*`` alone for every origin.
        credentials: Whether pages may send cookies. The manifest refuses it together with ``*``.
        expose: Response headers that pages may read besides ``mesh.headers.EXPOSED``.
        max_age: Seconds that a browser may cache a preflight.
    """
    allowed = frozenset(origin.encode() for origin in origins)
    any_origin = b"*" in allowed
    exposed = (b"access-control-expose-headers", b", ".join((*EXPOSED, *(name.encode() for name in expose))))
    age = (b"access-control-max-age", b"%d" % max_age)

    async def layer(call: Call, next: Handler) -> None:
        request = cast("HttpCall", call)
        metadata, headers = call.metadata, call.headers
        origin = metadata.wire(b"origin")
        if not any_origin and (origin is not None or request.verb in _CACHED):
            headers.append(_VARY)  # also without an origin: a cache must not give this response to a page
        if origin is None or not (any_origin or origin in allowed):
            await next(call)
            return
        headers.append((b"access-control-allow-origin", b"*" if any_origin else origin))
        if credentials:
            headers.append((b"access-control-allow-credentials", b"true"))
        verb = metadata.wire(b"access-control-request-method") if request.verb == "OPTIONS" else None
        if verb is None:
            headers.append(exposed)
            await next(call)
            return
        headers += (age, _VARY_PREFLIGHT)
        if _TOKEN.match(verb):
            headers.append((b"access-control-allow-methods", verb))
        wanted = metadata.wire(b"access-control-request-headers")
        if wanted and _TOKENS.match(wanted):
            headers.append((b"access-control-allow-headers", wanted))
        await request.answer(204, list(headers), b"")

    return layer
