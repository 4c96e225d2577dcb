"""A Lambda function that a schedule and a published event invoke, through the broker of ``mesh up``."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from events.v1 import events_pb2 as pb
from events.v1 import events_pb2_grpc
from mesh_process import ROOT, Mesh

MANIFEST = """protos = ["protos"]
[services.shop]
module = "apps.shop"
serves = ["events.v1.Shop"]
database = "sqlite:///.mesh/shop.db"
[services.listener]
lambda = "listener:handler"
schedule = "@every 1s"
subscribes = ["events.v1.Noted"]
environment = { SEEN = "FOLDER/seen" }
"""
WORKERS = "workers = { max = 1 }\n"
HANDLER = """
import json, os

def handler(event, context):
    print("heard", event["detail-type"])
    with open(os.environ["SEEN"], "a") as file:
        file.write(json.dumps({**event, "id_of": context.aws_request_id}) + "\\n")
"""


@pytest.fixture(params=["", WORKERS], ids=["sidecars", "workers"])
def mesh(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Mesh]:
    """Both services run in their sidecars, or in workers."""
    shutil.copytree(ROOT / "tests/protos/events", tmp_path / "protos/events")
    (tmp_path / "apps").mkdir()
    shutil.copy(ROOT / "tests/apps/shop.py", tmp_path / "apps/shop.py")
    manifest = MANIFEST.replace("FOLDER", str(tmp_path)).replace(
        "[services.listener]", f"{request.param}[services.listener]"
    )
    (tmp_path / "mesh.toml").write_text(manifest + request.param)
    (tmp_path / "listener.py").write_text(HANDLER)
    started = Mesh(tmp_path / "mesh.toml", tmp_path / ".mesh", {})
    try:
        yield started.ready()
    finally:
        code = started.stop()
    assert code == 0, started.output()


def heard(file: Path, wanted: Callable[[dict[str, Any]], bool], count: int) -> list[dict[str, Any]]:
    """Return the first events of a kind that the function got, once there are so many."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        lines = file.read_text().splitlines(keepends=True) if file.exists() else []
        found = [event for event in (json.loads(line) for line in lines if line.endswith("\n")) if wanted(event)]
        if len(found) >= count:
            return found[:count]
        time.sleep(0.05)  # another process's file
    raise AssertionError(f"{count} events were expected, got {lines}")


def test_a_schedule_and_an_event_invoke_it(mesh: Mesh, tmp_path: Path) -> None:
    with grpc.insecure_channel(mesh.addresses["shop"]) as channel:
        stub: Any = events_pb2_grpc.ShopStub(channel)
        stub.Note(pb.Noted(text="direct"), timeout=30)
    [noted] = heard(tmp_path / "seen", lambda event: event["detail-type"] == "events.v1.Noted", 1)
    assert (noted["detail"], noted["source"]) == ({"text": "direct"}, "events.v1")
    first, second = heard(tmp_path / "seen", lambda event: event["source"] == "aws.events", 2)
    assert (first["detail-type"], first["detail"], first["resources"]) == ("Scheduled Event", {}, ["@every 1s"])
    assert first["time"] < second["time"]
    assert first["id"] != second["id"]
    assert "heard events.v1.Noted" in mesh.output()
