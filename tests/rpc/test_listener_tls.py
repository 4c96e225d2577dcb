"""The listener with TLS: protocols, client certificates, refused clients, and other certificates under load."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from typing import Any

import ngh2
import pytest
from pki import Pki
from raw_h2 import raw_client

from mesh.address import split
from mesh.certificates import CredentialFiles, Credentials
from mesh.rpc.server import listener as listener_module
from mesh.rpc.server.listener import CertificateFiles, Listener, ListenError

REQUEST = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"


class Recorder:
    """Application that records the scopes of its requests."""

    def __init__(self) -> None:
        self.scopes: list[Any] = []
        self.hold: asyncio.Event | None = None
        self.held = asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:  # noqa: ARG002
        self.scopes.append(scope)
        if self.hold is not None:
            self.held.set()
            await self.hold.wait()
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})


def files(found: CredentialFiles, *, required: bool = True) -> CertificateFiles:
    return CertificateFiles(found.certificate, found.private_key, found.roots if required else None)


def anonymous(pki: Pki, *protocols: str) -> ssl.SSLContext:
    """Return the context of a client of the edge: it has no certificate."""
    context = ssl.create_default_context(cafile=str(pki.folder / "roots.pem"))
    context.set_alpn_protocols(protocols)
    return context


def member(credentials: Credentials) -> ssl.SSLContext:
    context = credentials.client_context()
    context.check_hostname = False
    return context


async def get(address: str, tls: ssl.SSLContext | None, name: str | None = None) -> bytes:
    """Return the status line of a response over HTTP/1.1; empty if the connection ends before."""
    reader, writer = await asyncio.open_connection(*split(address), ssl=tls, server_hostname=name)
    writer.write(REQUEST)
    try:
        return await reader.readline()
    finally:
        writer.transport.abort()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_the_edge_speaks_both_versions_and_both_protocols(tmp_path: Path, version: ssl.TLSVersion) -> None:
    pki, app = Pki(tmp_path), Recorder()
    tls = files(pki.issue("edge"), required=False)
    listener = Listener(app, "127.0.0.1:0", grpc=True, max_body=0, drain=0, tls=tls)
    address = await listener.start()
    for protocols in (("h2", "http/1.1"), ("http/1.1",), ()):
        context = anonymous(pki, *protocols)
        context.minimum_version = context.maximum_version = version
        if "h2" in protocols:
            async with raw_client(address, context, "localhost") as client:
                chosen = client.transport.get_extra_info("ssl_object").selected_alpn_protocol()
                assert ((await client.call(b"")).http, chosen) == (204, "h2")
        else:
            assert await get(address, context, "localhost") == b"HTTP/1.1 204 No Content\r\n"
    assert {scope["scheme"] for scope in app.scopes} == {"https"}
    assert {scope["extensions"]["tls"]["tls_version"] for scope in app.scopes} == {int(version)}
    await listener.stop()


async def test_old_versions_are_refused(tmp_path: Path) -> None:
    pki = Pki(tmp_path)
    tls = files(pki.issue("edge"), required=False)
    listener = Listener(Recorder(), "127.0.0.1:0", grpc=True, max_body=0, drain=0, tls=tls)
    address = await listener.start()
    context = anonymous(pki)
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1_1 is deprecated"):
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(OSError, match=r"(?i)protocol.version|alert|version"):
        await get(address, context, "localhost")
    await listener.stop()


async def test_a_member_of_the_mesh_is_let_in_and_named(tmp_path: Path) -> None:
    pki, app = Pki(tmp_path), Recorder()
    listener = Listener(app, "127.0.0.1:0", grpc=True, drain=0, tls=files(pki.issue("login")))
    address = await listener.start()
    async with raw_client(address, member(pki.credentials("registration"))) as client:
        assert (await client.call(b"")).http == 204
    (certificate, *_) = app.scopes[0]["extensions"]["tls"]["client_cert_chain"]
    assert pki.credentials("audit").peer(certificate) == "registration"
    await listener.stop()


async def test_others_are_refused_and_told_why(tmp_path: Path) -> None:
    pki, foreign, app = Pki(tmp_path / "shop"), Pki(tmp_path / "foreign"), Recorder()
    listener = Listener(app, "127.0.0.1:0", grpc=True, max_body=0, drain=0, tls=files(pki.issue("login")))
    address = await listener.start()

    def of(found: CredentialFiles) -> ssl.SSLContext:
        context = anonymous(pki)
        context.load_cert_chain(found.certificate, found.private_key)
        return context

    for tls, text in (
        (anonymous(pki), "CERTIFICATE_REQUIRED"),
        (of(foreign.issue("audit")), "UNKNOWN_CA|DECRYPT_ERROR|BAD_CERTIFICATE"),
        (of(pki.expired("audit")), "CERTIFICATE_EXPIRED"),
    ):
        with pytest.raises(OSError, match=text):  # with TLS 1.3 the refusal comes after the handshake
            assert not await get(address, tls, "localhost")
    reader, writer = await asyncio.open_connection(*split(address))
    writer.write(REQUEST)
    assert (await reader.read())[:2] == b"\x15\x03"  # plain text gets a TLS alert (RFC 8446, 5.1)
    writer.close()
    assert not app.scopes
    await listener.stop()


async def test_files_that_do_not_fit_stop_the_start(tmp_path: Path) -> None:
    pki = Pki(tmp_path)
    one, other = pki.issue("one"), pki.issue("other")
    for certificate, key, text in (
        (one.certificate, other.private_key, "KeyMismatch"),
        (tmp_path / "none.pem", one.private_key, "none.pem"),
        (tmp_path / "roots.pem", tmp_path / "roots.pem", "private key"),
    ):
        listener = Listener(Recorder(), "127.0.0.1:0", grpc=True, drain=0, tls=CertificateFiles(certificate, key))
        with pytest.raises(ListenError, match=f"cannot listen on 127.0.0.1:0 with .*{text}"):
            await listener.start()


async def test_new_connections_see_the_new_certificate_and_the_call_in_progress_ends(tmp_path: Path) -> None:
    pki, app = Pki(tmp_path), Recorder()
    app.hold = asyncio.Event()
    listener = Listener(app, "127.0.0.1:0", grpc=True, drain=5, tls=files(pki.issue("login")))
    address = await listener.start()
    context = member(pki.credentials("audit"))
    async with raw_client(address, context) as old:
        stream = old.request(end=True)
        await app.held.wait()
        fresh = pki.credentials("login")
        await listener.renew(files(fresh.files))
        await old.until(lambda: not old.h2.can_send_request)  # GOAWAY was received
        async with raw_client(address, context) as new:
            seen = new.transport.get_extra_info("ssl_object").getpeercert(binary_form=True)
            assert seen == ssl.PEM_cert_to_DER_cert(_leaf(fresh.files.certificate))
        app.hold.set()
        assert (await old.answer(stream)).http == 204
    await asyncio.wait_for(listener.stop(), 10)


def _leaf(path: Path) -> str:
    text = path.read_text()
    return text[text.index("-----BEGIN CERTIFICATE") :]


async def test_files_that_do_not_fit_change_nothing(tmp_path: Path) -> None:
    pki, app = Pki(tmp_path), Recorder()
    listener = Listener(app, "127.0.0.1:0", grpc=True, drain=0, tls=files(pki.issue("login")))
    address = await listener.start()
    other = pki.issue("other")
    with pytest.raises(ListenError, match="KeyMismatch"):
        await listener.renew(CertificateFiles(pki.folder / "login.pem", other.private_key, other.roots))
    async with raw_client(address, member(pki.credentials("audit"))) as client:
        assert (await client.call(b"")).http == 204
    await listener.stop()
    with pytest.raises(ConnectionError):
        await asyncio.open_connection(*split(address))


async def test_clients_of_http_1_are_told_to_connect_anew(tmp_path: Path) -> None:
    pki = Pki(tmp_path)
    listener = Listener(
        Recorder(), "127.0.0.1:0", grpc=True, max_body=0, drain=0, tls=files(pki.issue("edge"), required=False)
    )
    address = await listener.start()
    reader, writer = await asyncio.open_connection(*split(address), ssl=anonymous(pki), server_hostname="localhost")
    renewing: asyncio.Task[None] | None = None
    heads: list[bytes] = []
    while not heads or b"connection: close" not in heads[-1]:
        writer.write(REQUEST)
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        renewing = renewing or asyncio.create_task(listener.renew(files(pki.issue("edge"), required=False)))
    assert await reader.read() == b""  # closed by the server, after the response
    writer.close()
    assert renewing is not None
    await renewing
    await listener.stop()


async def ask_on(address: str, tls: ssl.SSLContext, asked: asyncio.Event, done: asyncio.Event) -> None:
    """Send one request after the other over a connection of HTTP/1.1, until its end or ``done``."""
    reader, writer = await asyncio.open_connection(*split(address), ssl=tls, server_hostname="localhost")
    while not reader.at_eof() and not done.is_set():
        writer.write(REQUEST)
        head = await reader.readuntil(b"\r\n\r\n")  # IncompleteReadError: the request was lost
        assert head.startswith(b"HTTP/1.1 204")
        asked.set()
        if b"connection: close" in head:
            break
        await asyncio.sleep(0.01)
    writer.transport.abort()


async def call_on(address: str, tls: ssl.SSLContext, asked: asyncio.Event, done: asyncio.Event) -> None:
    """Do the same over HTTP/2. A request that GOAWAY excludes may be sent again (RFC 9113, 6.8)."""
    async with raw_client(address, tls, "localhost") as client:
        while client.h2.can_send_request and not done.is_set():
            stream = client.request(end=True)
            answer = await client.answer(stream)
            if not answer.http:
                found = [event.last_stream_id for event in client.events if isinstance(event, ngh2.GoAwayReceived)]
                assert stream > min(found)
                break
            assert answer.http == 204
            asked.set()
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(("protocol", "ask"), [("http/1.1", ask_on), ("h2", call_on)])
async def test_clients_that_go_on_asking_lose_no_request(tmp_path: Path, protocol: str, ask: Any) -> None:
    pki, connections = Pki(tmp_path), 0
    tls = files(pki.issue("edge"), required=False)
    listener = Listener(Recorder(), "127.0.0.1:0", grpc=True, max_body=0, drain=1, tls=tls)
    address = await listener.start()

    async def client(asked: asyncio.Event) -> None:
        nonlocal connections
        while not done.is_set():
            await ask(address, anonymous(pki, protocol), asked, done)
            connections += 1

    done, all_asked = asyncio.Event(), [asyncio.Event() for _ in range(16)]
    async with asyncio.TaskGroup() as group:
        for asked in all_asked:
            group.create_task(client(asked))
        for renewed in (False, True):
            for asked in all_asked:
                asked.clear()
                await asked.wait()
            if not renewed:
                await listener.renew(files(pki.issue("edge"), required=False))
        done.set()
    assert connections >= 2 * len(all_asked)
    await listener.stop()


async def test_an_idle_connection_of_http_1_is_closed_in_a_way_that_its_client_notices(tmp_path: Path) -> None:
    pki = Pki(tmp_path)
    tls = files(pki.issue("edge"), required=False)
    listener = Listener(Recorder(), "127.0.0.1:0", grpc=True, max_body=0, drain=1, tls=tls)
    address = await listener.start()
    reader, writer = await asyncio.open_connection(*split(address), ssl=anonymous(pki), server_hostname="localhost")
    writer.write(REQUEST)
    assert b"connection: close" not in await reader.readuntil(b"\r\n\r\n")
    await listener.renew(files(pki.issue("edge"), required=False))
    assert await reader.read() == b""  # an orderly end before the next request
    writer.close()
    await listener.stop()


async def test_a_stop_ends_what_an_earlier_certificate_began(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener_module, "RETIRE_DELAY", 0.0)
    monkeypatch.setattr(listener_module, "CANCELLATION_TIMEOUT", 0.1)
    pki, app = Pki(tmp_path), Recorder()
    app.hold = asyncio.Event()  # never set
    listener = Listener(app, "127.0.0.1:0", grpc=True, drain=0.1, tls=files(pki.issue("login")))
    async with raw_client(await listener.start(), member(pki.credentials("audit"))) as client:
        client.request(end=True)
        await app.held.wait()
        await listener.renew(files(pki.issue("login")))
        await asyncio.wait_for(listener.stop(), 10)
        await client.until(lambda: client.lost)
