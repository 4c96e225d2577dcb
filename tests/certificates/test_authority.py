"""Roots and leaves: every verifier that a mesh meets accepts them, and refuses others."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import threading
from concurrent import futures
from datetime import timedelta
from pathlib import Path

import grpc
import nats
import pytest
from broker_process import BrokerProcess
from cryptography import x509
from cryptography.x509.verification import PolicyBuilder, Store
from pki import MESH, Pki, now

from mesh.certificates import CertificateError, CredentialFiles, Root
from mesh.certificates.authority import (
    LEAF_LIFETIME,
    ROOT_LIFETIME,
    half_life,
    issuer_id,
    new_key,
    parse_bundle,
    verify_leaf,
)  # fmt: skip


@pytest.fixture
def pki(tmp_path: Path) -> Pki:
    return Pki(tmp_path)


def strict(files: CredentialFiles, purpose: ssl.Purpose) -> ssl.SSLContext:
    """A context as another program makes it, with the flags that Python 3.13 has by default."""
    context = ssl.create_default_context(purpose, cafile=str(files.roots))
    context.verify_flags |= ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(files.certificate, files.private_key)
    return context


def handshake(server: ssl.SSLContext, client: ssl.SSLContext, host: str) -> tuple[bytes, bytes]:
    """The certificates that the client and the server saw of each other, over a socket pair."""
    ours, theirs = socket.socketpair()
    with ours, theirs, futures.ThreadPoolExecutor(1) as pool:

        def serve() -> bytes:
            with server.wrap_socket(theirs, server_side=True) as connection:
                connection.sendall(b"!")
                return connection.getpeercert(binary_form=True) or b""

        served = pool.submit(serve)
        try:
            with client.wrap_socket(ours, server_hostname=host) as connection:
                assert connection.recv(1) == b"!"
                seen = connection.getpeercert(binary_form=True) or b""
        except ssl.SSLError:
            ours.close()
            served.exception(timeout=10)
            raise
        return seen, served.result(timeout=10)


@pytest.mark.parametrize("host", ["login", "localhost", "127.0.0.1", "login.shop.svc"])
def test_strict_openssl_accepts_the_leaves(pki: Pki, host: str) -> None:
    login = pki.issue("login", hosts=("localhost", "127.0.0.1", "login.shop.svc"))
    server, client = strict(login, ssl.Purpose.CLIENT_AUTH), strict(pki.issue("edge"), ssl.Purpose.SERVER_AUTH)
    assert all(handshake(server, client, host))
    with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
        handshake(server, client, "audit")


def test_the_verifier_of_cryptography_accepts_the_leaves(pki: Pki) -> None:
    leaf = x509.load_pem_x509_certificate(pki.issue("login").certificate.read_bytes())
    store = Store([pki.root.certificate])
    PolicyBuilder().store(store).build_server_verifier(x509.DNSName("login")).verify(leaf, [])
    subjects = PolicyBuilder().store(store).build_client_verifier().verify(leaf, []).subjects
    assert subjects is not None
    assert x509.UniformResourceIdentifier("spiffe://shop/login") in subjects


def test_openssl_verifies_the_chain(pki: Pki) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("needs openssl")
    files = pki.issue("login")
    verify = [openssl, "verify", "-x509_strict", "-purpose", "sslserver", "-CAfile", files.roots, files.certificate]
    assert subprocess.run(verify, capture_output=True, text=True, check=True).stdout.endswith("OK\n")


def test_curl_accepts_the_leaves(pki: Pki) -> None:
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("needs curl")
    login, edge = pki.issue("login"), pki.issue("edge")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        def serve() -> None:
            connection, _ = listener.accept()
            with strict(login, ssl.Purpose.CLIENT_AUTH).wrap_socket(connection, server_side=True) as secured:
                secured.recv(4096)
                secured.sendall(b"HTTP/1.0 200 OK\r\n\r\nfine")

        thread = threading.Thread(target=serve)
        thread.start()
        command = [curl, "-sS", "--cacert", edge.roots, "--cert", edge.certificate, "--key", edge.private_key]
        done = subprocess.run(
            [*command, f"https://localhost:{port}/"], capture_output=True, text=True, check=False, timeout=20
        )
        thread.join()
    assert (done.stdout, done.stderr) == ("fine", "")


def test_grpcio_accepts_the_leaves_and_knows_the_id(pki: Pki) -> None:
    login, edge = pki.issue("login"), pki.issue("edge")
    seen: list[bytes] = []

    def answer(_: bytes, context: grpc.ServicerContext) -> bytes:
        seen.extend(context.auth_context()["peer_spiffe_id"])
        return b""

    handler = grpc.unary_unary_rpc_method_handler(answer)
    server = grpc.server(futures.ThreadPoolExecutor(1))
    server.add_registered_method_handlers("a.B", {"C": handler})
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("a.B", {"C": handler}),))
    port = server.add_secure_port(
        "127.0.0.1:0",
        grpc.ssl_server_credentials(
            [(login.private_key.read_bytes(), login.certificate.read_bytes())], login.roots.read_bytes(),
            require_client_auth=True,
        ),
    )  # fmt: skip
    server.start()
    own = grpc.ssl_channel_credentials(
        edge.roots.read_bytes(), edge.private_key.read_bytes(), edge.certificate.read_bytes()
    )
    try:
        with grpc.secure_channel(f"127.0.0.1:{port}", own) as channel:
            assert channel.unary_unary("/a.B/C")(b"", timeout=20) == b""
    finally:
        server.stop(None).wait()
    assert seen == [b"spiffe://shop/edge"]


async def test_nats_server_accepts_the_leaves_and_maps_the_id(pki: Pki) -> None:
    login, broker = pki.issue("login"), pki.issue("broker")
    process = BrokerProcess(
        f'tls {{ cert_file: "{broker.certificate}", key_file: "{broker.private_key}", ca_file: "{broker.roots}", '
        "verify_and_map: true }\n"
        'authorization { users = [ { user: "spiffe://shop/login" } ] }\n'
    )
    process.start()
    try:
        connection = await nats.connect(
            process.url.replace("nats:", "tls:"), tls=strict(login, ssl.Purpose.SERVER_AUTH), tls_hostname="localhost",
            allow_reconnect=False,
        )  # fmt: skip
        await connection.flush()
        await connection.close()
    finally:
        process.stop()


def test_leaves_of_two_roots_are_both_verified_while_both_are_trusted(pki: Pki) -> None:
    second = Root.make(MESH, now())
    assert second.certificate.subject != pki.root.certificate.subject
    pki.trust(pki.root, second)
    old, fresh = pki.issue("login"), pki.issue("audit", root=second)
    for server, client in ((old, fresh), (fresh, old)):
        contexts = strict(server, ssl.Purpose.CLIENT_AUTH), strict(client, ssl.Purpose.SERVER_AUTH)
        assert all(handshake(*contexts, "localhost"))
    pki.trust(second)
    with pytest.raises(ssl.SSLError):
        handshake(strict(fresh, ssl.Purpose.CLIENT_AUTH), strict(old, ssl.Purpose.SERVER_AUTH), "localhost")


def test_a_leaf_has_the_profile_that_all_verifiers_take(pki: Pki) -> None:
    leaf = x509.load_pem_x509_certificate(pki.issue("login").certificate.read_bytes())
    assert leaf.subject == x509.Name([])
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert names.critical
    assert names.value.get_values_for_type(x509.UniformResourceIdentifier) == ["spiffe://shop/login"]
    assert names.value.get_values_for_type(x509.DNSName) == ["login", "localhost"]
    assert leaf.serial_number.bit_length() <= 159
    assert issuer_id(leaf) == pki.root.id


def test_a_leaf_is_valid_from_before_its_issue_to_its_end_and_not_longer_than_its_root() -> None:
    at = now().replace(microsecond=0)
    root = Root.make(MESH, at)
    leaf = x509.load_pem_x509_certificate(root.issue(MESH, "login", new_key().public_key(), now=at))
    assert leaf.not_valid_after_utc - at == LEAF_LIFETIME
    assert leaf.not_valid_before_utc < at < half_life(leaf) < at + LEAF_LIFETIME / 2
    late = at + ROOT_LIFETIME - timedelta(hours=1)
    last = x509.load_pem_x509_certificate(root.issue(MESH, "login", new_key().public_key(), now=late))
    assert last.not_valid_after_utc == root.certificate.not_valid_after_utc
    with pytest.raises(CertificateError, match="rotate-root"):
        root.issue(MESH, "login", new_key().public_key(), now=at + ROOT_LIFETIME)


def test_a_leaf_of_another_root_is_not_verified(pki: Pki) -> None:
    leaf = x509.load_pem_x509_certificate(pki.issue("login").certificate.read_bytes())
    verify_leaf(leaf, [pki.root.certificate], now())
    with pytest.raises(CertificateError, match="no trusted root"):
        verify_leaf(leaf, [Root.make(MESH, now()).certificate], now())
    with pytest.raises(CertificateError, match="no trusted root"):
        verify_leaf(leaf, [pki.root.certificate], now() + timedelta(hours=25))


def test_a_root_is_read_back_with_its_own_key_only() -> None:
    root, other = Root.make(MESH, now()), Root.make(MESH, now())
    assert Root.parse(root.pem).id == root.id
    _, _, key = other.pem.partition(b"-----BEGIN PRIVATE")
    with pytest.raises(ValueError, match="belong together"):
        Root.parse(root.certificate_pem + b"-----BEGIN PRIVATE" + key)
    assert [one.subject for one in parse_bundle(root.certificate_pem + other.certificate_pem)] == [
        root.certificate.subject, other.certificate.subject,
    ]  # fmt: skip
    with pytest.raises(CertificateError, match="PEM"):
        parse_bundle(b"")
