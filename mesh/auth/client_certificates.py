"""Verifier of client certificates: the calling service is the one that the certificate of its connection names.

The TLS handshake has verified the chain and the possession of the key. What is left is the name and the time, because a
connection can outlive its certificate. The name is parsed once for each certificate; a further call costs a dictionary
lookup.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime

from cryptography import x509

from mesh.auth.verified_cache import VerifiedCache
from mesh.certificates import CertificateError, peer_service
from mesh.errors import Unauthenticated

__all__ = ["ClientCertificates"]

MAX_CACHED_CERTIFICATES = 1024
"""Verified certificates in the cache, about 1 KB each. A caller has one, and a new one each half day."""


class ClientCertificates:
    """Verifier of the certificates of a mesh's services.

    Args:
        mesh: Name of the mesh.
        clock: The time, seconds since the epoch.
    """

    __slots__ = ("_clock", "_mesh", "_verified")

    def __init__(self, mesh: str, clock: Callable[[], float] = time.time) -> None:
        self._mesh = mesh
        self._clock = clock
        self._verified: VerifiedCache[str] = VerifiedCache(MAX_CACHED_CERTIFICATES)

    def caller(self, certificate: str | None) -> str:
        """Return the name of the service that a certificate (PEM) names.

        Raises:
            Unauthenticated: There is no certificate, it has expired, or it is of another mesh.
        """
        if certificate is None:
            raise Unauthenticated("the connection has no client certificate; services of this mesh need one")
        now = self._clock()
        return self._verified.get(certificate, now) or self._verify(certificate, now)

    def _verify(self, certificate: str, now: float) -> str:
        try:
            leaf = x509.load_pem_x509_certificate(certificate.encode())
            service = peer_service(leaf, self._mesh, now=datetime.fromtimestamp(now, UTC))
        except (CertificateError, ValueError) as error:
            raise Unauthenticated(f"the client certificate is refused: {error}") from None
        self._verified.put(certificate, service, leaf.not_valid_after_utc.timestamp())
        return service
