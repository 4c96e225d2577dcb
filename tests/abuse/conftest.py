"""One mesh for all attacks of a module, each component under a real memory limit."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from memory_limit import cgroups, limit_address_space

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT))  # benchmarks.trap has the mesh that benchmarks.abuse attacks too

from benchmarks.trap import SERVICES, MeshUnderAttack, running_mesh  # noqa: E402 - by the line above
from mesh.chaos.people.attack_process import attacking  # noqa: E402 - as above

CAPACITY_SECONDS = 1.5


@pytest.fixture(scope="module")
def attacked() -> Iterator[MeshUnderAttack]:
    """The sample mesh with the service ``trap``; edge and sidecars have 256 MB each."""
    with cgroups(("edge", *SERVICES)) as groups, tempfile.TemporaryDirectory(prefix="mesh-abuse-site-") as site:
        if groups.folder is not None:
            groups.write_site(Path(site))
        with running_mesh(ROOT, PYTHONPATH=f"{site}:{ROOT}") as mesh:
            pids = {name: pid for name, pid in mesh.processes().items() if name != "broker"}
            if groups.folder is None:
                limit_address_space(pids)
            else:
                assert {name: pid in groups.members(name) for name, pid in pids.items()} == dict.fromkeys(pids, True)
            yield mesh


@pytest.fixture(scope="module")
def capacity(attacked: MeshUnderAttack) -> float:
    """The logins that the mesh can serve in a second; at least 1."""

    async def measure() -> int:
        async with attacking("capacity", attacked.edge_target()) as attacker:
            await asyncio.sleep(CAPACITY_SECONDS)
        return len(attacker.observed.times)

    return max(1.0, asyncio.run(measure()) / CAPACITY_SECONDS)
