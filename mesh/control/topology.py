"""Dependency graph of services: the contract's ``calls``, mapped to the services of mesh.toml that serve them."""

from __future__ import annotations

from mesh.config.manifest import Manifest
from mesh.contract import graph
from mesh.contract.model import Contract, GrpcService
from mesh.faults import Fault, Faults

__all__ = ["dependencies", "served", "start_order"]


def dependencies(manifest: Manifest, contract: Contract) -> dict[str, tuple[str, ...]]:
    """Return, for each service of mesh.toml, the other services that serve what it calls."""
    hosts = {full: name for name, service in manifest.services.items() for full in service.serves}
    return {
        name: tuple(
            sorted(
                {
                    hosts[called]
                    for service in served(manifest, contract, name)
                    for called in service.calls
                    if hosts.get(called, name) != name
                }
            )
        )
        for name in manifest.services
    }


def start_order(manifest: Manifest, contract: Contract) -> list[list[str]]:
    """Return the services of mesh.toml in groups, each group after all groups that it depends on.

    Raises:
        Faults: The dependencies have a cycle.
    """
    try:
        return graph.order(dependencies(manifest, contract))
    except graph.CycleError as error:
        place = f"{manifest.file.name} [services.{error.members[0]}]"
        text = f"the services call each other in a cycle: {error}; let one service serve all that call each other"
        raise Faults([Fault(place, text)]) from None


def served(manifest: Manifest, contract: Contract, name: str) -> list[GrpcService]:
    """Return the gRPC services of a service of mesh.toml, without names that the contract does not have."""
    return [contract.services[full] for full in manifest.services[name].serves if full in contract.services]
