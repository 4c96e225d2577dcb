"""Orphans: no process is left behind, whichever process is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from suspend import suspend

TESTS = Path(__file__).parent.parent.parent
HOST = """
import asyncio, sys
import conftest
from hosting import pool_of
from mesh.contract import loader, protoc

async def main():
    contract = loader.read(protoc.load([conftest.ROOT / "tests" / "protos"], conftest.TEST_STUBS))
    pool = pool_of(contract, "apps.trouble", min=2, max=2)
    await pool.startup()
    while len(pool.lifecycle.ready) < 2:
        await asyncio.sleep(0.01)
    print(pool.spawner.pid, *(worker.pid for worker in pool.lifecycle.ready), flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


def gone(pid: int) -> bool:
    try:
        return "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return True


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
@pytest.mark.parametrize("whole", [True, False], ids=["sidecar", "sidecar and fork server"])
def test_a_killed_sidecar_takes_all_with_it(*, whole: bool) -> None:
    host = subprocess.Popen(
        [sys.executable, "-c", HOST], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(TESTS)}
    )
    try:
        assert host.stdout is not None
        pids = [int(pid) for pid in host.stdout.readline().split()]
        assert len(pids) == 3
        if not whole:
            suspend(pids[0])  # so that it cannot clean up
        host.kill()
        if not whole:
            os.kill(pids[0], signal.SIGKILL)
        until = time.monotonic() + 10
        while not all(map(gone, pids)) and time.monotonic() < until:
            time.sleep(0.01)
        assert all(map(gone, pids))
    finally:
        host.kill()
        host.wait()
        if host.stdout is not None:
            host.stdout.close()
