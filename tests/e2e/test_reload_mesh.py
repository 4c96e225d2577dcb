"""``mesh up --reload`` on a mesh outside of the repository: new code, new contract, no call lost, nothing half done."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from mesh_process import Mesh, http

PROTO = """syntax = "proto3";
package NAME.v1;
import "google/api/annotations.proto";
import "meshapi/v1/annotations.proto";
service Service {
  rpc Version(Nothing) returns (Answer) {
    option (google.api.http) = { get: "/v1/NAME" };
    option (meshapi.v1.method) = { access: PUBLIC };
  }
  rpc Slow(Nothing) returns (Answer) { option (meshapi.v1.method) = { access: PUBLIC }; }
}
message Nothing {}
message Answer { string version = 1; }
"""
FUNCTIONS = """import asyncio

import NAME_pb2 as pb


async def version(request, context):
    return pb.Answer(version="VERSION")


async def slow(request, context):
    await asyncio.sleep(1.5)
    return pb.Answer(version="VERSION")
"""
MANIFEST = """protos = ["api"]
[edge]
listen = "127.0.0.1:0"
[services.inside]
module = "parts.inside.functions"
serves = ["inside.v1.Service"]
[services.apart]
module = "parts.apart.functions"
serves = ["apart.v1.Service"]
workers = { min = 1, max = 2 }
"""
NAMES = ("inside", "apart")


class Project:
    """The files, and the mesh that runs them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "api").mkdir(parents=True)
        (folder / "mesh.toml").write_text(MANIFEST)
        for name in NAMES:
            (folder / "parts" / name).mkdir(parents=True)
            (folder / "api" / f"{name}.proto").write_text(PROTO.replace("NAME", name))
            self.write(name, "1")

    def start(self) -> None:
        self.mesh = Mesh(self.folder / "mesh.toml", self.folder / ".mesh", {}, "--reload")
        self.mesh.ready()

    def write(self, name: str, version: str, change: Callable[[str], str] = str) -> None:
        text = FUNCTIONS.replace("NAME", name).replace("VERSION", version)
        (self.folder / "parts" / name / "functions.py").write_text(change(text))

    @contextlib.asynccontextmanager
    async def stub(self, name: str) -> AsyncIterator[Any]:
        module = importlib.import_module(f"{name}_pb2_grpc")
        async with grpc.aio.insecure_channel(self.mesh.addresses[name]) as channel:
            yield module.ServiceStub(channel)

    @staticmethod
    def nothing(name: str) -> Any:
        return importlib.import_module(f"{name}_pb2").Nothing()

    async def says(self, *texts: str, times: int = 1) -> None:
        async with asyncio.timeout(40):
            while not all(self.mesh.output().count(text) >= times for text in texts):  # noqa: ASYNC110 - another process's log
                await asyncio.sleep(0.05)


class Load:
    """Calls without a pause; every one must be answered."""

    def __init__(self, project: Project, name: str) -> None:
        self.versions: list[str] = []
        self._project = project
        self._name = name
        self._seen = asyncio.Condition()

    async def run(self) -> None:
        nothing = self._project.nothing(self._name)
        async with self._project.stub(self._name) as stub:
            while True:
                answer = await stub.Version(nothing, timeout=20)
                async with self._seen:
                    self.versions.append(answer.version)
                    self._seen.notify_all()

    async def until(self, version: str) -> None:
        async with asyncio.timeout(40), self._seen:
            await self._seen.wait_for(lambda: self.versions[-5:] == [version] * 5)


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    made = Project(tmp_path / "outside")
    sys.path.insert(0, str(made.folder / "gen"))
    try:
        made.start()
        yield made
    finally:
        sys.path.remove(str(made.folder / "gen"))
        for name in NAMES:
            for kind in ("_pb2", "_pb2_grpc"):
                sys.modules.pop(name + kind, None)
        code = made.mesh.stop()
    assert code == 0, made.mesh.output()


@pytest.mark.slow
async def test_the_life_of_a_project(project: Project) -> None:
    """One mesh for all of it: a start takes seconds."""
    await project.says("reloads when files below")
    loads = {name: Load(project, name) for name in NAMES}
    async with asyncio.TaskGroup() as group:
        running = [group.create_task(load.run()) for load in loads.values()]

        for name, load in loads.items():  # -- new code, while a slow call of the old code is in flight --
            await load.until("1")
            async with project.stub(name) as stub:
                slow = asyncio.ensure_future(stub.Slow(project.nothing(name), timeout=20))
                await asyncio.sleep(0.3)  # it is in the function now; nobody says so
                project.write(name, "2")
                await load.until("2")
                assert (await slow).version == "1", "it ends with the code that it began with"

        for name, load in loads.items():  # -- code that cannot be loaded --
            project.write(name, "3", lambda text: f"import nothing_of_this_name\n{text}")
            await project.says(f"parts/{name}/functions.py:1: the module parts.{name}.functions cannot be imported")
            await load.until("2")
            project.write(name, "3")
            await load.until("3")

        # -- a method that the functions do not have yet, then do --
        proto = project.folder / "api" / "inside.proto"
        proto.write_text(
            proto.read_text().replace(
                "message Nothing",
                "service More { rpc Extra(Nothing) returns (Answer) {\n"
                '  option (google.api.http) = { get: "/v1/extra" };\n'
                "  option (meshapi.v1.method) = { access: PUBLIC }; } }\nmessage Nothing",
            )
        )
        await project.says("it has the route GET /v1/extra", "the mesh goes on as it was")
        # A new process would read what was refused, so code waits too.
        project.write("inside", "3b")
        await project.says("it has the route GET /v1/extra", times=2)
        manifest = project.folder / "mesh.toml"
        manifest.write_text(MANIFEST.replace('["inside.v1.Service"]', '["inside.v1.Service", "inside.v1.More"]'))
        await project.says("there is no function 'extra'", "inside goes on with the old code")
        assert "3b" not in loads["inside"].versions
        project.write(
            "inside", "4", lambda text: f"{text}\n\nasync def extra(request, context):\n    return pb.Answer()\n"
        )
        await asyncio.gather(loads["inside"].until("4"), loads["apart"].until("3"))
        await project.says("edge runs the new code")
        assert http(f"{project.mesh.edge}/v1/extra").status == 200
        for task in running:
            task.cancel()
    assert all(len(load.versions) > 50 for load in loads.values())
    for load in loads.values():
        assert load.versions == sorted(load.versions), "never back to older code"


STORED = """import NAME_pb2 as pb
from sqlalchemy import text


async def version(request, context):
    async with context.transaction() as tx:
        rows = await tx.execute(text("PRAGMA table_info(items)"))
        return pb.Answer(version=",".join(row[1] for row in rows))


async def slow(request, context):
    return pb.Answer()
"""
FIRST = """from alembic import op

revision = "1"
down_revision = None


def upgrade():
    op.execute("create table items (id integer primary key)")
"""
SECOND = """from alembic import op

revision = "2"
down_revision = "1"


def upgrade():
    op.execute("alter table items add column half text")
"""


@pytest.mark.slow
async def test_a_save_migrates_nothing(tmp_path: Path) -> None:
    """With workers and without: the version waits, also when the process dies, and the next start runs it whole."""
    folder = tmp_path / "outside"
    made = Project(folder)
    manifest = MANIFEST
    for name in NAMES:
        table = f"[services.{name}]\n"
        manifest = manifest.replace(table, f'{table}database = "sqlite:///{folder}/{name}.db"\n')
        (folder / "mesh.toml").write_text(manifest)
        (folder / "parts" / name / "functions.py").write_text(STORED.replace("NAME", name))
        (folder / "parts" / name / "migrations").mkdir()
        (folder / "parts" / name / "migrations" / "v1.py").write_text(FIRST)

    def columns() -> list[str]:
        return [http(f"{made.mesh.edge}/v1/{name}").json["version"] for name in NAMES]

    try:
        made.start()
        await made.says("reloads when files below")
        assert columns() == ["id", "id"]
        for name in NAMES:
            (folder / "parts" / name / "migrations" / "v2.py").write_text(SECOND)
        await made.says(*(f"{name}: the migration v2.py waits for a restart" for name in NAMES))
        for name in NAMES:
            with (folder / "parts" / name / "functions.py").open("a") as file:
                file.write("# new code\n")
        await made.says("inside runs the new code", "reloaded: 1 new workers")
        assert columns() == ["id", "id"]
        [pid] = re.findall(r"inside runs the new code, pid (\d+)", made.mesh.output())  # the old one may drain still
        os.kill(int(pid), signal.SIGKILL)
        await made.says("inside is ready again")
        assert columns() == ["id", "id"]
        assert made.mesh.output().count("waits for a restart") == len(NAMES), "it is said once"
    finally:
        assert made.mesh.stop() == 0
    for name in NAMES:
        with (folder / "parts" / name / "migrations" / "v2.py").open("a") as file:
            file.write('    op.execute("alter table items add column whole text")\n')
    try:
        made.start()
        assert columns() == ["id,half,whole", "id,half,whole"]
    finally:
        assert made.mesh.stop() == 0
