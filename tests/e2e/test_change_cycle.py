"""A function that is called for a change of a row and changes that row: a cycle through the database."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from mesh_process import Mesh

PROTO = """
syntax = "proto3";
package wheel.v1;
import "google/protobuf/empty.proto";
import "meshapi/v1/annotations.proto";
service Wheel {
  rpc OnSpoke(meshapi.v1.Change) returns (google.protobuf.Empty) {
    option (meshapi.v1.method) = { on: { change: { service: "wheel" table: "spokes" } } };
  }
}
"""
VERSION = """
from alembic import op
import sqlalchemy as sa

revision, down_revision = "0001", None

def upgrade():
    op.create_table("spokes", sa.Column("id", sa.Integer, primary_key=True), sa.Column("turns", sa.Integer))
"""
FUNCTIONS = """
from pathlib import Path
from google.protobuf.empty_pb2 import Empty
from sqlalchemy import text

async def startup(service):
    async with service.transaction() as tx:
        await tx.execute(text("INSERT INTO spokes VALUES (1, 0)"))

async def on_spoke(change, context):
    async with context.transaction() as tx:
        await tx.execute(text("UPDATE spokes SET turns = turns + 1"))
        turns = (await tx.execute(text("SELECT turns FROM spokes"))).scalar_one()
    (Path(__file__).parent.parent / "turns").write_text(str(turns))
    return Empty()
"""
MANIFEST = """protos = ["protos"]
[events]
max_hops = 5
[services.wheel]
module = "wheel.functions"
serves = ["wheel.v1.Wheel"]
listen = "127.0.0.1:0"
database = "{url}"
"""


@pytest.mark.timeout(120)
def test_it_ends_at_the_most_hops(tmp_path: Path, new_database: Callable[[], str]) -> None:
    (tmp_path / "protos/wheel/v1").mkdir(parents=True)
    (tmp_path / "protos/wheel/v1/wheel.proto").write_text(PROTO)
    (tmp_path / "wheel/migrations").mkdir(parents=True)
    (tmp_path / "wheel/__init__.py").touch()
    (tmp_path / "wheel/functions.py").write_text(FUNCTIONS)
    (tmp_path / "wheel/migrations/0001_spokes.py").write_text(VERSION)
    (tmp_path / "mesh.toml").write_text(MANIFEST.format(url=new_database()))
    mesh = Mesh(tmp_path / "mesh.toml", tmp_path / ".mesh", {})
    try:
        mesh.ready()
        until = time.monotonic() + 40
        shown = ""
        while "a cycle of events" not in shown:
            assert time.monotonic() < until, (shown, mesh.output())
            command = [sys.executable, "-P", "-m", "mesh", "events", "dead", "--file", str(tmp_path)]
            shown = subprocess.run(command, capture_output=True, text=True, check=False).stdout
        assert "6 deliveries in a row led to it, more than 5: a cycle of events" in shown
        assert (tmp_path / "turns").read_text() == "6"  # the one that the start caused, and five more
    finally:
        code = mesh.stop()
    assert code == 0, mesh.output()
