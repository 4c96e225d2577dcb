"""The broker that ``mesh up`` runs when the mesh needs one and mesh.toml names none."""

from __future__ import annotations

from dataclasses import dataclass

from mesh import address as addresses
from mesh.config.manifest import Manifest
from mesh.contract.model import Contract
from mesh.control.component.service_events import needs_broker
from mesh.control.supervise import exec_with_parent, listening_sockets
from mesh.control.supervise.child import Component
from mesh.events.broker import nats_server
from mesh.faults import Fault, Faults

__all__ = ["BROKER", "OwnBroker", "needed", "own_broker"]

BROKER = "broker"
"""Its name among the components."""


@dataclass(frozen=True, slots=True)
class OwnBroker:
    """A broker to be run.

    Attributes:
        component: What runs it; all others need it, so it starts first and stops last.
        address: ``host:port`` where it listens, the same after each restart.
        storage: The folder of what it keeps.
    """

    component: Component
    address: str
    storage: str

    @property
    def url(self) -> str:
        """Where the components reach it."""
        return f"nats://{self.address}"


def needed(manifest: Manifest, contract: Contract) -> bool:
    """Whether `mesh up` has to run a broker: something needs one, and none is named."""
    return not manifest.broker and any(needs_broker(manifest, contract, name) for name in manifest.services)


def own_broker(manifest: Manifest, contract: Contract) -> OwnBroker | None:
    """Return the broker to be run, or None when there is one already, or none is needed.

    Raises:
        Faults: Its address is taken, its folder cannot be written, or there is no nats-server.
    """
    if not needed(manifest, contract):
        return None
    place = f"{manifest.file.name} [events] listen"
    with listening_sockets.bind(
        place, manifest.events.listen
    ) as bound:  # nats-server takes no socket of ours, only a number
        address = addresses.name_of(bound)
    host, port = addresses.split(address)
    storage = manifest.state / "nats"
    try:
        words = nats_server.command(storage, host, port)
    except nats_server.ServerError as error:
        raise Faults([Fault(f"{manifest.file.name} broker", str(error))]) from None
    except OSError as error:
        raise Faults([Fault(str(storage), f"cannot be written: {error.strerror}")]) from None
    reachable = addresses.reachable(address)
    component = Component(
        name=BROKER,
        command=exec_with_parent.command(str(storage / "lock"), words),
        listener=None,
        probe=lambda: nats_server.ready(*addresses.split(reachable)),
        shown=nats_server.shown,
        broken=nats_server.broken,
    )
    return OwnBroker(component, reachable, str(storage))
