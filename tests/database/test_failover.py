"""A primary that goes and a standby that is promoted, both in the URL: calls fail for a moment, then go on there."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from postgresql import DEFAULT, front, server
from sqlalchemy import text

from mesh.database import Database
from mesh.errors import Unavailable

Run = Callable[..., None]


@pytest.fixture
def primary() -> Iterator[Any]:
    """A server that this test may stop."""
    with server(DEFAULT) as made:
        yield made


@pytest.fixture
def run(primary: Any) -> Run:
    """Runs a program of PostgreSQL's, as the user that the servers run as."""

    def do(program: str, *words: object) -> None:
        command = [str(primary.bin_path / program), *map(str, words)]
        done = subprocess.run(command, user=primary.system_user, stdin=subprocess.DEVNULL, timeout=60, check=False)
        assert done.returncode == 0, command

    return do


@pytest.fixture
def standby(primary: Any, run: Run) -> Iterator[Any]:
    """A copy of it that follows it."""
    if not (primary.bin_path / "pg_basebackup").exists():
        pytest.skip("these binaries have no pg_basebackup")
    folder = Path(tempfile.mkdtemp(prefix="mesh-pg-"))
    if primary.system_user is not None:
        shutil.chown(folder, primary.system_user)
    folder.chmod(0o700)
    data = folder / "data"
    run(
        "pg_basebackup",
        "-D",
        data,
        "-h",
        primary.get_postmaster_info().socket_dir,
        "-U",
        "postgres",
        "-R",
        "-c",
        "fast",
    )
    # Its socket has another folder: the primary's, in its data, is locked by a file that was copied too.
    run("pg_ctl", "-D", data, "-o", f'-h "" -k {folder}', "-l", data / "log", "-w", "start")
    try:
        yield SimpleNamespace(data=data, get_postmaster_info=lambda: SimpleNamespace(socket_dir=folder))
    finally:
        run("pg_ctl", "-D", data, "-m", "immediate", "-w", "stop")
        shutil.rmtree(folder)


async def test_a_promoted_standby_takes_over(primary: Any, standby: Any, run: Run):
    async def add(number: int) -> None:
        async with database.transaction() as tx:
            await tx.execute(text("INSERT INTO t VALUES (:number)"), {"number": number})

    async def works(number: int) -> None:
        async with asyncio.timeout(60):
            while True:
                try:
                    return await add(number)
                except Unavailable:
                    await asyncio.sleep(0.05)

    async with front(standby) as second, front(primary) as first:
        hosts = f"127.0.0.1:{second.port},127.0.0.1:{first.port}"
        url = f"postgresql://postgres@{hosts}/postgres?target_session_attrs=read-write"
        database = Database(url, migrations=None, name="shop")
        await database.start()
        try:
            async with database.transaction() as tx:
                await tx.execute(text("CREATE TABLE t (n int PRIMARY KEY)"))
            await add(1)
            async with database.transaction() as one, database.transaction() as two:  # two connections are kept
                for tx in (one, two):
                    await tx.execute(text("SELECT 1"))
            await asyncio.to_thread(run, "pg_ctl", "-D", primary.pgdata, "-m", "fast", "-w", "stop")
            with pytest.raises(Unavailable):
                await add(2)
            await asyncio.to_thread(run, "pg_ctl", "-D", standby.data, "-w", "promote")
            await works(3)
            await asyncio.gather(*(works(number) for number in range(4, 12)))
            async with database.transaction() as tx:
                found = list((await tx.execute(text("SELECT n FROM t ORDER BY n"))).scalars())
            assert found == [1, *range(3, 12)]
        finally:
            await database.stop()
