"""Malformed gRPC-Web of every kind at the application: only statuses of the client's faults, never INTERNAL."""

from __future__ import annotations

import random
import struct
import zlib
from base64 import b64decode, b64encode

import pytest
from test_edge_fuzz import mangle

from mesh.edge.app import EdgeApp
from mesh.layers.concurrency import ConcurrencyLimit

SEED = 20261121
CASES = 6000
MAX = 5000
ALLOWED = {0, 3, 4, 8, 12}
"""OK, INVALID_ARGUMENT, DEADLINE_EXCEEDED (of a tiny grpc-timeout), RESOURCE_EXHAUSTED, UNIMPLEMENTED."""

_MEDIA = [
    b"application/grpc-web", b"application/grpc-web+proto", b"application/grpc-web-text",
    b"application/grpc-web-text+proto", b"application/grpc-web; charset=utf-8", b"application/grpc",
    b"application/grpc-web+json", b"application/grpc-", b"application/grpc-web-text+",
]  # fmt: skip
_PATHS = [b"Unary"] * 4 + [b"ServerStream", b"ClientStream", b"Bidi", b"", b"Nothing", b"%2F", b"\xff"]
_HEADERS = [
    (b"grpc-timeout", b"5S"), (b"grpc-timeout", b"1n"), (b"grpc-timeout", b"-1S"), (b"grpc-timeout", b"999999999S"),
    (b"grpc-timeout", b""), (b"grpc-encoding", b"gzip"), (b"grpc-encoding", b"br"), (b"grpc-encoding", b"\xff"),
    (b"grpc-accept-encoding", b"gzip"), (b"accept", b"application/grpc-web-text"), (b"accept", b"*/*"),
    (b"x-bin", b"\xff\xfe"), (b"x-a-bin", b"!!!"), (b"content-length", b"nine"), (b"grpc-status", b"0"),
]  # fmt: skip


def frames(rng: random.Random) -> bytes:
    """Return up to three frames, most of them valid."""
    made = b""
    for _ in range(rng.choice([0, 1, 1, 1, 1, 2, 3])):
        data = rng.randbytes(rng.choice([0, 1, 5, 40, 40, MAX, MAX + 1]))
        flag = rng.choice([0, 0, 0, 0, 0, 1, 2, 0x80, 0x81, 0xFF])
        if flag == 1 and rng.random() < 0.7:
            packer = zlib.compressobj(1, zlib.DEFLATED, 31)
            data = packer.compress(bytes(rng.choice([10, MAX, 50 * MAX]))) + packer.flush()
        length = rng.choice([len(data)] * 8 + [len(data) + 1, 0xFFFFFFFF])
        made += struct.pack(">BI", flag, length) + data
    return made


@pytest.fixture
def app(contract):
    async def answer(call):
        if call.method.client_streaming:
            while await call.receive() is not None:
                pass
        else:
            await call.receive_one()
        await call.send(b"answer")

    async def through(call, next):
        await next(call)

    return EdgeApp(
        contract,
        handler=answer,
        trace=through,
        authenticate=through,
        concurrency_limit=ConcurrencyLimit(10, 10),
        stream_limit=ConcurrencyLimit(10, 0),
        max_body=MAX,
        timeout=5,
    )


async def send_one(app, rng, path, headers, body):
    """Send one request, its body cut at any byte, and return the events of the response."""
    cuts = sorted(rng.randint(0, len(body)) for _ in range(rng.randint(0, 4)))
    pieces = [body[start:end] for start, end in zip([0, *cuts], [*cuts, len(body)], strict=True)]
    events = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
    events[-1]["more_body"] = False
    sent = []

    async def receive():
        return events.pop(0) if events else {"type": "http.disconnect"}

    async def send(event):
        sent.append(event)

    scope = {
        "type": "http", "method": "POST", "path": path.decode("latin-1"), "raw_path": path, "query_string": b"",
        "headers": headers, "scheme": "http", "http_version": rng.choice(["1.1", "2"]), "client": None,
    }  # fmt: skip
    await app(scope, receive, send)
    return sent


def judge(sent):
    """Return HTTP status and gRPC status; None for the gRPC status of a response that is not gRPC."""
    start, *rest = sent
    assert start["type"] == "http.response.start"
    headers = dict(start["headers"])
    if not headers[b"content-type"].startswith(b"application/grpc"):
        return start["status"], None, b"".join(event["body"] for event in rest)
    if headers[b"content-type"] == b"application/grpc":
        trailers = dict(rest[-1]["headers"]) if rest[-1]["type"] == "http.response.trailers" else headers
        return start["status"], int(trailers[b"grpc-status"]), trailers.get(b"grpc-message", b"")
    assert all(event["type"] == "http.response.body" for event in rest)
    assert [event.get("more_body", False) for event in rest][-1:] == [False]
    body = b"".join(event["body"] for event in rest)
    if headers[b"content-type"].startswith(b"application/grpc-web-text"):
        body = b"".join(b64decode(body[at : at + 4], validate=True) for at in range(0, len(body), 4))
    block = b""
    while body:
        assert not block, "something follows the trailers"
        flag, length = struct.unpack(">BI", body[:5])
        data, body = body[5 : 5 + length], body[5 + length :]
        assert len(data) == length
        if flag == 0x80:
            block = data
    if not block:
        return start["status"], int(headers[b"grpc-status"]), headers.get(b"grpc-message", b"")
    trailers = dict(line.split(b": ", 1) for line in block.removesuffix(b"\r\n").split(b"\r\n"))
    return start["status"], int(trailers[b"grpc-status"]), trailers.get(b"grpc-message", b"")


async def test_malformed_grpc_web_is_only_ever_refused(app):
    rng = random.Random(SEED)  # noqa: S311 - repeatable, not secret
    seen: dict[object, int] = {}
    for case in range(CASES):
        media = rng.choice(_MEDIA)
        body = frames(rng)
        if b"text" in media and rng.random() < 0.9:
            body = b64encode(body)
        if rng.random() < 0.4:
            body = mangle(rng, body)
        path = b"/conformance.v1.Echo/" + rng.choice(_PATHS)
        headers = [(b"content-type", media), *rng.sample(_HEADERS, rng.randint(0, 2))]
        where = (case, path, headers, body[:200])
        http, status, said = judge(await send_one(app, rng, path, headers, body))
        assert http == 200 or 400 <= http < 500, where
        assert status in ALLOWED if http == 200 else status is None, (status, said, where)
        assert status == 0 or said, where
        assert not any(word in said for word in (b"Traceback", b"mesh.", b"object at 0x", b"struct", b"zlib")), where
        seen[status if http == 200 else f"HTTP {http}"] = seen.get(status if http == 200 else f"HTTP {http}", 0) + 1
    assert {0, 3, 8, 12, "HTTP 415"} <= seen.keys(), seen
    assert seen[0] > 200
