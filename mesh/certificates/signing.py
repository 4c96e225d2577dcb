"""Signing protocol: a component asks the signer for a leaf, and proves its name with its identity key.

The request is JSON with two texts. ``csr`` is a certificate signing request (PKCS #10) for a new ECDSA P-256 key. Its
names are ignored; its own signature proves that the component has the key. ``token`` is a JWT (EdDSA) of the
component's identity key. It holds the digest of the request, so it is of use for this key only. ``jti`` and ``exp``
make it of use once, within a minute.

The signer decides on the names in the leaf. A component gets a leaf for its own name only.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import jwt
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from mesh.certificates.authority import key_pem, new_key, parse_bundle, verify_leaf
from mesh.certificates.spiffe import SIGNER, CertificateError, peer_service, spiffe_id

__all__ = ["PendingRequest", "RequestVerifier", "SigningRequest", "SigningResponse"]

TOKEN_AGE = 60
"""Seconds for which a request may be sent."""
LEEWAY_SECONDS = 30
"""Largest tolerated difference between the clocks of component and signer."""
MAX_REPLAY_NONCES = 65_536
"""Nonces of accepted requests that are kept until they expire."""
_CLAIMS = ["iss", "aud", "iat", "exp", "jti", "csr"]


@dataclass(frozen=True, slots=True)
class SigningRequest:
    """Verified request.

    Attributes:
        name: Name of the component.
        public_key: Its new key.
        replaced: Serial number of the leaf that it holds, or None.
    """

    name: str
    public_key: ec.EllipticCurvePublicKey
    replaced: int | None


class PendingRequest:
    """Request of a component, with the private key that stays here.

    Args:
        mesh: Name of the mesh.
        name: Name of the component.
        identity: Its identity key.
        now: The time.
        replaced: Serial number of the leaf that it holds, or None.
    """

    def __init__(
        self, mesh: str, name: str, identity: Ed25519PrivateKey, now: datetime, replaced: int | None = None
    ) -> None:
        self._mesh = mesh
        self._name = name
        self._key = new_key()
        csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(self._key, hashes.SHA256())
        claims: dict[str, Any] = {
            "iss": name,
            "aud": spiffe_id(mesh, SIGNER),
            "iat": int(now.timestamp()),
            "exp": int(now.timestamp()) + TOKEN_AGE,
            "jti": secrets.token_urlsafe(16),
            "csr": _digest(csr),
        }
        if replaced is not None:
            claims["replaced"] = str(replaced)
        token = jwt.encode(claims, identity, algorithm="EdDSA", headers={"kid": name})
        pem = csr.public_bytes(serialization.Encoding.PEM).decode()
        self.body = json.dumps({"csr": pem, "token": token}).encode()

    def accept(self, response: SigningResponse, now: datetime) -> bytes:
        """Check the signer's response; return key and leaf, PEM.

        Raises:
            CertificateError: The leaf is for another key or name, or the roots do not verify it.
        """
        try:
            leaf = x509.load_pem_x509_certificate(response.certificate)
        except ValueError:
            raise CertificateError("the signer sent a malformed certificate") from None
        if leaf.public_key() != self._key.public_key():
            raise CertificateError("the signer sent a certificate for another key")
        peer_service(leaf, self._mesh, expected=self._name, now=now)
        verify_leaf(leaf, parse_bundle(response.roots), now)
        return key_pem(self._key) + response.certificate


@dataclass(frozen=True, slots=True)
class SigningResponse:
    """Response of the signer.

    Attributes:
        certificate: The leaf, PEM.
        roots: The trusted roots, PEM.
        round: The authority's round (``mesh.certificates.rotation``).
    """

    certificate: bytes
    roots: bytes
    round: int

    def to_json(self) -> bytes:
        """Return the response as JSON."""
        return json.dumps(
            {"certificate": self.certificate.decode(), "roots": self.roots.decode(), "round": self.round}
        ).encode()

    @classmethod
    def from_json(cls, body: bytes) -> SigningResponse:
        """Return the response that ``to_json`` wrote.

        Raises:
            CertificateError: The body is malformed.
        """
        try:
            value = json.loads(body)
            return cls(value["certificate"].encode(), value["roots"].encode(), int(value["round"]))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise CertificateError("the signer sent a malformed response") from None


class RequestVerifier:
    """Verifier of requests, at the signer.

    Args:
        mesh: Name of the mesh.
        keys: Returns the public identity keys by name.
        clock: Returns the time.
        admit: Called with the name of the component whose token is valid, before the request is remembered. It may
            raise. So a component that floods the signer uses up no memory of the requests of others.
    """

    def __init__(
        self,
        mesh: str,
        keys: Callable[[], Mapping[str, Ed25519PublicKey]],
        clock: Callable[[], datetime],
        admit: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._audience = spiffe_id(mesh, SIGNER)
        self._keys = keys
        self._clock = clock
        self._admit = admit
        self._nonces: dict[tuple[str, str], float] = {}

    def verify(self, body: bytes) -> SigningRequest:
        """Return the request in a body.

        Raises:
            CertificateError: It is malformed, of an unknown component, expired, or was sent before.
        """
        try:
            value = json.loads(body)
            pem, token = value["csr"].encode(), value["token"]
            csr = x509.load_pem_x509_csr(pem)
            public_key = csr.public_key()
        # ``json`` raises RecursionError for deep nesting.
        except (
            ValueError, KeyError, TypeError, AttributeError, RecursionError, UnsupportedAlgorithm, x509.InvalidVersion,
        ):  # fmt: skip
            raise CertificateError("expected JSON with the texts `csr` (PEM) and `token`") from None
        if not isinstance(public_key, ec.EllipticCurvePublicKey) or not isinstance(public_key.curve, ec.SECP256R1):
            raise CertificateError("expected a signing request for an ECDSA key of the curve P-256")
        if not _signed_by_itself(csr):
            raise CertificateError("the signing request is not signed with its key")
        claims = self._claims(token)
        if claims["csr"] != _digest(csr):
            raise CertificateError("the token belongs to another signing request")
        self._admit(claims["iss"])
        self._use_once(claims)
        try:
            replaced = int(claims["replaced"]) if "replaced" in claims else None
        except (ValueError, TypeError):
            raise CertificateError("`replaced` is not a serial number") from None
        return SigningRequest(claims["iss"], public_key, replaced)

    def _claims(self, token: object) -> dict[str, Any]:
        try:
            name = jwt.get_unverified_header(token).get("kid") if isinstance(token, str) else None
            key = self._keys().get(name) if isinstance(name, str) else None
            if key is None:
                raise CertificateError("the token is signed with an identity key that is not known here")
            # The clock is an argument here, so the times are checked below.
            claims: dict[str, Any] = jwt.decode(
                str(token), key, algorithms=["EdDSA"], audience=self._audience, issuer=name,
                options={"require": _CLAIMS, "verify_exp": False, "verify_iat": False},
            )  # fmt: skip
            begin, end = float(claims["iat"]), float(claims["exp"])
        except (jwt.InvalidTokenError, ValueError, TypeError, OverflowError):
            raise CertificateError("the token is not valid") from None
        now = self._clock().timestamp()
        if not begin - LEEWAY_SECONDS <= now <= end + LEEWAY_SECONDS or end - begin > TOKEN_AGE:
            raise CertificateError("the token has expired, or the clocks of component and signer differ")
        return claims

    def _use_once(self, claims: Mapping[str, Any]) -> None:
        now = self._clock().timestamp()
        for nonce in [nonce for nonce, end in self._nonces.items() if end < now]:
            del self._nonces[nonce]
        nonce = claims["iss"], str(claims["jti"])
        if nonce in self._nonces:
            raise CertificateError("the request was sent before")
        if len(self._nonces) >= MAX_REPLAY_NONCES:
            raise CertificateError("too many requests within a minute")
        self._nonces[nonce] = float(claims["exp"]) + LEEWAY_SECONDS


def _digest(csr: x509.CertificateSigningRequest) -> str:
    digest = hashes.Hash(hashes.SHA256())
    digest.update(csr.public_bytes(serialization.Encoding.DER))
    return digest.finalize().hex()


def _signed_by_itself(csr: x509.CertificateSigningRequest) -> bool:
    try:
        return csr.is_signature_valid
    except (InvalidSignature, UnsupportedAlgorithm, ValueError):
        return False
