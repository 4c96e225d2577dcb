"""Malformed requests at an edge with every layer in: only 4xx, no text of the inside, no memory kept."""

from __future__ import annotations

import asyncio
import gc
import json
import random
import tracemalloc

import pytest
import uvloop
from msgspec import convert

from mesh.config.manifest import EdgeConfig
from mesh.edge import OptionalLayers
from mesh.edge.app import EdgeApp
from mesh.layers.concurrency import ConcurrencyLimit

SEEDS = [20261121, 7, 4242]
"""Kept: what failed once fails again."""
CASES = 2500

_NAMES = [
    "text", "flag", "int32Value", "int64_value", "uint64Value", "doubleValue", "floatValue", "data", "color", "at",
    "stringWrapper", "int64Wrapper", "span", "mask", "maybeText", "inner", "inners", "texts", "numbers", "colors",
    "labels", "structure", "value", "list", "any", "called", "this", "that", "other", "nothing", "@type", "",
    "inner.name", "inner.inner.words", "$alt", "times",
]  # fmt: skip
_TEXTS = [
    "a", "", "true", "0", "-1", "1.5", "1e400", "NaN", "-Infinity", "9223372036854775808", "AAE=", "-_8", "RED", "99",
    "2026-01-31T12:00:00Z", "9999-12-31T23:59:60Z", "3s", "1e5s", "text,inner.name",
    "type.googleapis.com/transcode.v1.All",
    "type.googleapis.com/google.protobuf.Any", "\ud800", "\0", "€" * 50, "%", "%2F", "..", "null",
]  # fmt: skip
_PATHS = [
    "/whole", "/whole/a/b", "/part/inner", "/part/inners", "/part/value", "/part/any", "/part/at", "/q", "/things",
    "/p/text/a", "/p/int32/1", "/p/at/x", "/p/things/things/a/parts/b", "/p/x:rest", "/p/any/x", "/refuse",
]  # fmt: skip
_HEADERS = [
    (b"origin", b"https://a.example"), (b"origin", b"\xff"), (b"access-control-request-method", b"GET"),
    (b"access-control-request-headers", b"a,\x01"), (b"x-forwarded-for", b"1.1.1.1, ::, 300.1.1.1"),
    (b"forwarded", b'for="[::1]:99";proto=https, for=\\"'), (b"forwarded", b'for="' * 100), (b"x-tenant", b"a"),
    (b"x-tenant", b"\xc3\xa4"), (b"content-length", b"1"), (b"content-length", b"x"), (b"content-encoding", b"gzip"),
    (b"x-forwarded-host", b"a/b"), (b"x-forwarded-proto", b"javascript"), (b"traceparent", b"00-zz"),
    (b"authorization", b"Basic \xff"), (b"accept", b"*/*;q=x"), (b"x", b"y" * 40_000),
]  # fmt: skip


def value(rng: random.Random, depth: int = 0):
    match rng.randint(0, 9 if depth < 6 else 5):
        case 0 | 1 | 2:
            return rng.choice(_TEXTS)
        case 3:
            return rng.choice([0, -1, 1.5, 2**63, 10**400, 1e300, -0.0])
        case 4:
            return rng.choice([None, True, False])
        case 5:
            return {}
        case 6 | 7:
            return [value(rng, depth + 1) for _ in range(rng.randint(0, 3))]
        case _:
            return {rng.choice(_NAMES): value(rng, depth + 1) for _ in range(rng.randint(0, 5))}


def text(rng: random.Random) -> bytes:
    data = json.dumps(value(rng), ensure_ascii=rng.random() < 0.7).encode("utf-8", "surrogatepass")
    if rng.random() < 0.3:
        at = rng.randint(0, len(data))
        data = data[:at] + rng.randbytes(rng.randint(0, 3)) + data[at + rng.randint(0, 3) :]
    return data


def query(rng: random.Random) -> bytes:
    pairs = [
        rng.choice(_NAMES).encode() + b"=" + rng.choice(_TEXTS).encode("utf-8", "surrogatepass")
        for _ in range(rng.randint(0, 3))
    ]
    return b"&".join(pairs)


@pytest.fixture
def app(contract):
    async def answer(call):
        request = await call.receive_one()
        await call.send(request if call.method.output is call.method.input else b"")

    async def through(call, next):
        await next(call)

    table = convert(
        {"cors": ["https://a.example"], "metadata": ["x-tenant"], "trusted_proxies": ["127.0.0.1"],
         "rate_limit": {"per_client": "100000/s burst 1000000"}},
        EdgeConfig, dec_hook=lambda kind, value: kind.parse(value),
    )  # fmt: skip
    return EdgeApp(
        contract, handler=answer, trace=through, authenticate=through,
        concurrency_limit=ConcurrencyLimit(10, 10),
        stream_limit=ConcurrencyLimit(10, 0), max_body=20_000, timeout=5,
        layers=OptionalLayers.of(table),
    )  # fmt: skip


async def send_one(app, verb, path, query, headers, body):
    events = [{"type": "http.request", "body": body}]
    sent = []

    async def receive():
        return events.pop(0) if events else {"type": "http.disconnect"}

    async def send(event):
        sent.append(event)

    scope = {
        "type": "http", "method": verb, "raw_path": path, "query_string": query, "headers": headers, "scheme": "http",
        "http_version": "2", "client": ("127.0.0.1", 1),
    }  # fmt: skip
    await app(scope, receive, send)
    start, end = sent
    return start["status"], end["body"]


async def one(app, rng):
    verb = rng.choice(["GET", "POST", "POST", "POST", "DELETE", "OPTIONS", "HEAD", "LINK"])
    path = rng.choice(_PATHS).encode()
    if rng.random() < 0.2:
        path += rng.choice(_TEXTS).encode("utf-8", "surrogatepass")
    headers = [(b"host", b"a"), (b"content-type", b"application/json")]
    headers += rng.sample(_HEADERS, rng.choice([0, 0, 1, 2, 3]))
    case = (verb, path, query(rng) if rng.random() < 0.4 else b"", headers, text(rng))
    return case, *await send_one(app, *case)


@pytest.mark.parametrize("seed", SEEDS)
async def test_malformed_requests_are_only_ever_refused(app, seed):
    rng = random.Random(seed)  # noqa: S311 - repeatable, not secret
    seen = set()
    for _ in range(CASES):
        case, status, answer = await one(app, rng)
        seen.add(status)
        assert status < 500, case
        if status >= 400 and case[0] != "HEAD":
            error = json.loads(answer)
            assert set(error) == {"code", "message", "details"}, case
            assert error["message"], case
            for word in ("Traceback", "mesh.", "mesh/", "object at 0x", "protobuf.", "Error:", ".py"):
                if word not in "".join(map(repr, case)):
                    assert word not in error["message"], case
    assert {200, 400, 404, 405, 431} <= seen


def test_it_keeps_no_memory(app):
    async def run(rng: random.Random, cases: int) -> int:
        for _ in range(cases):
            await one(app, rng)
            await asyncio.sleep(0)  # the loop frees what it was told to forget
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    rng = random.Random(1)  # noqa: S311 - as above
    # On the loop that the edge runs on: asyncio's own keeps up to a hundred cancelled timers, with what they hold.
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run(rng, 1500))
        tracemalloc.start()
        try:
            before = runner.run(run(rng, 300))
            grown = runner.run(run(rng, 1500)) - before
        finally:
            tracemalloc.stop()
    assert grown < 100_000
