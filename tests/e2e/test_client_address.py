"""The address of the edge's client reaches functions, also through other services, and no client can make it up."""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import grpc
import pytest
from google.protobuf import wrappers_pb2
from mesh_process import Mesh

PROTO = """syntax = "proto3";
package seen.v1;
import "google/api/annotations.proto";
import "google/protobuf/empty.proto";
import "google/protobuf/wrappers.proto";
import "meshapi/v1/annotations.proto";
service Front {
  option (meshapi.v1.service) = { calls: "seen.v1.Back" };
  rpc See(google.protobuf.Empty) returns (google.protobuf.StringValue) {
    option (google.api.http) = { get: "/v1/seen" };
    option (meshapi.v1.method) = { access: PUBLIC };
  }
}
service Back {
  rpc See(google.protobuf.Empty) returns (google.protobuf.StringValue) {
    option (meshapi.v1.method) = { access: INTERNAL };
  }
}
"""
FRONT = """
from google.protobuf import empty_pb2, wrappers_pb2
from seen.v1.seen_pb2_grpc import BackStub

async def see(request, context):
    behind = await context.stub(BackStub).See(empty_pb2.Empty())
    return wrappers_pb2.StringValue(value=f"{context.client_address} {behind.value}")
"""
BACK = """
from google.protobuf import wrappers_pb2

async def see(request, context):
    return wrappers_pb2.StringValue(value=str(context.client_address))
"""
MANIFEST = """
[edge]
listen = "127.0.0.1:0"
trusted_proxies = ["127.0.0.2"]
[services.front]
module = "seen_front"
serves = ["seen.v1.Front"]
workers = { min = 1, max = 1 }
[services.back]
module = "seen_back"
serves = ["seen.v1.Back"]
"""
MADE_UP = {"mesh-client-address": "6.6.6.6", "x-forwarded-for": "6.6.6.6", "x-real-ip": "6.6.6.6"}


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    folder: Path = tmp_path_factory.mktemp("seen")
    (folder / "protos" / "seen" / "v1").mkdir(parents=True)
    (folder / "protos" / "seen" / "v1" / "seen.proto").write_text(PROTO)
    (folder / "seen_front.py").write_text(FRONT)
    (folder / "seen_back.py").write_text(BACK)
    (folder / "mesh.toml").write_text(MANIFEST)
    running = Mesh(folder / "mesh.toml", folder / "state", {})
    try:
        yield running.ready()
    finally:
        running.stop()


def over_http(mesh: Mesh, peer: str, headers: dict[str, str]) -> str:
    where = urlsplit(mesh.edge)
    assert where.hostname
    connection = http.client.HTTPConnection(where.hostname, where.port, timeout=30, source_address=(peer, 0))
    try:
        connection.request("GET", "/v1/seen", headers=headers)
        return connection.getresponse().read().decode()
    finally:
        connection.close()


def over_grpc(address: str) -> str:
    with grpc.insecure_channel(address) as channel:
        call = channel.unary_unary("/seen.v1.Front/See")
        response = call(b"", metadata=tuple(MADE_UP.items()), timeout=30, wait_for_ready=True)
    return wrappers_pb2.StringValue.FromString(response).value


@pytest.mark.parametrize(
    ("peer", "headers", "seen"),
    [
        ("127.0.0.1", {}, "127.0.0.1"),
        ("127.0.0.3", MADE_UP, "127.0.0.3"),
        ("127.0.0.2", {"x-forwarded-for": "6.6.6.6, 1.2.3.4"}, "1.2.3.4"),
        ("127.0.0.2", {"forwarded": 'for="[2001:db8::7]:80"', "mesh-client-address": "6.6.6.6"}, "2001:db8::7"),
    ],
)
def test_the_client_of_the_edge_over_http(mesh: Mesh, peer: str, headers: dict[str, str], seen: str) -> None:
    assert over_http(mesh, peer, headers) == f'"{seen} {seen}"'


def test_a_client_over_grpc_cannot_name_another_address(mesh: Mesh) -> None:
    assert over_grpc(mesh.edge.removeprefix("http://")) == "127.0.0.1 127.0.0.1"


def test_who_passes_no_edge_has_no_address(mesh: Mesh) -> None:
    assert over_grpc(mesh.addresses["front"]) == "None None"
