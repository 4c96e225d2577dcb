"""Workers under functions that crash, hang and leak, and from zero to many and back. ``SOAK_SECONDS`` makes it longer.

SOAK_SECONDS=300 make test ARGS="-k soak --timeout 600"
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from mesh_process import Mesh

SECONDS = float(os.environ.get("SOAK_SECONDS", "12"))

PROTO = """syntax = "proto3";
package soak.v1;
import "meshapi/v1/annotations.proto";
service Soak {
METHODS}
message Ask { int32 number = 1; }
message Answer { int32 number = 1; }
"""
REPEATABLE = ("Healthy", "HealthyThread")
"""Healthy methods that declare that they may be tried again."""
ONCE = ("HealthyOnce", "HealthyOnceThread")
"""Healthy ones that do not: such a call is lost if its worker ends, so they must be kept apart from the bad ones."""
HEALTHY = (*REPEATABLE, *ONCE)
BAD = (
    "Exits", "Segfaults", "LeavesChild", "SpinsLoop", "SpinsThread", "SleepsThread", "IgnoresCancel", "Leaks", "Raises",
)  # fmt: skip
FUNCTIONS = """import asyncio
import ctypes
import os
import subprocess
import time

import soak_pb2 as pb

kept = []


async def healthy(request, context):
    await asyncio.sleep(0.002)
    return pb.Answer(number=request.number + 1)


def healthy_thread(request, context):
    time.sleep(0.002)
    return pb.Answer(number=request.number + 1)


async def healthy_once(request, context):
    return await healthy(request, context)


def healthy_once_thread(request, context):
    return healthy_thread(request, context)


async def exits(request, context):
    os._exit(3)


def segfaults(request, context):
    ctypes.string_at(0)


async def leaves_child(request, context):
    subprocess.Popen(["sleep", "1000"], start_new_session=True)
    os._exit(4)


async def spins_loop(request, context):
    while True:
        pass


def spins_thread(request, context):
    while True:
        pass


def sleeps_thread(request, context):
    time.sleep(1000)


async def ignores_cancel(request, context):
    while True:
        try:
            await asyncio.sleep(1000)
        except asyncio.CancelledError:
            pass


async def leaks(request, context):
    kept.append(os.urandom(2**20) * 40)
    return pb.Answer(number=request.number + 1)


async def raises(request, context):
    raise ValueError("this is not told to callers")
"""


class Project:
    """One service in workers, and the mesh that runs it."""

    def __init__(self, folder: Path, workers: str) -> None:
        folder.mkdir()
        methods = "".join(
            f"  rpc {name}(Ask) returns (Answer) {{\n"
            + ("    option idempotency_level = NO_SIDE_EFFECTS;\n" if name in REPEATABLE else "")
            + "    option (meshapi.v1.method) = { access: PUBLIC };\n  }\n"
            for name in (*HEALTHY, *BAD)
        )
        (folder / "soak.proto").write_text(PROTO.replace("METHODS", methods))
        (folder / "soak_functions.py").write_text(FUNCTIONS)
        (folder / "mesh.toml").write_text(
            'protos = ["."]\n[services.soak]\nmodule = "soak_functions"\nserves = ["soak.v1.Soak"]\n'
            f"queue = 1000\nworkers = {workers}\n"
        )
        self.stubs = str(folder / "gen")
        self.mesh = Mesh(folder / "mesh.toml", folder / ".mesh", {})

    @contextlib.asynccontextmanager
    async def stub(self) -> AsyncIterator[tuple[Any, Any]]:
        """A stub, and the module of the messages."""
        messages = importlib.import_module("soak_pb2")
        async with grpc.aio.insecure_channel(self.mesh.addresses["soak"]) as channel:
            yield importlib.import_module("soak_pb2_grpc").SoakStub(channel), messages

    @property
    def sidecar(self) -> int:
        return self.mesh.child("soak")

    def below(self, pid: int) -> list[int]:
        """Every process below another."""
        try:
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        except OSError:
            return []
        return [below for child in map(int, children) for below in (child, *self.below(child))]

    def workers(self) -> list[int]:
        """Every process below the sidecar, but its fork server and the one that this has forked ahead."""
        return [pid for pid in self.below(self.sidecar)[1:] if _name(pid) != "mesh-spare"]

    def memory(self) -> int:
        """Bytes that the sidecar and all below it take, shared pages counted once."""
        return sum(_proportional(pid) for pid in (self.sidecar, *self.below(self.sidecar)))

    async def zero(self) -> None:
        """Wait until there is no worker."""
        async with asyncio.timeout(30):
            while self.workers():  # noqa: ASYNC110 - processes of a process of another process
                await asyncio.sleep(0.02)


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def _proportional(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[[str], Project]]:
    projects: list[Project] = []

    def start(workers: str) -> Project:
        project = Project(tmp_path / "soak", workers)
        projects.append(project)
        sys.path.insert(0, project.stubs)
        project.mesh.ready()
        return project

    yield start
    for project in projects:
        sys.path.remove(project.stubs)
        left = {pid: _born(pid) for pid in (project.sidecar, *project.below(project.sidecar))}
        assert project.mesh.stop() == 0, project.mesh.output()
        assert [pid for pid, born in left.items() if _born(pid) == born] == [], "no process is left behind"
    for name in ("soak_pb2", "soak_pb2_grpc"):
        sys.modules.pop(name, None)


def _born(pid: int) -> str | None:
    """When a process began; None when there is none."""
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state == "Z" else rest[18]


async def outcome(call: Awaitable[Any]) -> str:
    try:
        answer = await call
    except grpc.aio.AioRpcError as error:
        return f"{error.code().name} {error.details()}"
    return f"OK {answer.number}"


async def test_healthy_functions_beside_bad_ones(  # noqa: C901 - one soak: two kinds of callers, then what they saw
    started: Callable[[str], Project],
) -> None:
    """They keep their success rate at 100 %, memory comes back to where it was, and no process is left behind."""
    project = started('{ max = 3, concurrency = 8, idle = "1s", memory = "200MB", timeout = "5s" }')
    outcomes: dict[str, Counter[str]] = {name: Counter() for name in (*HEALTHY, *BAD)}
    seen: set[int] = set()
    async with project.stub() as (stub, pb):
        for name in HEALTHY:  # what has answered before is told from what has not
            await asyncio.gather(*(outcome(getattr(stub, name)(pb.Ask(), timeout=30)) for _ in range(20)))
        await project.zero()
        before = project.memory()
        until = time.monotonic() + SECONDS

        async def healthy(name: str) -> None:
            number = 0
            while time.monotonic() < until:
                number += 1
                found = await outcome(getattr(stub, name)(pb.Ask(number=number), timeout=30))
                outcomes[name]["OK" if found == f"OK {number + 1}" else found] += 1

        async def bad(name: str) -> None:
            while time.monotonic() < until:
                outcomes[name][(await outcome(getattr(stub, name)(pb.Ask(), timeout=1))).split()[0]] += 1
                seen.update(project.below(project.sidecar))
                await asyncio.sleep(0.5)

        async with asyncio.TaskGroup() as group:
            for name in HEALTHY:
                for _ in range(2):
                    group.create_task(healthy(name))
            for name in BAD:
                group.create_task(bad(name))
        report = {name: dict(counts) for name, counts in outcomes.items()}
        for name in HEALTHY:
            assert set(outcomes[name]) == {"OK"}, report
            assert outcomes[name]["OK"] > 10 * SECONDS, report
        for name in set(BAD) - {"Leaks", "Raises"}:
            assert set(outcomes[name]) <= {"UNAVAILABLE", "DEADLINE_EXCEEDED"}, report
        assert sum(outcomes[name]["UNAVAILABLE"] for name in ("Exits", "Segfaults", "LeavesChild")), report
        assert outcomes["SpinsLoop"]["DEADLINE_EXCEEDED"], report
        assert set(outcomes["Leaks"]) <= {"OK", "UNAVAILABLE", "DEADLINE_EXCEEDED"}, report
        assert set(outcomes["Raises"]) <= {"INTERNAL", "UNAVAILABLE", "DEADLINE_EXCEEDED"}, report
        await project.zero()
        after = project.memory()
    assert after - before < 20e6, (before, after, report)
    alive = {pid for pid in seen if _born(pid) is not None} - {project.sidecar, *project.below(project.sidecar)}
    assert not alive, "what functions started has ended with them"
    print(f"\n{SECONDS:g} s: {report}; memory {before / 1e6:.0f} → {after / 1e6:.0f} MB")  # noqa: T201 - with -s, the figures


@pytest.mark.slow
async def test_from_zero_to_two_hundred_calls_and_back(started: Callable[[str], Project]) -> None:
    """Ten times over: 2,000 answers, none refused."""
    project = started('{ max = 4, concurrency = 16, idle = "300ms" }')
    times: list[float] = []
    async with project.stub() as (stub, pb):
        for cycle in range(10):
            await project.zero()

            async def one(number: int) -> str:
                began = time.perf_counter()
                found = await outcome(stub.Healthy(pb.Ask(number=number), timeout=30))
                times.append(time.perf_counter() - began)
                return found

            numbers = range(200 * cycle, 200 * cycle + 200)
            found = await asyncio.gather(*map(one, numbers))
            assert found == [f"OK {number + 1}" for number in numbers]
            assert project.workers()
        await project.zero()
    assert len(times) == 2000
    times.sort()
    print(f"\n2,000 answers; p50 {times[1000] * 1000:.0f} ms, last {times[-1] * 1000:.0f} ms")  # noqa: T201 - as above


async def test_a_killed_fork_server_is_started_again(started: Callable[[str], Project]) -> None:
    """Nobody is left without workers, nor with workers that nobody knows."""
    project = started('{ max = 2, idle = "60s" }')
    async with project.stub() as (stub, pb):
        assert await outcome(stub.Healthy(pb.Ask(number=1), timeout=30)) == "OK 2"
        server, *workers = project.below(project.sidecar)
        assert workers
        os.kill(server, signal.SIGKILL)
        found = await asyncio.gather(*(outcome(stub.Healthy(pb.Ask(number=1), timeout=30)) for _ in range(20)))
        assert set(found) == {"OK 2"}
        assert server not in project.below(project.sidecar)
        assert all(_born(pid) is None for pid in workers)
