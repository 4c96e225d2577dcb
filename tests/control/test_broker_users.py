"""The broker of docker-compose.yml: its configuration, with the keys and users that ``mesh keys --each`` makes."""

from __future__ import annotations

import asyncio
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import nats.errors
import pytest

from mesh.control.commands import keys_actions
from mesh.events.broker import nats_server, nkey_files
from mesh.events.broker.broker import Broker, Settings, inbox_of
from mesh.events.broker.nats_connection import DeniedError

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MESH_STATE", str(tmp_path / "state"))
    keys_actions.make(ROOT / "mesh.toml", tmp_path / "keys", None)
    return tmp_path / "keys"


@pytest.fixture
def url(tmp_path: Path, keys: Path) -> Iterator[str]:
    """A server with deploy/nats/nats.conf, on a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tmp_path / "etc"
    folder.mkdir()
    shutil.copytree(keys / "broker", folder / "identity")
    text = (ROOT / "deploy/nats/nats.conf").read_text()
    for line, other in (
        ("port: 4222", f'listen: "127.0.0.1:{port}"'),
        ('http: "127.0.0.1:8222"', ""),
        ("/data", str(tmp_path / "data")),
        ("/etc/nats/identity", str(folder / "identity")),
    ):
        assert line in text
        text = text.replace(line, other)
    (folder / "mesh.conf").write_text(text)
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen([nats_server.binary(), "--config", folder / "mesh.conf"], stdout=log, stderr=log)
    try:
        asyncio.run(asyncio.wait_for(nats_server.ready("127.0.0.1", port), 20))
        yield f"tls://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


def _roots(keys: Path) -> str:
    return str(keys / "edge" / "roots.pem")


def settings(url: str, keys: Path, name: str) -> Settings:
    return Settings(urls=(url,), nkey=str(nkey_files.path_of(keys / name, name)), ca=_roots(keys), inbox=inbox_of(name))


async def test_it_accepts_the_services_and_the_operator_only(url: str, keys: Path) -> None:
    for name in ("registration", "login", "audit", "operator"):
        await Broker(settings(url, keys, name), name).make_streams()
    for one in (Settings(urls=(url,), ca=_roots(keys)), settings(url, keys, "edge")):
        with pytest.raises(nats.errors.Error, match="Authorization Violation"):
            await Broker(one, "stranger").make_streams()
    audit = Broker(settings(url, keys, "audit"), "audit")
    audit.start()
    with pytest.raises(DeniedError):
        await (await audit.ready()).request("STREAM.PURGE.EVENTS", {})
    await audit.stop()


async def test_it_speaks_tls_with_the_certificate_of_the_broker(url: str, keys: Path) -> None:
    with pytest.raises(ssl.SSLCertVerificationError):  # by the authorities of the system
        await Broker(Settings(urls=(url,)), "doubtful").make_streams()


def test_the_file_for_the_broker_holds_no_secret(keys: Path) -> None:
    text = (keys / "broker" / "authorization.conf").read_text()
    assert not any(file.read_text().strip() in text for file in keys.rglob("*.nkey"))
