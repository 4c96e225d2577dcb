"""Keys of event signatures: the identity keys of the mesh, in use and retired, and the verifier of deliveries."""

from __future__ import annotations

import logging
from datetime import timedelta
from pathlib import Path

from mesh.auth import key_files
from mesh.config.manifest import Manifest
from mesh.contract.model import Contract
from mesh.control import topology
from mesh.events.consume.verification import EventVerifier, UnsignedPolicy
from mesh.events.signatures import EventSigner, VerificationKey, Verifier, key_id
from mesh.faults import Faults

__all__ = ["KeyRing", "signer", "verifier"]

log = logging.getLogger("mesh.events")

RETIREMENT_GRACE = timedelta(minutes=5)
"""Time for which a retired key stays valid for new events: schedules are signed anew within a minute."""


def signer(folder: Path, name: str) -> EventSigner:
    """Return the signer of a component.

    Raises:
        Faults: Its key cannot be read.
    """
    return EventSigner(name, key_files.load(folder, name))


def verifier(manifest: Manifest, contract: Contract, folder: Path) -> EventVerifier:
    """Return the verifier of events of this mesh.

    Raises:
        Faults: A key cannot be read.
    """
    publishers: dict[str, set[str]] = {}
    hosts = {}
    for name in manifest.services:
        for service in topology.served(manifest, contract, name):
            hosts[service.name] = name
            for event in service.publishes:
                publishers.setdefault(event, set()).add(name)
    table = manifest.events
    unsigned = UnsignedPolicy(table.signed_from, frozenset(table.unsigned))
    return EventVerifier(Verifier(KeyRing(folder).find), publishers, hosts, unsigned)


class KeyRing:
    """Public keys of the services and the operator.

    Args:
        folder: Folder of the key files.

    Raises:
        Faults: A key cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._watch = key_files.FolderWatch(folder)
        self._keys = self._read()

    def find(self, name: str, id_: str) -> VerificationKey | None:
        """Return the key of a signer with this id, or None. Files that have changed are read again."""
        if self._watch.changed():
            try:
                self._keys = self._read()
            except Faults as faults:  # the keys that were read before stay valid
                log.error("the keys of event signatures cannot be read: %s", faults)  # noqa: TRY400 - it says all
                self._watch.repeat()
        return self._keys.get((name, id_))

    def _read(self) -> dict[tuple[str, str], VerificationKey]:
        keys = {
            (one.name, key_id(one.key)): VerificationKey(one.key, one.retired + RETIREMENT_GRACE)
            for one in key_files.load_retired(self._folder)
        }
        current = key_files.load_public(self._folder)
        return keys | {(name, key_id(key)): VerificationKey(key) for name, key in current.items()}
