"""Hung processes of a real mesh: a blocked event loop, a stopped process, a stopped broker."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from mesh_process import Mesh
from mesh_process import http as ask
from suspend import suspend

PROTO = """syntax = "proto3";
package hung.v1;
import "google/api/annotations.proto";
import "google/protobuf/empty.proto";
import "meshapi/v1/annotations.proto";
message Happened { option (meshapi.v1.event) = {}; }
service Hung {
  rpc Block(google.protobuf.Empty) returns (google.protobuf.Empty) {
    option (google.api.http) = { get: "/v1/block" };
    option (meshapi.v1.method) = { access: PUBLIC };
  }
  rpc Answer(google.protobuf.Empty) returns (google.protobuf.Empty) {
    option (google.api.http) = { get: "/v1/answer" };
    option (meshapi.v1.method) = { access: PUBLIC };
  }
  rpc OnHappened(Happened) returns (google.protobuf.Empty) {
    option (meshapi.v1.method) = { on: { event: {} } };
  }
}
"""

FUNCTIONS = """
import time
from google.protobuf.empty_pb2 import Empty


async def block(request, context):
    time.sleep(3600)


async def answer(request, context):
    return Empty()


on_happened = answer
"""

MANIFEST = """
liveness = "2s"
[edge]
listen = "127.0.0.1:0"
[services.hung]
module = "hung_functions"
serves = ["hung.v1.Hung"]
"""


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[Mesh]:
    (tmp_path / "protos" / "hung" / "v1").mkdir(parents=True)
    (tmp_path / "protos" / "hung" / "v1" / "hung.proto").write_text(PROTO)
    (tmp_path / "hung_functions.py").write_text(FUNCTIONS)
    (tmp_path / "mesh.toml").write_text(MANIFEST)
    running = Mesh(tmp_path / "mesh.toml", tmp_path / "state", {"MESH_EVENTS_LISTEN": "127.0.0.1:0"})
    try:
        yield running.ready()
    finally:
        running.stop()


def health(mesh: Mesh, *arguments: str) -> str:
    """Return what ``mesh health`` says."""
    command = [sys.executable, "-m", "mesh", "health", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


@pytest.mark.timeout(180)
def test_a_blocked_event_loop_is_ended_with_its_stack_and_restarted(mesh: Mesh) -> None:
    address = mesh.addresses["hung"]
    assert health(mesh, "--live", address) == f"{address}: SERVING"
    assert health(mesh, "--live", mesh.edge) == f"{mesh.edge}: SERVING"
    blocked = mesh.child("hung")
    call = threading.Thread(target=ask, args=(f"{mesh.edge}/v1/block",), daemon=True)
    call.start()
    mesh.until(lambda: "hung is ready again" in mesh.output())
    assert mesh.child("hung") != blocked
    assert "hung has not responded for 2 s: it is aborted, with its stacks:" in mesh.output()
    assert "hung_functions.py" in mesh.output().partition("Fatal Python error: Aborted")[2]
    assert "in block" in mesh.output()
    assert ask(f"{mesh.edge}/v1/answer").status == 200
    call.join(40)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("name", ["edge", "broker"])
def test_a_stopped_component_is_restarted(mesh: Mesh, name: str) -> None:
    stopped = _broker(mesh) if name == "broker" else mesh.child(name)
    suspend(stopped)
    mesh.until(lambda: f"{name} is ready again" in mesh.output())
    assert ask(f"{mesh.edge}/v1/answer").status == 200


def _broker(mesh: Mesh) -> int:
    lines = subprocess.run(
        ["ps", "-o", "pid=,args=", "--ppid", str(mesh.process.pid)], capture_output=True, text=True, check=True
    ).stdout.splitlines()  # fmt: skip
    return next(int(line.split()[0]) for line in lines if "nats-server" in line)
