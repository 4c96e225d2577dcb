"""Certificates of the edge: replaced files are taken, files that do not fit are not."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from typing import Any

import pytest
from pki import Pki, replace

from mesh.address import split
from mesh.config.edge import EdgeTlsConfig
from mesh.control.component.edge_tls import EdgeCertificates
from mesh.rpc.server import listener as listener_module
from mesh.rpc.server.listener import Listener


async def app(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body"})


async def presented(address: str, pki: Pki) -> int:
    """Return the serial number of the certificate that a new connection gets."""
    context = ssl.create_default_context(cafile=str(pki.folder / "roots.pem"))
    _, writer = await asyncio.open_connection(*split(address), ssl=context, server_hostname="localhost")
    certificate = writer.get_extra_info("peercert")
    writer.transport.abort()
    return int(certificate["serialNumber"], 16)


async def test_replaced_files_are_taken_and_broken_ones_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(listener_module, "RETIRE_DELAY", 0.0)
    pki = Pki(tmp_path)
    leaf = str(pki.issue("edge").certificate)
    certificates = EdgeCertificates(EdgeTlsConfig(certificate=leaf, private_key=leaf))
    listener = Listener(app, "127.0.0.1:0", grpc=True, max_body=0, drain=0, tls=certificates.files)
    address = await listener.start()
    first = await presented(address, pki)
    assert not await certificates.check(listener.renew)  # nothing has changed
    pki.issue("edge")
    assert await certificates.check(listener.renew)
    second = await presented(address, pki)
    assert second != first
    replace(pki.folder / "edge.pem", b"-----BEGIN CERTIFICATE-----\n")
    assert not await certificates.check(listener.renew)
    assert not await certificates.check(listener.renew)  # it is logged once
    assert caplog.text.count("the new files are refused, the last ones stay in use") == 1
    assert await presented(address, pki) == second
    pki.issue("edge")
    assert await certificates.check(listener.renew)
    assert await presented(address, pki) not in (first, second)
    await listener.stop()


async def test_an_expired_certificate_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    leaf = str(Pki(tmp_path).expired("edge").certificate)
    certificates = EdgeCertificates(EdgeTlsConfig(certificate=leaf, private_key=leaf))
    watching = asyncio.create_task(certificates.watch(lambda _: asyncio.sleep(0)))
    await asyncio.sleep(0)
    watching.cancel()
    assert "and clients refuse it now" in caplog.text
