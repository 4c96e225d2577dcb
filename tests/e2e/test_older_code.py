"""Two releases of a service in a rolling deployment and a roll back, under load, on SQLite and PostgreSQL."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

PROTO = """syntax = "proto3";
package notes.v1;
import "google/protobuf/empty.proto";
import "meshapi/v1/annotations.proto";
message Note { string text = 1; }
message Count { int64 notes = 1; }
service Notes {
  rpc Add(Note) returns (google.protobuf.Empty) { option (meshapi.v1.method) = { access: PUBLIC }; }
  rpc CountNotes(google.protobuf.Empty) returns (Count) { option (meshapi.v1.method) = { access: PUBLIC }; }
}
"""
FUNCTIONS = """
import sqlalchemy as sa
from google.protobuf.empty_pb2 import Empty
from notes.v1 import notes_pb2 as pb

NOTES = sa.Table(
    "notes", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True), sa.Column("text", sa.String)COLUMN
)


async def add(request, context):
    async with context.transaction() as tx:
        await tx.execute(sa.insert(NOTES).values(text=request.textVALUE))
    return Empty()


async def count_notes(request, context):
    async with context.transaction() as tx:
        return pb.Count(notes=(await tx.execute(sa.select(sa.func.count()).select_from(NOTES))).scalar_one())
"""
VERSION = """
import sqlalchemy as sa
from alembic import op

revision = "{name}"
down_revision = {before}
compatible = {compatible}


def upgrade():
    {operation}
"""
CREATE = 'op.create_table("notes", sa.Column("id", sa.Integer, primary_key=True), sa.Column("text", sa.String))'
EXPAND = 'op.add_column("notes", sa.Column("kind", sa.String, server_default="plain", nullable=False))'
CONTRACT = 'op.rename_table("notes", "old_notes")'
MANIFEST = """
[services.notes]
module = "notes_functions"
serves = ["notes.v1.Notes"]
"""
STATUS = grpc.StatusCode


class Deployment:
    """Two replicas of the service, each in a release of its own."""

    def __init__(self, folder: Path, database: str) -> None:
        self.folder = folder
        self.database = database
        self.log = folder / "log"
        self.running: dict[int, subprocess.Popen[bytes]] = {}
        self.sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
        self.outcomes: Counter[STATUS] = Counter()
        self._stop = threading.Event()
        for release in (1, 2, 3):
            self._write(release)
        for command in ("generate", "keys"):
            subprocess.run([sys.executable, "-m", "mesh", command, "--file", str(self.root(1))], check=True)
        self._threads = [threading.Thread(target=self._load, args=(replica,), daemon=True) for replica in (0, 1)]

    def root(self, release: int) -> Path:
        return self.folder / f"release{release}"

    def _write(self, release: int) -> None:
        root = self.root(release)
        (root / "protos/notes/v1").mkdir(parents=True)
        (root / "protos/notes/v1/notes.proto").write_text(PROTO)
        (root / "mesh.toml").write_text(MANIFEST)
        kind = release > 1
        text = FUNCTIONS.replace("COLUMN", ', sa.Column("kind", sa.String)' if kind else "")
        (root / "notes_functions.py").write_text(text.replace("VALUE", ", kind='new'" if kind else ""))
        (root / "migrations").mkdir()
        for number, operation in enumerate((CREATE, EXPAND, CONTRACT)[:release], start=1):
            before = repr(str(number - 1)) if number > 1 else None
            version = VERSION.format(name=number, before=before, compatible=number == 2, operation=operation)
            (root / "migrations" / f"v{number}.py").write_text(version)

    def port(self, replica: int) -> int:
        return int(self.sockets[replica].getsockname()[1])

    def start(self, replica: int, release: int) -> subprocess.Popen[bytes]:
        fd = self.sockets[replica].fileno()
        with self.log.open("ab") as log:
            self.running[replica] = process = subprocess.Popen(
                [sys.executable, "-m", "mesh", "sidecar", "notes", "--file", str(self.root(release)), "--fd", str(fd)],
                pass_fds=[fd], stdout=log, stderr=subprocess.STDOUT,
                env={
                    **os.environ,
                    "MESH_STATE": str(self.root(1) / ".mesh"),
                    "MESH_SERVICES_NOTES_LISTEN": f"127.0.0.1:{self.port(replica)}",
                    "MESH_SERVICES_NOTES_DATABASE": self.database,
                },
            )  # fmt: skip
        return process

    def replace(self, replica: int, release: int, number: signal.Signals = signal.SIGTERM) -> None:
        """End a replica, start it in a release, and wait until it has served more calls."""
        if replica in self.running:
            self.running[replica].send_signal(number)
            assert self.running[replica].wait(60) == (0 if number is signal.SIGTERM else -number)
        self.start(replica, release)
        with self.channel(replica) as channel:
            self.count(channel)
        self.progress()

    def channel(self, replica: int) -> grpc.Channel:
        return grpc.insecure_channel(f"127.0.0.1:{self.port(replica)}")

    def count(self, channel: grpc.Channel) -> int:
        call = channel.unary_unary("/notes.v1.Notes/CountNotes")
        counted = call(b"", wait_for_ready=True, timeout=60)
        value = 0  # field 1, a varint
        for at, byte in enumerate(counted[1:]):
            value |= (byte & 0x7F) << 7 * at
        return value

    def _load(self, replica: int) -> None:
        with self.channel(replica) as channel:
            add = channel.unary_unary("/notes.v1.Notes/Add")
            while not self._stop.is_set():
                try:
                    add(b"\x0a\x04text", wait_for_ready=True, timeout=60)
                    self.outcomes[STATUS.OK] += 1
                except grpc.RpcError as error:
                    self.outcomes[error.code()] += 1
                time.sleep(0.005)  # leaves the processor to the replica that starts

    def load(self) -> None:
        for thread in self._threads:
            thread.start()

    def progress(self, more: int = 20) -> None:
        target, until = self.outcomes[STATUS.OK] + more, time.monotonic() + 60
        while self.outcomes[STATUS.OK] < target:
            assert time.monotonic() < until, (self.outcomes, self.log.read_text())
            time.sleep(0.01)

    def finish(self) -> None:
        self._stop.set()
        for thread in self._threads:
            if thread.ident:
                thread.join(90)

    def close(self) -> None:
        self.finish()
        for process in self.running.values():
            process.kill()
            process.wait()
        for made in self.sockets:
            made.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def deployment(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Deployment]:
    if request.param == "postgresql":
        make: Callable[[], str] = request.getfixturevalue("new_postgres")
        database = make()
    else:
        database = f"sqlite:///{tmp_path}/{secrets.token_hex(4)}.db"
    made = Deployment(tmp_path, database)
    try:
        yield made
    finally:
        made.close()


@pytest.mark.timeout(400)
def test_roll_forward_and_back_under_load(deployment: Deployment) -> None:
    for replica in (0, 1):
        deployment.start(replica, 1)
    deployment.load()
    deployment.progress()

    deployment.replace(1, 2)  # migrates; replica 0 goes on with the code of release 1
    warning = "the database is at version 2, and this code at 1: the start goes on, because 2 is marked compatible"
    assert warning not in deployment.log.read_text()
    deployment.replace(0, 1, signal.SIGKILL)  # it crashes before its turn has come, and comes back
    assert deployment.log.read_text().count(warning) == 1
    deployment.replace(0, 2)

    deployment.replace(1, 1)  # roll back
    deployment.replace(0, 1)
    assert deployment.log.read_text().count(warning) == 3

    deployment.replace(1, 2)  # and forward again
    deployment.finish()
    with deployment.channel(0) as channel:
        stored = deployment.count(channel)
    outcomes = deployment.outcomes
    assert set(outcomes) <= {STATUS.OK, STATUS.UNAVAILABLE}, outcomes
    assert outcomes[STATUS.OK] <= stored <= outcomes.total()

    deployment.running[1].terminate()
    deployment.running[1].wait(60)
    deployment.start(1, 3)  # not compatible
    with deployment.channel(1) as channel:
        grpc.channel_ready_future(channel).result(60)
    deployment.running[0].terminate()
    deployment.running[0].wait(60)
    assert deployment.start(0, 1).wait(60) == 1
    refusal = "the database is at version 3, and this code at 1; older code cannot run after 3, which is not marked"
    assert refusal in deployment.log.read_text()
