"""``mesh check --against-running``: a rehearsal of a contract that cannot read what the mesh has stored."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from mesh_process import ROOT, Mesh

MANIFEST = """protos = ["protos"]
[services.recorder]
module = "functions"
serves = ["delivery.v1.Recorder"]
listen = "127.0.0.1:0"
database = "sqlite:///.mesh/recorder.db"
"""
FUNCTIONS = """
from google.protobuf.empty_pb2 import Empty
from mesh import InvalidArgument

async def startup(service):
    from delivery.v1 import delivery_pb2 as pb
    async with service.transaction() as tx:
        await tx.publish(pb.Happened(key="a", number=1, what="poison"))
        await tx.publish(pb.Happened(key="b", number=2))
        await tx.publish(pb.Noted(number=3))

async def on_happened(request, context):
    if request.what == "poison":
        raise InvalidArgument("nobody can read this")
    return Empty()

async def on_noted(request, context):
    return Empty()
"""


ACCEPTED = """syntax = "proto3";
package accepted;
import "meshapi/v1/annotations.proto";
option (meshapi.v1.accepted_breaks) = { rule: "EVENT_REMOVED" element: "delivery.v1.Noted" reason: "an earlier one" };
"""


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Mesh]:
    shutil.copytree(ROOT / "tests/protos/delivery", tmp_path / "protos/delivery")
    (tmp_path / "protos/accepted.proto").write_text(ACCEPTED)
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
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout

    return run


def set_aside(database: Path) -> None:
    """Leave an event in the outbox, as one that the broker refuses."""
    headers = json.dumps({"ce-type": "delivery.v1.Happened"})
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute(
            "INSERT INTO mesh_outbox (id, subject, headers, data, created, refused) VALUES (?, '', ?, ?, 0, 'refused')",
            ("waits", headers, b"\x0a\x01c\x10\x05"),
        )


def test_a_contract_that_cannot_read_what_is_stored(running: Mesh, tmp_path: Path, mesh: Callable[..., str]) -> None:
    set_aside(tmp_path / ".mesh/recorder.db")
    running.until(lambda: "nobody can read this" in mesh("events", "dead"))
    assert mesh("check", "--against-running") == "ok: no breaking change against the running mesh\n"
    mesh("export", "contract", "--running")

    proto = tmp_path / "protos/delivery/v1/delivery.proto"
    text = proto.read_text()
    assert "int32 number = 2;" in text
    text = text.replace("int32 number = 2;", "string number = 2;").replace('publishes: "delivery.v1.Noted" ', "")
    before, _, rest = text.partition("  rpc OnNoted(Noted)")
    text = before + rest.partition("  }\n")[2]
    proto.write_text(text.replace("  option (meshapi.v1.event) = {};\n", ""))

    found = json.loads(mesh("check", "--against-running", "--format", "json", code=3))["breaks"]
    told = {(one["rule"], one["element"], one["change"].partition(" (")[0]) for one in found}
    assert {
        ("FIELD_TYPE_CHANGED", "delivery.v1.Happened.number", "number"),
        ("EVENT_REMOVED", "delivery.v1.Noted", "the message is no longer an event"),
        ("METHOD_REMOVED", "delivery.v1.Recorder/OnNoted", "the method is gone"),
        ("STORED_UNREADABLE", "delivery.v1.Happened", "1 of 1 in the outbox of recorder"),
        ("STORED_UNREADABLE", "delivery.v1.Happened", "2 of 2 in the retained events"),
        ("STORED_UNREADABLE", "delivery.v1.Happened", "1 of 1 in the dead letters"),
        ("STORED_UNDELIVERABLE", "delivery.v1.Noted", "1 of 1 in the retained events"),
    } == told
    # A declaration that the running mesh has accepts nothing any more, also in a file that nothing imports.
    assert {one["accepted"] for one in found} == {""}
    outbox = next(one for one in found if "outbox" in one["change"])
    assert outbox["change"].endswith(" (waits): number was 5 and reads as nothing now")
    assert outbox["file"] == "protos/delivery/v1/delivery.proto"

    proto.write_text(before + "  rpc OnNoted(Noted)" + rest)
    rule = "int32 number = 2 [(buf.validate.field).int32.gte = 2];"
    told = proto.read_text().replace("string number = 2;", rule)
    proto.write_text(told.replace('import "meshapi', 'import "buf/validate/validate.proto";\nimport "meshapi'))
    found = json.loads(mesh("check", "--against-running", "--format", "json", code=3))["breaks"]
    invalid = [one["change"] for one in found if one["rule"] == "STORED_INVALID"]
    assert len(invalid) == 2  # the number of the one in the outbox is 5
    assert all(one.endswith("): number: must be greater than or equal to 2 (int32.gte)") for one in invalid), invalid
    assert [one["rule"] for one in found if one["rule"] == "STORED_UNREADABLE"] == []

    # What the running mesh exported is the old contract, without its bytes.
    assert "STORED" not in mesh("check", "--against", str(tmp_path / "contract.binpb"), code=3)
