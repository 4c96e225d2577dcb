"""A mesh wherever its folder is, whatever its terminal takes and by whichever protocol it listens."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from mesh_process import Mesh, http

MANIFEST = """{top}
[edge]
listen = "{listen}"
[events]
listen = "{listen}"
[services.loop]
module = "places.loop"
serves = ["places.v1.Loop"]
listen = "{listen}"
database = "sqlite:///{data}/loop.db"
[services.worker]
module = "places.worker"
serves = ["places.v1.Worker"]
listen = "{listen}"
workers = {{ min = 1, max = 1 }}
database = "sqlite:///worker.db"
"""
PROTO = """syntax = "proto3";
package places.v1;
import "google/api/annotations.proto";
import "google/protobuf/empty.proto";
import "meshapi/v1/annotations.proto";
message Said { option (meshapi.v1.event) = { key: "key" }; string key = 1; string text = 2; }
service Loop {
  option (meshapi.v1.service) = { calls: "places.v1.Worker" publishes: "places.v1.Said" };
  rpc Say(Said) returns (Said) {
    option (google.api.http) = { post: "/say" body: "*" };
    option (meshapi.v1.method) = { access: PUBLIC };
  }
  rpc Via(Said) returns (Said) {
    option (google.api.http) = { get: "/via" };
    option (meshapi.v1.method) = { access: PUBLIC };
  }
}
service Worker {
  rpc Get(Said) returns (Said);
  rpc OnSaid(Said) returns (google.protobuf.Empty) { option (meshapi.v1.method) = { on: { event: {} } }; }
}
"""
LOOP = """
from mesh import NotFound
from places.v1.places_pb2_grpc import WorkerStub
from sqlalchemy import text
import grpc


async def say(request, context):
    print("printed ü 日本 \\ud800", flush=True)
    context.log.info("logged ü 日本 \\ud800 %s", request.text)
    async with context.transaction() as tx:
        await tx.execute(text("INSERT INTO words VALUES (:word)"), {"word": request.text})
        await tx.publish(request)
    return request


async def via(request, context):
    try:
        return await context.stub(WorkerStub).Get(request)
    except grpc.aio.AioRpcError as error:
        raise NotFound(error.details())
"""
MIGRATION = """
from alembic import op

revision = "1"
down_revision = None


def upgrade():
    op.execute("CREATE TABLE words (word TEXT)")
"""
WORKER = """
from google.protobuf.empty_pb2 import Empty
from mesh import NotFound


def get(request, context):
    print("worker printed ü 日本 \\ud800", flush=True)
    raise NotFound(f" there is no {request.text}")


async def on_said(request, context):
    print(f"heard {request.key!a} {request.text!a}", flush=True)
    return Empty()
"""
ODD = ["müller 日本 q\"uo'te` $HOME", "#ha?sh%41 & a:b=c back\\slash\nline ", "\udcff"]

Start = Callable[..., Mesh]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a mesh in a folder of that name below the test's own."""
    with ExitStack() as running:

        def make(
            name: str,
            *options: str,
            listen: str = "127.0.0.1:0",
            top: str = "",
            data: str = "data ü",
            **environ: str,
        ) -> Mesh:
            folder = tmp_path / name
            (folder / "protos/places/v1").mkdir(parents=True)
            (folder / "protos/places/v1/places.proto").write_text(PROTO)
            (folder / "places/migrations").mkdir(parents=True)
            (folder / "places/migrations/1.py").write_text(MIGRATION)
            (folder / "places/loop.py").write_text(LOOP)
            (folder / "places/worker.py").write_text(WORKER)
            manifest = MANIFEST.format(listen=listen, top=top, data=data)
            (folder / "mesh.toml").write_text(manifest)
            mesh = Mesh(folder / "mesh.toml", folder / ".mesh", environ, *options)
            running.callback(mesh.stop)
            return mesh.ready()

        yield make


def works(mesh: Mesh, text: str) -> None:
    """Check every part: a database, an event, a worker, an onward call and its status."""
    edge = mesh.edge.replace("%", "%25")
    key = f" {text} "
    assert http(f"{edge}/say", "POST", {"key": key, "text": text}).status == 200, mesh.output()
    mesh.until(lambda: f"heard {key!a} {text!a}" in mesh.output())
    answer = http(f"{edge}/via?text={urllib.parse.quote(text)}")
    assert (answer.status, answer.json["message"]) == (404, f" there is no {text}"), mesh.output()


@pytest.mark.parametrize("name", ODD, ids=ascii)
def test_a_project_runs_wherever_its_folder_is(start: Start, name: str) -> None:
    mesh = start(name)
    works(mesh, "x ü ")
    folder = mesh.state.parent
    assert {"loop.db"} <= {path.name for path in (folder / "data ü").iterdir()}
    for command in (["check"], ["graph"], ["trace"], ["events", "list"]):
        done = subprocess.run(
            [sys.executable, "-m", "mesh", *command, "--file", str(folder)],
            capture_output=True, check=False, env={**os.environ, "MESH_STATE": str(mesh.state)},
        )  # fmt: skip
        assert done.returncode == 0, (command, done.stderr)


@pytest.mark.parametrize(
    ("environ", "shown"),
    [
        ({"PYTHONIOENCODING": "ascii"}, "? ?? ?"),
        ({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, "? ?? ?"),
        ({"PYTHONIOENCODING": "utf-8"}, "ü 日本 ?"),
    ],
    ids=["ascii", "C", "utf-8"],
)
def test_every_terminal_is_shown_every_line(start: Start, environ: dict[str, str], shown: str) -> None:
    mesh = start("müller", data="data", **environ)  # a name in mesh.toml must be one that the locale has
    works(mesh, "x ü")
    for line in (f" printed {shown}\n", f" logged {shown} x ", f" worker printed {shown}\n"):
        mesh.until(lambda line=line: line in mesh.output())
    assert mesh.stop() == 0
    assert mesh.output().rstrip().endswith("stopped")


def test_log_lines_stay_json_on_a_terminal_that_takes_ascii(start: Start) -> None:
    mesh = start("a", "--logs", "json", PYTHONIOENCODING="ascii")
    assert http(f"{mesh.edge}/say", "POST", {"key": "a", "text": "ü"}).status == 200
    mesh.until(lambda: "logged" in mesh.output())
    mesh.stop()
    told = [json.loads(line)["message"] for line in mesh.output().splitlines()]
    assert "logged ü 日本 ? ü" in told


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="no IPv6 here")
@pytest.mark.parametrize(("listen", "channel"), [("[::1]:0", "ngh2"), ("[::]:0", "ngh2"), ("*:0", "grpcio")])
def test_it_listens_by_either_protocol(start: Start, listen: str, channel: str) -> None:
    mesh = start("a", listen=listen, top=f'channel = "{channel}"', OTEL_EXPORTER_OTLP_ENDPOINT="http://[::1]:1")
    works(mesh, "x")
    port = mesh.addresses["edge"].rpartition(":")[2]
    for host in ("127.0.0.1", "[::1]"):
        if listen != "[::1]:0" or host == "[::1]":
            assert http(f"http://{host}:{port}/healthz").status == 200
    for address in (mesh.addresses["loop"].replace("[::]", "[::1]"), mesh.edge, "worker"):
        done = subprocess.run(
            [sys.executable, "-m", "mesh", "health", address, "--file", str(mesh.state.parent)],
            capture_output=True, text=True, check=False, env={**os.environ, "MESH_STATE": str(mesh.state)},
        )  # fmt: skip
        assert done.stdout.endswith(": SERVING\n"), done
