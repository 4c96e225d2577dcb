"""What a collector learns of events: deliveries, retries, dead letters and lag, and what the outbox holds."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import orjson
import pytest
from delivery.v1 import delivery_pb2 as pb
from mesh_process import ROOT, Mesh
from suspend import suspend
from telemetry_parts import HttpCollector, attributes

from mesh.events.cloudevents import Event

MANIFEST = """protos = ["protos"]
[events]
max_deliveries = 2
[services.recorder]
module = "functions"
serves = ["delivery.v1.Recorder"]
database = "sqlite:///.mesh/recorder.db"
"""
FUNCTIONS = """
from pathlib import Path
from google.protobuf.empty_pb2 import Empty
from mesh import Unavailable

async def on_happened(request, context):
    if request.what == "poison" or request.what == "later" and not (Path(__file__).parent / "mended").exists():
        raise Unavailable("not now")
    return Empty()

async def on_noted(request, context):
    return Empty()
"""
METHOD = "delivery.v1.Recorder/OnHappened"


class Recorder:
    """A mesh whose metrics go to a collector; what it publishes is written into its outbox by hand."""

    def __init__(self, folder: Path) -> None:
        shutil.copytree(ROOT / "tests/protos/delivery", folder / "protos/delivery")
        (folder / "functions.py").write_text(FUNCTIONS)
        (folder / "mesh.toml").write_text(MANIFEST)
        self.folder = folder
        self.collector = HttpCollector()
        self.mesh = Mesh(
            folder / "mesh.toml", folder / ".mesh",
            {
                "OTEL_EXPORTER_OTLP_ENDPOINT": self.collector.url, "OTEL_METRICS_EXPORTER": "otlp",
                "OTEL_METRIC_EXPORT_INTERVAL": "200",
            },
        )  # fmt: skip

    def publish(self, *events: pb.Happened) -> None:
        for message in events:
            event = Event(
                id=uuid4().hex, type="delivery.v1.Happened", source="recorder", key=message.key,
                time=datetime.now(UTC), data=message.SerializeToString(),
            )  # fmt: skip
            self.insert(event.subject, orjson.dumps(event.to_headers()).decode(), event.data)

    def insert(self, subject: str, headers: str, data: bytes) -> None:
        row = uuid4().hex, subject, headers, data, time.time_ns() // 1000
        with closing(sqlite3.connect(self.folder / ".mesh/recorder.db", timeout=10)) as connection, connection:
            connection.execute(
                "INSERT INTO mesh_outbox (id, subject, headers, data, created) VALUES (?, ?, ?, ?, ?)", row
            )

    def latest(self, name: str) -> dict[str, float]:
        """The values of a metric in the last export that has it, by the method and the outcome, or by ""."""
        found: dict[str, float] = {}
        for request in list(self.collector.metrics):
            for resource in request.resource_metrics:
                for scope in resource.scope_metrics:
                    for metric in scope.metrics:
                        if metric.name == name:
                            points = getattr(metric, metric.WhichOneof("data")).data_points
                            found = {_label(point): getattr(point, point.WhichOneof("value")) for point in points}
        return found


def _label(point: Any) -> str:
    told = attributes(point)
    if told.get("rpc.method", METHOD) != METHOD:
        return str(told)
    return str(told.get("mesh.event.outcome", ""))


@pytest.fixture
def recorder(tmp_path: Path) -> Iterator[Recorder]:
    made = Recorder(tmp_path)
    try:
        made.mesh.ready()
        yield made
    finally:
        code = made.mesh.stop()
        made.collector.stop()
    assert code == 0, made.mesh.output()


@pytest.mark.timeout(120)
def test_a_collector_learns_what_becomes_of_events(recorder: Recorder) -> None:
    latest = recorder.latest
    recorder.publish(
        pb.Happened(key="a", number=1), pb.Happened(key="b", number=2, what="poison"), pb.Happened(key="a", number=3)
    )
    recorder.mesh.until(lambda: latest("mesh.events.deliveries") == {"ok": 2, "retry": 1, "dead": 1})
    recorder.mesh.until(lambda: latest("mesh.events.lag").get("") == 0)

    recorder.publish(pb.Happened(key="c", number=4, what="later"), *(pb.Happened(key="c") for _ in range(5)))
    recorder.mesh.until(
        lambda: latest("mesh.events.lag").get("") == 6
    )  # one that is tried again, and what waits for it
    (recorder.folder / "mended").touch()
    recorder.mesh.until(lambda: latest("mesh.events.lag").get("") == 0)

    recorder.insert("changes.recorder.nothing", "", b"no change of a row")
    recorder.mesh.until(lambda: latest("mesh.outbox.refused") == {"": 1})
    recorder.mesh.until(lambda: latest("mesh.outbox.rows") == {"": 0})  # what is set aside does not wait
    assert latest("mesh.outbox.age") == {"": 0}

    broker = next(
        int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()
        and f"{recorder.folder}/.mesh/nats/nats.conf".encode() in _command(entry)
    )  # fmt: skip
    suspend(broker)
    try:
        recorder.publish(pb.Happened(key="a", number=5))
        recorder.mesh.until(lambda: latest("mesh.outbox.rows") == {"": 1} and latest("mesh.outbox.age")[""] > 1)
    finally:
        os.kill(broker, signal.SIGCONT)
    recorder.mesh.until(lambda: latest("mesh.outbox.rows") == {"": 0})


def _command(process: Path) -> bytes:
    try:
        return (process / "cmdline").read_bytes()
    except OSError:  # it has ended
        return b""
