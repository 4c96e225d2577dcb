"""Fetches of an issuer's JWK set over HTTP: from its URL, or by OpenID Connect Discovery 1.0.

A certificate is verified as for any HTTPS client of Python (``SSL_CERT_FILE`` names other roots). A response of https
never leads to http: whoever is on the way could replace the keys.
"""

from __future__ import annotations

import asyncio
import http.client
import time
import urllib.error
import urllib.request
from collections.abc import Awaitable, Callable
from typing import IO

import orjson

__all__ = ["discover", "fetch_url"]

FETCH_TIMEOUT = 5.0
"""Seconds for a fetch, and for each wait in it."""
MAX_BODY_SIZE = 1 << 20
"""Bytes of a JWK set or an OpenID configuration."""
CONFIGURATION_PATH = "/.well-known/openid-configuration"
"""Path of the configuration below the issuer (OpenID Connect Discovery 1.0, section 4)."""
_CHUNK_SIZE = 64 * 2**10


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows a redirect to https, and one of http to http."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:  # fmt: skip
        _check_scheme(req.full_url, newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def fetch_url(url: str) -> Callable[[], Awaitable[bytes]]:
    """Return a function that fetches ``url`` (http or https) in a thread, with limits on time and size.

    Raises:
        ValueError: The URL has another scheme.
    """
    _check_scheme("http:", url)

    async def fetch() -> bytes:
        return await asyncio.to_thread(_get, url)

    return fetch


def discover(issuer: str) -> Callable[[], Awaitable[bytes]]:
    """Return a function that fetches the JWK set that the issuer's OpenID configuration names.

    The configuration must be that of exactly this issuer (OpenID Connect Discovery 1.0, section 4.3): one issuer on a
    host must not speak for another. It is fetched each time, so that the issuer may move its keys.

    Args:
        issuer: The issuer, an http or https URL.

    Raises:
        ValueError: It is no such URL.
    """
    _check_scheme("http:", issuer)
    url = issuer.removesuffix("/") + CONFIGURATION_PATH

    def get() -> bytes:
        found = orjson.loads(_get(url))
        if not isinstance(found, dict) or found.get("issuer") != issuer:
            other = found.get("issuer") if isinstance(found, dict) else None
            raise ValueError(f"{url} is the configuration of {other!r}, not of {issuer!r}")
        keys = found.get("jwks_uri")
        if not isinstance(keys, str):
            raise ValueError(f"{url} has no jwks_uri")  # noqa: TRY004 - a wrong value, from outside
        _check_scheme(issuer, keys)
        return _get(keys)

    async def fetch() -> bytes:
        return await asyncio.to_thread(get)

    return fetch


def _check_scheme(origin: str, url: str) -> None:
    """Check that ``url`` is https, or http as ``origin`` is."""
    allowed = ("http://", "https://") if origin.lower().startswith("http:") else ("https://",)
    if not url.lower().startswith(allowed):
        raise ValueError(f"expected an {' or '.join(one[:-3] for one in allowed)} URL, got {url!r}")


def _get(url: str) -> bytes:
    """Return the body of a response.

    Raises:
        ValueError: It is too large, or a redirect leads from https to another scheme.
        OSError: There is no such response, or it is not complete in ``FETCH_TIMEOUT``.
    """
    end = time.monotonic() + FETCH_TIMEOUT
    request = urllib.request.Request(url, headers={"accept": "application/json"})  # noqa: S310 - checked by callers
    body = bytearray()
    with urllib.request.build_opener(_Redirects).open(request, timeout=FETCH_TIMEOUT) as response:
        while chunk := response.read1(_CHUNK_SIZE):
            body += chunk
            if len(body) > MAX_BODY_SIZE:
                raise ValueError(f"{url} answers with more than {MAX_BODY_SIZE} bytes")
            if time.monotonic() > end:
                raise TimeoutError(f"{url} has not answered completely in {FETCH_TIMEOUT:g} s")
    return bytes(body)
