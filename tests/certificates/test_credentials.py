"""Credentials of a component: contexts of both sides, checks of the peer, and files that change."""

from __future__ import annotations

import asyncio
import logging
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from pki import MESH, Pki, now, replace

from mesh.certificates import CertificateError, CredentialFiles, Credentials, Root
from mesh.certificates.authority import key_pem, new_key
from mesh.faults import Faults


@pytest.fixture
def pki(tmp_path: Path) -> Pki:
    return Pki(tmp_path)


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = datetime.now(UTC)

    def __call__(self) -> datetime:
        return self.now


def connect(server: ssl.SSLContext, client: ssl.SSLContext) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    """Both ends after a handshake in memory, which a first byte of each side completes."""
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = client.wrap_bio(back, there, server_hostname="login"), server.wrap_bio(there, back, server_side=True)
    done = [False, False]
    while not all(done):
        for number, end in enumerate(ends):
            try:
                end.do_handshake()
                done[number] = True
            except ssl.SSLWantReadError:
                pass
    ends[1].write(b"!")
    assert ends[0].read(1) == b"!"
    return ends


def test_two_components_know_each_other(pki: Pki) -> None:
    login, edge = pki.credentials("login"), pki.credentials("edge")
    client, server = connect(login.server_context(), edge.client_context())
    edge.check_server(client, "login")
    assert login.peer(server.getpeercert(binary_form=True) or b"") == "edge"
    assert client.selected_alpn_protocol() == server.selected_alpn_protocol() == "h2"
    assert client.version() == "TLSv1.3"
    assert login.spiffe_id("audit") == "spiffe://shop/audit"
    with pytest.raises(CertificateError, match="for login, not for audit"):
        edge.check_server(client, "audit")


def test_a_peer_of_another_root_an_expired_one_and_one_without_a_certificate_are_refused(
    pki: Pki, tmp_path: Path
) -> None:
    login, foreign = pki.credentials("login"), Pki(tmp_path / "foreign").credentials("edge")
    with pytest.raises(ssl.SSLCertVerificationError):
        connect(login.server_context(), foreign.client_context())
    with pytest.raises(ssl.SSLCertVerificationError):
        connect(foreign.server_context(), login.client_context())
    expired = Credentials(MESH, "edge", pki.expired("edge"))
    with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
        connect(login.server_context(), expired.client_context())
    anonymous = ssl.create_default_context(cafile=str(login.files.roots))
    with pytest.raises(ssl.SSLError):
        connect(login.server_context(), anonymous)
    old = pki.credentials("edge").client_context()
    old.minimum_version = ssl.TLSVersion.TLSv1_2
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError):
        connect(login.server_context(), old)


def test_a_peer_whose_certificate_ends_during_a_connection_is_refused(pki: Pki) -> None:
    clock = Clock()
    login = Credentials(MESH, "login", pki.issue("login"), clock)
    _, server = connect(login.server_context(), pki.credentials("edge").client_context())
    certificate = server.getpeercert(binary_form=True) or b""
    assert login.peer(certificate) == "edge"
    clock.now += timedelta(hours=25)
    with pytest.raises(CertificateError, match="expired"):
        login.peer(certificate)


def test_new_files_are_taken_as_a_whole_and_told_to_the_subscribers(pki: Pki, caplog: pytest.LogCaptureFixture) -> None:
    login = pki.credentials("login")
    told: list[int] = []
    login.subscribe(lambda: 1 // 0)
    end = login.subscribe(lambda: told.append(login.serial))
    assert not login.reload()
    first = login.serial
    pki.issue("login")
    assert login.reload()
    assert login.serial != first
    assert told == [login.serial]
    assert "ZeroDivisionError" in caplog.text
    end()
    end()
    second = Root.make(MESH, now())
    pki.trust(pki.root, second)
    assert login.reload()
    assert second.certificate_pem.decode() in login.roots
    assert len(told) == 1
    fresh = Pki.credentials
    pki.root = second
    connect(login.server_context(), fresh(pki, "edge").client_context())


def test_the_same_content_again_is_no_renewal(pki: Pki) -> None:
    login = pki.credentials("login")
    login.subscribe(lambda: pytest.fail("told of nothing"))
    replace(login.files.certificate, login.files.certificate.read_bytes())
    assert not login.reload()


@pytest.mark.parametrize("damage", ["empty", "gone", "other key", "other name", "no roots", "other mesh", "directory"])
def test_files_that_are_not_valid_change_nothing(pki: Pki, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    login = pki.credentials("login")
    login.subscribe(lambda: pytest.fail("told of nothing"))
    serial, path = login.serial, login.files.certificate
    match damage:
        case "empty":
            replace(path, b"")
        case "gone":
            path.unlink()
        case "other key":
            _, _, leaf = path.read_bytes().partition(b"-----BEGIN CERTIFICATE")
            replace(path, key_pem(new_key()) + b"-----BEGIN CERTIFICATE" + leaf)
        case "other name":
            replace(path, pki.issue("audit").certificate.read_bytes())
        case "other mesh":
            pki.issue("login", mesh="stop")
        case "no roots":
            replace(login.files.roots, b"nothing")
        case "directory":
            path.unlink()
            path.mkdir()
    for _ in range(3):
        assert not login.reload()
    assert caplog.text.count("is refused, the last one stays in use") == 1
    assert login.serial == serial
    connect(login.server_context(), login.client_context())
    if path.is_dir():
        path.rmdir()
    pki.trust(pki.root)
    login = Credentials(MESH, "login", pki.issue("login"))
    assert login.serial != serial


def test_certificate_and_key_may_be_two_files(pki: Pki) -> None:
    one = pki.issue("login").certificate.read_bytes()
    key, _, leaf = one.partition(b"-----BEGIN CERTIFICATE")
    tls, private = pki.folder / "tls.crt", pki.folder / "tls.key"
    replace(tls, b"-----BEGIN CERTIFICATE" + leaf)
    replace(private, key.rstrip())
    login = Credentials(MESH, "login", CredentialFiles(tls, private, pki.folder / "roots.pem"))
    connect(login.server_context(), pki.credentials("edge").client_context())


def test_a_component_without_valid_files_does_not_start(pki: Pki) -> None:
    with pytest.raises(Faults, match=r"audit\.pem: no such file or directory"):
        Credentials(MESH, "audit", CredentialFiles.of(pki.folder, "audit"))
    with pytest.raises(Faults, match="for login, not for audit"):
        Credentials(MESH, "audit", pki.issue("login"))
    with pytest.raises(Faults, match="another mesh"):
        Credentials("other", "login", pki.issue("login"))


async def test_a_new_file_is_noticed_while_the_component_runs(pki: Pki, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mesh.certificates.credentials.CHECK_INTERVAL", 0.01)
    login = pki.credentials("login")
    renewed = asyncio.Event()
    login.subscribe(renewed.set)
    watching = asyncio.create_task(login.watch())
    try:
        pki.issue("login")
        await asyncio.wait_for(renewed.wait(), 20)
    finally:
        watching.cancel()


def test_a_certificate_that_is_about_to_expire_is_a_warning(pki: Pki, caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    login = Credentials(MESH, "login", pki.issue("login"), clock)
    caplog.set_level(logging.WARNING)
    for hours, text in ((17, ""), (1.5, "expires in 5.5 hours and was not renewed"), (6, "has expired")):
        clock.now += timedelta(hours=hours)
        login.warn_before_expiry()
        login.warn_before_expiry()
        assert [text in record.getMessage() for record in caplog.records] == [True] * bool(text)
        caplog.clear()
    assert login.seconds_to_expiry() < 0 < (login.expires - login.renew_at).total_seconds()
