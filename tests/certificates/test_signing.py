"""Signing protocol: a component gets a leaf for its own name, for a key of its own, once."""

from __future__ import annotations

import json
import ssl
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from mesh.certificates import CertificateError, Root
from mesh.certificates.authority import new_key
from mesh.certificates.signing import PendingRequest, RequestVerifier, SigningResponse

LOGIN, AUDIT = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
NOW = datetime.now(UTC)
ROOT = Root.make("shop", NOW)


class Clock:
    """A clock that a test moves."""

    now = NOW

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def verifier(clock: Clock) -> RequestVerifier:
    keys: Mapping[str, Ed25519PublicKey] = {"login": LOGIN.public_key(), "audit": AUDIT.public_key()}
    return RequestVerifier("shop", lambda: keys, clock)


def forged(body: bytes, identity: Ed25519PrivateKey = LOGIN, kid: str = "login", **claims: Any) -> bytes:
    """The request with other claims; None removes one."""
    value = json.loads(body)
    found = jwt.decode(value["token"], options={"verify_signature": False})
    found = {name: claim for name, claim in {**found, **claims}.items() if claim is not None}
    return json.dumps({**value, "token": jwt.encode(found, identity, algorithm="EdDSA", headers={"kid": kid})}).encode()


def respond(verifier: RequestVerifier, body: bytes) -> SigningResponse:
    request = verifier.verify(body)
    leaf = ROOT.issue("shop", request.name, request.public_key, now=NOW)
    return SigningResponse(leaf, ROOT.certificate_pem, 3)


def test_a_request_becomes_a_leaf_for_the_name_of_its_identity_key(verifier: RequestVerifier) -> None:
    pending = PendingRequest("shop", "login", LOGIN, NOW, replaced=2**150)
    request = verifier.verify(pending.body)
    assert (request.name, request.replaced) == ("login", 2**150)
    leaf = ROOT.issue("shop", request.name, request.public_key, now=NOW)
    response = SigningResponse.from_json(SigningResponse(leaf, ROOT.certificate_pem, 3).to_json())
    assert response.round == 3
    pair = pending.accept(response, NOW)
    assert pair.endswith(leaf)
    key = serialization.load_pem_private_key(pair, None)
    assert key.public_key() == x509.load_pem_x509_certificate(leaf).public_key()


def test_a_request_is_of_use_once(verifier: RequestVerifier, clock: Clock) -> None:
    pending = PendingRequest("shop", "login", LOGIN, NOW)
    verifier.verify(pending.body)
    for seconds in (0, 59, 89):
        clock.now = NOW + timedelta(seconds=seconds)
        with pytest.raises(CertificateError, match="was sent before"):
            verifier.verify(pending.body)
    clock.now = NOW + timedelta(seconds=92)
    with pytest.raises(CertificateError, match="expired"):
        verifier.verify(pending.body)


@pytest.mark.parametrize("seconds", [-31, 92])
def test_an_old_or_future_request_is_refused(verifier: RequestVerifier, clock: Clock, seconds: int) -> None:
    clock.now = NOW + timedelta(seconds=seconds)
    with pytest.raises(CertificateError, match="clocks of component and signer differ"):
        verifier.verify(PendingRequest("shop", "login", LOGIN, NOW).body)


def test_another_identity_key_gets_no_leaf_for_this_name(verifier: RequestVerifier) -> None:
    body = PendingRequest("shop", "login", AUDIT, NOW).body
    with pytest.raises(CertificateError, match="not valid"):
        verifier.verify(body)
    with pytest.raises(CertificateError, match="not valid"):  # its own key, and the other's name
        verifier.verify(forged(body, AUDIT, "audit"))
    with pytest.raises(CertificateError, match="not known here"):
        verifier.verify(PendingRequest("shop", "nobody", LOGIN, NOW).body)


@pytest.mark.parametrize(
    ("claims", "reason"),
    [
        ({"aud": "spiffe://stop/keys"}, "not valid"),
        ({"aud": "login.v1.Login"}, "not valid"),
        ({"iss": "mesh"}, "not valid"),
        ({"csr": "00"}, "another signing request"),
        ({"jti": None}, "not valid"),
        ({"csr": None}, "not valid"),
        ({"exp": None}, "not valid"),
        ({"exp": 2**40}, "expired"),
        ({"iat": 0}, "expired"),
        ({"exp": "x"}, "not valid"),
        ({"replaced": "x"}, "not a serial"),
    ],
)
def test_a_token_with_other_claims_is_refused(verifier: RequestVerifier, claims: dict[str, Any], reason: str) -> None:
    with pytest.raises(CertificateError, match=reason):
        verifier.verify(forged(PendingRequest("shop", "login", LOGIN, NOW).body, **claims))


def test_the_token_of_one_request_does_not_sign_another_key(verifier: RequestVerifier) -> None:
    mine, theirs = (json.loads(PendingRequest("shop", "login", LOGIN, NOW).body) for _ in range(2))
    with pytest.raises(CertificateError, match="another signing request"):
        verifier.verify(json.dumps({"csr": theirs["csr"], "token": mine["token"]}).encode())


@pytest.mark.parametrize(
    "body",
    [
        b"", b"[]", b"{}", b'{"csr": 1, "token": 2}', b'{"csr": "x", "token": "y"}', b"\xff", b'{"csr": null}',
        b"[" * 15_000, b'{"csr":' * 2_000, b"1" * 15_000,
    ],
)  # fmt: skip
def test_a_malformed_request_is_refused(verifier: RequestVerifier, body: bytes) -> None:
    with pytest.raises(CertificateError, match="expected JSON"):
        verifier.verify(body)


def test_a_signing_request_of_an_unknown_version_is_refused(verifier: RequestVerifier) -> None:
    value = json.loads(PendingRequest("shop", "login", LOGIN, NOW).body)
    der = x509.load_pem_x509_csr(value["csr"].encode()).public_bytes(serialization.Encoding.DER)
    later = der.replace(b"\x02\x01\x00", b"\x02\x01\x05", 1)
    pem = ssl.DER_cert_to_PEM_cert(later).replace("CERTIFICATE", "CERTIFICATE REQUEST")
    with pytest.raises(CertificateError, match="expected JSON"):
        verifier.verify(json.dumps({**value, "csr": pem}).encode())


@pytest.mark.parametrize("token", ["", "a.b.c", 1, None, ["x"], {"a": 1}])
def test_a_malformed_token_is_refused(verifier: RequestVerifier, token: object) -> None:
    value = json.loads(PendingRequest("shop", "login", LOGIN, NOW).body)
    with pytest.raises(CertificateError, match=r"not valid|not known"):
        verifier.verify(json.dumps({**value, "token": token}).encode())


def test_an_unsigned_token_is_refused(verifier: RequestVerifier) -> None:
    value = json.loads(PendingRequest("shop", "login", LOGIN, NOW).body)
    claims = jwt.decode(value["token"], options={"verify_signature": False})
    for algorithm, key in (("none", None), ("HS256", b"x" * 32)):
        token = jwt.encode(claims, key, algorithm=algorithm, headers={"kid": "login"})
        with pytest.raises(CertificateError, match="not valid"):
            verifier.verify(json.dumps({**value, "token": token}).encode())


@pytest.mark.parametrize("kind", ["rsa", "p384", "ed25519"])
def test_only_keys_of_the_profile_are_signed(verifier: RequestVerifier, kind: str) -> None:
    keys: dict[str, Any] = {
        "rsa": lambda: rsa.generate_private_key(65537, 2048),
        "p384": lambda: ec.generate_private_key(ec.SECP384R1()),
        "ed25519": Ed25519PrivateKey.generate,
    }
    digest = None if kind == "ed25519" else hashes.SHA256()
    csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(keys[kind](), digest)
    value = json.loads(PendingRequest("shop", "login", LOGIN, NOW).body)
    pem = csr.public_bytes(serialization.Encoding.PEM).decode()
    with pytest.raises(CertificateError, match="P-256"):
        verifier.verify(json.dumps({**value, "csr": pem}).encode())


def test_a_component_takes_no_leaf_that_is_not_its_own(verifier: RequestVerifier) -> None:
    pending = PendingRequest("shop", "login", LOGIN, NOW)
    good = respond(verifier, pending.body)
    other = ROOT.issue("shop", "login", new_key().public_key(), now=NOW)
    public = x509.load_pem_x509_certificate(good.certificate).public_key()
    assert isinstance(public, ec.EllipticCurvePublicKey)
    wrong = {
        "another key": SigningResponse(other, good.roots, 0),
        "for audit": SigningResponse(ROOT.issue("shop", "audit", public, now=NOW), good.roots, 0),
        "another mesh": SigningResponse(ROOT.issue("stop", "login", public, now=NOW), good.roots, 0),
        "no trusted root": SigningResponse(good.certificate, Root.make("shop", NOW).certificate_pem, 0),
        "malformed certificate": SigningResponse(b"", good.roots, 0),
        "PEM": SigningResponse(good.certificate, b"", 0),
    }
    for reason, response in wrong.items():
        with pytest.raises(CertificateError, match=reason):
            pending.accept(response, NOW)
    for body in (b"", b"{}", b'{"certificate": 1, "roots": "", "round": 0}', b"[]"):
        with pytest.raises(CertificateError, match="malformed response"):
            SigningResponse.from_json(body)
