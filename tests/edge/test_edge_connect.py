"""Connect protocol at the edge: beside the HTTP routes, with the layers of the edge, for pages of other origins."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from connect_client import JSON, JSON_STREAM, PROTO, Client, envelope
from grpc_edge import MAX, grpc_edge
from msgspec import convert

from mesh.config.manifest import EdgeConfig
from mesh.contract import loader, protoc
from mesh.contract.model import Contract
from mesh.edge import OptionalLayers
from mesh.edge.grpc.passthrough import tracing
from mesh.rpc.server.clients.limits import ClientLimits

UNARY_TYPES = ("application/json", "application/proto")
VERSION = {"connect-protocol-version": "1"}
TALK = """
syntax = "proto3";
package talk.v1;
import "google/api/annotations.proto";
import "meshapi/v1/annotations.proto";
message Text { string text = 1; }
service Talk {
  rpc Say(Text) returns (Text) {
    option idempotency_level = NO_SIDE_EFFECTS;
    option (google.api.http) = {
      post: "/talk.v1.Talk/Say" body: "*" response_body: "text"
      additional_bindings { get: "/talk.v1.Talk/Say" response_body: "text" }
      additional_bindings { post: "/v1/{text=**}" response_body: "text" }
    };
    option (meshapi.v1.method) = { access: PUBLIC };
  }
  rpc Tell(Text) returns (Text) { option (meshapi.v1.method) = { access: AUTHENTICATED roles: "teller" }; }
  rpc Whisper(Text) returns (Text) { option (meshapi.v1.method) = { access: INTERNAL }; }
}
"""


@pytest.fixture
def talk(tmp_path: Path) -> Contract:
    """A contract with routes at the path of a method, and one that matches nearly any path below ``/v1``."""
    (tmp_path / "protos" / "talk" / "v1").mkdir(parents=True)
    (tmp_path / "protos" / "talk" / "v1" / "talk.proto").write_text(TALK)
    return loader.read(protoc.load([tmp_path / "protos"], tmp_path / "stubs"))


def layers(**table: Any) -> OptionalLayers:
    return OptionalLayers.of(convert(table, EdgeConfig, dec_hook=lambda kind, value: kind.parse(value)))


# -- beside the routes --


async def test_the_route_of_the_same_path_comes_first(talk: Contract, edge_of: Any) -> None:
    async with edge_of(talk) as edge:
        path, body = "/talk.v1.Talk/Say", b'{"text":"hi"}'
        route = await edge.request("POST", path, body, JSON)
        assert (route.status, route.json) == (200, "hi")
        connect = await edge.request("POST", path, body, {**JSON, **VERSION})
        assert (connect.status, connect.json) == (200, {"text": "hi"})
        message = "encoding=json&message=%7B%22text%22%3A%22hi%22%7D"
        route = await edge.request("GET", f"{path}?text=hi", None, {})
        assert (route.status, route.json) == (200, "hi")
        assert (await edge.request("GET", f"{path}?{message}", None, {})).status == 400  # of the route's parameters
        connect = await edge.request("GET", f"{path}?connect=v1&{message}", None, {})
        assert (connect.status, connect.json) == (200, {"text": "hi"})


async def test_a_route_is_no_connect_call_because_of_a_header(talk: Contract, edge_of: Any) -> None:
    async with edge_of(talk) as edge:
        route = await edge.request("POST", "/v1/talk.v1.Talk/Nothing", b"", {**JSON, **VERSION})
        assert (route.status, route.json) == (200, "talk.v1.Talk/Nothing")


async def test_what_is_no_method(talk: Contract, edge_of: Any) -> None:
    async with edge_of(talk) as edge:
        for path in ("/talk.v1.Talk/Nothing", "/no.Such/Thing"):
            answer = await edge.request("POST", path, b"{}", {**JSON, **VERSION})
            assert (answer.status, answer.json["code"]) == (404, "unimplemented")
        assert (await edge.request("POST", "/talk.v1.Talk/Nothing", b"{}", JSON)).json["code"] == "unimplemented"
        assert (await edge.request("POST", "/no.Such/Thing", b"{}", JSON)).json["code"] == 5
        assert (await edge.request("POST", "/talk.v1.Talk/Whisper", b"{}", JSON)).status == 404
        hidden = await edge.request("POST", "/talk.v1.Talk/Whisper", b"{}", {**JSON, **VERSION})
        assert (hidden.status, hidden.json["code"]) == (403, "permission_denied")


async def test_other_verbs_and_media_types(contract: Contract, edge_of: Any) -> None:
    async with edge_of(contract) as edge:
        path = "/conformance.v1.Echo/Idempotent"
        for verb in ("DELETE", "OPTIONS"):
            answer = await edge.request(verb, path, None, {})
            assert answer.headers["allow"] == ("GET, POST" if verb == "DELETE" else "GET, HEAD, OPTIONS, POST")
        answer = await edge.request("POST", path, b"x", {"content-type": "application/foo", **VERSION})
        assert (answer.status, "application/json, application/proto" in answer.headers["accept-post"]) == (415, True)
        answer = await edge.request("GET", path, None, {})
        assert (answer.status, answer.json["code"]) == (400, "invalid_argument")


# -- layers --


async def test_access(talk: Contract, edge_of: Any) -> None:
    async with edge_of(talk) as edge:
        for credentials, status, code in (
            ("", 401, "unauthenticated"), ("Bearer forged", 401, "unauthenticated"),
            ("Bearer someone", 403, "permission_denied"), ("Bearer teller", 200, ""),
        ):  # fmt: skip
            headers = {**JSON, **({"authorization": credentials} if credentials else {})}
            answer = await edge.request("POST", "/talk.v1.Talk/Tell", b"{}", headers)
            assert (answer.status, answer.json.get("code", "")) == (status, code)
            assert ("www-authenticate" in answer.headers) is (status == 401)


async def test_rate_limits_and_unknown_fields(talk: Contract, edge_of: Any) -> None:
    table = layers(rate_limit={"per_client": "1/s burst 2"}, ignore_unknown_fields=True)
    async with edge_of(talk, table) as edge:
        path, headers = "/talk.v1.Talk/Say", {**JSON, **VERSION}
        found = [await edge.request("POST", path, b'{"unknown":1}', headers) for _ in range(3)]
        assert [one.status for one in found] == [200, 200, 429]
        assert (found[2].json["code"], "ratelimit" in found[0].headers) == ("resource_exhausted", True)
        assert "retry-after" in found[2].headers


@pytest.fixture(params=["1.1", "2"])
def version(request: pytest.FixtureRequest) -> str:
    """Version of HTTP."""
    return str(request.param)


async def test_the_concurrency_limit_and_a_timeout(contract: Contract, version: str) -> None:
    async with grpc_edge(contract, concurrency=1) as edge:
        client, headers = Client(edge.address, version), {**JSON, "connect-timeout-ms": "500"}
        calls = [client("Unary", b'{"sleepMs":60000}', headers) for _ in range(2)]
        assert {answer.status for answer in await asyncio.gather(*calls)} == {504, 429}


async def test_the_size_limit_and_a_request_that_is_not_read(contract: Contract, version: str) -> None:
    async with grpc_edge(contract) as edge:
        for size in (MAX + 1, MAX + 500_000):
            headers = {**PROTO, "content-length": str(size)} if version == "2" else PROTO
            answer = await Client(edge.address, version)("Unary", bytes(size), headers)
            assert (answer.status, answer.json["code"]) == (429, "resource_exhausted")
    assert edge.traced == [("/conformance.v1.Echo/Unary", "RESOURCE_EXHAUSTED")] * 2


async def test_the_text_of_a_response_counts(contract: Contract, version: str) -> None:
    limits = ClientLimits(buffers=80_000)
    request = b'{"answerBytes":60000,"count":1}'  # a small message, whose JSON text is large
    async with grpc_edge(contract, clients=limits) as edge:
        client = Client(edge.address, version)
        for method, code in (("Idempotent", "resource_exhausted"), ("Unary", "internal")):
            assert (await client(method, request, JSON)).json["code"] == code
        stream = await client("ServerStream", envelope(request), JSON_STREAM)
        assert stream.error["code"] == "resource_exhausted"
        assert limits.held == 0
        assert len((await client("Unary", b'{"answerBytes":40000}', JSON)).body) > 40_000


async def test_too_many_header_fields(contract: Contract, version: str) -> None:
    headers = {**JSON, **{f"x-{number}": "" for number in range(1001)}}
    async with grpc_edge(contract) as edge:
        answer = await Client(edge.address, version)("Unary", b"{}", headers)
        assert (answer.status, answer.json["code"]) == (429, "resource_exhausted")
        assert edge.traced == [("/conformance.v1.Echo/Unary", "RESOURCE_EXHAUSTED")]


async def test_a_rejected_request_gets_its_response_when_its_body_cannot_be_held(contract: Contract) -> None:
    kinds = {"content-type": "application/json", "Content-Type": "text/plain"}
    async with grpc_edge(contract, clients=ClientLimits(buffers=20_000)) as edge:
        answer = await Client(edge.address, "1.1")("Unary", bytes(100_000), kinds)
        assert (answer.status, answer.headers["accept-post"]) == (415, "application/grpc, " + ", ".join(UNARY_TYPES))


async def test_metadata_that_a_client_may_not_send(contract: Contract) -> None:
    names = ("mesh-identity", "x-forwarded-for", "grpc-timeout", "connect-x", "traceparent", "cookie", "x-mine")
    async with grpc_edge(contract) as edge:
        answer = await Client(edge.address, "2")("Unary", b"{}", {**JSON, **VERSION, **dict.fromkeys(names, "1")})
        assert answer.status == 200
        seen = {name.decode() for name, _ in edge.received[0].pairs}
    assert seen & {*names, *VERSION} == {"x-mine", "grpc-timeout"}  # the timeout is the edge's own
    assert edge.received[0].wire(b"grpc-timeout") != b"1"


async def test_the_trace_layer_of_each_protocol(contract: Contract) -> None:
    seen: list[str] = []

    def layer(name: str) -> Callable[..., Any]:
        async def note(call: Any, next: Any) -> None:
            seen.append(name)
            await next(call)

        return note

    trace = tracing(http=layer("http"), grpc=layer("grpc"), connect=layer("connect"))
    async with grpc_edge(contract, trace=trace) as edge:
        client = Client(edge.address, "1.1")
        await client("Unary", b"{}", JSON)
        await client("/v1/echo", b"{}", JSON)
        await client("Unary", bytes(5), {"content-type": "application/grpc-web+proto"})
    assert seen == ["connect", "http", "grpc"]


# -- pages of other origins --


async def test_cors(contract: Contract) -> None:
    table = layers(cors={"origins": ["https://page.example"], "expose": ["x-echo-a", "trailer-x-echo-a-trailer"]})
    origin = {"origin": "https://page.example"}
    async with grpc_edge(contract, layers=table) as edge:
        client = Client(edge.address, "1.1")
        wanted = "authorization,connect-protocol-version,connect-timeout-ms,content-type"
        for verb in ("POST", "GET"):
            asked = {"access-control-request-method": verb, "access-control-request-headers": wanted}
            answer = await client("Idempotent", b"", {**origin, **asked}, "OPTIONS")
            assert answer.status == 204
            assert answer.headers["access-control-allow-origin"] == "https://page.example"
            assert answer.headers["access-control-allow-methods"] == verb
            assert answer.headers["access-control-allow-headers"] == wanted
        call = {**JSON, **VERSION, **origin, "x-echo-a": "1"}
        for body in (b"{}", b'{"fail":{"code":5}}'):
            answer = await client("Idempotent", body, call)
            assert answer.headers["access-control-allow-origin"] == "https://page.example"
            exposed = {name.strip() for name in answer.headers["access-control-expose-headers"].split(",")}
            assert {"x-echo-a", "trailer-x-echo-a-trailer", "etag", "connect-content-encoding"} <= exposed
            assert answer.headers["trailer-x-echo-a-trailer"] == "1"
        answer = await client("Idempotent?connect=v1&encoding=json&message=%7B%7D", b"", origin, "GET")
        assert (answer.status, answer.headers["access-control-allow-origin"]) == (200, "https://page.example")
        assert {value for name, value in answer.pairs if name == "vary"} == {"accept-encoding", "origin"}
