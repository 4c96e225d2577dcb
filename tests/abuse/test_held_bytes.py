"""Bytes that clients make edge and sidecars hold, in a mesh of its own: uploads, readers, oversubscription."""

from __future__ import annotations

from dataclasses import replace

import pytest
from test_abuse import attack

from benchmarks.trap import MeshUnderAttack

ANSWERED_PERCENT = 95.0

pytestmark = pytest.mark.timeout(180)  # the first test starts the mesh


@pytest.mark.parametrize("name", ["uploads", "uploads-http1", "silent-readers", "silent-readers-http1"])
async def test_another_client_of_the_edge_is_served(attacked: MeshUnderAttack, name: str) -> None:
    served, observed = await attack(attacked, name, attacked.edge_target())
    assert served.failures == {}, observed.counts


async def test_another_client_is_served_while_one_uploads_over_grpc(attacked: MeshUnderAttack) -> None:
    target = replace(attacked.edge_target(), grpc=True, post=attacked.sidecar_target().post)
    served, observed = await attack(attacked, "uploads", target)
    assert served.failures == {}, observed.counts


@pytest.mark.parametrize("name", ["uploads", "silent-readers"])
async def test_clients_of_the_edge_are_served_while_one_attacks_a_sidecar(attacked: MeshUnderAttack, name: str) -> None:
    served, observed = await attack(attacked, name, attacked.sidecar_target())
    assert served.failures == {}, observed.counts


@pytest.mark.parametrize("factor", [2, 5, 10])
async def test_clients_of_another_method_are_served_while_one_is_oversubscribed(
    attacked: MeshUnderAttack, capacity: float, factor: int
) -> None:
    target = replace(attacked.edge_target(), rate=capacity * factor)
    served, observed = await attack(attacked, "oversubscription", target)
    assert not [one for one in served.failures if one.endswith("429")], observed.counts
    assert served.success >= ANSWERED_PERCENT, served.failures  # the attack takes all cores, and a method has 5 s
