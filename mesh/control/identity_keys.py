"""Keys of a mesh, one of each kind for each service of mesh.toml, the edge, the operator and the signer.

The identity key (``mesh.auth.key_files``) signs tokens and events, the NKEY (``mesh.events.broker.nkey_files``)
authenticates at the broker. The operator is whoever runs ``mesh up``, ``mesh events`` and ``mesh chaos``.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from mesh.auth import key_files
from mesh.certificates.spiffe import EDGE, OPERATOR, SIGNER
from mesh.config.manifest import Manifest
from mesh.events.broker import nkey_files

__all__ = ["OPERATOR", "ensure", "ensure_each", "folder_of", "names", "retire"]


def folder_of(manifest: Manifest) -> Path:
    """Return the folder of the keys that this machine has."""
    return manifest.state / "identity"


def ensure(manifest: Manifest) -> Path:
    """Make the keys that are missing; return the folder that holds them.

    Raises:
        Faults: The folder cannot be written.
    """
    folder = folder_of(manifest)
    key_files.ensure(folder, names(manifest))
    nkey_files.ensure(folder, names(manifest))
    return folder


def ensure_each(manifest: Manifest, folder: Path) -> Path:
    """Make one folder for each component, with its own private key and everyone's public keys; return ``folder``.

    Raises:
        Faults: A folder cannot be written.
    """
    folders = {name: folder / name for name in names(manifest)}
    for name, own in folders.items():
        key_files.ensure(own, [name])
        nkey_files.ensure(own, [name])
    key_files.share(folders)
    return folder


def retire(manifest: Manifest, each: Path | None, name: str, now: datetime) -> Path:
    """Give a component a new identity key; return the file with its old public key.

    Args:
        manifest: The manifest.
        each: Folder with one folder for each component; None: the keys of this machine.
        name: The component.
        now: Time from which the old key no longer signs.

    Raises:
        Faults: There is no such key, or a folder cannot be written.
    """
    if each is None:
        return key_files.retire(folder_of(manifest), name, now)
    old = key_files.retire(each / name, name, now)
    key_files.share({other: each / other for other in names(manifest)})
    return old


def names(manifest: Manifest) -> list[str]:
    """Return the names of all components with keys."""
    return [*manifest.services, EDGE, OPERATOR, SIGNER]
