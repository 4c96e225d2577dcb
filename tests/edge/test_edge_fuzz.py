"""Malformed input of every sort at the application: only 4xx, never 5xx, never a text of the inside."""

from __future__ import annotations

import json
import random

import pytest

from mesh.edge.app import EdgeApp
from mesh.layers.concurrency import ConcurrencyLimit

SEED = 20261121
CASES = 6000

_PATHS = [
    "/v1/books", "/v1/isbn/5", "/v1/shelves/1/books/2", "/v1/shelves/1/books/2:archive", "/v1/genre/PROSE/true/1",
    "/v1/at/2026-01-31T12:00:00Z/3s/0/AAE", "/v1/authors/a/b", "/v1/files/a/b", "/v1/books/1/tags", "/v1/any",
]  # fmt: skip
_QUERIES = ["", "title=a", "isbn=5&tags=a&tags=b", "author.teacher.name=x", "published=2026-01-31T12:00:00Z", "pages=1"]
_BODIES = [
    b"", b"{}", b'{"title":"a","isbn":"5","author":{"teacher":{"name":"x"}},"tags":["a"],"labels":{"a":"b"}}',
    b'{"published":"2026-01-31T12:00:00Z","readingTime":"1.5s","pages":3,"cover":"AAE=","price":"NaN","genre":1}',
    b'["a","b"]', b'"text"', b'{"editors":[{"name":"a","born":1},{}],"printings":["2026-01-31T12:00:00Z"]}',
]  # fmt: skip
_NOISE = [
    b"%", b"%zz", b"%ff", b"%2F", b"%00", b"/", b"//", b":", b"?", b"&", b"=",
    b"\xff", b"\x00", b"{", b"}", b'"',
    b"\r\n", b"[" * 200,
    b"null", b"-1", b"1e999", b"9" * 400, b"\\ud800", b"$", b".", b"..", b",", "€".encode(), b"true",
]  # fmt: skip
_MEDIA = [b"application/json"] * 6 + [b"application/json; charset=utf-8", b"text/plain", b"", b"application/grpc"]


def mangle(random: random.Random, data: bytes) -> bytes:
    """Change up to three places: cut, double, swap, or put noise."""
    for _ in range(random.randint(0, 3)):
        at = random.randint(0, len(data))
        upto = min(len(data), at + random.randint(0, 6))
        match random.randint(0, 3):
            case 0:
                data = data[:at] + data[upto:]
            case 1:
                data = data[:upto] + data[at:]
            case 2:
                data = data[:at] + random.choice(_NOISE) + data[at:]
            case 3:
                data = data[:at] + random.randbytes(upto - at) + data[upto:]
    return data


@pytest.fixture
def app(contract):
    async def answer(call):
        await call.receive_one()
        await call.send(b"")

    async def through(call, next):
        await next(call)

    return EdgeApp(
        contract,
        handler=answer,
        trace=through,
        authenticate=through,
        concurrency_limit=ConcurrencyLimit(10, 10),
        stream_limit=ConcurrencyLimit(10, 0),
        max_body=5000,
        timeout=5,
    )


async def send_one(app, verb, path, query, headers, body):
    """Return status and body of one ASGI request, its body cut in two."""
    half = len(body) // 2
    events = [
        {"type": "http.request", "body": body[:half], "more_body": True},
        {"type": "http.request", "body": body[half:]},
    ]
    sent = []

    async def receive():
        return events.pop(0) if events else {"type": "http.disconnect"}

    async def send(event):
        sent.append(event)

    scope = {
        "type": "http", "method": verb, "raw_path": path, "query_string": query, "headers": headers, "scheme": "http",
        "http_version": "2", "client": None,
    }  # fmt: skip
    await app(scope, receive, send)
    assert [event["type"] for event in sent] == ["http.response.start", "http.response.body"]
    start, end = sent
    declared = dict(start["headers"]).get(b"content-length")
    if declared is not None and verb != "HEAD":
        assert int(declared) == len(end["body"])
    return start["status"], end["body"]


async def test_malformed_requests_are_only_ever_refused(app):
    rng = random.Random(SEED)  # noqa: S311 - repeatable, not secret
    seen: dict[int, int] = {}
    for case in range(CASES):
        verb = rng.choice(["GET", "POST", "POST", "POST", "PATCH", "PUT", "DELETE", "HEAD", "OPTIONS", "PURGE", "X"])
        path = mangle(rng, rng.choice(_PATHS).encode())
        query = mangle(rng, rng.choice(_QUERIES).encode())
        body = mangle(rng, rng.choice(_BODIES))
        headers = [(b"content-type", rng.choice(_MEDIA)), (b"content-length", mangle(rng, b"%d" % len(body)))]
        status, answer = await send_one(app, verb, path, query, headers[: rng.randint(0, 2) or 2], body)
        seen[status] = seen.get(status, 0) + 1
        where = (case, verb, path, query, headers, body)
        assert status < 500, where
        if status >= 400 and verb != "HEAD":
            error = json.loads(answer)
            assert error["message"], where
            assert not any(word in error["message"] for word in ("Traceback", "mesh.", "object at 0x")), where
    assert {200, 400, 404, 405, 413, 415} <= set(seen)
