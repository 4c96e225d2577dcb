"""A folder outside the repository, with its own mesh.toml, proto and functions, runs with ``mesh up --file``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import grpc
import pytest
from mesh_process import Mesh, http

PROTO = """syntax = "proto3";
package shop.v1;
import "google/api/annotations.proto";
import "meshapi/v1/annotations.proto";
service Shop {
  rpc Price(Item) returns (Cost) {
    option (google.api.http) = { get: "/v1/items/{name}" };
    option (meshapi.v1.method) = { access: PUBLIC };
  }
  rpc List(Item) returns (stream Item) { option (meshapi.v1.method) = { access: PUBLIC }; }
  rpc Sum(stream Cost) returns (Cost) { option (meshapi.v1.method) = { access: PUBLIC }; }
  rpc Haggle(stream Cost) returns (stream Cost) { option (meshapi.v1.method) = { access: PUBLIC }; }
}
message Item { string name = 1; int32 count = 2; }
message Cost { int64 cents = 1; }
"""

FUNCTIONS = '''"""Functions that know nothing of the mesh but its errors."""

import shop_pb2 as pb
from mesh import NotFound


def price(request, context):
    if request.name == "unicorn":
        raise NotFound("no unicorn here")
    return pb.Cost(cents=len(request.name) * 100)


async def list(request, context):
    for index in range(request.count):
        yield pb.Item(name=f"{request.name}{index}", count=index)


async def sum(requests, context):
    total = 0
    async for cost in requests:
        total += cost.cents
    return pb.Cost(cents=total)


async def haggle(requests, context):
    async for cost in requests:
        yield pb.Cost(cents=cost.cents // 2)
'''

MANIFEST = """protos = ["."]
[edge]
listen = "127.0.0.1:0"
[services.shop]
module = "shop_functions"
serves = ["shop.v1.Shop"]
"""


def project(folder: Path, **changes: str) -> Path:
    files = {"mesh.toml": MANIFEST, "shop.proto": PROTO, "shop_functions.py": FUNCTIONS, **changes}
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder / "mesh.toml"


def started(folder: Path, **environ: str) -> Mesh:
    return Mesh(folder / "mesh.toml", folder / ".mesh", environ)


@pytest.mark.parametrize("channel", ["ngh2", "grpcio"])
async def test_all_four_kinds(tmp_path: Path, channel: str) -> None:
    project(tmp_path)
    mesh = started(tmp_path, MESH_CHANNEL=channel)
    try:
        mesh.ready()
        assert http(f"{mesh.edge}/v1/items/tea").json == {"cents": "300"}
        missing = http(f"{mesh.edge}/v1/items/unicorn")
        assert (missing.status, missing.json["message"]) == (404, "no unicorn here")
        sys.path.append(str(tmp_path / "gen"))
        import shop_pb2 as pb
        import shop_pb2_grpc

        async with grpc.aio.insecure_channel(mesh.addresses["shop"]) as channel_:
            stub: Any = shop_pb2_grpc.ShopStub(channel_)
            assert (await stub.Price(pb.Item(name="tea"), timeout=20)).cents == 300
            listed = [item.name async for item in stub.List(pb.Item(name="x", count=3), timeout=20)]
            assert listed == ["x0", "x1", "x2"]
            total = await stub.Sum(iter([pb.Cost(cents=1), pb.Cost(cents=2)]), timeout=20)
            assert total.cents == 3
            haggle = stub.Haggle(timeout=20)
            for cents in (10, 20):
                await haggle.write(pb.Cost(cents=cents))
                assert (await haggle.read()).cents == cents // 2
            await haggle.done_writing()
            assert await haggle.read() == grpc.aio.EOF
    finally:
        assert mesh.stop() == 0, mesh.output()


def failing(folder: Path, **environ: str) -> tuple[int, str]:
    """Start what cannot start: exit code and what it printed, which must come soon."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MESH_", "OTEL_"))}
    done = subprocess.run(
        [sys.executable, "-m", "mesh", "up", "--file", str(folder / "mesh.toml")],
        capture_output=True, text=True, check=False, timeout=60, env={**inherited, **environ}, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


class TestAStartThatCannotBe:
    """It ends with its reason, not in a loop."""

    def test_a_missing_function(self, tmp_path: Path) -> None:
        project(tmp_path, **{"shop_functions.py": FUNCTIONS.replace("def price", "def prize")})
        code, text = failing(tmp_path)
        assert code == 1
        assert "price" in text
        assert "Price" in text
        assert "shop_functions" in text
        assert "Traceback" not in text

    def test_a_module_that_does_not_import(self, tmp_path: Path) -> None:
        project(tmp_path, **{"shop_functions.py": "import nothing_of_this_name\n"})
        code, text = failing(tmp_path)
        assert code == 1
        assert "nothing_of_this_name" in text

    def test_a_port_that_is_taken(self, tmp_path: Path) -> None:
        import socket

        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            address = f"127.0.0.1:{taken.getsockname()[1]}"
            project(tmp_path)
            code, text = failing(tmp_path, MESH_SERVICES_SHOP_LISTEN=address)
        assert code == 1
        assert address in text
        assert "[services.shop]" in text

    def test_a_database_that_cannot_be_reached(self, tmp_path: Path) -> None:
        project(tmp_path)
        code, text = failing(tmp_path, MESH_SERVICES_SHOP_DATABASE="postgresql://u:s3cret@127.0.0.1:1/shop")
        assert code == 1
        assert "127.0.0.1:1" in text
        assert "s3cret" not in text

    def test_a_contract_with_faults(self, tmp_path: Path) -> None:
        project(tmp_path, **{"shop.proto": PROTO.replace("{name}", "{nome}")})
        code, text = failing(tmp_path)
        assert code == 1
        assert "shop.proto:6" in text
        assert "'nome' is not a field" in text


def test_check_prints_every_fault_on_its_own_line(tmp_path: Path) -> None:
    project(
        tmp_path,
        **{
            "shop.proto": PROTO.replace("{name}", "{nome}").replace(
                "access: PUBLIC }; }", 'on: { schedule: "x" } }; }', 1
            )
        },
    )
    done = subprocess.run(
        [sys.executable, "-m", "mesh", "check", "--file", str(tmp_path / "mesh.toml")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    lines = done.stderr.strip().splitlines()
    assert len(lines) >= 3
    assert all(line.startswith(("shop.proto:", str(tmp_path))) for line in lines)


def test_a_new_service_runs(tmp_path: Path) -> None:
    """``mesh new`` in an empty folder makes something that starts and answers."""
    made = subprocess.run(
        [sys.executable, "-m", "mesh", "new", "greeter"], cwd=tmp_path, capture_output=True, text=True, check=False
    )  # fmt: skip
    assert made.returncode == 0, made
    mesh = started(tmp_path, MESH_EDGE_LISTEN="127.0.0.1:0", MESH_SERVICES_GREETER_LISTEN="127.0.0.1:0")
    try:
        mesh.ready()
        proto = (tmp_path / "protos" / "greeter" / "v1" / "greeter.proto").read_text()
        assert "google.api.http" in proto
        done = subprocess.run(
            [sys.executable, "-m", "mesh", "graph", "--format", "json"],
            cwd=tmp_path, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert "greeter" in json.dumps(json.loads(done.stdout))
        tests = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
            cwd=tmp_path, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert tests.returncode == 0, tests.stdout
    finally:
        assert mesh.stop() == 0, mesh.output()


def test_a_second_start_of_the_same_mesh_is_refused(tmp_path: Path) -> None:
    project(tmp_path)
    mesh = started(tmp_path)
    try:
        mesh.ready()
        code, text = failing(tmp_path, MESH_STATE=str(mesh.state))
        assert code == 1
        assert str(mesh.process.pid) in text
    finally:
        assert mesh.stop() == 0
    begun = time.monotonic()
    again = started(tmp_path)
    try:
        again.ready()
    finally:
        assert again.stop() == 0
    assert time.monotonic() - begun < 60
