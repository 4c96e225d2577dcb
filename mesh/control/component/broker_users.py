"""Users of the broker of one mesh: each service that needs it, with its rights, and the operator."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mesh.config.manifest import Manifest
from mesh.contract.model import Contract
from mesh.control import identity_keys
from mesh.control.component.service_events import needs_broker
from mesh.events.broker import nkey_files
from mesh.events.broker.authorization import User
from mesh.events.rights import EVERYTHING, service_rights

__all__ = ["users"]


def users(manifest: Manifest, contract: Contract, keys: Path | Mapping[str, Path]) -> list[User]:
    """Return the users.

    Args:
        manifest: The manifest.
        contract: The contract.
        keys: Folder of all keys, or one folder for each component by its name.

    Raises:
        Faults: A key cannot be read.
    """
    rights = {
        name: service_rights(contract, name, config.serves)
        for name, config in manifest.services.items()
        if needs_broker(manifest, contract, name)
    }
    rights[identity_keys.OPERATOR] = EVERYTHING
    return [
        User(
            name,
            nkey_files.public(keys if isinstance(keys, Path) else keys[name], name),
            one.publish,
            one.subscribe,
        )
        for name, one in rights.items()
    ]
