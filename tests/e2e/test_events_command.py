"""``mesh events`` against a running mesh: what a user sees, and functions that are called again."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mesh_process import ROOT, Mesh

MANIFEST = """protos = ["protos"]
[services.recorder]
module = "functions"
serves = ["delivery.v1.Recorder", "delivery.v1.Watcher"]
database = "sqlite:///.mesh/recorder.db"
"""
WATCHED = """
service Watcher {
  rpc OnRow(meshapi.v1.Change) returns (google.protobuf.Empty) {
    option (meshapi.v1.method) = { on: { change: { service: "recorder" table: "big" } } };
  }
}
"""
TOGGLED = 'message Toggled { option (meshapi.v1.event) = { key: "on" }; bool on = 1; }'
FUNCTIONS = """
from pathlib import Path
from google.protobuf.empty_pb2 import Empty
from mesh import InvalidArgument
from sqlalchemy import text

HERE = Path(__file__).parent

async def startup(service):
    async with service.transaction() as tx:
        await tx.execute(text("CREATE TABLE IF NOT EXISTS seen (number INTEGER)"))

async def on_happened(request, context):
    if request.what == "poison" and not (HERE / "mended").exists():
        raise InvalidArgument("nobody can read this")
    async with context.transaction() as tx:
        await tx.execute(text("INSERT INTO seen VALUES (:number)"), {"number": request.number})
    with (HERE / "seen").open("a") as file:
        file.write(f"{request.number}\\n")
    return Empty()

async def on_noted(request, context):
    return Empty()

async def on_row(request, context):
    with (HERE / "rows").open("a") as file:
        file.write(f"{request.key['id']}\\n")
    return Empty()
"""
VERSION = """
import sqlalchemy as sa
from alembic import op

revision = "1"
down_revision = None


def upgrade():
    op.create_table("big", sa.Column("id", sa.String, primary_key=True), sa.Column("body", sa.String))
"""


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Mesh]:
    shutil.copytree(ROOT / "tests/protos/delivery", tmp_path / "protos/delivery")
    with (tmp_path / "protos/delivery/v1/delivery.proto").open("a") as file:
        file.write(TOGGLED + WATCHED)
    (tmp_path / "migrations").mkdir()
    (tmp_path / "migrations" / "v1.py").write_text(VERSION)
    (tmp_path / "functions.py").write_text(FUNCTIONS)
    (tmp_path / "mesh.toml").write_text(MANIFEST)
    mesh = Mesh(tmp_path / "mesh.toml", tmp_path / ".mesh", {})
    try:
        yield mesh.ready()
    finally:
        code = mesh.stop()
    assert code == 0, mesh.output()


@pytest.fixture
def mesh(tmp_path: Path) -> Callable[..., str]:
    def run(*words: str, code: int = 0) -> str:
        command = [sys.executable, "-P", "-m", "mesh", *words, "--file", str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stderr
        return done.stdout + done.stderr

    return run


def test_a_row_that_is_too_large_for_the_broker_is_a_dead_letter(
    running: Mesh, tmp_path: Path, mesh: Callable[..., str]
) -> None:
    """What no broker takes is not delivered, and not passed over either; what comes behind it is."""
    with sqlite3.connect(tmp_path / ".mesh" / "recorder.db") as connection:
        connection.execute("INSERT INTO big VALUES ('large', ?)", ("x" * 3_000_000,))
        connection.execute("INSERT INTO big VALUES ('small', 'x')")
    connection.close()
    deadline = time.monotonic() + 30
    rows = tmp_path / "rows"
    while not (rows.exists() and rows.read_text()):  # a file is there before its text
        assert time.monotonic() < deadline, running.output()
        time.sleep(0.05)
    assert rows.read_text() == "small\n"
    listed = mesh("events", "dead")
    assert "delivery.v1.Watcher/OnRow" in listed
    why = "larger than the 1048576 bytes that the event broker takes; it stays in the outbox of recorder, sequence 1"
    assert why in listed
    assert why in mesh("events", "dead", "redrive", "--all", code=1)
    assert "discarded 1" in mesh("events", "dead", "discard", "--all")


def test_look_redrive_and_replay(running: Mesh, tmp_path: Path, mesh: Callable[..., str]) -> None:
    def seen(*numbers: int) -> None:
        deadline = time.monotonic() + 30
        found: list[str] = []
        while found != [str(number) for number in numbers]:
            assert time.monotonic() < deadline, (found, running.output())
            time.sleep(0.05)
            file = tmp_path / "seen"
            found = file.read_text().split() if file.exists() else []

    mesh("events", "publish", "Happened", "-d", '{"key": "ada", "number": 1, "what": "poison"}')
    id_ = mesh("events", "publish", "delivery.v1.Happened", "-d", '{"key": "ada", "number": 2}').strip()
    seen(2)
    assert [line.split()[-1] for line in mesh("events", "list", "--type", "Happened").splitlines()[2:]][1] == id_
    assert len(mesh("events", "list", "--limit", "1").splitlines()) == 3
    assert "expected a number of 1 or more" in mesh("events", "list", "--limit", "0", code=2)
    assert '"number": 2' in mesh("events", "show", id_)
    assert "INVALID_ARGUMENT: nobody can read this" in mesh("events", "dead")
    assert "select dead letters" in mesh("events", "dead", "redrive", code=1)
    assert "known are" in mesh("events", "dead", "discard", "--method", "Happened", code=1)
    assert "99: there is no such dead letter" in mesh("events", "dead", "discard", "1", "99", code=1)
    assert "nobody can read this" in mesh("events", "dead")
    (tmp_path / "mended").touch()
    assert "redriven 1, left 0" in mesh("events", "dead", "redrive", "--method", "OnHappened")
    seen(2, 1)
    assert mesh("events", "dead").strip() == "no dead letters"
    assert "replayed 2" in mesh("events", "replay", "Recorder/OnHappened", "--since", "1h")
    seen(2, 1, 1, 2)
    assert "known are delivery.v1.Recorder/OnHappened" in mesh("events", "replay", "Nothing", code=1)
    assert "nothing.json cannot be read" in mesh("events", "publish", "Happened", "-d", "@nothing.json", code=1)
    assert "name one event" in mesh("events", "publish", "Nothing", code=1)
    assert "there is no such dead letter" in mesh("events", "dead", "discard", "99", code=1)
    toggled = mesh("events", "publish", "Toggled", "-d", '{"on": true}').strip()
    assert "subject  events.delivery-v1-Toggled.5.true\n" in mesh("events", "show", toggled)
    long = mesh("events", "publish", "Happened", "-d", f'{{"key": "{"k" * 1025}"}}', code=1)
    assert "its key, key, has 1025 bytes, a key at most 1024" in long
