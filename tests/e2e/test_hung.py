"""Hung processes of a real mesh: a blocked event loop, a stopped process, a stopped broker."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from mesh_process import Mesh
from mesh_process import http as ask
from suspend import suspend

PROTO = """syntax = "proto3";
package hung.v1;
import "google/api/annotations.proto";
import "google/protobuf/empty.proto";
import "meshapi/v1/annotations.proto";
EVENT
service Hung {
  rpc Block(google.protobuf.Empty) returns (google.protobuf.Empty) {
    option (google.api.http) = { get: "/v1/block" };
    option (meshapi.v1.method) = { access: PUBLIC };
  }
  rpc Answer(google.protobuf.Empty) returns (google.protobuf.Empty) {
    option (google.api.http) = { get: "/v1/answer" };
    option (meshapi.v1.method) = { access: PUBLIC };
  }
  rpc Pause(google.protobuf.Empty) returns (google.protobuf.Empty) {
    option (google.api.http) = { get: "/v1/pause" };
    option (meshapi.v1.method) = { access: PUBLIC };
  }
  rpc Thread(google.protobuf.Empty) returns (google.protobuf.Empty) {
    option (google.api.http) = { get: "/v1/thread" };
    option (meshapi.v1.method) = { access: PUBLIC timeout: { nanos: 500000000 } };
  }
SUBSCRIPTION}
"""
EVENT = "message Happened { option (meshapi.v1.event) = {}; }"
SUBSCRIPTION = """  rpc OnHappened(Happened) returns (google.protobuf.Empty) {
    option (meshapi.v1.method) = { on: { event: {} } };
  }
"""

FUNCTIONS = """
import time
from google.protobuf.empty_pb2 import Empty


async def block(request, context):
    time.sleep(3600)


async def answer(request, context):
    return Empty()


async def pause(request, context):
    time.sleep(1.9)
    return Empty()


def thread(request, context):
    time.sleep(3600)


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


def project(folder: Path, *, events: bool) -> Path:
    """Write the project; return its mesh.toml."""
    proto = PROTO.replace("EVENT", EVENT if events else "").replace("SUBSCRIPTION", SUBSCRIPTION if events else "")
    (folder / "protos" / "hung" / "v1").mkdir(parents=True)
    (folder / "protos" / "hung" / "v1" / "hung.proto").write_text(proto)
    (folder / "hung_functions.py").write_text(FUNCTIONS)
    (folder / "mesh.toml").write_text(MANIFEST)
    return folder / "mesh.toml"


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[Mesh]:
    project(tmp_path, events=True)
    metrics = {"OTEL_METRICS_EXPORTER": "console", "OTEL_METRIC_EXPORT_INTERVAL": "500"}
    running = Mesh(tmp_path / "mesh.toml", tmp_path / "state", {"MESH_EVENTS_LISTEN": "127.0.0.1:0", **metrics})
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


@pytest.mark.timeout(180)
def test_a_late_event_loop_is_logged_with_the_method_and_measured(mesh: Mesh) -> None:
    assert ask(f"{mesh.edge}/v1/pause").status == 200
    mesh.until(lambda: "the event loop has been blocked for" in mesh.output())
    (line,) = [line for line in mesh.output().splitlines() if "the event loop has been blocked for" in line]
    assert " by /hung.v1.Hung/Pause: " in line
    assert line.endswith(" in pause")
    assert "time.sleep(1.9)" in mesh.output()
    mesh.until(lambda: '"name": "mesh.loop.lag"' in mesh.output())
    assert "is aborted" not in mesh.output()


@pytest.mark.timeout(180)
def test_functions_that_never_end_leave_threads_to_others(mesh: Mesh) -> None:
    statuses = [ask(f"{mesh.edge}/v1/thread").status for _ in range(8)]
    assert set(statuses) == {504}
    mesh.until(lambda: ask(f"{mesh.edge}/v1/thread").status == 429)
    refused = ask(f"{mesh.edge}/v1/thread")
    assert "earlier calls of /hung.v1.Hung/Thread have ended, and their functions go on" in refused.json["message"]
    assert ask(f"{mesh.edge}/v1/answer").status == 200
    mesh.until(lambda: '"name": "mesh.threads.abandoned"' in mesh.output())


@pytest.mark.timeout(180)
def test_a_component_without_supervisor_aborts_itself(tmp_path: Path) -> None:
    """As in a container, where the engine restarts what has ended."""
    file = project(tmp_path, events=False)
    log = tmp_path / "log"
    mesh = [sys.executable, "-m", "mesh"]
    subprocess.run([*mesh, "generate", "--file", str(file)], check=True)
    subprocess.run([*mesh, "keys", "--file", str(file)], check=True)
    with socket.create_server(("127.0.0.1", 0)) as listener, log.open("wb") as output:
        port = listener.getsockname()[1]
        process = subprocess.Popen(
            [*mesh, "sidecar", "hung", "--file", str(file), "--fd", str(listener.fileno())],
            pass_fds=[listener.fileno()], stdout=output, stderr=subprocess.STDOUT,
            env={**os.environ, "MESH_SERVICES_HUNG_LISTEN": f"127.0.0.1:{port}"},
        )  # fmt: skip
        try:
            with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
                call = channel.unary_unary("/hung.v1.Hung/Block").future(b"", wait_for_ready=True)
                assert process.wait(60) == -signal.SIGABRT, log.read_text()
                assert call.code() is grpc.StatusCode.UNAVAILABLE
        finally:
            process.kill()
            process.wait()
    assert "the event loop has not turned for 2 s; the process aborts itself, with its stacks" in log.read_text()
    assert "in block" in log.read_text().partition("Fatal Python error: Aborted")[2]


def _broker(mesh: Mesh) -> int:
    lines = subprocess.run(
        ["ps", "-o", "pid=,args=", "--ppid", str(mesh.process.pid)], capture_output=True, text=True, check=True
    ).stdout.splitlines()  # fmt: skip
    return next(int(line.split()[0]) for line in lines if "nats-server" in line)
