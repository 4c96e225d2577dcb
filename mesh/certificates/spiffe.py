"""SPIFFE names of a mesh's services, and the check of the certificate that a peer presents. Pure."""

from __future__ import annotations

import re
import ssl
from datetime import UTC, datetime

from cryptography import x509

__all__ = ["EDGE", "OPERATOR", "SIGNER", "CertificateError", "leaf_service", "peer_service", "spiffe_id"]

EDGE = "edge"
"""Name of the edge. It forwards calls of users, and opens no INTERNAL method."""
OPERATOR = "operator"
"""Name of a person with the command line (``mesh call``, ``mesh health``). It opens no INTERNAL method."""
SIGNER = "keys"
"""Name of ``mesh keys serve``, which issues the leaf certificates."""

_ID = re.compile(r"spiffe://(?P<mesh>[a-z0-9._-]+)/(?P<service>[A-Za-z0-9._-]+)\Z")


class CertificateError(Exception):
    """A certificate is refused; ``str()`` is the reason, without secrets."""


def spiffe_id(mesh: str, service: str) -> str:
    """Return the SPIFFE id of a service: ``spiffe://MESH/SERVICE``."""
    return f"spiffe://{mesh}/{service}"


def peer_service(
    certificate: bytes | str | x509.Certificate, mesh: str, *, expected: str | None = None, now: datetime | None = None
) -> str:
    """Return the name of the service that a peer's leaf certificate identifies.

    The caller has verified the chain, as a TLS handshake does. This function checks the name and the time. A connection
    can outlive the leaf, so the time is checked again.

    Args:
        certificate: The leaf: DER (``getpeercert(binary_form=True)``), PEM text, or parsed.
        mesh: Name of this mesh.
        expected: The only service that is accepted; None: any service of the mesh.
        now: The time; None: that of the clock.

    Raises:
        CertificateError: It is malformed, expired, of another mesh, of another service, or no leaf (X.509-SVID).
    """
    leaf = _parse(certificate)
    name = leaf_service(leaf, mesh)
    moment = datetime.now(UTC) if now is None else now
    if moment > leaf.not_valid_after_utc:
        raise CertificateError(f"the certificate of {name} expired at {leaf.not_valid_after_utc:%Y-%m-%d %H:%M:%S} UTC")
    if moment < leaf.not_valid_before_utc:
        begin = leaf.not_valid_before_utc
        raise CertificateError(f"the certificate of {name} is not valid before {begin:%Y-%m-%d %H:%M:%S} UTC")
    if expected is not None and name != expected:
        raise CertificateError(f"the certificate is for {name}, not for {expected}")
    return name


def _parse(certificate: bytes | str | x509.Certificate) -> x509.Certificate:
    if isinstance(certificate, x509.Certificate):
        return certificate
    try:
        der = ssl.PEM_cert_to_DER_cert(certificate) if isinstance(certificate, str) else certificate
        return x509.load_der_x509_certificate(der)
    except (ValueError, TypeError, x509.InvalidVersion):
        raise CertificateError("the peer's certificate is malformed") from None


def leaf_service(leaf: x509.Certificate, mesh: str) -> str:
    """Return the name of the service in a leaf of this mesh, whatever the time.

    Raises:
        CertificateError: It has not exactly one URI, the URI names no service of this mesh, or it is no leaf.
    """
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    except (x509.ExtensionNotFound, x509.DuplicateExtension, x509.UnsupportedGeneralNameType, ValueError):
        uris = []
    if len(uris) != 1:
        raise CertificateError(f"the certificate has {len(uris) or 'no'} URIs as alternative names, and needs one")
    match = _ID.match(uris[0])
    if match is None:
        raise CertificateError(f"{uris[0][:200]!r} is not spiffe://{mesh}/SERVICE")
    if match["mesh"] != mesh:
        raise CertificateError(f"{uris[0][:200]!r} belongs to another mesh; this is {mesh!r}")
    if _is_authority(leaf):
        raise CertificateError("the certificate is that of an authority, and names no service")
    return match["service"]


def _is_authority(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False
