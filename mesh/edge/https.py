"""HTTPS of the edge: the application behind TLS, and the application of the plain listener beside it, which redirects.

Sources: RFC 6797 (HSTS); RFC 9110, 15.4.9 (308).
"""

from __future__ import annotations

import re
from typing import Any

from mesh.asgi import Receive, Scope, Send

__all__ = ["HttpsApp", "RedirectApp"]

_HSTS = b"strict-transport-security"
_HOST = re.compile(rb"(?P<name>[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::(?P<port>[0-9]{1,5}))?\Z")
_PROBES = frozenset({"/healthz", "/livez"})
"""Paths that the plain listener serves too, so that a load balancer needs no certificate for its probes."""
_HTTPS_PORT = 443


class HttpsApp:
    """Application behind TLS: requests have the scheme ``https``, and responses tell browsers to stay with it (HSTS).

    Args:
        app: The application of the edge.
        hsts: Seconds for which a browser uses HTTPS only. 0 makes it forget an earlier response.
    """

    def __init__(self, app: Any, hsts: float) -> None:
        self._app = app
        self._header = (_HSTS, b"max-age=%d" % int(hsts))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection scope."""
        if scope["type"] == "websocket":
            scope["scheme"] = "wss"
        elif scope["type"] == "http":
            scope["scheme"] = "https"  # a client of HTTP/2 may send another one
        header = self._header

        async def secured(event: Any) -> None:
            if event["type"] == "http.response.start":
                headers = list(event.get("headers", ()))
                if all(name != _HSTS for name, _ in headers):
                    event = {**event, "headers": [*headers, header]}
            await send(event)

        await self._app(scope, receive, secured)


class RedirectApp:
    """Application of a plain listener: redirects every request to HTTPS, and serves the probes.

    A request with a port in ``Host`` goes to the port of the edge. One without goes to the default port of HTTPS,
    because it came by that of HTTP, which something may map to this listener.

    Args:
        app: The application of the edge.
        port: Port of the edge.
    """

    def __init__(self, app: Any, port: int) -> None:
        self._app = app
        self.port = port

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection scope."""
        if scope["type"] != "http":
            await receive()
            await send({"type": "websocket.close"})
            return
        if scope["path"] in _PROBES:
            await self._app(scope, receive, send)
            return
        location = self._location(scope)
        status, headers = (400, []) if location is None else (308, [(b"location", location)])
        await send({"type": "http.response.start", "status": status, "headers": [*headers, (b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    def _location(self, scope: Scope) -> bytes | None:
        """Return the URL over HTTPS, or None if ``Host`` names no host."""
        host = _HOST.match(next((value for name, value in scope["headers"] if name == b"host"), b""))
        if host is None:
            return None
        port = b":%d" % self.port if host["port"] is not None and self.port != _HTTPS_PORT else b""
        query = scope.get("query_string", b"")
        path = scope["raw_path"] if scope["raw_path"].startswith(b"/") else b"/"
        return b"https://%b%b%b%b" % (host["name"], port, path, b"?" + query if query else b"")
