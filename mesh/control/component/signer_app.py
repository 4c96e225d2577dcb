"""ASGI application of the signer: requests for leaf certificates, the authority's round, health.

A request is authenticated by the component's identity key (``mesh.certificates.signing``). The response needs no
protection beyond the listener's TLS: it holds no secret, and the component checks it. The round is public.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime
from time import monotonic
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from mesh.asgi import Receive, Scope, Send
from mesh.certificates.authority_store import AuthorityStore
from mesh.certificates.signing import RequestVerifier, SigningResponse
from mesh.certificates.spiffe import CertificateError
from mesh.control.component.signer_client import AUTHORITY_PATH, CERTIFICATES_PATH
from mesh.faults import Faults

__all__ = ["MAX_BODY_SIZE", "SignerApp"]

log = logging.getLogger("mesh.certificates")

MAX_BODY_SIZE = 16 * 2**10
"""Bytes of a request. One has about 1,000."""
BODY_TIMEOUT = 10.0
"""Seconds that the body of a request may take."""
BURST = 30
"""Certificates that one component may request at once: its replicas, which may all start anew."""
ISSUE_INTERVAL = 5.0
"""Seconds in which one component may request a further certificate after that."""
KEYS_INTERVAL = 1.0
"""Seconds between two reads of the identity keys."""


class _RequestRefusedError(Exception):
    """A response with an error status."""

    def __init__(self, status: int, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after


class SignerApp:
    """The ASGI application.

    Args:
        store: The authority.
        names: Names of the components that get a certificate.
        keys: Reads the public identity keys by name.
        issue: Issues a certificate of a name, a public key and the serial number of the one that it replaces.
        clock: Returns the time.
    """

    def __init__(
        self,
        store: AuthorityStore,
        names: Collection[str],
        keys: Callable[[], Mapping[str, Ed25519PublicKey]],
        issue: Callable[..., Any],
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._store = store
        self._names = names
        self._read_keys = keys
        self._keys: Mapping[str, Ed25519PublicKey] = {}
        self._keys_read_at = -KEYS_INTERVAL
        self._issue = issue
        self._verifier = RequestVerifier(store.mesh, self._known_keys, clock, self._admit)
        self._buckets: dict[str, tuple[float, float]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            raise ValueError(f"the signer speaks HTTP, not {scope['type']}")
        headers = [(b"content-type", b"application/json"), (b"cache-control", b"no-store")]
        try:
            status, body = 200, await self._respond(scope, receive)
        except _RequestRefusedError as refused:
            status, body = refused.status, json.dumps({"message": str(refused)}).encode()
            if refused.retry_after is not None:
                headers.append((b"retry-after", str(max(1, round(refused.retry_after))).encode()))
        except Faults as faults:
            log.error("%s", faults)  # noqa: TRY400 - the text says all
            status, body = 503, json.dumps({"message": "the authority cannot be used; its log says why"}).encode()
        headers.append((b"content-length", str(len(body)).encode()))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body if scope["method"] != "HEAD" else b""})

    async def _respond(self, scope: Scope, receive: Receive) -> bytes:
        methods = {
            CERTIFICATES_PATH: ("POST",),
            AUTHORITY_PATH: ("GET", "HEAD"),
            "/healthz": ("GET", "HEAD"),
            "/livez": ("GET", "HEAD"),
        }
        path = scope["path"]
        if path not in methods:
            raise _RequestRefusedError(
                404, f"known are POST {CERTIFICATES_PATH}, GET {AUTHORITY_PATH}, /healthz and /livez"
            )
        if scope["method"] not in methods[path]:
            raise _RequestRefusedError(405, f"{path} is called with {methods[path][0]}")
        if path == "/livez":
            return b"{}"
        if path == CERTIFICATES_PATH:
            return await self._sign(await _body(receive))
        # The store locks a file and reads others, so it does not run on the loop.
        status = await asyncio.to_thread(self._store.status)
        return json.dumps({"round": status.state.round}).encode()

    async def _sign(self, body: bytes) -> bytes:
        try:
            request = self._verifier.verify(body)
        except CertificateError as error:
            log.warning("a request for a certificate was refused: %s", error)
            raise _RequestRefusedError(403, str(error)) from None
        issued = await asyncio.to_thread(self._issue, request.name, request.public_key, request.replaced)
        leaf = x509.load_pem_x509_certificate(issued.leaf)
        log.info("issued a certificate for %s, valid until %s UTC", request.name, f"{leaf.not_valid_after_utc:%F %T}")
        return SigningResponse(issued.leaf, issued.roots, issued.round).to_json()

    def _admit(self, name: str) -> None:
        """Count a request against the limit of its component (token bucket).

        Raises:
            _RequestRefusedError: There is no such component, or it requests too much.
        """
        if name not in self._names:
            raise _RequestRefusedError(403, f"{name} is no component of this mesh: it is not in mesh.toml")
        now = monotonic()
        left, at = self._buckets.get(name, (float(BURST), now))
        left = min(float(BURST), left + (now - at) / ISSUE_INTERVAL)
        if left < 1:
            wait = (1 - left) * ISSUE_INTERVAL
            raise _RequestRefusedError(429, f"{name} requests too many certificates; retry in {wait:.0f} s", wait)
        self._buckets[name] = left - 1, now

    def _known_keys(self) -> Mapping[str, Ed25519PublicKey]:
        if monotonic() - self._keys_read_at >= KEYS_INTERVAL:
            self._keys = self._read_keys()
            self._keys_read_at = monotonic()
        return self._keys


async def _body(receive: Receive) -> bytes:
    body = b""
    try:
        async with asyncio.timeout(BODY_TIMEOUT):
            while True:
                event = await receive()
                if event["type"] != "http.request":
                    raise _RequestRefusedError(400, "the request ended before its body was complete")
                body += bytes(event.get("body", b""))
                if len(body) > MAX_BODY_SIZE:
                    raise _RequestRefusedError(413, f"a request has at most {MAX_BODY_SIZE} bytes")
                if not event.get("more_body", False):
                    return body
    except TimeoutError:
        raise _RequestRefusedError(408, f"the body took longer than {BODY_TIMEOUT:g} s") from None
