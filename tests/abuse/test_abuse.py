"""Another client is served, and memory stays below its limit, whatever one client does.

``python -m benchmarks.abuse`` has the same cases, longer and with figures.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from memory_limit import LIMIT_BYTES, forget_peak, peak_bytes

from benchmarks.trap import MeshUnderAttack
from mesh.chaos.people.attack_process import attacking
from mesh.chaos.people.attack_target import AttackTarget
from mesh.chaos.people.honest_client import HonestClient, Served
from mesh.chaos.people.observed import Observed

ATTACK_SECONDS = 3.0
REQUEST_TIMEOUT = 20.0
"""Seconds until an honest request has failed: far more than it takes, also on a busy machine."""

pytestmark = pytest.mark.timeout(180)  # the first test starts the mesh


def components(mesh: MeshUnderAttack) -> dict[str, int]:
    return {name: pid for name, pid in mesh.processes().items() if name != "broker"}


async def attack(mesh: MeshUnderAttack, name: str, target: AttackTarget) -> tuple[Served, Observed]:
    """Attack while an honest client is served; afterwards every component must still live below its limit."""
    before = components(mesh)
    for pid in before.values():
        forget_peak(pid)
    honest = HonestClient(mesh.honest_target(), mesh.honest, timeout=REQUEST_TIMEOUT)
    async with attacking(name, target) as attacker:
        served = await honest.run(ATTACK_SECONDS)
    assert components(mesh) == before, "a component was killed or ended"
    peaks = {name: peak_bytes(pid) for name, pid in before.items()}
    assert {name: peak for name, peak in peaks.items() if peak >= LIMIT_BYTES} == {}
    return served, attacker.observed


@pytest.mark.parametrize(
    "name",
    [
        "slow-heads", "slow-heads-http1", "slow-bodies", "slow-bodies-http1", "body-less", "streams", "event-streams",
        "web-sockets", "hung", "watches", "reflection", "resets", "pings", "settings", "connections",
    ],
)  # fmt: skip
async def test_another_client_of_the_edge_is_served(attacked: MeshUnderAttack, name: str) -> None:
    served, observed = await attack(attacked, name, attacked.edge_target())
    assert served.failures == {}, observed.counts


@pytest.mark.parametrize("name", ["body-less"])
async def test_another_client_is_served_while_one_attacks_over_grpc(attacked: MeshUnderAttack, name: str) -> None:
    target = replace(attacked.edge_target(), grpc=True, post=attacked.sidecar_target().post)
    served, observed = await attack(attacked, name, target)
    assert served.failures == {}, observed.counts


@pytest.mark.parametrize(
    "name",
    [
        "slow-heads", "slow-bodies", "body-less", "streams", "hung", "watches",
        "reflection", "resets", "pings", "settings", "connections",
    ],
)  # fmt: skip
async def test_clients_of_the_edge_are_served_while_one_attacks_a_sidecar(attacked: MeshUnderAttack, name: str) -> None:
    served, observed = await attack(attacked, name, attacked.sidecar_target())
    assert served.failures == {}, observed.counts
