"""Stored events read with a new contract: outboxes of both databases."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import text

from mesh.config import manifest
from mesh.control.commands import stored_events
from mesh.database import Database
from mesh.events.publish import outbox
from mesh.faults import Faults

INSERT = text("INSERT INTO mesh_outbox (id, subject, headers, data, created) VALUES (:id, '', :headers, :data, 1)")


async def rows(url: str) -> list[tuple[str, str, bytes]]:
    return [one async for one in stored_events._outbox_rows("shop", url)]


async def test_every_event_of_an_outbox_is_read(
    new_database: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if it has several pages; a row of a table's trigger has no event yet."""
    monkeypatch.setattr(stored_events, "PER_PAGE", 2)
    url = new_database()
    database = Database(url, migrations=None, name="shop", after=[outbox.create])
    await database.start()
    async with database.transaction() as tx:
        for id_, headers in [("a", '{"ce-type": "t.A"}'), ("row", ""), ("b", '{"ce-type": "t.B"}'), ("c", "{}")]:
            await tx.execute(INSERT, {"id": id_, "headers": headers, "data": id_.encode()})
    await database.stop()
    assert await rows(url) == [("a", "t.A", b"a"), ("b", "t.B", b"b"), ("c", "", b"c")]


async def test_a_service_that_has_never_run_has_no_outbox(new_database: Callable[[], str], tmp_path: Path) -> None:
    database = Database(url := new_database(), migrations=None, name="shop")
    await database.start()
    await database.stop()
    assert await rows(url) == []
    assert await rows(f"sqlite:///{tmp_path}/none.db") == []
    assert not (tmp_path / "none.db").exists()


VERSION = "revision = 'one'\ndown_revision = None\n\ndef upgrade():\n    pass\n"
MANIFEST = """
[services.shop]
module = "shop.functions"
serves = ["shop.v1.Shop"]
listen = "127.0.0.1:0"
database = "URL"
[services.new]
module = "new.functions"
serves = ["new.v1.New"]
listen = "127.0.0.1:0"
database = "sqlite:///new.db"
"""


async def test_versions_that_a_database_has_run(new_database: Callable[[], str], tmp_path: Path) -> None:
    (tmp_path / "migrations").mkdir()
    (tmp_path / "migrations/v1.py").write_text(VERSION)
    database = Database(url := new_database(), migrations=tmp_path / "migrations", name="shop")
    await database.start()
    await database.stop()
    (tmp_path / "mesh.toml").write_text(MANIFEST.replace("URL", url))
    assert await stored_events._applied_versions(manifest.load(tmp_path / "mesh.toml")) == {"shop": {"one"}}


async def test_an_outbox_that_cannot_be_read_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("this is no database, however long it may be" * 100)
    with pytest.raises(Faults, match="the database cannot be read"):
        await rows(f"sqlite:///{tmp_path}/text.db")
    with pytest.raises(Faults, match="the database cannot be read"):
        await rows("postgresql://nobody@127.0.0.1:1/none")
