"""Which entries of mesh.toml depend on which: the contract's ``calls``, seen through who serves what."""

from __future__ import annotations

from mesh.config.manifest import Manifest
from mesh.contract import graph
from mesh.contract.model import Contract, GrpcService
from mesh.faults import Fault, Faults

__all__ = ["dependencies", "layers", "served"]


def dependencies(manifest: Manifest, contract: Contract) -> dict[str, tuple[str, ...]]:
    """Return, for each entry, the other entries that serve what its services call."""
    hosts = {service: name for name, entry in manifest.services.items() for service in entry.serves}
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


def layers(manifest: Manifest, contract: Contract) -> list[list[str]]:
    """Return the entries in layers, each after all that it depends on.

    Raises:
        Faults: The entries depend on each other in a circle.
    """
    try:
        return graph.order(dependencies(manifest, contract))
    except graph.CycleError as error:
        place = f"{manifest.file.name} [services.{error.members[0]}]"
        text = f"the entries depend on each other in a circle: {error}; serve what calls each other from one entry"
        raise Faults([Fault(place, text)]) from None


def served(manifest: Manifest, contract: Contract, name: str) -> list[GrpcService]:
    """Return the services of the contract that an entry serves; names that the contract does not have are left out."""
    return [contract.services[full] for full in manifest.services[name].serves if full in contract.services]
