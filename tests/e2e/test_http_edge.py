"""A mesh of somebody else's contract, as ``mesh up --file`` hosts it: what mesh.toml and functions say to HTTP."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from mesh_process import Mesh
from mesh_process import http as ask

PROTO = """syntax = "proto3";
package shop.v1;
import "google/api/annotations.proto";
import "google/protobuf/empty.proto";
import "meshapi/v1/annotations.proto";
message Item { string id = 1; string name = 2; repeated string seen = 3; }
message Sold { string item = 1; int64 left = 2; }
service Shop {
  rpc Create(Item) returns (Item) {
    option (google.api.http) = { post: "/v1/items" body: "*" };
    option (meshapi.v1.method) = { access: PUBLIC success_status: 201 };
  }
  rpc Delete(Item) returns (google.protobuf.Empty) {
    option (google.api.http) = { delete: "/v1/items/{id}" };
    option (meshapi.v1.method) = { access: PUBLIC success_status: 204 };
  }
  rpc Show(Item) returns (Item) {
    option (google.api.http) = { get: "/v1/items/{id}" };
    option (meshapi.v1.method) = { access: PUBLIC };
  }
  rpc Buy(Item) returns (Item) {
    option (google.api.http) = { post: "/v1/items/{id}:buy" };
    option (meshapi.v1.method) = { access: PUBLIC };
  }
}
service Gone {
  rpc Ask(Item) returns (Item) {
    option (google.api.http) = { get: "/v1/gone" };
    option (meshapi.v1.method) = { access: PUBLIC };
  }
}
"""

FUNCTIONS = """
from google.protobuf.empty_pb2 import Empty
from mesh import FailedPrecondition
from shop.v1 import shop_pb2 as pb


async def create(request, context):
    context.set_header("location", f"/v1/items/{request.name}")
    context.set_header("set-cookie", "a=1; HttpOnly")
    context.set_header("set-cookie", "b=2")
    context.set_header("cache-control", "no-store")
    context.set_header("x-shop", "open")
    context.set_header("internal-note", "not for you")
    return pb.Item(id=request.name, name=request.name)


async def delete(request, context):
    return Empty()


def show(request, context):
    names = [name for name in context.metadata if name.startswith(("x-", "cookie", "mesh"))]
    return pb.Item(id=request.id, seen=[f"{name}={value}" for name in names for value in context.metadata.getall(name)])


async def buy(request, context):
    raise FailedPrecondition("sold out", details=[pb.Sold(item=request.id, left=2**60)])


async def ask(request, context):
    return request
"""

MANIFEST = """
[edge]
listen = "127.0.0.1:0"
metadata = ["x-tenant"]
trusted_proxies = ["127.0.0.1"]
max_uri = "1KiB"
max_headers = "2KiB"
cors = {{ origins = ["https://app.example"], credentials = true }}
rate_limit = {{ per_client = "5/h burst 3" }}
[services.shop]
module = "shop_functions"
serves = ["shop.v1.Shop"]
[services.gone]
module = "shop_functions"
serves = ["shop.v1.Gone"]
address = ["127.0.0.1:{closed}"]
"""


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    root = tmp_path_factory.mktemp("shop")
    (root / "protos" / "shop" / "v1").mkdir(parents=True)
    (root / "protos" / "shop" / "v1" / "shop.proto").write_text(PROTO)
    (root / "shop_functions.py").write_text(FUNCTIONS)
    with socket.socket() as held:  # bound and not listening: whoever connects is refused
        held.bind(("127.0.0.1", 0))
        (root / "mesh.toml").write_text(MANIFEST.format(closed=held.getsockname()[1]))
        running = Mesh(root / "mesh.toml", root / "state", {})
        try:
            yield running.ready()
        finally:
            code = running.stop()
    assert code == 0, running.output()


clients = iter(range(1, 250))


def of_another_client() -> dict[str, str]:
    """Return the header that makes a request one of a client of its own, as the trusted proxy says it."""
    return {"x-forwarded-for": f"198.51.100.{next(clients)}"}


def test_what_a_function_says_to_http(shop: Mesh) -> None:
    answer = ask(f"{shop.edge}/v1/items", "POST", {"name": "a"}, headers=of_another_client())
    assert (answer.status, answer.json) == (201, {"id": "a", "name": "a"})
    assert answer.headers["location"] == "/v1/items/a"
    assert answer.headers.get_all("set-cookie") == ["a=1; HttpOnly", "b=2"]
    assert (answer.headers["cache-control"], answer.headers["x-shop"]) == ("no-store", "open")
    assert "internal-note" not in answer.headers
    answer = ask(f"{shop.edge}/v1/items/a", "DELETE", headers=of_another_client())
    assert (answer.status, answer.body, answer.headers["content-type"]) == (204, b"", None)


def test_only_the_named_header_reaches_the_function(shop: Mesh) -> None:
    headers = {**of_another_client(), "x-tenant": "acme", "x-other": "b", "cookie": "c=d", "mesh-identity": "forged"}
    answer = ask(f"{shop.edge}/v1/items/a", headers=headers)
    assert "x-tenant=acme" in answer.json["seen"]
    assert not [one for one in answer.json["seen"] if one.startswith(("x-other", "cookie", "x-forwarded"))]
    assert "forged" not in str(answer.json)


def test_a_detail_of_the_contract_is_json(shop: Mesh) -> None:
    answer = ask(f"{shop.edge}/v1/items/a:buy", "POST", b"", headers=of_another_client())
    assert (answer.status, answer.json["message"]) == (400, "sold out")
    assert answer.json["details"] == [
        {"@type": "type.googleapis.com/shop.v1.Sold", "item": "a", "left": "1152921504606846976"}
    ]


def test_without_a_sidecar_it_is_503_with_retry_after(shop: Mesh) -> None:
    headers = {**of_another_client(), "origin": "https://app.example"}
    answer = ask(f"{shop.edge}/v1/gone", headers=headers)
    assert (answer.status, answer.json["code"]) == (503, 14)
    assert int(answer.headers["retry-after"]) >= 1
    assert "127.0.0.1" not in answer.json["message"]
    assert answer.headers["access-control-allow-origin"] == "https://app.example"


def test_one_client_is_limited_and_another_is_not(shop: Mesh) -> None:
    one = of_another_client()
    statuses = [ask(f"{shop.edge}/v1/items/a", headers=one).status for _ in range(4)]
    assert statuses == [200, 200, 200, 429]
    answer = ask(f"{shop.edge}/v1/items/a", headers=one)
    assert 600 < int(answer.headers["retry-after"]) <= 720
    assert answer.headers["ratelimit-policy"] == '"client";q=3;w=2160'
    assert ask(f"{shop.edge}/v1/items/a", headers=of_another_client()).status == 200


@pytest.mark.parametrize(
    ("path", "headers", "status", "code"),
    [("/v1/items/" + "a" * 1100, {}, 414, 3), ("/v1/items/" + "a" * 60_000, {}, 414, 3),
     ("/v1/items/a", {"x-a": "b" * 2100}, 431, 8), ("/v1/items/a", {"x-a": "b" * 60_000}, 431, 8)],
)  # fmt: skip
def test_what_is_too_large_has_a_reason(shop: Mesh, path: str, headers: dict[str, str], status: int, code: int) -> None:
    answer = ask(f"{shop.edge}{path}", headers={**headers, **of_another_client()})
    assert answer.status == status
    assert answer.json["code"] == code
    assert "retry-after" not in answer.headers
    assert " than " in answer.json["message"]


def test_a_preflight_is_answered_at_the_door(shop: Mesh) -> None:
    headers = {"origin": "https://app.example", "access-control-request-method": "DELETE"}
    answer = ask(f"{shop.edge}/v1/items/a", "OPTIONS", headers=headers)
    assert answer.status == 204
    assert answer.headers["access-control-allow-credentials"] == "true"
    assert answer.headers["access-control-allow-methods"] == "DELETE"
