"""Wall clocks that jump by hours, under a running mesh: nothing is lost, doubled, out of order, early or stuck.

The clock of every process of the mesh jumps, as after a suspend or by a bad time server, while the broker's goes on: Go
does not ask libc for the time. So the broker's clock has jumped as seen from the mesh, too.
"""

from __future__ import annotations

import os
import platform
import signal
import sqlite3
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import pytest
from mesh_process import Mesh, http

pytestmark = pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"), reason="the wheel's libfaketime is of Linux on x86-64"
)

JUMP = timedelta(hours=5)
LATER = datetime.now(UTC) + timedelta(hours=2)
PROTO = f"""
syntax = "proto3";
package bells.v1;
import "google/api/annotations.proto";
import "google/protobuf/empty.proto";
import "meshapi/v1/annotations.proto";
message Rang {{
  option (meshapi.v1.event) = {{ key: "key" }};
  string key = 1;
  int32 number = 2;
}}
service Bells {{
  option (meshapi.v1.service) = {{ publishes: "bells.v1.Rang" }};
  rpc Ring(Rang) returns (google.protobuf.Empty) {{
    option (google.api.http) = {{ post: "/ring" body: "*" }};
    option (meshapi.v1.method) = {{ access: PUBLIC timeout: {{ seconds: 5 }} }};
  }}
  rpc OnRang(Rang) returns (google.protobuf.Empty) {{
    option (meshapi.v1.method) = {{ on: {{ event: {{}} }} }};
  }}
  rpc EverySecond(meshapi.v1.Tick) returns (google.protobuf.Empty) {{
    option (meshapi.v1.method) = {{ on: {{ schedule: "* * * * * *" }} }};
  }}
  rpc Later(meshapi.v1.Tick) returns (google.protobuf.Empty) {{
    option (meshapi.v1.method) = {{ on: {{ schedule: "{LATER.minute} {LATER.hour} * * *" }} }};
  }}
}}
"""
FUNCTIONS = """
from google.protobuf.empty_pb2 import Empty
from mesh import Unavailable
from sqlalchemy import text

async def startup(service):
    async with service.transaction() as tx:
        await tx.execute(text("CREATE TABLE IF NOT EXISTS rang (number INTEGER, key TEXT, tries INTEGER)"))
        await tx.execute(text("CREATE TABLE IF NOT EXISTS ticks (method TEXT, time INTEGER)"))

async def ring(request, context):
    async with context.transaction() as tx:
        await tx.publish(request)
    return Empty()

failed = set()

async def on_rang(request, context):
    if request.number % 5 == 0 and request.number not in failed:
        failed.add(request.number)
        raise Unavailable("not at once")
    async with context.transaction() as tx:
        await tx.execute(text("INSERT INTO rang VALUES (:n, :k, 1)"), {"n": request.number, "k": request.key})
    return Empty()

async def tick(method, request, context):
    async with context.transaction() as tx:
        await tx.execute(text("INSERT INTO ticks VALUES (:m, :t)"), {"m": method, "t": request.time.seconds})
    return Empty()

async def every_second(request, context):
    return await tick("every_second", request, context)

async def later(request, context):
    return await tick("later", request, context)
"""
MANIFEST = """protos = ["protos"]
[edge]
listen = "127.0.0.1:0"
[services.bells]
module = "functions"
serves = ["bells.v1.Bells"]
listen = "127.0.0.1:0"
database = "sqlite:///.mesh/bells.db"
"""


class Bells:
    """A running mesh and its clock."""

    def __init__(self, folder: Path) -> None:
        (folder / "protos/bells/v1").mkdir(parents=True)
        (folder / "protos/bells/v1/bells.proto").write_text(PROTO)
        (folder / "functions.py").write_text(FUNCTIONS)
        (folder / "mesh.toml").write_text(MANIFEST)
        self.accepted: list[int] = []
        self.others: Counter[int] = Counter()
        self._folder = folder
        self._number = 0
        self._clock = folder / "clock"
        self.jump(timedelta())
        files = distribution("libfaketime").files or []
        library = next(file for file in files if file.name.startswith("libfaketime.so"))
        self.mesh = Mesh(
            folder / "mesh.toml", folder / ".mesh",
            {
                "LD_PRELOAD": str(library.locate()), "FAKETIME_TIMESTAMP_FILE": str(self._clock),
                "FAKETIME_CACHE_DURATION": "1", "FAKETIME_DONT_FAKE_MONOTONIC": "1", "DONT_FAKE_MONOTONIC": "1",
            },
        )  # fmt: skip

    def jump(self, offset: timedelta) -> None:
        """Set the clock of all processes; they see it within a second."""
        self._clock.write_text(f"{offset.total_seconds():+.0f}s\n")

    def ring(self, count: int) -> None:
        """Publish until so many more are accepted."""
        until, goal = time.monotonic() + 60, len(self.accepted) + count
        while len(self.accepted) < goal:
            assert time.monotonic() < until, (self.others, self.mesh.output())
            self._number += 1
            status = http(
                f"{self.mesh.edge}/ring", "POST", {"key": f"k{self._number % 3}", "number": self._number}
            ).status
            if status == 200:
                self.accepted.append(self._number)
            else:
                self.others[status] += 1
                time.sleep(0.05)  # the processor is of use to the one that starts

    def sql(self, query: str) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(self._folder / ".mesh/bells.db", timeout=10)) as connection:
            return connection.execute(query).fetchall()

    def ticks(self) -> int:
        return len(self.sql("SELECT * FROM ticks WHERE method = 'every_second'"))


@pytest.fixture
def bells(tmp_path: Path) -> Iterator[Bells]:
    made = Bells(tmp_path)
    try:
        made.mesh.ready()
        yield made
    finally:
        code = made.mesh.stop()
    assert code == 0, made.mesh.output()


@pytest.mark.timeout(180)
def test_clocks_that_jump_by_hours(bells: Bells) -> None:
    bells.ring(20)
    for offset in (JUMP, -JUMP, timedelta()):
        bells.jump(offset)
        bells.ring(20)
        ticks = bells.ticks()
        bells.mesh.until(lambda ticks=ticks: bells.ticks() >= ticks + 3)  # schedules go on
        # And what a process believes when it starts with the wrong time.
        os.kill(bells.mesh.child("bells"), signal.SIGKILL)
        bells.ring(20)
        bells.mesh.until(lambda: set(bells.accepted) <= {number for (number,) in bells.sql("SELECT number FROM rang")})
    rang = bells.sql("SELECT key, number FROM rang ORDER BY rowid")
    assert len(set(rang)) == len(rang)
    orders = defaultdict(list)
    for key, number in rang:
        orders[key].append(number)
    assert all(numbers == sorted(numbers) for numbers in orders.values()), orders
    # Each second is one tick, by the broker's clock, and what is due in two hours is not done yet.
    seconds = [second for (second,) in bells.sql("SELECT time FROM ticks WHERE method = 'every_second'")]
    assert len(set(seconds)) == len(seconds)
    assert all(abs(second - time.time()) < 300 for second in seconds)
    assert bells.sql("SELECT * FROM ticks WHERE method = 'later'") == []
    # 401: one process has seen the jump and the other not yet, so one's proof of who it is is of the other's future.
    assert set(bells.others) <= {401, 503, 504}
