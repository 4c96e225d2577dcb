"""Alembic migrations of a service, run at its start by one process at a time.

They need a folder of version files only, without alembic.ini and env.py. The upgrade is one transaction on both kinds
of databases, so a process that is killed during it leaves no trace.

Code that is older than the database starts with a warning if all the versions that it lacks are marked compatible
(``mesh.database.migration_history``). It then changes nothing, neither by migrations nor by the mesh's own steps: the
newer code has made everything that is needed, and still runs beside it in a rolling deployment.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from inspect import iscoroutinefunction
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import text

from mesh import private_files
from mesh.database import migration_history
from mesh.database.failures import DatabaseError

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Connection
    from sqlalchemy.ext.asyncio import AsyncEngine

__all__ = ["PrepareStep", "error_location", "upgrade"]

PrepareStep: TypeAlias = "Callable[[Connection], object]"
"""Creates objects that the mesh needs in the database, unless they exist."""

log = logging.getLogger("mesh.database")

_ADVISORY_LOCK_KEY = 0x6D657368
"""Key of the PostgreSQL advisory lock. Such locks belong to one database, so all services can use the same key."""
_ALEMBIC_LOCK = threading.Lock()
"""``alembic.op`` is a global object, so the databases of one process are migrated one after the other."""


def upgrade(
    engine: Callable[[], AsyncEngine],
    folder: Path | None,
    file: Path | None,
    before: Sequence[PrepareStep] = (),
    after: Sequence[PrepareStep] = (),
    *,
    migrate: bool = True,
) -> None:
    """Migrate a database to the newest version. It blocks, and runs in a thread with an event loop of its own.

    Args:
        engine: Creates an engine for this upgrade.
        folder: Folder of the version files, or None if there are no migrations.
        file: The file of a SQLite database, or None.
        before: Steps of the mesh at every start, before the migrations and in their transaction.
        after: Steps of the mesh after the migrations, in the same transaction.
        migrate: Whether the migrations are run. Else the folder is not read, and only ``before`` and ``after`` run.

    Raises:
        DatabaseError: The version files are wrong, or the database is at a version that this code cannot run with.
        Exception: The driver's error, if the database cannot be used.
    """
    scripts = _scripts(folder) if folder is not None and migrate else None
    skipped_folder = None if migrate else folder
    with _ALEMBIC_LOCK, _file_lock(file):
        asyncio.run(_upgrade(engine(), scripts, before, after, skipped_folder, sqlite=file is not None))


async def _upgrade(
    engine: AsyncEngine,
    scripts: ScriptDirectory | None,
    before: Sequence[PrepareStep],
    after: Sequence[PrepareStep],
    skipped_folder: Path | None,
    *,
    sqlite: bool,
) -> None:
    try:
        async with engine.connect() as connection:
            if sqlite:  # stored in the file; set only here, under the file lock
                await connection.exec_driver_sql("PRAGMA journal_mode=WAL")
                await connection.commit()
            if scripts is None and skipped_folder is None and not before and not after:
                await connection.execute(text("SELECT 1"))
                return
            if sqlite:
                await connection.exec_driver_sql("BEGIN IMMEDIATE")
            else:
                await connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK_KEY})
            if scripts is not None and await connection.run_sync(_check_newer, scripts):
                return
            for step in before:
                await connection.run_sync(step)
            old = new = None
            if scripts is not None:
                old, new = await connection.run_sync(_run, scripts)
                await connection.run_sync(migration_history.record, migration_history.read(scripts))
            for step in after:
                await connection.run_sync(step)
            if skipped_folder is not None and not await connection.run_sync(_versions):
                log.warning(
                    "the database is at no version: %s is run by the next start of the mesh alone", skipped_folder
                )
            await connection.commit()
            if old != new:
                log.info("the database was at version %s and is at %s now", old or "none", new)
    finally:
        await engine.dispose()


def _versions(connection: Connection) -> tuple[str, ...]:
    """Return the versions of a database. There are none if it was never migrated."""
    return MigrationContext.configure(connection).get_current_heads()


def _check_newer(connection: Connection, scripts: ScriptDirectory) -> bool:
    """Return whether the database is newer than the code, and the code may run with it.

    Raises:
        DatabaseError: The code must not run with it.
    """
    present = _versions(connection)
    known = migration_history.read(scripts)
    if all(name in known for name in present):
        return False
    (newest,) = scripts.get_heads()
    newer = migration_history.newer_versions(present, known, newest, migration_history.recorded(connection))
    log.warning(
        "the database is at version %s, and this code at %s: the start goes on, because %s %s marked compatible",
        ", ".join(sorted(present)), newest, ", ".join(newer), "is" if len(newer) == 1 else "are",
    )  # fmt: skip
    return True


def _run(connection: Connection, scripts: ScriptDirectory) -> tuple[str | None, str | None]:
    """Upgrade to the newest version. Return the versions before and after."""

    def steps(revision: Any, _: Any) -> Any:
        return scripts._upgrade_revs("head", revision)  # noqa: SLF001 - what alembic.command.upgrade does

    try:
        with EnvironmentContext(Config(), scripts, fn=steps) as environment:
            environment.configure(connection=connection, transactional_ddl=True)
            context = environment.get_context()
            before = context.get_current_revision()
            environment.run_migrations()
            return before, context.get_current_revision()
    except CommandError as error:
        raise DatabaseError(f"migrations in {scripts.dir}: {error}") from error


def _scripts(folder: Path) -> ScriptDirectory:
    if not folder.is_dir():
        raise DatabaseError(f"migrations: {folder} is not a folder")
    try:
        scripts = ScriptDirectory(str(folder), version_locations=[str(folder)])
        heads = scripts.get_heads()
    except KeyError as error:  # from Alembic's lookup, after a warning
        raise DatabaseError(
            f"migrations in {folder}: there is no {error}, which one names as its down_revision"
        ) from error
    except Exception as error:
        text = f"{type(error).__name__}: {error}{error_location(error, folder)}"
        raise DatabaseError(f"migrations in {folder} cannot be read: {text}") from error
    if len(heads) != 1:
        found = f"{len(heads)} newest versions ({', '.join(sorted(heads))})" if heads else "no version"
        raise DatabaseError(f"migrations in {folder}: expected a line of versions with one newest, found {found}")
    for version in scripts.walk_revisions():
        upgrade = getattr(version.module, "upgrade", None)
        if not callable(upgrade) or iscoroutinefunction(upgrade):  # Alembic would never await the coroutine
            raise DatabaseError(f"migrations: {version.path} needs def upgrade(), a plain function without arguments")
    return scripts


def error_location(error: BaseException, folder: Path | None) -> str:
    """Return the line of a version file that raised an error, such as `` (v2.py:12)``, or ``""`` if none did.

    Args:
        error: Error of an upgrade.
        folder: Folder of the version files.
    """
    at: BaseException | None = error
    while at is not None and folder is not None:
        for frame in reversed(traceback.extract_tb(at.__traceback__)):
            file = Path(frame.filename)
            if file.suffix == ".py" and file.resolve().parent == folder.resolve():
                return f" ({file.name}:{frame.lineno})"
        at = at.__cause__ or at.__context__
    return ""


@contextmanager
def _file_lock(file: Path | None) -> Iterator[None]:
    """Hold a lock beside the SQLite file, since two simultaneous switches to WAL fail instead of waiting."""
    if file is None:
        yield
        return
    private_files.make_folder(file.parent)
    with open(file.with_name(f"{file.name}.lock"), "w", opener=private_files.opener) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        private_files.create_file(file)  # SQLite gives -wal and -shm the mode that the file has when they are made
        yield
