"""Broker with TLS that requests a client certificate."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from broker_process import BrokerProcess
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from publishing import until

from mesh.events.broker.broker import Broker, Settings


def certificate(folder: Path) -> tuple[str, str]:
    """Make one certificate that is its own authority and serves both sides; return the paths of it and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "broker")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (folder / "cert.pem").write_bytes(made.public_bytes(pem))
    (folder / "key.pem").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return str(folder / "cert.pem"), str(folder / "key.pem")


async def test_both_sides_prove_who_they_are(
    new_nats: Callable[..., BrokerProcess], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cert, key = certificate(tmp_path)
    server = new_nats(f'tls {{ cert_file: "{cert}", key_file: "{key}", ca_file: "{cert}", verify: true }}')
    url = server.url.replace("nats://", "tls://")
    known = Broker(Settings(urls=(url,), ca=cert, certificate=cert, private_key=key), "known")
    known.start()
    await until(lambda: known.connection)
    await known.stop()

    unknown = Broker(Settings(urls=(url,), ca=cert), "unknown")
    unknown.start()
    await until(lambda: "cannot be used" in caplog.text)
    assert unknown.connection is None
    await unknown.stop()
    caplog.clear()

    doubtful = Broker(Settings(urls=(url,), certificate=cert, private_key=key), "doubtful")
    doubtful.start()
    await until(lambda: "cannot be used" in caplog.text)
    assert "certificate verify failed" in caplog.text
    await doubtful.stop()


async def test_a_server_without_tls_gets_neither_credentials_nor_events(
    new_nats: Callable[..., BrokerProcess], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ca, _ = certificate(tmp_path)
    url = new_nats().url.replace("nats://", "tls://ada:secret@")
    broker = Broker(Settings(urls=(url,), ca=ca), "careful")
    broker.start()
    await until(lambda: "cannot be used" in caplog.text)
    assert broker.connection is None
    assert "the server speaks plain text, and this side TLS" in caplog.text
    await broker.stop()
