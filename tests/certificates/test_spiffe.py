"""Names of services in certificates, and the check of a peer's leaf."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from hypothesis import given, settings
from hypothesis import strategies as st
from pki import MESH, Pki, now

from mesh.certificates import CertificateError, Root, peer_service, spiffe_id
from mesh.certificates.authority import new_key, verify_leaf
from mesh.config.tls import name_faults

KEY = new_key()
ROOT = Root.make(MESH, now())


DER = x509.load_pem_x509_certificate(ROOT.issue(MESH, "login", KEY.public_key(), now=now())).public_bytes(
    serialization.Encoding.DER
)


def leaf(*names: x509.GeneralName, ca: bool = False) -> x509.Certificate:
    """A leaf with these alternative names."""
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([])).issuer_name(ROOT.certificate.subject).public_key(KEY.public_key())
        .serial_number(1).not_valid_before(now() - timedelta(hours=1)).not_valid_after(now() + timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    )  # fmt: skip
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=True)
    return builder.sign(ROOT.key, hashes.SHA256())


def uri(text: str) -> x509.UniformResourceIdentifier:
    return x509.UniformResourceIdentifier(text)


def test_a_leaf_names_its_service_in_each_form(tmp_path: Path) -> None:
    pem = Pki(tmp_path).issue("login").certificate.read_text()
    certificate = x509.load_pem_x509_certificate(pem.encode())
    text = certificate.public_bytes(serialization.Encoding.PEM).decode()
    der = certificate.public_bytes(serialization.Encoding.DER)
    assert [peer_service(form, MESH) for form in (certificate, text, der)] == ["login"] * 3
    assert peer_service(der, MESH, expected="login") == "login"


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        ([], "has no URIs"),
        ([x509.DNSName("login")], "has no URIs"),
        ([uri("spiffe://shop/login"), uri("spiffe://shop/audit")], "has 2 URIs"),
        ([uri("spiffe://stop/login")], "another mesh; this is 'shop'"),
        ([uri("spiffe://shop.example/login")], "another mesh"),
        ([uri("spiffe://shop/")], "is not spiffe://shop/SERVICE"),
        ([uri("spiffe://shop")], "is not spiffe://shop/SERVICE"),
        ([uri("spiffe://shop/login/")], "is not spiffe://shop/SERVICE"),
        ([uri("spiffe://shop/a/login")], "is not spiffe://shop/SERVICE"),
        ([uri("spiffe://shop/login\n")], "is not spiffe://shop/SERVICE"),
        ([uri("spiffe://shop/login?x=1")], "is not spiffe://shop/SERVICE"),
        ([uri("spiffe://shop:80/login")], "is not spiffe://shop/SERVICE"),
        ([uri("spiffe://user@shop/login")], "is not spiffe://shop/SERVICE"),
        ([uri("SPIFFE://shop/login")], "is not spiffe://shop/SERVICE"),
        ([uri("https://shop/login")], "is not spiffe://shop/SERVICE"),
    ],
)
def test_a_leaf_of_no_service_of_the_mesh_is_refused(names: list[x509.GeneralName], reason: str) -> None:
    with pytest.raises(CertificateError, match=reason):
        peer_service(leaf(*names), MESH)


def test_alternative_names_of_unsupported_types_are_refused() -> None:
    x400 = x509.UnrecognizedExtension(x509.SubjectAlternativeName.oid, bytes([0x30, 4, 0xA3, 2, 0x05, 0]))
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([])).issuer_name(ROOT.certificate.subject).public_key(KEY.public_key())
        .serial_number(1).not_valid_before(now() - timedelta(hours=1)).not_valid_after(now() + timedelta(hours=1))
        .add_extension(x400, critical=True)
    )  # fmt: skip
    with pytest.raises(CertificateError, match="has no URIs"):
        peer_service(builder.sign(ROOT.key, hashes.SHA256()), MESH)


def test_the_certificate_of_an_authority_names_no_service() -> None:
    with pytest.raises(CertificateError, match="authority"):
        peer_service(leaf(uri("spiffe://shop/login"), ca=True), MESH)
    with pytest.raises(CertificateError, match="no URIs"):
        peer_service(ROOT.certificate, MESH)


@pytest.mark.parametrize("certificate", [b"", b"\x30\x03abc", "", "-----BEGIN CERTIFICATE-----\nx\n-----END", "é"])
def test_a_malformed_certificate_is_refused(certificate: bytes | str) -> None:
    with pytest.raises(CertificateError, match="malformed"):
        peer_service(certificate, MESH)


def test_a_leaf_is_refused_outside_its_time_and_for_another_name(tmp_path: Path) -> None:
    certificate = Pki(tmp_path).issue("login").certificate.read_bytes()
    parsed = x509.load_pem_x509_certificate(certificate)
    with pytest.raises(CertificateError, match="for login, not for audit"):
        peer_service(parsed, MESH, expected="audit")
    with pytest.raises(CertificateError, match="of login expired at"):
        peer_service(parsed, MESH, now=now() + timedelta(hours=25))
    with pytest.raises(CertificateError, match="of login is not valid before"):
        peer_service(parsed, MESH, now=now() - timedelta(hours=1))
    assert peer_service(parsed, MESH, now=now() - timedelta(minutes=29)) == "login"  # a clock that is behind


@settings(max_examples=500, deadline=None)
@given(data=st.data())
def test_a_damaged_certificate_is_refused_or_names_its_service(data: st.DataObject) -> None:
    der = bytearray(DER)
    for _ in range(data.draw(st.integers(1, 3))):
        der[data.draw(st.integers(0, len(der) - 1))] = data.draw(st.integers(0, 255))
    try:
        name = peer_service(bytes(der[: data.draw(st.integers(len(der) // 2, len(der)))]), MESH)
    except CertificateError:
        return
    assert name  # the handshake verifies the signature


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.characters(codec="ascii"), max_size=40))
def test_no_text_is_taken_for_a_service_unless_it_is_its_id(text: str) -> None:
    try:
        certificate = leaf(uri(text))
    except ValueError:
        return
    try:
        name = peer_service(certificate, MESH)
    except CertificateError:
        return
    assert text == spiffe_id(MESH, name)


@settings(max_examples=200, deadline=None)
@given(
    mesh=st.from_regex(r"[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?", fullmatch=True),
    name=st.from_regex(r"[a-z][a-z0-9_-]{0,80}", fullmatch=True),
)
def test_every_valid_name_goes_through_a_certificate(mesh: str, name: str) -> None:
    assert list(name_faults(mesh, "name")) == []
    pem = ROOT.issue(mesh, name, KEY.public_key(), now=now())
    verify_leaf(x509.load_pem_x509_certificate(pem), [ROOT.certificate], now())
    assert peer_service(pem.decode(), mesh, expected=name) == name
