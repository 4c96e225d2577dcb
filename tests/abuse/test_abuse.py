"""Another client is served, and memory stays below its limit, whatever one client does.

``python -m benchmarks.abuse`` has the same cases, longer and with figures.
"""

from __future__ import annotations

import pytest
from memory_limit import LIMIT_BYTES, peak_bytes

from benchmarks.trap import MeshUnderAttack
from mesh.chaos.people.attack_process import attacking
from mesh.chaos.people.attack_target import AttackTarget
from mesh.chaos.people.honest_client import HonestClient, Served
from mesh.chaos.people.observed import Observed

ATTACK_SECONDS = 4.0
REQUEST_TIMEOUT = 20.0
"""Seconds until an honest request has failed: far more than it takes, also on a busy machine."""

pytestmark = pytest.mark.timeout(180)  # the first test starts the mesh


def components(mesh: MeshUnderAttack) -> dict[str, int]:
    return {name: pid for name, pid in mesh.processes().items() if name != "broker"}


async def attack(mesh: MeshUnderAttack, name: str, target: AttackTarget) -> tuple[Served, Observed]:
    """Attack while an honest client is served; afterwards every component must still live below its limit."""
    before = components(mesh)
    honest = HonestClient(mesh.honest_target(), mesh.honest, timeout=REQUEST_TIMEOUT)
    async with attacking(name, target) as attacker:
        served = await honest.run(ATTACK_SECONDS)
    assert components(mesh) == before, "a component was killed or ended"
    peaks = {name: peak_bytes(pid) for name, pid in before.items()}
    assert all(peak < LIMIT_BYTES for peak in peaks.values()), peaks
    return served, attacker.observed


@pytest.mark.parametrize("name", [])
async def test_another_client_of_the_edge_is_served(attacked: MeshUnderAttack, name: str) -> None:
    served, observed = await attack(attacked, name, attacked.edge_target())
    assert served.failures == {}, observed.counts
