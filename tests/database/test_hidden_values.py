"""Values of rows reach no log, trace or error text of a failed statement."""

from __future__ import annotations

import traceback
from collections.abc import Callable

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from mesh.database import Database

SECRET = "correct horse battery"


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO accounts VALUES (1, :value)",  # the key exists
        "INSERT INTO accounts VALUES (2, :value)",  # the name exists: PostgreSQL names it in DETAIL
        "INSERT INTO accounts VALUES (:value, 'x')",  # no integer: asyncpg names the argument
        "INSERT INTO missing VALUES (:value)",
        "SELECT 1 FROM accounts WHERE id = :value AND nonsense",
    ],
)
async def test_a_failed_statement_shows_no_values(new_database: Callable[[], str], statement: str) -> None:
    database = Database(new_database(), migrations=None, name="accounts")
    await database.start()
    try:
        async with database.transaction() as tx:
            await tx.execute(text("CREATE TABLE accounts (id integer PRIMARY KEY, name text UNIQUE)"))
            await tx.execute(text("INSERT INTO accounts VALUES (1, :name)"), {"name": SECRET})
        with pytest.raises(DBAPIError) as caught:
            async with database.transaction() as tx:
                await tx.execute(text(statement), {"value": SECRET})
    finally:
        await database.stop()
    shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value)
    assert "horse" not in shown
    assert "accounts" in shown or "missing" in shown
