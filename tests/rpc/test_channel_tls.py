"""Calls over TLS: who is refused and what the caller is told, and certificates that change under load."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import grpc
import grpc.aio
import pytest
from hosting import hosted, sidecar_of
from pki import Pki

from mesh.certificates import CredentialFiles, Credentials
from mesh.rpc.client.service_tls import ServiceTls
from mesh.rpc.server import listener
from mesh.rpc.server.listener import CertificateFiles


def files(found: CredentialFiles) -> CertificateFiles:
    return CertificateFiles(found.certificate, found.private_key, found.roots)


@asynccontextmanager
async def secured(
    contract: Any, pki: Pki, name: str = "echo", leaf: CredentialFiles | None = None
) -> AsyncIterator[str]:
    async with hosted(contract, tls=files(leaf or pki.issue(name))) as address:
        yield address


async def failure(stub: Any, rpc: Any) -> str:
    """Return code, text and place of the failure of a call."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Unary(rpc.pb.EchoRequest(), timeout=5)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    return str(caught.value.debug_error_string())


async def test_a_server_of_another_name_is_refused(contract, rpc, dial, transport, tmp_path):
    pki = Pki(tmp_path)
    async with secured(contract, pki, "audit") as address:
        text = await failure(dial(address, tls=ServiceTls(pki.credentials("caller"), "echo")), rpc)
    if transport == "ngh2":
        assert "it is not echo: the certificate is for audit, not for echo" in text


async def test_a_server_of_a_foreign_authority_is_refused(contract, rpc, dial, transport, tmp_path):
    pki, foreign = Pki(tmp_path / "shop"), Pki(tmp_path / "foreign")
    async with secured(contract, foreign) as address:
        text = await failure(dial(address, tls=ServiceTls(pki.credentials("caller"), "echo")), rpc)
    if transport == "ngh2":
        assert "its certificate is refused: unable to get local issuer certificate" in text


async def test_a_server_of_another_mesh_is_refused_even_by_the_same_authority(contract, rpc, dial, transport, tmp_path):
    pki = Pki(tmp_path)
    async with secured(contract, pki, leaf=pki.issue("echo", mesh="bakery")) as address:
        stub = dial(address, tls=ServiceTls(pki.credentials("caller"), "echo"))
        if transport == "ngh2":
            assert "'spiffe://bakery/echo' belongs to another mesh; this is 'shop'" in await failure(stub, rpc)


async def test_an_expired_server_is_refused(contract, rpc, dial, transport, tmp_path):
    pki = Pki(tmp_path)
    async with secured(contract, pki, leaf=pki.expired("echo")) as address:
        text = await failure(dial(address, tls=ServiceTls(pki.credentials("caller"), "echo")), rpc)
    if transport == "ngh2":
        assert "its certificate is refused: certificate has expired" in text


@pytest.mark.parametrize(
    ("kind", "reason"), [("foreign", r"unknown ca|bad certificate|decrypt error"), ("expired", "certificate expired")]
)
async def test_a_caller_whose_certificate_is_refused_is_told(contract, rpc, dial, transport, tmp_path, kind, reason):
    pki = Pki(tmp_path / "shop")
    found = pki.expired("caller") if kind == "expired" else Pki(tmp_path / "foreign").issue("caller")
    credentials = Credentials(
        "shop", "caller", CredentialFiles(found.certificate, found.private_key, pki.folder / "roots.pem")
    )
    async with secured(contract, pki) as address:
        text = await failure(dial(address, tls=ServiceTls(credentials, "echo")), rpc)
    if transport == "ngh2":
        assert "it refuses the certificate of this side: " in text


async def test_plain_text_to_a_server_with_tls_is_explained(contract, rpc, dial, transport, tmp_path):
    async with secured(contract, Pki(tmp_path)) as address:
        text = await failure(dial(address), rpc)
    if transport == "ngh2":
        assert "it speaks TLS and this side plain text" in text


async def test_tls_to_a_server_with_plain_text_is_explained(contract, rpc, dial, transport, serve, tmp_path):
    tls = ServiceTls(Pki(tmp_path).credentials("caller"), "echo")
    async with hosted(contract) as address:
        for server in (address, (await serve()).address):
            text = await failure(dial(server, tls=tls), rpc)
            if transport == "ngh2":
                assert "it does not speak TLS and this side does" in text


async def test_calls_go_on_while_the_certificates_of_both_sides_change(contract, rpc, dial, tmp_path, monkeypatch):
    """No call fails, unary or streaming; those in progress end on the connection that they have."""
    monkeypatch.setattr(listener, "RETIRE_DELAY", 0.0)
    pki = Pki(tmp_path)
    caller = pki.credentials("caller")
    sidecar = sidecar_of(contract, tls=files(pki.issue("echo")), drain=5.0)
    stub = dial(await sidecar.start(), tls=ServiceTls(caller, "echo"))
    ended, served = asyncio.Event(), asyncio.Event()
    counts = [0, 0]

    def count(kind: int) -> None:
        counts[kind] += 1
        if counts[0] >= 20 and counts[1] >= 5:
            served.set()

    async def unary() -> None:
        while not ended.is_set():
            await stub.Unary(rpc.pb.EchoRequest(), timeout=10)
            count(0)

    async def streaming() -> None:
        while not ended.is_set():
            stream = stub.ServerStream(rpc.pb.EchoRequest(count=3, sleep_ms=1), timeout=10)
            assert len([answer async for answer in stream]) == 3
            count(1)

    async with asyncio.TaskGroup() as group:
        for _ in range(4):
            group.create_task(unary())
            group.create_task(streaming())
        for _ in range(6):
            counts[:] = [0, 0]
            served.clear()
            await served.wait()
            pki.issue("caller")
            assert caller.reload()
            await sidecar.renew(files(pki.issue("echo")))
        ended.set()
    await sidecar.stop()


async def test_new_connections_use_the_new_certificate(contract, rpc, dial, tmp_path):
    """A rotation of the root: both are trusted, the leaves change, and the first root is gone."""
    pki = Pki(tmp_path)
    caller = pki.credentials("caller")
    sidecar = sidecar_of(contract, tls=files(pki.issue("echo")), drain=0.0)
    stub = dial(await sidecar.start(), tls=ServiceTls(caller, "echo"))
    await stub.Unary(rpc.pb.EchoRequest(), timeout=5)
    second = Pki(tmp_path / "second").root
    pki.trust(pki.root, second)
    assert caller.reload()
    await sidecar.renew(files(pki.issue("echo")))
    await stub.Unary(rpc.pb.EchoRequest(), timeout=5)
    pki.issue("caller", root=second)
    assert caller.reload()
    await sidecar.renew(files(pki.issue("echo", root=second)))
    await stub.Unary(rpc.pb.EchoRequest(), timeout=5)
    pki.trust(second)
    assert caller.reload()
    await sidecar.renew(files(pki.issue("echo", root=second)))
    await stub.Unary(rpc.pb.EchoRequest(), timeout=5)
    await sidecar.stop()


async def test_a_connection_ends_with_its_certificate(contract, rpc, dial, transport, tmp_path, monkeypatch):
    """A renewal that never comes closes the connection, and the next one is refused."""
    if transport != "ngh2":
        pytest.skip("the server refuses calls over connections of expired certificates")
    monkeypatch.setattr("mesh.rpc.client.connection_pool.RECONNECT_TIMEOUT", 0.1)
    pki = Pki(tmp_path)
    leaf = pki.issue("caller", lifetime=timedelta(seconds=3))
    async with secured(contract, pki) as address:
        stub = dial(address, tls=ServiceTls(Credentials("shop", "caller", leaf), "echo"))
        await stub.Unary(rpc.pb.EchoRequest(), timeout=5)
        stream = stub.ServerStream(rpc.pb.EchoRequest(count=1000, sleep_ms=100), timeout=30)
        with pytest.raises(grpc.aio.AioRpcError):
            async for _ in stream:
                pass
        assert "a certificate of the connection has expired" in await stream.debug_error_string()
        assert "expired" in await failure(stub, rpc)
