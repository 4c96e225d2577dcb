"""Certificate authority of a mesh: self-signed root certificates, and the leaf certificates that they sign. Pure.

Times are arguments. A certificate counts whole seconds (RFC 5280, 4.1.2.5).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address, IPv6Address, ip_address

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from mesh.certificates.spiffe import CertificateError, spiffe_id

__all__ = [
    "BACKDATE", "LEAF_LIFETIME", "ROOT_LIFETIME", "Root", "half_life", "issuer_id", "key_pem", "new_key",
    "parse_bundle", "root_id", "verify_leaf",
]  # fmt: skip

LEAF_LIFETIME = timedelta(hours=24)
"""Validity of a leaf from its issue."""
ROOT_LIFETIME = timedelta(days=3653)
"""Validity of a root from its creation: ten years. ``mesh keys rotate-root`` replaces it before."""
BACKDATE = timedelta(minutes=30)
"""Time before the issue from which a certificate is valid. The clock of a verifier may be behind by as much."""
_CURVE = ec.SECP256R1


def new_key() -> ec.EllipticCurvePrivateKey:
    """Return a new private key (ECDSA, P-256)."""
    return ec.generate_private_key(_CURVE())


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a private key as PEM (PKCS #8), unencrypted."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


@dataclass(frozen=True, slots=True)
class Root:
    """Root of a mesh: a self-signed certificate and its private key.

    Attributes:
        certificate: The certificate. Its subject is its own, and no other root's.
        key: The private key.
    """

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def make(cls, mesh: str, now: datetime, lifetime: timedelta = ROOT_LIFETIME) -> Root:
        """Return a new root for a mesh.

        Args:
            mesh: Name of the mesh.
            now: The time of the creation.
            lifetime: Validity from then on.
        """
        key = new_key()
        identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        # Verifiers look a root up by its subject. Two roots of a rotation need two subjects.
        subject = x509.Name(
            [
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, mesh),
                x509.NameAttribute(NameOID.COMMON_NAME, f"root {identifier.digest.hex()[:16]}"),
            ]
        )
        certificate = (
            _builder(now, now + lifetime)
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(sign_certificates=True), critical=True)
            .add_extension(identifier, critical=False)
            .sign(key, hashes.SHA256())
        )
        return cls(certificate, key)

    @classmethod
    def parse(cls, pem: bytes) -> Root:
        """Return the root of a PEM text with certificate and key.

        Raises:
            ValueError: One is missing or malformed, or they do not belong together.
        """
        certificate = x509.load_pem_x509_certificate(pem)
        key = serialization.load_pem_private_key(pem, password=None)
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
            raise ValueError("key and certificate do not belong together")
        return cls(certificate, key)

    @property
    def id(self) -> str:
        """Identifier: the first 16 hexadecimal digits of the key identifier."""
        return root_id(self.certificate)

    @property
    def pem(self) -> bytes:
        """Certificate and private key as PEM."""
        return self.certificate.public_bytes(serialization.Encoding.PEM) + key_pem(self.key)

    @property
    def certificate_pem(self) -> bytes:
        """The certificate as PEM."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def issue(
        self,
        mesh: str,
        service: str,
        public_key: ec.EllipticCurvePublicKey,
        *,
        now: datetime,
        hosts: Iterable[str] = (),
        lifetime: timedelta = LEAF_LIFETIME,
    ) -> bytes:
        """Return a new leaf certificate as PEM.

        Args:
            mesh: Name of the mesh.
            service: The name that the leaf proves.
            public_key: The key of the component.
            now: The time of the issue.
            hosts: Further host names and IP addresses in the leaf, for stock clients, which compare the host.
            lifetime: Validity from then on. A leaf ends with its root at the latest.

        Raises:
            CertificateError: The root has expired.
        """
        end = min(now + lifetime, self.certificate.not_valid_after_utc)
        if end <= now:
            raise CertificateError(f"the root {self.id} has expired; replace it with `mesh keys rotate-root`")
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(spiffe_id(mesh, service))]
        names += [_host(host) for host in dict.fromkeys((service, *hosts))]
        identifier = self.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        return (
            _builder(now, end)
            .subject_name(x509.Name([]))
            .issuer_name(self.certificate.subject)
            .public_key(public_key)
            # An empty subject makes the alternative names critical (RFC 5280, 4.2.1.6).
            .add_extension(x509.SubjectAlternativeName(names), critical=True)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(sign_certificates=False), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
                critical=False,
            )
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
            .sign(self.key, hashes.SHA256())
            .public_bytes(serialization.Encoding.PEM)
        )


def root_id(certificate: x509.Certificate) -> str:
    """Return the identifier of a root: the first 16 hexadecimal digits of its key identifier.

    ``issuer_id`` returns the same text for its leaves.
    """
    try:
        identifier = certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    except x509.ExtensionNotFound:
        identifier = certificate.fingerprint(hashes.SHA256())
    return identifier.hex()[:16]


def issuer_id(leaf: x509.Certificate) -> str:
    """Return the identifier of the root that signed a leaf, or ``""`` if the leaf does not say it."""
    try:
        identifier = leaf.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
    except x509.ExtensionNotFound:
        return ""
    return (identifier or b"").hex()[:16]


def half_life(leaf: x509.Certificate) -> datetime:
    """Return the middle of a certificate's validity (UTC)."""
    return leaf.not_valid_before_utc + (leaf.not_valid_after_utc - leaf.not_valid_before_utc) / 2


def parse_bundle(pem: bytes) -> list[x509.Certificate]:
    """Return the root certificates of a bundle.

    Raises:
        CertificateError: The text has no certificate, or a malformed one.
    """
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError:
        raise CertificateError("expected root certificates in PEM") from None


def verify_leaf(leaf: x509.Certificate, roots: Sequence[x509.Certificate], now: datetime) -> None:
    """Verify that one of the roots signed a leaf, and that both are valid now.

    Raises:
        CertificateError: No root verifies it.
    """
    try:
        verifier = PolicyBuilder().store(Store(list(roots))).time(now.astimezone(UTC)).build_client_verifier()
        verifier.verify(leaf, [])
    except (VerificationError, ValueError) as error:
        raise CertificateError(f"no trusted root verifies the certificate: {error}") from None


def _builder(now: datetime, end: datetime) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATE)
        .not_valid_after(end)
    )


def _key_usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign_certificates,
        key_cert_sign=sign_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )


def _host(host: str) -> x509.GeneralName:
    try:
        address: IPv4Address | IPv6Address = ip_address(host.partition("%")[0])
    except ValueError:
        return x509.DNSName(host)
    return x509.IPAddress(address)
