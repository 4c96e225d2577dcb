"""``mesh keys serve`` in a process of its own, and components that get their certificates from it."""

from __future__ import annotations

import asyncio
import http.client
import json
import logging
import shutil
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from mesh import cli
from mesh.auth import key_files
from mesh.certificates import CertificateError, Credentials, signing
from mesh.certificates.authority import parse_bundle, verify_leaf
from mesh.certificates.authority_store import AuthorityStore
from mesh.certificates.leaf_files import current_leaf
from mesh.certificates.rotation import Step
from mesh.certificates.signing import PendingRequest
from mesh.config import manifest
from mesh.config.manifest import Manifest
from mesh.control import mesh_certificates
from mesh.control.component import component_certificates, signer_app
from mesh.control.component.signer_app import SignerApp
from mesh.control.component.signer_client import CERTIFICATES_PATH, SignerClient, SignerConnection
from mesh.faults import Faults

TEXT = """
name = "shop"
tls = "on"
[keys]
listen = "127.0.0.1:{port}"
address = "127.0.0.1:{port}"
[services.login]
module = "login"
serves = ["login.v1.Login"]
"""
PROTO = 'syntax = "proto3"; package login.v1; service Login {}'


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


class Machines:
    """The folders of a signer and of its components, as on a machine each, and the signer's process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        origin = self._machine("origin")
        protos = origin / "protos" / "login" / "v1"
        protos.mkdir(parents=True)
        (protos / "login.proto").write_text(PROTO)
        assert cli.main(["keys", "--each", str(folder / "each"), "--file", str(origin)]) == 0
        for name in ("keys", "login", "edge"):
            shutil.copytree(folder / "each" / name, self._machine(name) / ".mesh" / "identity")
            (folder / name / ".mesh" / "identity" / f"{name}.pem").unlink()
        shutil.move(origin / ".mesh" / "authority", folder / "keys" / ".mesh" / "authority")

    def _machine(self, name: str) -> Path:
        folder = self.folder / name
        folder.mkdir()
        (folder / "mesh.toml").write_text(TEXT.format(port=self.port))
        return folder

    def manifest(self, name: str) -> Manifest:
        return manifest.load(self.folder / name / "mesh.toml")

    @property
    def store(self) -> AuthorityStore:
        return AuthorityStore(self.folder / "keys" / ".mesh" / "authority", "shop")

    def start(self) -> None:
        """Start the signer, and wait until it serves."""
        each = str(self.folder / "each")
        command = [sys.executable, "-m", "mesh", "keys", "serve", "--each", each, "--file", str(self.folder / "keys")]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        for _ in range(2000):
            try:
                SignerConnection(self.manifest("keys")).round()
            except CertificateError:
                assert self._process.poll() is None, self.log
            else:
                return
        raise AssertionError(self.log)

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    def stop(self) -> None:
        """End the signer with SIGTERM."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            assert self._process.wait(30) == 0, self.log
            self._process = None


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Machines]:
    found = Machines(tmp_path)
    try:
        yield found
    finally:
        found.stop()


def test_a_component_gets_a_leaf_for_its_own_name_and_only_it_has_the_key(
    machines: Machines, capsys: pytest.CaptureFixture[str]
) -> None:
    machines.start()
    login = machines.manifest("login")
    component_certificates.obtain(login, "login")
    credentials = component_certificates.load(login, "login")
    assert credentials is not None
    first = credentials.serial
    verify_leaf_of(login, "login")
    assert SignerClient(login, "login").renew() == 0
    assert credentials.reload()
    assert credentials.serial != first
    assert [leaf.name for leaf in machines.store.status().state.leaves.values()].count("login") == 2  # --each made one
    assert cli.main(["health", "keys", "--file", str(machines.folder / "keys")]) == 0
    assert cli.main(["health", "keys", "--file", str(machines.folder / "login")]) == 0
    assert capsys.readouterr().out.endswith("keys: SERVING\nkeys: SERVING\n")
    assert "issued a certificate for login" in machines.log


def verify_leaf_of(found: Manifest, name: str) -> None:
    folder = found.state / "identity"
    leaf = current_leaf(folder, name, "shop")
    assert leaf is not None
    verify_leaf(leaf, parse_bundle((folder / "roots.pem").read_bytes()), datetime.now(UTC))
    assert (folder / f"{name}.pem").stat().st_mode & 0o777 == 0o600


def test_a_stranger_gets_nothing(machines: Machines) -> None:
    machines.start()
    login = machines.manifest("login")
    stranger = Ed25519PrivateKey.generate()
    connection = SignerConnection(login)
    bodies = {
        "not valid": PendingRequest("shop", "login", stranger, datetime.now(UTC)).body,
        "not known here": PendingRequest("shop", "nobody", stranger, datetime.now(UTC)).body,
        "clocks": PendingRequest(
            "shop", "login", key_files.load(login.state / "identity", "login"), datetime.now(UTC) - timedelta(hours=1)
        ).body,
        "no component": PendingRequest(
            "shop", "keys", key_files.load(machines.manifest("keys").state / "identity", "keys"), datetime.now(UTC)
        ).body,
        "expected JSON": b"{}",
        "at most 16384 bytes": b"x" * 20_000,
        "413|reset|broken": b"x" * 200_000,
    }
    for reason, body in bodies.items():
        with pytest.raises(CertificateError, match=rf"refused: .*({reason})|cannot be reached"):
            connection.request("POST", CERTIFICATES_PATH, body)
    for method, path in (("GET", CERTIFICATES_PATH), ("POST", "/healthz"), ("GET", "/nothing")):
        with pytest.raises(CertificateError, match=r"is called with|known are"):
            connection.request(method, path)
    assert connection.request("GET", "/livez") == b"{}"


def test_a_signer_of_another_mesh_or_name_is_not_trusted(machines: Machines, tmp_path: Path) -> None:
    machines.start()
    login = machines.manifest("login")
    roots = login.state / "identity" / "roots.pem"
    own = roots.read_bytes()
    (tmp_path / "other").mkdir()
    other = AuthorityStore(tmp_path / "other" / "authority", "shop")
    other.ensure(datetime.now(UTC))
    roots.write_bytes(other.roots())
    with pytest.raises(CertificateError, match=r"the signer's certificate is not trusted.*mesh keys --each"):
        SignerClient(login, "login").renew()
    roots.unlink()
    with pytest.raises(CertificateError, match="roots cannot be read"):
        SignerClient(login, "login").renew()
    roots.write_bytes(own)
    machines.stop()
    # A component of the mesh at the signer's address is not the signer.
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(machines.folder / "each" / "edge" / "edge.pem")
    with socket.create_server(("127.0.0.1", machines.port)) as listener:
        import threading

        def serve() -> None:
            connection, _ = listener.accept()
            with context.wrap_socket(connection, server_side=True) as secured:
                assert secured.recv(1) == b""

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(CertificateError, match="for edge, not for keys"):
            SignerClient(login, "login").renew()
        thread.join()


def test_a_component_starts_with_the_certificate_that_it_has_while_the_signer_is_away(
    machines: Machines, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(component_certificates, "FIRST_TIMEOUT", 0.0)
    login = machines.manifest("login")
    with pytest.raises(Faults, match=r"\[keys\] address: 127.0.0.1:\d+: the signer cannot be reached"):
        component_certificates.obtain(login, "login")
    machines.start()
    component_certificates.obtain(login, "login")
    machines.stop()
    component_certificates.obtain(login, "login")
    assert "no new certificate of login" in caplog.text


async def test_a_rotation_reaches_every_component_and_an_outage_is_survived(
    machines: Machines, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Components renew within a look at the signer, in each step; the signer is away for some time in between.

    It renews the files of broker and operator itself: no certificate is left that a step would wait for.
    """
    monkeypatch.setattr("mesh.certificates.renewal.POLL_INTERVAL", 0.1)
    monkeypatch.setattr("mesh.certificates.renewal.MAX_RETRY_DELAY", 0.1)
    monkeypatch.setattr(component_certificates, "CHECK_INTERVAL", 0.05)
    caplog.set_level(logging.INFO)
    await asyncio.to_thread(machines.start)
    names = ["login", "edge"]
    found: dict[str, Credentials] = {}
    tasks = []
    for name in names:
        own = machines.manifest(name)
        await asyncio.to_thread(component_certificates.obtain, own, name)
        credentials = component_certificates.load(own, name)
        assert credentials is not None
        found[name] = credentials
        tasks.append(asyncio.create_task(component_certificates.keep_current(credentials, own)))
    old = found["login"].root_id
    try:
        for step in (Step.ADDED, Step.SIGNING, Step.STEADY):
            if step is Step.SIGNING:
                await asyncio.to_thread(machines.stop)
                await until(lambda: "was not renewed, retry in" in caplog.text)
                await asyncio.to_thread(machines.start)
            serials = {name: found[name].serial for name in names}
            after = machines.store.advance(datetime.now(UTC), force=True)
            assert after is not None
            assert after.step is step
            await until(lambda: all(found[name].serial != serials[name] for name in names))  # noqa: B023 - awaited here
            await until(lambda: passive_rounds(machines) == {after.round})  # noqa: B023 - awaited here
            roots = {credentials.roots.count("BEGIN") for credentials in found.values()}
            assert roots == {1 if step is Step.STEADY else 2}
            for name in names:
                verify_leaf_of(machines.manifest(name), name)
    finally:
        for task in tasks:
            task.cancel()
    assert {credentials.root_id for credentials in found.values()} == {machines.store.status().state.signing} != {old}


def passive_rounds(machines: Machines) -> set[int]:
    """Return the rounds of the certificates in the files of broker and operator; -1: one that was not issued."""
    issued = machines.store.status().state.leaves
    rounds = set()
    for name in mesh_certificates.PASSIVE:
        held = current_leaf(machines.folder / "each" / name, name, "shop")
        rounds.add(-1 if held is None or held.serial_number not in issued else issued[held.serial_number].round)
    return rounds


async def until(condition: object) -> None:
    async with asyncio.timeout(60):
        while not condition():  # type: ignore[operator]  # noqa: ASYNC110 - another process is waited for
            await asyncio.sleep(0.01)


def test_the_signer_needs_an_authority(machines: Machines) -> None:
    shutil.rmtree(machines.store.folder)
    command = [sys.executable, "-m", "mesh", "keys", "serve", "--file", str(machines.folder / "keys")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert "there is no authority of the mesh; make it, and the keys of all components: mesh keys --each" in done.stderr


async def test_a_component_that_requests_too_often_is_told_to_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = AuthorityStore(tmp_path / "authority", "shop")
    store.ensure(datetime.now(UTC))

    def issue(name: str, key: object, replaced: int | None) -> object:
        return store.issue(name, key, now=datetime.now(UTC), replaced=replaced)  # type: ignore[arg-type]

    private = {"login": Ed25519PrivateKey.generate(), "audit": Ed25519PrivateKey.generate()}
    keys = {name: key.public_key() for name, key in private.items()}
    monkeypatch.setattr(signing, "MAX_REPLAY_NONCES", signer_app.BURST + 1)
    app = SignerApp(store, ["login", "audit"], lambda: keys, issue)
    statuses = []
    for name in ["login"] * (signer_app.BURST + 3) + ["audit", "login"]:
        body = PendingRequest("shop", name, private[name], datetime.now(UTC)).body
        sent: list[dict[str, object]] = []

        async def receive(body: bytes = body) -> dict[str, object]:
            return {"type": "http.request", "body": body}

        async def send(event: object, sent: list[dict[str, object]] = sent) -> None:
            sent.append(event)  # type: ignore[arg-type]

        await app({"type": "http", "method": "POST", "path": CERTIFICATES_PATH}, receive, send)
        statuses.append(sent[0]["status"])
    # What was refused uses up none of the memory of requests, which others need.
    assert statuses == [http.client.OK] * signer_app.BURST + [429] * 3 + [http.client.OK, 429]
    assert b"retry-after" in dict(sent[0]["headers"])  # type: ignore[call-overload]
    assert "requests too many certificates" in json.loads(sent[1]["body"])["message"]  # type: ignore[arg-type]
