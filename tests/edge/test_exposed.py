"""Reflection through the edge: the exposed part of the contract, also with stock clients."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_edge import grpc_edge

from mesh.contract import loader, protoc
from mesh.contract.model import Access
from mesh.edge.app import EdgeApp
from mesh.edge.grpc import exposed
from mesh.layers.concurrency import ConcurrencyLimit
from mesh.rpc.client.reflection_client import ReflectionClient

BIN = Path(sys.executable).parent

PROTO = """
syntax = "proto3";
package mixed.v1;
import "google/protobuf/empty.proto";
import "meshapi/v1/annotations.proto";

// Wholly inside.
service Inside {
  // Never shown.
  rpc Secret(google.protobuf.Empty) returns (google.protobuf.Empty) {
    option (meshapi.v1.method) = { access: INTERNAL };
  }
}
// Half open.
service Mixed {
  // Also never shown.
  rpc First(google.protobuf.Empty) returns (google.protobuf.Empty) {
    option (meshapi.v1.method) = { access: INTERNAL };
  }
  // Shown to all.
  rpc Second(google.protobuf.Empty) returns (google.protobuf.Empty) {
    option (meshapi.v1.method) = { access: PUBLIC };
  }
  // Shown, for users.
  rpc Third(google.protobuf.Empty) returns (google.protobuf.Empty);
}
"""


@pytest.fixture
def mixed(tmp_path):
    (tmp_path / "protos" / "mixed" / "v1").mkdir(parents=True)
    (tmp_path / "protos" / "mixed" / "v1" / "mixed.proto").write_text(PROTO)
    return loader.read(protoc.load([tmp_path / "protos"], tmp_path / "gen"))


def comments(file: FileDescriptorProto) -> dict[str, str]:
    """Return the comments of services and methods by the name of the declaration."""
    found = {}
    for location in file.source_code_info.location:
        path = list(location.path)
        if location.leading_comments and path[0] == 6:
            service = file.service[path[1]]
            name = service.name if len(path) == 2 else f"{service.name}.{service.method[path[3]].name}"
            found[name] = location.leading_comments.strip()
    return found


def test_internal_methods_and_services_are_left_out(mixed):
    assert exposed.services(mixed) == ["mixed.v1.Mixed"]
    before = mixed.files.SerializeToString(deterministic=True)
    (file,) = [file for file in exposed.files(mixed).file if file.name == "mixed/v1/mixed.proto"]
    assert [service.name for service in file.service] == ["Mixed"]
    assert [method.name for method in file.service[0].method] == ["Second", "Third"]
    assert comments(file) == {
        "Mixed": "Half open.",
        "Mixed.Second": "Shown to all.",
        "Mixed.Third": "Shown, for users.",
    }
    assert b"ever shown" not in file.SerializeToString()
    assert mixed.files.SerializeToString(deterministic=True) == before


def test_a_file_without_internal_methods_stays_as_it_is(contract):
    before = {file.name: file for file in contract.files.file}
    after = {file.name: file for file in exposed.files(contract).file}
    assert before.keys() == after.keys()
    inside = {method.service for method in contract.methods.values() if method.access is Access.INTERNAL}
    for name, file in before.items():
        named = {f"{file.package}.{service.name}" for service in file.service}
        assert (after[name] == file) == named.isdisjoint(inside), name


async def test_an_edge_of_only_internal_methods_can_be_made(mixed):
    async def refuse(call, *_):
        raise AssertionError

    app = EdgeApp(
        mixed,
        handler=refuse,
        trace=refuse,
        authenticate=refuse,
        concurrency_limit=ConcurrencyLimit(1, 1),
        stream_limit=ConcurrencyLimit(1, 0),
        max_body=1,
        timeout=1,
    )
    assert app.grpc.health is not None


async def run(*command: str | Path, stdin: str = "") -> str:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*map(str, command), stdin=pipe, stdout=pipe, stderr=pipe)
    out, error = await asyncio.wait_for(process.communicate(stdin.encode()), 60)
    assert process.returncode == 0, (out + error).decode()
    return out.decode()


async def test_grpcurl(contract):
    async with grpc_edge(contract) as edge:
        grpcurl = (BIN / "grpcurl", "-plaintext")
        listed = (await run(*grpcurl, edge.address, "list")).split()
        assert {"conformance.v1.Echo", "edge.v1.Library", "grpc.health.v1.Health"} <= set(listed)
        methods = (await run(*grpcurl, edge.address, "list", "edge.v1.Library")).split()
        assert "edge.v1.Library.GetBook" in methods
        assert "edge.v1.Library.Hidden" not in methods
        described = await run(*grpcurl, edge.address, "describe", "conformance.v1.Echo.Idempotent")
        assert "// The same, and safe to try again." in described
        request = json.dumps({"text": "curl", "count": 2})
        for method, answers in (("Unary", 1), ("ServerStream", 2), ("ClientStream", 1), ("Bidi", 1)):
            answered = await run(*grpcurl, "-d", request, edge.address, f"conformance.v1.Echo/{method}")
            assert answered.count('"text": "curl"') == answers
        checked = await run(
            *grpcurl, "-d", '{"service":"edge.v1.Library"}', edge.address, "grpc.health.v1.Health/Check"
        )
        assert json.loads(checked) == {"status": "SERVING"}


async def test_buf_curl_by_reflection(contract):
    async with grpc_edge(contract) as edge:
        url = f"http://{edge.address}"
        buf = (BIN / "buf", "curl", "--protocol", "grpc", "--http2-prior-knowledge")
        assert "conformance.v1.Echo" in (await run(*buf, url, "--list-services")).split()
        answered = await run(*buf, "-d", '{"text":"buf"}', f"{url}/conformance.v1.Echo/Unary")
        assert json.loads(answered)["text"] == "buf"


async def test_buf_curl_by_grpc_web(contract, tmp_path):
    schema = tmp_path / "schema.binpb"
    schema.write_bytes(contract.files.SerializeToString())
    async with grpc_edge(contract) as edge:
        buf = (BIN / "buf", "curl", "--protocol", "grpcweb", "--schema", schema)
        url = f"http://{edge.address}/conformance.v1.Echo"
        answered = await run(*buf, "-d", '{"text":"buf"}', f"{url}/Unary")
        assert json.loads(answered)["text"] == "buf"
        answered = await run(*buf, "-d", '{"text":"s","count":3}', f"{url}/ServerStream")
        assert answered.count('"s"') == 3


async def test_the_clients_of_mesh_call(contract):
    async with grpc_edge(contract) as edge:

        def ask():
            with ReflectionClient(edge.address, 10) as client:
                return client.services(), client.method("Library/GetBook").full_name

        services, method = await asyncio.to_thread(ask)
        assert services == sorted(exposed.services(contract))
        assert method == "edge.v1.Library.GetBook"
