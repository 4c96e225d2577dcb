"""Events of a sidecar beside deliveries and publishing: the pruning of the inbox."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from sqlalchemy import text

from mesh.control.component import service_events
from mesh.database import Database
from mesh.events.consume import inbox


async def test_pruning_goes_on_after_what_nobody_expected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The table is not there, and comes back with a row that is too old."""
    monkeypatch.setattr(service_events, "PRUNE_INTERVAL", 0.02)
    database = Database(f"sqlite:///{tmp_path}/a.db", migrations=None, name="a", after=[inbox.prepare])
    await database.start()

    async def sql(statement: str) -> list[object]:
        async with database.transaction() as tx:
            result = await tx.execute(text(statement))
            return list(result) if result.returns_rows else []

    await sql("ALTER TABLE mesh_inbox RENAME TO away")
    pruning = asyncio.create_task(service_events._prune(database))
    try:
        async with asyncio.timeout(10):
            while "the inbox was not pruned" not in caplog.text:  # noqa: ASYNC110 - a log line is no event
                await asyncio.sleep(0.01)
            await sql("INSERT INTO away VALUES ('a', 'b', 0)")
            await sql("ALTER TABLE away RENAME TO mesh_inbox")
            while await sql("SELECT 1 FROM mesh_inbox"):  # noqa: ASYNC110 - a row that goes is none either
                await asyncio.sleep(0.01)
        assert not pruning.done()
    finally:
        pruning.cancel()
        await asyncio.wait([pruning])
        await database.stop()
