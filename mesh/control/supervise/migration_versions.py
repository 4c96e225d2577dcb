"""Migration versions of ``mesh up --reload``: differences between the files at the start and the files now.

A save migrates no database: a version file is saved many times before it is finished, and a version that has run does
not run again. The lines say which versions a restart would run, and which ones it would refuse. This module reads
version files and never runs them.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

from mesh.config.manifest import Manifest

__all__ = ["MigrationVersions", "is_version", "read_versions", "revision_of"]

_PARENT, _NAME = "down_revision", "revision"
"""Assignments that make a sequence of versions (Alembic's documentation, "Create a Migration Script")."""
_RESTART = "a restart of `mesh up`"


class MigrationVersions:
    """Version files of each service that has a database.

    Args:
        manifest: The deployment, before any of its databases is migrated.
    """

    def __init__(self, manifest: Manifest) -> None:
        self._folders = {
            name: manifest.migrations_folder(name) for name, config in manifest.services.items() if config.database
        }
        self._applied = {name: read_versions(folder) for name, folder in self._folders.items()}

    def contains(self, path: Path) -> bool:
        """Whether a file is, or was, a version of one of these services."""
        return path.parent in self._folders.values() and is_version(path)

    def differences(self) -> dict[str, tuple[str, ...]]:
        """Return for each service one line for each difference between its versions and those that were applied."""
        return {
            name: tuple(f"{name}: {line}" for line in _differences(self._applied[name], read_versions(folder)))
            for name, folder in self._folders.items()
        }


def is_version(path: Path) -> bool:
    """Whether Alembic reads a file of a folder of versions as a version."""
    return path.suffix == ".py" and path.name != "__init__.py" and not path.name.startswith(".#")


def read_versions(folder: Path) -> dict[str, bytes]:
    """Return the version files by name."""
    found: dict[str, bytes] = {}
    for path in sorted(folder.glob("*.py")):
        if is_version(path):
            try:
                found[path.name] = path.read_bytes()
            except OSError:  # an editor is replacing the file
                continue
    return found


def revision_of(source: bytes) -> str:
    """Return the name of a version by the text of its file, or ``""``."""
    try:
        name = _assigned(ast.parse(source)).get(_NAME)
    except (SyntaxError, ValueError):
        return ""
    return name if isinstance(name, str) else ""


def _differences(applied: Mapping[str, bytes], now: Mapping[str, bytes]) -> Iterator[str]:
    for file in sorted({*applied, *now}):
        if file not in now:
            yield f"the migration {file} is gone, and the database has it: {_RESTART} needs it back"
        elif file not in applied:
            yield f"the migration {file} waits for {_RESTART}: a save migrates no database"
        elif applied[file] != now[file]:
            yield f"the migration {file} has run already and does not run again, also by {_RESTART}: write a new one"
    if applied != now:
        yield from (f"{_RESTART} would refuse the migrations: {fault}" for fault in _faults(now))


def _faults(files: Mapping[str, bytes]) -> Iterator[str]:
    """Yield the reasons why these files are not one sequence of versions, as far as their text shows it."""
    names: dict[str, str] = {}
    all_parents: set[str] = set()
    for file, source in files.items():
        try:
            values = _assigned(ast.parse(source, file))
        except (SyntaxError, ValueError) as error:  # ValueError: a NUL
            place = f"{file}:{error.lineno}" if isinstance(error, SyntaxError) and error.lineno else file
            yield f"{place}: {getattr(error, 'msg', error)}"
            return
        name, parents = values.get(_NAME), values.get(_PARENT)
        if not isinstance(name, str):
            yield f"{file} says no `{_NAME}`"
            return
        if name in names:
            yield f"{names[name]} and {file} are both {name!r}"
            return
        names[name] = file
        listed = parents if isinstance(parents, tuple | list) else [parents] if isinstance(parents, str) else []
        all_parents |= set(listed)
    for name in sorted(all_parents - set(names)):
        yield f"there is no {name!r}, which one names as its {_PARENT}"
    newest = sorted(set(names) - all_parents)
    if len(newest) > 1:
        yield f"{', '.join(newest)} are all the newest; one has to be the {_PARENT} of another"


def _assigned(module: ast.Module) -> dict[str, object]:
    """Return the constants that a module assigns to names at its top level."""
    found: dict[str, object] = {}
    for statement in module.body:
        targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
        for target in targets:
            if isinstance(target, ast.Name) and (value := getattr(statement, "value", None)) is not None:
                try:
                    found[target.id] = ast.literal_eval(value)
                except ValueError:
                    continue
    return found
