"""HTTPS of the edge: HSTS and scheme behind TLS, redirects and probes of the plain listener."""

from __future__ import annotations

from typing import Any

import pytest

from mesh.edge.https import HttpsApp, RedirectApp


async def answer(app: Any, scope: dict[str, Any]) -> tuple[int, list[tuple[bytes, bytes]]]:
    """Return status and headers of the response."""
    sent: list[Any] = []

    async def send(event: Any) -> None:
        sent.append(event)

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    await app(scope, receive, send)
    return sent[0]["status"], sent[0]["headers"]


def request(host: bytes | None = b"shop.example", path: str = "/", query: bytes = b"", **more: Any) -> dict[str, Any]:
    headers = [] if host is None else [(b"host", host)]
    raw = more.pop("raw_path", path.encode())
    scope = {"type": "http", "scheme": "http", "path": path, "raw_path": raw, "query_string": query}
    return {**scope, "headers": headers, **more}


class App:
    """Application that records its scope and sends given headers."""

    def __init__(self, *headers: tuple[bytes, bytes]) -> None:
        self.headers = list(headers)
        self.scope: dict[str, Any] = {}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:  # noqa: ARG002
        self.scope = scope
        await send({"type": "http.response.start", "status": 200, "headers": self.headers})
        await send({"type": "http.response.body"})


async def test_a_response_tells_browsers_to_stay_with_https() -> None:
    app = App((b"x-a", b"b"))
    assert await answer(HttpsApp(app, 60.0), request()) == (
        200, [(b"x-a", b"b"), (b"strict-transport-security", b"max-age=60")]
    )  # fmt: skip
    assert app.scope["scheme"] == "https"  # whatever a client of HTTP/2 sends


async def test_the_policy_of_a_handler_stands() -> None:
    own = (b"strict-transport-security", b"max-age=5; includeSubDomains")
    assert await answer(HttpsApp(App(own), 60.0), request()) == (200, [own])


@pytest.mark.parametrize(
    ("given", "location"),
    [
        (request(), b"https://shop.example/"),
        (request(path="/v1/users", query=b"a=b&c=%20"), b"https://shop.example/v1/users?a=b&c=%20"),
        (request(b"localhost:8080", "/a b", raw_path=b"/a%20b"), b"https://localhost:8443/a%20b"),
        (request(b"[::1]:80"), b"https://[::1]:8443/"),
        (request(path="*", method="OPTIONS"), b"https://shop.example/"),
    ],
)
async def test_a_request_is_redirected_with_path_and_query(given: dict[str, Any], location: bytes) -> None:
    status, headers = await answer(RedirectApp(App(), 8443), given)
    assert (status, dict(headers)[b"location"]) == (308, location)


async def test_the_default_port_is_left_out() -> None:
    _, headers = await answer(RedirectApp(App(), 443), request(b"shop.example:80"))
    assert dict(headers)[b"location"] == b"https://shop.example/"


@pytest.mark.parametrize("host", [None, b"", b"a b", b"a@evil.example", b"a/../b", b"evil.example\\", b"a:b"])
async def test_a_malformed_host_is_redirected_nowhere(host: bytes | None) -> None:
    status, headers = await answer(RedirectApp(App(), 8443), request(host))
    assert (status, b"location" in dict(headers)) == (400, False)


@pytest.mark.parametrize("path", ["/healthz", "/livez"])
async def test_probes_are_served_without_tls(path: str) -> None:
    app = App((b"x-a", b"b"))
    assert await answer(RedirectApp(app, 8443), request(path=path)) == (200, [(b"x-a", b"b")])
