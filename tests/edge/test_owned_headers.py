"""Response headers that only the mesh writes: no function sets one, on any way out of the edge.

Each way is walked twice, with a function that sets nothing and with one that sets every header of the mesh. Both
responses must have the same headers of the mesh, so none was added, sent twice or changed.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from google.api.httpbody_pb2 import HttpBody
from msgspec import convert

from mesh import headers
from mesh.call import Call, Handler
from mesh.config import manifest
from mesh.config.manifest import EdgeConfig
from mesh.contract import loader, protoc
from mesh.contract.model import Contract
from mesh.edge import EdgeApp, OptionalLayers
from mesh.errors import FailedPrecondition, NotFound
from mesh.lambdas import json_value
from mesh.lambdas.service_descriptor import extend
from mesh.layers.concurrency import ConcurrencyLimit

ROOT = Path(__file__).parent.parent.parent
PAGE = "https://app.example"
CORS = [
    b"access-control-allow-origin", b"access-control-allow-credentials", b"access-control-expose-headers",
    b"access-control-allow-methods", b"access-control-allow-headers", b"access-control-max-age",
]  # fmt: skip
FORGED = [*sorted(headers.RESPONSE_OWNED), *CORS]


def owned(pairs: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    return sorted(pair for pair in pairs if headers.is_owned(pair[0]))


def function(*, forged: bool) -> Handler:
    """Answers for every method; with ``forged`` it first sets all headers and trailers of the mesh."""

    async def answer(call: Call) -> None:
        if forged:
            call.headers += [(name, b"forged") for name in FORGED]
            call.trailers += [(name, b"forged") for name in FORGED]
        request = call.method.input.FromString(await call.receive() or b"")
        if "fail" in str(request):
            raise FailedPrecondition("no")
        message = call.method.output()
        media = message if isinstance(message, HttpBody) else getattr(message, "body", None)
        if isinstance(media, HttpBody):
            media.content_type, media.data = "image/png", b"png"
        for _ in range(2 if call.method.server_streaming else 1):
            await call.send(message.SerializeToString())

    return answer


async def trace(call: Call, next: Handler) -> None:
    call.headers += [(headers.TRACE_ID, b"0" * 32), (headers.TRACERESPONSE, b"00-trace")]
    await next(call)


async def open_layer(call: Call, next: Handler) -> None:
    await next(call)


def app_of(contract: Contract, handler: Handler, **table: Any) -> EdgeApp:
    table = {"cors": [PAGE], "rate_limit": {"per_client": "1/h burst 100"}, **table}
    layers = OptionalLayers.of(convert(table, EdgeConfig, dec_hook=lambda kind, value: kind.parse(value)))
    return EdgeApp(
        contract, handler=handler, trace=trace, authenticate=open_layer, max_body=10_000, timeout=5, layers=layers,
        concurrency_limit=ConcurrencyLimit(10, 10),
        stream_limit=ConcurrencyLimit(10, 0),
    )  # fmt: skip


async def walk(
    app: EdgeApp, verb: str, path: str, body: bytes = b"", origin: str = PAGE, **fields: str
) -> tuple[int, list[tuple[bytes, bytes]]]:
    """Return status and headers of one request; trailers count as headers."""
    sent: list[Any] = []
    socket = verb == "WEBSOCKET"
    events = (
        [{"type": "websocket.connect"}, {"type": "websocket.receive", "text": ""}]
        if socket
        else [{"type": "http.request", "body": body}]
    )

    async def receive() -> Any:
        return events.pop(0) if events else await asyncio.Event().wait()

    async def send(event: Any) -> None:
        sent.append(event)

    path, _, query = path.partition("?")
    pairs = [(name.replace("_", "-").encode(), value.encode()) for name, value in fields.items()]
    scope = {
        "type": "websocket" if socket else "http", "method": verb, "path": path, "raw_path": path.encode(),
        "query_string": query.encode(), "headers": [*pairs, (b"origin", origin.encode())], "scheme": "http",
        "http_version": "2", "client": None,
        "extensions": {"http.response.trailers": {}, "websocket.http.response": {}},
    }  # fmt: skip
    await app(scope, receive, send)
    found = [pair for event in sent for pair in event.get("headers", ())]
    return sent[0].get("status", 101), found


JSON = {"content_type": "application/json"}
GRPC = b"\0\0\0\0\0"
WAYS: dict[str, tuple[str, str, bytes, dict[str, str]]] = {
    "unary": ("POST", "/v1/books", b"{}", JSON),
    "unary, compressed": ("GET", "/q", b"", {"accept_encoding": "gzip"}),
    "protobuf": ("GET", "/q?$alt=proto", b"", {}),
    "201": ("POST", "/things", b"{}", JSON),
    "204": ("DELETE", "/things/a", b"", {}),
    "205": ("POST", "/things/a:reset", b"", {}),
    "HttpBody": ("POST", "/s/raw", b"x", {"content_type": "text/plain"}),
    "HttpBody of a field": ("GET", "/s/pages/a", b"", {}),
    "stream of HttpBody": ("GET", "/s/large/1", b"", {}),
    "stream as an array": ("GET", "/s/count/1", b"", {}),
    "stream as an array, compressed": ("GET", "/s/count/1", b"", {"accept_encoding": "zstd"}),
    "stream as lines": ("GET", "/s/count/1", b"", {"accept": "application/x-ndjson"}),
    "stream as events": ("GET", "/s/count/1", b"", {"accept": "text/event-stream"}),
    "client stream": ("POST", "/s/rooms/a/gather", b"{}", JSON),
    "WebSocket": ("WEBSOCKET", "/s/rooms/a/talk", b"", {}),
    "WebSocket refused": ("WEBSOCKET", "/v1/books", b"", {}),
    "error of a function": ("POST", "/v1/books", b'{"title":"fail"}', JSON),
    "error before a stream": ("GET", "/s/count/1?room=fail", b"", {}),
    "400": ("POST", "/v1/books", b"{", JSON),
    "401": ("GET", "/v1/secrets", b"", {}),
    "404": ("GET", "/nowhere", b"", {}),
    "405": ("PUT", "/v1/books", b"", {}),
    "406": ("POST", "/v1/books", b"{}", {**JSON, "accept": "text/html"}),
    "415": ("POST", "/v1/books", b"x", {"content_type": "text/plain"}),
    "OPTIONS": ("OPTIONS", "/v1/books", b"", {}),
    "preflight": ("OPTIONS", "/v1/books", b"", {"access_control_request_method": "POST"}),
    "docs": ("GET", "/docs", b"", {}),
    "openapi.json": ("GET", "/openapi.json", b"", {}),
    "healthz": ("GET", "/healthz", b"", {}),
    "gRPC": ("POST", "/edge.v1.Library/GetBook", GRPC, {"content_type": "application/grpc", "te": "trailers"}),
    "gRPC, failed": (
        "POST", "/edge.v1.Library/GetBook", b"\0\0\0\0\6\x12\4fail",
        {"content_type": "application/grpc", "te": "trailers"},
    ),
    "gRPC stream": ("POST", "/edge.v1.Library/Watch", GRPC, {"content_type": "application/grpc", "te": "trailers"}),
    "gRPC-Web": ("POST", "/edge.v1.Library/GetBook", GRPC, {"content_type": "application/grpc-web+proto"}),
    "gRPC-Web, failed": (
        "POST", "/edge.v1.Library/GetBook", b"\0\0\0\0\6\x12\4fail", {"content_type": "application/grpc-web+proto"},
    ),
    "gRPC-Web as text": (
        "POST", "/edge.v1.Library/GetBook", b"AAAAAAA=", {"content_type": "application/grpc-web-text+proto"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("origin", [PAGE, "https://other.example"])
@pytest.mark.parametrize("way", WAYS)
async def test_no_function_sets_a_header_of_the_mesh(contract: Contract, way: str, origin: str) -> None:
    verb, path, body, fields = WAYS[way]
    clean = await walk(app_of(contract, function(forged=False)), verb, path, body, origin, **fields)
    status, pairs = await walk(app_of(contract, function(forged=True)), verb, path, body, origin, **fields)
    assert status == clean[0]
    assert owned(pairs) == owned(clean[1])
    assert b"forged" not in dict(pairs).values()
    if way != "healthz":
        assert [value for name, value in pairs if name == headers.TRACERESPONSE] == [b"00-trace"]


async def test_a_grpc_client_gets_the_pushback_of_another_server(contract: Contract) -> None:
    async def fail(call: Call) -> None:
        call.headers.append((b"grpc-server-stats-bin", b"AAAA"))
        call.trailers.append((b"grpc-retry-pushback-ms", b"250"))
        raise NotFound("no")

    path, fields = "/edge.v1.Library/GetBook", {"content_type": "application/grpc", "te": "trailers"}
    _, pairs = await walk(app_of(contract, fail), "POST", path, GRPC, **fields)
    assert dict(pairs)[b"grpc-retry-pushback-ms"] == b"250"
    assert dict(pairs)[b"grpc-server-stats-bin"] == b"AAAA"


async def test_trailers_alone_grant_no_page_anything(contract: Contract) -> None:
    """A gRPC-Web error without headers has its trailers in the HTTP header block, where a browser reads grants."""

    async def fail(call: Call) -> None:
        call.trailers += [(name, b"forged") for name in FORGED]
        call.trailers.append((b"x-mine", b"yes"))
        raise NotFound("no")

    app = EdgeApp(
        contract,
        handler=fail,
        trace=open_layer,
        authenticate=open_layer,
        concurrency_limit=ConcurrencyLimit(10, 10),
        stream_limit=ConcurrencyLimit(10, 0),
        max_body=10_000,
        timeout=5,
    )
    media = {"content_type": "application/grpc-web+proto"}
    status, pairs = await walk(app, "POST", "/edge.v1.Library/GetBook", GRPC, **media)
    assert (status, (b"x-mine", b"yes") in pairs) == (200, True)
    assert b"forged" not in dict(pairs).values()
    assert {b"grpc-status", b"grpc-message"} <= dict(pairs).keys()


def lambda_app(folder: Path, payload: str, result: dict[str, Any], **table: Any) -> EdgeApp:
    """An edge whose one function returned ``result``."""
    version = payload.partition(".")[0]
    document = {"openapi": "3.0.1", "info": {"title": "a", "version": "1"}, "paths": {"/a": {"get": {}}}}
    (folder / "api.json").write_text(json.dumps(document))
    (folder / "handler.py").write_text("def handler(event, context): return None\n")
    file = folder / "mesh.toml"
    file.write_text(f'[services.a]\nlambda = "handler:handler"\nopenapi = "api.json"\npayload = "{version}.0"\n')
    files = protoc.load([ROOT / "tests" / "protos"], ROOT / ".mesh" / "test-stubs")
    contract = loader.read(extend(files, manifest.load(file, {}).lambdas.values()))

    async def answer(call: Call) -> None:
        await call.receive_one()
        await call.send(json_value.pack(json.dumps(result).encode()))

    return app_of(contract, answer, **table)


def case(name: bytes) -> str:
    return name.decode().title()


RESULTS: dict[str, Callable[[list[bytes]], dict[str, Any]]] = {
    "1.0 headers": lambda names: {"headers": {case(name): "forged" for name in names}},
    "1.0 multiValueHeaders": lambda names: {"multiValueHeaders": {case(name): ["forged", "too"] for name in names}},
    "1.0 both": lambda names: {
        "headers": {case(name): "forged" for name in names},
        "multiValueHeaders": {case(name): ["too"] for name in names},
    },
    "2.0 headers": lambda names: {"headers": {name.decode(): "forged" for name in names}, "cookies": ["a=1"]},
}  # fmt: skip


@pytest.mark.parametrize("status", [200, 204, 304, 500])
@pytest.mark.parametrize("kind", RESULTS)
async def test_no_lambda_handler_sets_a_header_of_the_mesh(tmp_path: Path, kind: str, status: int) -> None:
    names = [*sorted(headers.LAMBDA_OWNED), *CORS]
    clean = await walk(lambda_app(tmp_path, kind, {"statusCode": status, "body": "x"}), "GET", "/a")
    result = {"statusCode": status, "body": "x", **RESULTS[kind](names)}
    found, pairs = await walk(lambda_app(tmp_path, kind, result), "GET", "/a")
    assert found == clean[0] == status
    assert sorted(pair for pair in pairs if pair != (b"set-cookie", b"a=1")) == sorted(clean[1])
    assert [value for name, value in pairs if name == headers.TRACERESPONSE] == [b"00-trace"]


async def test_a_lambda_handler_grants_no_page_what_the_edge_does_not(tmp_path: Path) -> None:
    result = {"statusCode": 200, "headers": {"Access-Control-Allow-Origin": "*"}, "body": "x"}
    _, pairs = await walk(lambda_app(tmp_path, "1", result), "GET", "/a", origin="https://other.example")
    assert b"access-control-allow-origin" not in dict(pairs)
    _, pairs = await walk(lambda_app(tmp_path, "1", result, cors=[]), "GET", "/a")  # nobody else writes it
    assert dict(pairs)[b"access-control-allow-origin"] == b"*"


async def test_a_lambda_handler_describes_its_response(tmp_path: Path) -> None:
    said = {"content-type": "text/html", "content-encoding": "br", "allow": "GET", "www-authenticate": "Basic"}
    said["x-content-type-options"] = "nosniff"
    result = {"statusCode": 401, "headers": said, "body": "x"}
    _, pairs = await walk(lambda_app(tmp_path, "1", result), "GET", "/a")
    found = [(name.decode(), value.decode()) for name, value in pairs if name.decode() in said]
    assert sorted(found) == sorted(said.items())


async def test_a_client_sets_no_request_header_of_the_mesh(contract: Contract) -> None:
    """gRPC metadata of a client reaches the function without what the mesh writes to it."""
    received: list[Any] = []

    async def answer(call: Call) -> None:
        received.extend(call.metadata.pairs)
        await function(forged=False)(call)

    app = app_of(contract, answer)
    await walk(
        app, "POST", "/edge.v1.Library/GetBook", GRPC, content_type="application/grpc", te="trailers", x_mine="yes",
        mesh_identity="forged", mesh_hops="15", x_forwarded_for="1.2.3.4", proxy_authorization="Basic x",
    )  # fmt: skip
    assert (b"x-mine", b"yes") in received
    assert not [name for name, _ in received if name.startswith((b"mesh-", b"proxy-", b"x-forwarded-"))]
