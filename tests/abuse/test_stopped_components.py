"""A hung component is noticed and replaced, and clients of the others do not notice it.

``python -m benchmarks.hung`` measures how long that takes, and the calls that fail meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Iterator

import pytest

from benchmarks.trap import ROOT, MeshUnderAttack, running_mesh
from mesh.chaos.people.honest_client import HonestClient, HonestRequest

REPLACED_TIMEOUT = 60.0
"""Seconds for the detection, the end and the new start, on a busy machine."""

pytestmark = [pytest.mark.timeout(240), pytest.mark.slow]


@pytest.fixture(scope="module")
def mesh() -> Iterator[MeshUnderAttack]:
    with running_mesh(ROOT, MESH_LIVENESS="5s", PYTHONPATH=str(ROOT)) as running:
        yield running


async def replaced(mesh: MeshUnderAttack, name: str, pid: int) -> None:
    """Wait until another process has the place of a component."""
    async with asyncio.timeout(REPLACED_TIMEOUT):
        while (await asyncio.to_thread(mesh.processes)).get(name, pid) == pid:  # noqa: ASYNC110 - another process's work
            await asyncio.sleep(0.1)


@pytest.mark.parametrize("name", ["trap", "edge"])
async def test_a_stopped_component_is_replaced(mesh: MeshUnderAttack, name: str) -> None:
    """Requests to other services get their response at once, and each request that may be sent again succeeds."""
    pid = mesh.processes()[name]
    client = HonestClient(mesh.honest_target(), [mesh.honest[0]], timeout=REPLACED_TIMEOUT, retry=name == "edge")
    serving = asyncio.create_task(client.run(rate=10))
    os.kill(pid, signal.SIGSTOP)
    try:
        await replaced(mesh, name, pid)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        client.stop()
    assert (await serving).failures == {}


async def test_a_service_whose_event_loop_is_blocked_is_replaced(mesh: MeshUnderAttack) -> None:
    pid = mesh.processes()["trap"]
    request = HonestRequest("GET", "/trap/block?seconds=600")
    blocked = asyncio.create_task(HonestClient(mesh.honest_target(), [request], timeout=600).run(0.01))
    await replaced(mesh, "trap", pid)
    assert len((await blocked).failures) == 1
    echo = HonestRequest("POST", "/trap/echo", ((b"content-type", b"application/json"),), b'{"text": "a"}')
    served = await HonestClient(mesh.honest_target(), [echo], timeout=REPLACED_TIMEOUT, retry=True).run(0.05, rate=10)
    assert served.failures == {}
