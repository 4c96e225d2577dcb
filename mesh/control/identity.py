"""The identity keys of a mesh: one for each entry of mesh.toml and one for the edge."""

from __future__ import annotations

from pathlib import Path

from mesh.auth import keys
from mesh.manifest import Manifest

__all__ = ["ensure"]


def ensure(manifest: Manifest) -> Path:
    """Make the keys that are missing; return the folder that holds them.

    Raises:
        Faults: The folder cannot be written.
    """
    folder = manifest.state / "identity"
    keys.ensure(folder, [*manifest.services, "edge"])
    return folder
