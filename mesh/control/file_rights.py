"""File rights: names the files of a mesh that other users of the machine can open.

New files are private (``mesh.private_files``). Files of earlier releases, or of an administrator, may not be. Their
rights are not changed, because somebody may rely on them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from mesh import private_files
from mesh.auth import ApiKeyFile
from mesh.database_url import parse

if TYPE_CHECKING:
    from mesh.config.manifest import Manifest

__all__ = ["component_warnings", "state_warnings"]


def state_warnings(manifest: Manifest) -> list[str]:
    """Return a line for the state folder if others can open it."""
    return list(_warnings([manifest.state]))


def component_warnings(manifest: Manifest, name: str) -> list[str]:
    """Return a line for the private key, the database and the API keys of one component that others can open.

    Args:
        manifest: The manifest.
        name: The service, or ``edge``.
    """
    key = manifest.state / "identity" / f"{name}.key"
    return list(_warnings([key, *_database_files(manifest, name), *_api_key_files(manifest)]))


def _api_key_files(manifest: Manifest) -> list[Path]:
    """Return the file of API keys and its folder, which may be mounted from elsewhere."""
    file = ApiKeyFile(manifest.state).path
    return [file.parent, file]


def _database_files(manifest: Manifest, name: str) -> Iterator[Path]:
    config = manifest.services.get(name)
    file = parse(config.database).file if config is not None and config.database else None
    if file is not None:
        yield file
        yield from (file.with_name(f"{file.name}{suffix}") for suffix in ("-wal", "-shm"))


def _warnings(paths: list[Path]) -> Iterator[str]:
    for path, mode in private_files.open_to_others(paths):
        if not path.is_dir() and not list(private_files.open_to_others([path.parent])):
            continue  # a private folder keeps others out, whatever the rights of its files
        wanted = private_files.FOLDER_MODE if path.is_dir() else private_files.FILE_MODE
        yield f"other users of this machine can open {path} (mode {mode:04o}): chmod {wanted:o} {path}"
