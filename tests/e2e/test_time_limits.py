"""How long a call may take: the contract's word before the deployment's defaults, in the sidecar and in workers."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest
from mesh_process import Mesh
from mesh_process import http as ask

PROTO = """syntax = "proto3";
package limits.v1;
import "google/api/annotations.proto";
import "google/protobuf/empty.proto";
import "meshapi/v1/annotations.proto";
message Left { bool limited = 1; }
service {name} {{
  rpc Plain(google.protobuf.Empty) returns (Left) {{
    option (google.api.http) = {{ get: "/v1/{name}/plain" }};
    option (meshapi.v1.method) = {{ access: PUBLIC }};
  }}
  rpc Endless(google.protobuf.Empty) returns (Left) {{
    option (google.api.http) = {{ get: "/v1/{name}/endless" }};
    option (meshapi.v1.method) = {{ access: PUBLIC no_time_limit: true }};
  }}
  rpc Short(google.protobuf.Empty) returns (Left) {{
    option (google.api.http) = {{ get: "/v1/{name}/short" }};
    option (meshapi.v1.method) = {{ access: PUBLIC timeout: {{ nanos: 100000000 }} }};
  }}
}}
"""
HEAD, BODY = PROTO.split("service", 1)

FUNCTIONS = """
import asyncio
from limits.v1 import limits_pb2 as pb


async def plain(request, context):
    await asyncio.sleep(0.8)
    return pb.Left(limited=context.remaining() is not None)


endless = short = plain
"""

MANIFEST = """
[edge]
listen = "127.0.0.1:0"
timeout = "{timeout}"
[services.inside]
module = "limits_functions"
serves = ["limits.v1.Inside"]
[services.workers]
module = "limits_functions"
serves = ["limits.v1.Workers"]
workers = {{ max = 1, timeout = "400ms" }}
"""


@pytest.fixture(scope="module", params=["400ms", "none"])
def mesh(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    root = tmp_path_factory.mktemp("limits")
    (root / "protos" / "limits" / "v1").mkdir(parents=True)
    services = "".join("service" + BODY.format(name=name) for name in ("Inside", "Workers"))
    (root / "protos" / "limits" / "v1" / "limits.proto").write_text(HEAD + services)
    (root / "limits_functions.py").write_text(FUNCTIONS)
    (root / "mesh.toml").write_text(MANIFEST.format(timeout=request.param))
    running = Mesh(root / "mesh.toml", root / "state", {})
    running.timeout = request.param  # type: ignore[attr-defined]
    try:
        yield running.ready()
    finally:
        code = running.stop()
    assert code == 0, running.output()


@pytest.mark.parametrize("service", ["Inside", "Workers"])
def test_by_http(mesh: Mesh, service: str) -> None:
    limited = mesh.timeout == "400ms" or service == "Workers"  # type: ignore[attr-defined]
    answer = ask(f"{mesh.edge}/v1/{service}/plain")
    assert (answer.status, answer.json.get("limited", False)) == ((504, False) if limited else (200, False))
    answer = ask(f"{mesh.edge}/v1/{service}/endless")
    assert (answer.status, answer.json.get("limited", False)) == (200, False)
    assert ask(f"{mesh.edge}/v1/{service}/short").status == 504


@pytest.mark.parametrize("service", ["Inside", "Workers"])
def test_by_grpc(mesh: Mesh, service: str) -> None:
    limited = mesh.timeout == "400ms" or service == "Workers"  # type: ignore[attr-defined]
    with grpc.insecure_channel(mesh.edge.removeprefix("http://")) as channel:

        def code(method: str, timeout: float | None = None) -> str:
            try:
                channel.unary_unary(f"/limits.v1.{service}/{method}")(b"", timeout=timeout)
            except grpc.RpcError as error:
                return error.code().name
            return "OK"

        assert code("Plain") == ("DEADLINE_EXCEEDED" if limited else "OK")
        assert code("Endless") == "OK"
        assert code("Endless", timeout=0.3) == "DEADLINE_EXCEEDED"  # a caller's own deadline is kept
        assert code("Short") == "DEADLINE_EXCEEDED"
