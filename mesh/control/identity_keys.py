"""Identity keys of a mesh: one for each service of mesh.toml, and one for the edge."""

from __future__ import annotations

from pathlib import Path

from mesh.auth import key_files
from mesh.config.manifest import Manifest

__all__ = ["ensure", "ensure_each"]


def ensure(manifest: Manifest) -> Path:
    """Make the keys that are missing; return the folder that holds them.

    Raises:
        Faults: The folder cannot be written.
    """
    folder = manifest.state / "identity"
    key_files.ensure(folder, _names(manifest))
    return folder


def ensure_each(manifest: Manifest, folder: Path) -> Path:
    """Make one folder for each component, with its own private key and everyone's public keys; return ``folder``.

    Raises:
        Faults: A folder cannot be written.
    """
    folders = {name: folder / name for name in _names(manifest)}
    for name, own in folders.items():
        key_files.ensure(own, [name])
    key_files.share(folders)
    return folder


def _names(manifest: Manifest) -> list[str]:
    return [*manifest.services, "edge"]
