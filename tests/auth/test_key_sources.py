"""JWK sets over HTTP: limits, discovery, certificates and redirects."""

from __future__ import annotations

import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from pki import Pki
from test_user_tokens import KEY, jwk, token

from mesh.auth import Issuer, TokenVerifier, discover, fetch_url, key_sources

KEYS = json.dumps({"keys": [jwk(KEY)]}).encode()
Page = Callable[[BaseHTTPRequestHandler], None]


def body(text: bytes) -> Page:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(text)

    return answer


def redirect(url: str) -> Page:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(302)
        handler.send_header("location", url)
        handler.end_headers()

    return answer


def server_context(folder: Path) -> ssl.SSLContext:
    """Return the context of a server whose certificate only ``roots.pem`` in the folder verifies."""
    Pki(folder).issue("issuer")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "issuer.pem")
    return context


@contextmanager
def server(pages: dict[str, Page], context: ssl.SSLContext | None = None) -> Iterator[str]:
    """Serve pages by path; yield the base URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            pages[self.path](self)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listener:
        if context is not None:
            listener.socket = context.wrap_socket(listener.socket, server_side=True)
        thread = threading.Thread(target=listener.serve_forever)
        thread.start()
        try:
            yield f"http{'' if context is None else 's'}://127.0.0.1:{listener.server_port}"
        finally:
            listener.shutdown()
            thread.join()


async def test_keys_are_fetched_from_a_url() -> None:
    pages: dict[str, Page] = {"/jwks": body(KEYS), "/large": body(b" " * ((1 << 20) + 1))}
    with server(pages) as base:
        pages["/moved"] = redirect(f"{base}/jwks")
        for path in ("/jwks", "/moved"):
            tokens = TokenVerifier([Issuer(name="me", audiences=("mesh",), fetch=fetch_url(base + path))])
            assert (await tokens.verify(token())).subject == "u1"
        with pytest.raises(ValueError, match="more than"):
            await fetch_url(f"{base}/large")()


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://h/keys", "data:,{}"])
async def test_other_schemes_are_refused(url: str) -> None:
    for source in (fetch_url, discover):
        with pytest.raises(ValueError, match="expected an http or https URL"):
            source(url)
    with (
        server({"/moved": redirect(url)}) as base,
        pytest.raises((ValueError, OSError), match=r"expected an http or|not allowed"),
    ):
        await fetch_url(f"{base}/moved")()


async def test_a_response_that_never_ends_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_sources, "FETCH_TIMEOUT", 0.5)
    ended = threading.Event()

    def drip(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.end_headers()
        while not ended.is_set():
            handler.wfile.write(b" ")
            time.sleep(0.01)

    with server({"/jwks": drip}) as base:
        try:
            with pytest.raises(TimeoutError, match="has not answered completely"):
                await fetch_url(f"{base}/jwks")()
        finally:
            ended.set()


@pytest.mark.parametrize("path", ["", "/", "/realms/shop", "/tenant/"])
async def test_discovery_finds_the_keys(path: str) -> None:
    pages: dict[str, Page] = {"/keys": body(KEYS)}
    with server(pages) as base:
        configuration = json.dumps({"issuer": base + path, "jwks_uri": f"{base}/keys"}).encode()
        pages[f"{path.removesuffix('/')}/.well-known/openid-configuration"] = body(configuration)
        tokens = TokenVerifier([Issuer(name=base + path, audiences=("mesh",), fetch=discover(base + path))])
        assert (await tokens.verify(token(iss=base + path))).subject == "u1"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"issuer": "https://other.example"}, "is the configuration of 'https://other.example', not of"),
        ({"issuer": None}, "is the configuration of None"),
        ({"jwks_uri": None}, "has no jwks_uri"),
        ({"jwks_uri": "file:///etc/passwd"}, "expected an http or https URL"),
    ],
)
async def test_a_configuration_of_another_issuer_or_without_keys_is_refused(
    change: dict[str, str | None], message: str
) -> None:
    pages: dict[str, Page] = {"/keys": body(KEYS)}
    with server(pages) as base:
        right: dict[str, str | None] = {"issuer": base, "jwks_uri": f"{base}/keys"}
        pages["/.well-known/openid-configuration"] = body(json.dumps(right | change).encode())
        with pytest.raises(ValueError, match=message):
            await discover(base)()


async def test_a_certificate_is_verified_and_https_never_leads_to_http(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages: dict[str, Page] = {"/keys": body(KEYS)}
    with server({"/keys": body(KEYS)}) as plain, server(pages, server_context(tmp_path)) as base:
        with pytest.raises(OSError, match="CERTIFICATE_VERIFY_FAILED"):
            await fetch_url(f"{base}/keys")()
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "roots.pem"))
        assert await fetch_url(f"{base}/keys")() == KEYS
        pages["/moved"] = redirect(f"{plain}/keys")
        with pytest.raises(ValueError, match="expected an https URL, got 'http://"):
            await fetch_url(f"{base}/moved")()
        configuration = json.dumps({"issuer": base, "jwks_uri": f"{plain}/keys"}).encode()
        pages["/.well-known/openid-configuration"] = body(configuration)
        with pytest.raises(ValueError, match="expected an https URL, got 'http://"):
            await discover(base)()
