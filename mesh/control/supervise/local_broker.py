"""Local broker: the nats-server that ``mesh up`` runs when the mesh needs a broker and mesh.toml names none."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from pathlib import Path

from mesh import address as addresses
from mesh.certificates import CredentialFiles
from mesh.config.manifest import Manifest
from mesh.contract.model import Contract
from mesh.control import identity_keys, mesh_certificates
from mesh.control.component import broker_users
from mesh.control.component.service_events import broker_settings, needs_broker
from mesh.control.supervise import child_environment, exec_with_parent, listening_sockets
from mesh.control.supervise.child import Child, ComponentSpec
from mesh.events.broker import nats_server
from mesh.events.broker.broker import Broker
from mesh.events.broker.nats_connection import BROKER_ERRORS
from mesh.events.broker.streams import StreamError
from mesh.faults import Fault, Faults

__all__ = ["BROKER", "LocalBroker", "configure", "keep_certificate", "local_broker", "needed"]

CHECK_INTERVAL = 1.0
"""Seconds between two looks at the certificate."""

BROKER = "broker"
"""Component name of the broker."""


@dataclass(frozen=True, slots=True)
class LocalBroker:
    """A broker for ``mesh up`` to run.

    Attributes:
        component: Its specification. All other components need it, so it starts first and stops last.
        address: ``host:port`` where it listens, the same after each restart.
        storage: The folder of its stored messages.
        certificate: Its certificate, and the roots that verify it; None: it speaks plain text.
    """

    component: ComponentSpec
    address: str
    storage: str
    certificate: CredentialFiles | None = None

    @property
    def url(self) -> str:
        """URL at which the components reach it."""
        return _url(self.address, self.certificate)


def needed(manifest: Manifest, contract: Contract) -> bool:
    """Whether ``mesh up`` has to run a broker: a service needs one, and mesh.toml names none."""
    return not manifest.broker and any(needs_broker(manifest, contract, name) for name in manifest.services)


def configure(manifest: Manifest, contract: Contract) -> None:
    """Write the configuration of a running broker anew, with the rights of another contract; it reads it at SIGHUP.

    Raises:
        Faults: A key cannot be made or read, or the file cannot be written.
    """
    folder = identity_keys.ensure(manifest)
    storage = manifest.state / "nats"
    try:
        certificate = mesh_certificates.broker_files(manifest, manifest.events.listen)
        nats_server.configure(storage, broker_users.users(manifest, contract, folder), _pair(certificate))
    except OSError as error:
        raise Faults([Fault(str(storage), f"cannot be written: {error.strerror}")]) from None


def local_broker(manifest: Manifest, contract: Contract) -> LocalBroker | None:
    """Return the broker to run, or None when ``needed`` says that there is none to run.

    Raises:
        Faults: Its address is taken, its folder cannot be written, or there is no nats-server.
    """
    if not needed(manifest, contract):
        return None
    place = f"{manifest.file.name} [events] listen"
    # nats-server cannot inherit a listening socket. It gets the port number of one that is bound and closed.
    with listening_sockets.bind(place, manifest.events.listen) as bound:
        address = addresses.bound_address(bound)
    host, port = addresses.split(address)
    storage = manifest.state / "nats"
    certificate = mesh_certificates.broker_files(manifest, manifest.events.listen)
    try:
        users = broker_users.users(manifest, contract, identity_keys.folder_of(manifest))
        words = nats_server.command(storage, host, port, users, _pair(certificate))
    except nats_server.ServerError as error:
        raise Faults([Fault(f"{manifest.file.name} broker", str(error))]) from None
    except OSError as error:
        raise Faults([Fault(str(storage), f"cannot be written: {error.strerror}")]) from None
    reachable = addresses.reachable(address)
    named = mesh_certificates.with_broker(manifest, _url(reachable, certificate))
    operator = Broker(broker_settings(named, identity_keys.OPERATOR), "mesh-up")
    component = ComponentSpec(
        name=BROKER,
        command=exec_with_parent.command(str(storage / "lock"), words),
        listener=None,
        environment=child_environment.for_broker,
        probe=lambda: _ready(operator, reachable, None if certificate is None else certificate.roots),
        format_line=nats_server.shown,
        needs_restart=nats_server.broken,
    )
    return LocalBroker(component, reachable, str(storage), certificate)


def _url(address: str, certificate: CredentialFiles | None) -> str:
    return f"{'nats' if certificate is None else 'tls'}://{address}"


def _pair(certificate: CredentialFiles | None) -> tuple[Path, Path] | None:
    return None if certificate is None else (certificate.certificate, certificate.private_key)


async def keep_certificate(broker: Child, certificate: Path) -> None:
    """Make the server read its certificate again after each renewal, until the task is cancelled.

    Open connections stay.
    """
    known = _version(certificate)
    while True:
        await asyncio.sleep(CHECK_INTERVAL)
        found = _version(certificate)
        if found not in (known, ()):
            known = found
            broker.reload()


def _version(path: Path) -> tuple[int, ...]:
    """Return a value that differs after the file was replaced; empty if there is none."""
    try:
        status = path.stat()
    except OSError:
        return ()
    return status.st_ino, status.st_mtime_ns


async def _ready(operator: Broker, address: str, roots: Path | None) -> str:
    """Return the address of the server once it responds and has the streams as mesh.toml wants them.

    Services may make a stream, and not change one. A stream that the server refuses is reported by them.
    """
    bound = await nats_server.ready(*addresses.split(address), roots)
    with contextlib.suppress(StreamError, *BROKER_ERRORS):
        await operator.make_streams()
    return bound
