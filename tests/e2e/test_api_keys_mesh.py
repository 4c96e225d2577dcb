"""API keys in a whole mesh: at the edge over HTTP and gRPC, at a sidecar and in a worker, until they are revoked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from google.protobuf import wrappers_pb2
from mesh_process import Mesh
from mesh_process import http as ask

PROTO = """syntax = "proto3";
package robots.v1;
import "google/api/annotations.proto";
import "google/protobuf/empty.proto";
import "google/protobuf/wrappers.proto";
import "meshapi/v1/annotations.proto";
service Robots {
  rpc ByKey(google.protobuf.Empty) returns (google.protobuf.StringValue) {
    option (google.api.http) = { get: "/v1/by-key" };
    option (meshapi.v1.method) = { access: KEY scopes: "robots:read" };
  }
  rpc ByUser(google.protobuf.Empty) returns (google.protobuf.StringValue) {
    option (google.api.http) = { get: "/v1/by-user" };
  }
}
"""
FUNCTIONS = """
from google.protobuf import wrappers_pb2


async def by_key(request, context):
    return wrappers_pb2.StringValue(value=f"{context.identity.subject} {sorted(context.identity.scopes)}")


by_user = by_key
"""
MANIFEST = """
[edge]
listen = "127.0.0.1:0"
[services.robots]
module = "robots_functions"
serves = ["robots.v1.Robots"]
"""
REFUSED = "the API key is unknown, expired or revoked"


@pytest.fixture(params=["", "workers = { max = 1 }"], ids=["sidecar", "workers"])
def mesh(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Mesh]:
    (tmp_path / "protos" / "robots" / "v1").mkdir(parents=True)
    (tmp_path / "protos" / "robots" / "v1" / "robots.proto").write_text(PROTO)
    (tmp_path / "robots_functions.py").write_text(FUNCTIONS)
    (tmp_path / "mesh.toml").write_text(MANIFEST + request.param)
    running = Mesh(tmp_path / "mesh.toml", tmp_path / "state", {})
    try:
        yield running.ready()
    finally:
        running.stop()


def apikeys(mesh: Mesh, *words: str) -> str:
    """Run ``mesh apikeys``; return its output."""
    environ = {**os.environ, "MESH_STATE": str(mesh.state)}
    command = [sys.executable, "-m", "mesh", "apikeys", *words, "--file", str(mesh.state.parent / "mesh.toml")]
    return subprocess.run(command, check=True, capture_output=True, text=True, env=environ).stdout.strip()


def over_grpc(mesh: Mesh, key: str) -> str:
    """Return the value, or the code, of a call through the edge."""
    with grpc.insecure_channel(mesh.edge.removeprefix("http://")) as channel:
        call = channel.unary_unary("/robots.v1.Robots/ByKey")
        try:
            response = call(b"", metadata=[("authorization", f"Bearer {key}")], timeout=30)
        except grpc.RpcError as error:
            return error.code().name  # type: ignore[attr-defined,no-any-return]
        return wrappers_pb2.StringValue.FromString(response).value


def test_a_key_opens_its_methods_until_it_is_revoked(mesh: Mesh) -> None:
    key, weak = apikeys(mesh, "create", "ci", "--scope", "robots:read"), apikeys(mesh, "create", "weak")

    def status(path: str, token: str) -> tuple[int, str]:
        found = ask(f"{mesh.edge}{path}", token=token)
        return found.status, found.json if found.status == 200 else found.json["message"]

    mesh.until(lambda: status("/v1/by-key", key) == (200, "key:ci ['robots:read']"))
    assert over_grpc(mesh, key) == "key:ci ['robots:read']"
    assert status("/v1/by-key", weak) == (403, "this is only for API keys with the scope robots:read")
    assert over_grpc(mesh, weak) == "PERMISSION_DENIED"
    assert status("/v1/by-user", key) == (403, "this is only for users; an API key opens methods with access: KEY")
    assert status("/v1/by-key", "") == (401, "this needs an API key: send `authorization: Bearer KEY`")
    assert ask(f"{mesh.edge}/v1/by-key", token="mesh_x").json["message"] == REFUSED
    document = json.loads(ask(f"{mesh.edge}/openapi.json").body)
    assert document["paths"]["/v1/by-key"]["get"]["security"] == [{"apiKey": ["robots:read"]}]
    assert document["paths"]["/v1/by-user"]["get"]["security"] == [{"bearer": []}]
    assert set(document["components"]["securitySchemes"]) == {"apiKey", "bearer"}
    slow = apikeys(mesh, "create", "slow", "--scope", "robots:read", "--rate", "2/h")
    later = apikeys(mesh, "create", "later", "--scope", "robots:read")
    mesh.until(lambda: status("/v1/by-key", later)[0] == 200)  # so edge and sidecar know the slow key as well
    assert status("/v1/by-key", slow) == (200, "key:slow ['robots:read']")
    assert status("/v1/by-key", slow) == (200, "key:slow ['robots:read']")
    assert status("/v1/by-key", slow) == (429, "this API key sends too many requests; try again later")
    assert over_grpc(mesh, slow) == "RESOURCE_EXHAUSTED"
    apikeys(mesh, "revoke", "ci")
    mesh.until(lambda: status("/v1/by-key", key) == (401, REFUSED))
    assert over_grpc(mesh, key) == "UNAUTHENTICATED"
    for file in [mesh.log, *mesh.state.rglob("*")]:
        assert not file.is_file() or key.encode() not in file.read_bytes(), file
