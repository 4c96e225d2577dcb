"""Migration history: the versions of a database with their marks, stored in it for code that lacks their files.

A version file may say ``compatible = True``: the code of the version before works with the database after it ("expand"
of expand and contract). Code that lacks the newest versions reads here whether all of them are marked so. Chromium's
databases have the same idea (``sql::MetaTable``, ``last_compatible_version``).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import Boolean, Column, MetaData, String, Table, inspect, select

from mesh.database.failures import DatabaseError

if TYPE_CHECKING:
    from alembic.script import Script, ScriptDirectory
    from sqlalchemy import Connection

__all__ = ["Version", "newer_versions", "read", "record", "recorded"]

MARK = "compatible"
"""Name in a version file: whether the code of the version before works with the database after this version."""
_TABLE = Table(
    "mesh_migrations",
    MetaData(),
    Column("version", String, primary_key=True),
    Column("parents", String, nullable=False),
    Column("compatible", Boolean, nullable=False),
)
_ADVICE = "run the code that has it, or restore a backup from before it (docs/databases.md, Older code)"


@dataclass(frozen=True, slots=True)
class Version:
    """One version.

    Attributes:
        parents: Its ``down_revision``: the versions before it.
        compatible: Whether the code of the version before works with the database after it.
    """

    parents: tuple[str, ...]
    compatible: bool


def read(scripts: ScriptDirectory) -> dict[str, Version]:
    """Return the versions of a folder.

    Raises:
        DatabaseError: A mark is not a boolean.
    """
    return {script.revision: Version(tuple(_parents(script)), _mark(script)) for script in scripts.walk_revisions()}


def _parents(script: Script) -> Iterator[str]:
    down = script.down_revision
    if down is not None:
        yield from [down] if isinstance(down, str) else down


def _mark(script: Script) -> bool:
    mark = getattr(script.module, MARK, False)
    if not isinstance(mark, bool):
        raise DatabaseError(f"migrations: {script.path} needs {MARK} = True or False, not {mark!r}")
    return mark


def recorded(connection: Connection) -> dict[str, Version]:
    """Return the versions that were recorded in a database; none if no code of this mesh has migrated it."""
    if not inspect(connection).has_table(_TABLE.name):
        return {}
    rows = connection.execute(select(_TABLE)).all()
    return {version: Version(tuple(parents.split()), compatible) for version, parents, compatible in rows}


def record(connection: Connection, versions: Mapping[str, Version]) -> None:
    """Record the versions of a folder in the database, in the transaction of the migrations."""
    _TABLE.create(connection, checkfirst=True)
    present = recorded(connection)
    for name, version in versions.items():
        if present.get(name) != version:
            values = {"parents": " ".join(version.parents), "compatible": version.compatible}
            if name in present:
                connection.execute(_TABLE.update().where(_TABLE.c.version == name).values(**values))
            else:
                connection.execute(_TABLE.insert().values(version=name, **values))


def newer_versions(
    present: Collection[str], known: Collection[str], newest: str, history: Mapping[str, Version]
) -> list[str]:
    """Return the versions of a database that the code lacks; none if the code has them all. Pure.

    Args:
        present: The newest versions of the database.
        known: The versions of the code.
        newest: The newest version of the code.
        history: The versions that were recorded in the database.

    Raises:
        DatabaseError: The code must not run with the database.
    """
    newer: dict[str, Version] = {}
    reached: set[str] = set()
    to_visit = list(present)
    while to_visit:
        name = to_visit.pop()
        if name in known:
            reached.add(name)
        elif name not in history:
            raise DatabaseError(f"the database is at version {name}, which this code does not have: {_ADVICE}")
        elif name not in newer:
            newer[name] = history[name]
            to_visit += history[name].parents
    if not newer:
        return []
    at = ", ".join(sorted(present))
    if reached != {newest}:
        raise DatabaseError(
            f"the database is at version {at}, and this code at {newest}; neither is before the other: "
            "run code that has the versions of both"
        )
    incompatible = sorted(name for name, version in newer.items() if not version.compatible)
    if incompatible:
        raise DatabaseError(
            f"the database is at version {at}, and this code at {newest}; older code cannot run after "
            f"{', '.join(incompatible)}, which {'is' if len(incompatible) == 1 else 'are'} not marked "
            f"`{MARK} = True`: {_ADVICE}"
        )
    return sorted(newer)
