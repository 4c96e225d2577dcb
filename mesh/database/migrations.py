"""Alembic versions of a service, run when it starts, by one process at a time.

A folder of version files is all there is: no alembic.ini, no env.py. The upgrade is one transaction on both databases,
so that a process that is killed inside it leaves nothing behind.
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

from mesh.database.failures import DatabaseError

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Connection
    from sqlalchemy.ext.asyncio import AsyncEngine

__all__ = ["Prepare", "place", "upgrade"]

Prepare: TypeAlias = "Callable[[Connection], object]"
"""Makes what the mesh itself needs in the database, if it is not there."""

log = logging.getLogger("mesh.database")

_LOCK = 0x6D657368
"""Key of the PostgreSQL advisory lock; advisory locks are the database's own, so one number serves all services."""
_PROXIES = threading.Lock()
"""``alembic.op`` is one global object: two databases of one process migrate one after the other."""


def upgrade(
    engine: Callable[[], AsyncEngine],
    folder: Path | None,
    file: Path | None,
    before: Sequence[Prepare] = (),
    after: Sequence[Prepare] = (),
    *,
    migrate: bool = True,
) -> None:
    """Open the database and bring it to the newest version; blocks, so it runs in a thread with a loop of its own.

    Args:
        engine: Makes an engine that lives for this upgrade.
        folder: The version files, or None when there is nothing to migrate.
        file: The file of a SQLite database, or None.
        before: What the mesh itself does there at every start, before the versions and in their transaction.
        after: And after them.
        migrate: Run the versions; else the folder is not read, and what ``before`` and ``after`` do is all.

    Raises:
        DatabaseError: The version files cannot be used, or the database is at a version that they do not know.
        Exception: Whatever the driver raises when the database cannot be used.
    """
    scripts = _scripts(folder) if folder is not None and migrate else None
    unread = None if migrate else folder
    with _PROXIES, _file_lock(file):
        asyncio.run(_upgrade(engine(), scripts, before, after, unread, sqlite=file is not None))


async def _upgrade(
    engine: AsyncEngine,
    scripts: ScriptDirectory | None,
    before: Sequence[Prepare],
    after: Sequence[Prepare],
    unread: Path | None,
    *,
    sqlite: bool,
) -> None:
    try:
        async with engine.connect() as connection:
            if sqlite:  # kept in the file; only here, where nobody else is switching
                await connection.exec_driver_sql("PRAGMA journal_mode=WAL")
                await connection.commit()
            if scripts is None and unread is None and not before and not after:
                await connection.execute(text("SELECT 1"))
                return
            if sqlite:
                await connection.exec_driver_sql("BEGIN IMMEDIATE")
            else:
                await connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
            for step in before:
                await connection.run_sync(step)
            old = new = None
            if scripts is not None:
                old, new = await connection.run_sync(_run, scripts)
            for step in after:
                await connection.run_sync(step)
            if unread is not None and not await connection.run_sync(_versions):
                log.warning("the database is at no version: %s is run by the next start of the mesh alone", unread)
            await connection.commit()
            if old != new:
                log.info("the database was at version %s and is at %s now", old or "none", new)
    finally:
        await engine.dispose()


def _versions(connection: Connection) -> tuple[str, ...]:
    """Return the versions that a database says it is at; none when it was never migrated."""
    return MigrationContext.configure(connection).get_current_heads()


def _run(connection: Connection, scripts: ScriptDirectory) -> tuple[str | None, str | None]:
    """Upgrade to the newest version; return the version before and after."""

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
    except KeyError as error:  # Alembic looks it up; before that it warns
        raise DatabaseError(
            f"migrations in {folder}: there is no {error}, which one names as its down_revision"
        ) from error
    except Exception as error:
        text = f"{type(error).__name__}: {error}{place(error, folder)}"
        raise DatabaseError(f"migrations in {folder} cannot be read: {text}") from error
    if len(heads) != 1:
        found = f"{len(heads)} newest versions ({', '.join(sorted(heads))})" if heads else "no version"
        raise DatabaseError(f"migrations in {folder}: expected a line of versions with one newest, found {found}")
    for version in scripts.walk_revisions():
        upgrade = getattr(version.module, "upgrade", None)
        if not callable(upgrade) or iscoroutinefunction(upgrade):  # Alembic would make a coroutine and await it nowhere
            raise DatabaseError(f"migrations: {version.path} needs def upgrade(), a plain function without arguments")
    return scripts


def place(error: BaseException, folder: Path | None) -> str:
    """Return the line of a version file that an error came from, as in `` (v2.py:12)``; ``""`` if it came from none.

    Args:
        error: Of an upgrade.
        folder: The version files.
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
    """Hold a lock beside the SQLite file: switching to WAL fails, rather than waits, when two do it at once."""
    if file is None:
        yield
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.with_name(f"{file.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
