"""Keys of a mesh, one of each kind for each service of mesh.toml, the edge, the operator and the signer.

The identity key (``mesh.auth.key_files``) signs tokens and events, the NKEY (``mesh.events.broker.nkey_files``)
authenticates at the broker. The operator is whoever runs ``mesh up``, ``mesh events`` and ``mesh chaos``.
"""

from __future__ import annotations

from pathlib import Path

from mesh.auth import key_files
from mesh.certificates.spiffe import EDGE, OPERATOR, SIGNER
from mesh.config.manifest import Manifest
from mesh.events.broker import nkey_files

__all__ = ["OPERATOR", "ensure", "ensure_each", "folder_of"]


def folder_of(manifest: Manifest) -> Path:
    """Return the folder of the keys that this machine has."""
    return manifest.state / "identity"


def ensure(manifest: Manifest) -> Path:
    """Make the keys that are missing; return the folder that holds them.

    Raises:
        Faults: The folder cannot be written.
    """
    folder = folder_of(manifest)
    key_files.ensure(folder, _names(manifest))
    nkey_files.ensure(folder, _names(manifest))
    return folder


def ensure_each(manifest: Manifest, folder: Path) -> Path:
    """Make one folder for each component, with its own private key and everyone's public keys; return ``folder``.

    Raises:
        Faults: A folder cannot be written.
    """
    folders = {name: folder / name for name in _names(manifest)}
    for name, own in folders.items():
        key_files.ensure(own, [name])
        nkey_files.ensure(own, [name])
    key_files.share(folders)
    return folder


def _names(manifest: Manifest) -> list[str]:
    return [*manifest.services, EDGE, OPERATOR, SIGNER]
