"""The spare: a process forked ahead without code of the project, for the first call after silence."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from conformance.v1 import conformance_pb2 as pb
from conformance.v1 import conformance_pb2_grpc
from hosting import pool_of, working
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from suspend import suspend
from test_worker_pool import Stub, alive, ask, until

from mesh.contract.model import Contract
from mesh.sidecar.workers.worker_pool import WorkerPool

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it looks into /proc")

MODULE = """
import os
from pathlib import Path
from apps.trouble import *

with (Path(__file__).parent / "loaded").open("a") as file:
    print(os.getpid(), file=file)
"""
PREFAULTED = """
import ctypes, os, resource, sys
from mesh.sidecar.workers import prefault
from mesh.sidecar.workers.watermark import shared_file

PAGE, PAGES = os.sysconf("SC_PAGE_SIZE"), 512
memory = bytearray(2 * PAGES * PAGE)
memory[::PAGE] = b"x" * len(memory[::PAGE])
file = shared_file()

def write():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for page in range(PAGES):
        memory[2 * page * PAGE + 1] = 1  # every second page, so that the kernel copies no page with its neighbour
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def forked(work):
    ours, theirs = os.pipe()
    if os.fork() == 0:
        os.write(theirs, b"%d" % work())
        os._exit(0)
    os.wait()
    return int(os.read(ours, 100))

def first():
    faults = write()
    prefault.record(file)
    return faults

def second():
    prefault.prefault(file)
    assert set(memory[::PAGE]) == set(b"x")
    return write()

print(forked(first), forked(second))
"""


@asynccontextmanager
async def running(
    contract: Contract, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[Stub, WorkerPool]]:
    """Host a pool at zero workers; its module records the process that loads it."""
    (folder / "noted.py").write_text(MODULE)
    monkeypatch.syspath_prepend(folder)
    pool = pool_of(contract, "noted", max=2, idle=0.05)
    async with working(contract, pool) as address, grpc.aio.insecure_channel(address) as channel:
        await until(lambda: children(pool) == ["mesh-spare"])
        yield conformance_pb2_grpc.EchoStub(channel), pool


def pids(pool: WorkerPool) -> list[int]:
    """Return the pids that the fork server has forked and not yet reaped."""
    server = pool.spawner.pid
    return [int(pid) for pid in Path(f"/proc/{server}/task/{server}/children").read_text().split()]


def children(pool: WorkerPool) -> list[str]:
    return [Path(f"/proc/{pid}/comm").read_text().strip() for pid in pids(pool)]


def loaded(folder: Path) -> list[int]:
    return [int(line) for line in (folder / "loaded").read_text().split()]


def threads(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


async def test_the_spare_has_no_code_and_no_thread_until_there_is_a_call(
    contract: Contract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(contract, tmp_path, monkeypatch) as (stub, pool):
        (spare,) = pids(pool)
        assert spare not in loaded(tmp_path)
        assert threads(spare) == 1
        assert (await ask(stub, "")).text == str(spare)
        assert loaded(tmp_path)[-1] == spare
        assert loaded(tmp_path).count(spare) == 1
        assert children(pool) == ["mesh-worker"], "there is none beside a worker"
        await until(lambda: children(pool) == ["mesh-spare"])
        assert pids(pool) != [spare]


async def test_a_spare_that_has_ended_is_not_missed(
    contract: Contract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(contract, tmp_path, monkeypatch) as (stub, pool):
        (spare,) = pids(pool)
        suspend(spare)  # so that it can neither respond nor end by itself
        os.kill(spare, signal.SIGKILL)
        await until(lambda: not alive(spare))
        answer: pb.EchoResponse = await stub.Unary(pb.EchoRequest(text=""), timeout=20)
        assert answer.text not in ("", str(spare))


async def test_the_call_that_waits_tells_what_it_waited_for(
    contract: Contract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(told))
    async with running(contract, tmp_path, monkeypatch) as (stub, pool):
        (spare,) = pids(pool)
        monkeypatch.setattr(pool, "_tracer", provider.get_tracer("test"))
        # Slower than everything that it imports, on every machine: only the slowest imports are told.
        (tmp_path / "noted.py").write_text(f"import time\ntime.sleep(0.1)\n{MODULE}")
        first = asyncio.gather(ask(stub, "sleep 0.5"), ask(stub, ""))
        await until(lambda: bool(pool.lifecycle.ready))
        await ask(stub, "")
        await first
        spans = told.get_finished_spans()
        assert [span.name for span in spans] == ["fork", "load", "connect"], (
            "once, and not by calls that found it ready"
        )
        times = [time for span in spans for time in (span.start_time, span.end_time)]
        assert times == sorted(times)
        assert {(span.attributes or {})["mesh.worker.pid"] for span in spans} == {spare}
        slowest = (spans[1].attributes or {})["mesh.worker.slowest_imports"]
        assert isinstance(slowest, tuple)
        assert any(re.fullmatch(r"noted [0-9.]+ ms", str(one)) for one in slowest), slowest


async def test_new_code_is_not_older_than_the_call(
    contract: Contract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(contract, tmp_path, monkeypatch) as (stub, pool):
        (spare,) = pids(pool)
        answers = "pb.EchoResponse(text='new')"
        later = f"{MODULE}\nfrom conformance.v1 import conformance_pb2 as pb\nasync def unary(*_): return {answers}\n"
        (tmp_path / "noted.py").write_text(later)
        assert (await ask(stub, "")).text == "new"
        assert loaded(tmp_path)[-1] == spare


def test_pages_that_one_has_written_to_are_copied_ahead_for_the_next() -> None:
    done = subprocess.run([sys.executable, "-c", PREFAULTED], capture_output=True, text=True, check=True, timeout=60)
    first, second = map(int, done.stdout.split())
    assert first >= 512
    assert second < 100
