"""Client certificates: the service that they name is the caller, while they are valid, and the token agrees."""

from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path

import pytest
from pki import Pki
from test_identity_layers import AUTHENTICATED, INTERNAL, nothing, passes

from mesh.auth import ClientCertificates, PeerVerifier, Signer, authenticate, key_files
from mesh.call import Call, Metadata, chain
from mesh.errors import Unauthenticated


class CertifiedCall(Call):
    """A call of a connection with a client certificate."""

    __slots__ = ("certificate",)


class Clock:
    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now


def pem(pki: Pki, name: str, **options: object) -> str:
    """Return a leaf as h2corn gives it: the certificate alone."""
    text = pki.issue(name, **options).certificate.read_text()
    return text[text.index("-----BEGIN CERTIFICATE") :]


def test_the_service_of_the_certificate_is_the_caller(tmp_path: Path):
    certificates, pki = ClientCertificates("shop"), Pki(tmp_path)
    login = pem(pki, "login")
    assert [certificates.caller(login), certificates.caller(login)] == ["login", "login"]
    assert certificates.caller(pem(pki, "audit")) == "audit"


def test_a_connection_without_a_certificate_has_no_caller():
    with pytest.raises(Unauthenticated, match="has no client certificate"):
        ClientCertificates("shop").caller(None)


def test_a_certificate_of_another_mesh_is_refused(tmp_path: Path):
    with pytest.raises(Unauthenticated, match="belongs to another mesh; this is 'shop'"):
        ClientCertificates("shop").caller(pem(Pki(tmp_path, "bakery"), "login"))
    with pytest.raises(Unauthenticated, match="the client certificate is refused: "):
        ClientCertificates("shop").caller("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")


def test_a_certificate_that_expires_on_an_open_connection_is_refused(tmp_path: Path):
    clock = Clock()
    certificates = ClientCertificates("shop", clock)
    login = pem(Pki(tmp_path), "login", lifetime=timedelta(minutes=10))
    assert certificates.caller(login) == "login"
    clock.now += 601
    with pytest.raises(Unauthenticated, match="the certificate of login expired at"):
        certificates.caller(login)


async def test_certificate_and_token_name_the_same_service(tmp_path: Path):
    key_files.ensure(tmp_path / "keys", ["login", "audit"])
    layer = authenticate(None, PeerVerifier(tmp_path / "keys"), ClientCertificates("shop"))
    certificate = pem(Pki(tmp_path), "login")

    async def answer(signer: str | None) -> tuple[str, str | None]:
        pairs = []
        if signer is not None:
            token = Signer(signer, key_files.load(tmp_path / "keys", signer)).token(INTERNAL.path)
            pairs = [(b"mesh-identity", token)]
        call = CertifiedCall(INTERNAL, Metadata.from_wire(pairs))
        call.certificate = certificate
        return await passes(chain(layer, nothing), call), call.caller

    assert await answer(None) == ("ok", "login")
    assert await answer("login") == ("ok", "login")
    refused, _ = await answer("audit")
    assert refused.startswith(
        "UNAUTHENTICATED: the client certificate is that of login, the mesh-identity token that of audit"
    )


async def test_a_token_alone_is_not_enough_where_certificates_are_required(tmp_path: Path):
    key_files.ensure(tmp_path, ["login"])
    layer = authenticate(None, PeerVerifier(tmp_path), ClientCertificates("shop"))
    token = Signer("login", key_files.load(tmp_path, "login")).token(AUTHENTICATED.path)
    call = Call(AUTHENTICATED, Metadata.from_wire([(b"mesh-identity", token)]))
    assert (await passes(chain(layer, nothing), call)).startswith("UNAUTHENTICATED: the connection has no client")
