"""Triggers of real databases: captured changes, their order, and tables that stay untouched."""

# ruff: noqa: S608 - the statements are the tests' own
from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import asyncpg
import pytest
from google.protobuf.json_format import MessageToDict
from sqlalchemy import Connection, text

from mesh.contract import model as contracts
from mesh.database import Database, DatabaseError
from mesh.errors import Aborted
from mesh.events.changes import capture, change_event
from mesh.events.publish import outbox


class Owner:
    """A service with a database, and somebody who writes SQL by hand."""

    def __init__(self, url: str, kind: type[Any]) -> None:
        self.url = url
        self.kind = kind
        self.sqlite = url.startswith("sqlite")
        self.database = Database(url, migrations=None, name="shop")

    async def start(self, *tables: str, before: Sequence[Any] = ()) -> None:
        """As a replica starts; again and again."""
        await self.database.stop()
        after = [outbox.create, functools.partial(capture.install, service="shop", tables=tables)]
        self.database = Database(self.url, migrations=None, name="shop", before=before, after=after)
        await self.database.start()

    async def hand(self, *statements: str) -> None:
        """Write by hand: with sqlite3, or as psql does."""
        if self.sqlite:
            with sqlite3.connect(self.url.removeprefix("sqlite:///")) as connection:
                for statement in statements:
                    connection.execute(statement)
            connection.close()
            return
        other = await asyncpg.connect(self.url)
        try:
            async with other.transaction():
                for statement in statements:
                    await other.execute(statement)
        finally:
            await other.close()

    async def rows(self) -> Sequence[Any]:
        async with self.database.transaction() as tx:
            return (await tx.execute(text("SELECT id, subject, data FROM mesh_outbox ORDER BY sequence"))).all()

    async def taken(self) -> list[change_event.Change]:
        """Return the captured changes, and delete them from the outbox as the relay does."""
        found = [change_event.Change(self.kind, row.id, row.subject, row.data) for row in await self.rows()]
        async with self.database.transaction() as tx:
            await tx.execute(text("DELETE FROM mesh_outbox"))
        return found

    async def changes(self) -> list[dict[str, Any]]:
        return [self.read(one) for one in await self.taken()]

    def read(self, one: change_event.Change) -> dict[str, Any]:
        found = MessageToDict(self.kind.FromString(one.event.data))
        assert found.pop("commitTime")
        assert (found.pop("service"), found.pop("table")) == ("shop", one.subject.split(".")[2])
        return found


@pytest.fixture
async def owner(new_database: Callable[[], str], contract: contracts.Contract) -> AsyncIterator[Owner]:
    made = Owner(new_database(), contract.message("meshapi.v1.Change"))
    await made.start()
    await made.hand("CREATE TABLE items (id INTEGER PRIMARY KEY, name TEXT UNIQUE)")
    await made.start("items")
    yield made
    await made.database.stop()


async def test_each_change_has_its_key_and_the_row_before_and_after(owner: Owner):
    async with owner.database.transaction() as tx:
        await tx.execute(text("INSERT INTO items VALUES (1, 'a'), (2, 'b')"))
        await tx.execute(text("UPDATE items SET name = 'c' WHERE id = 1"))
    await owner.hand("DELETE FROM items WHERE id = 2")
    taken = await owner.taken()
    assert [owner.read(one) for one in taken] == [
        {"operation": "INSERT", "key": {"id": 1.0}, "after": {"id": 1.0, "name": "a"}},
        {"operation": "INSERT", "key": {"id": 2.0}, "after": {"id": 2.0, "name": "b"}},
        {"operation": "UPDATE", "key": {"id": 1.0}, "before": {"id": 1.0, "name": "a"},
         "after": {"id": 1.0, "name": "c"}},
        {"operation": "DELETE", "key": {"id": 2.0}, "before": {"id": 2.0, "name": "b"}},
    ]  # fmt: skip
    assert [one.subject.split(".")[-1] for one in taken] == ["1", "2", "1", "2"]
    assert len({one.event.id for one in taken}) == 4
    assert all(abs(one.event.time.timestamp() - time.time()) < 60 for one in taken)
    assert {(one.event.source, one.event.type) for one in taken} == {("shop", "meshapi.v1.Change")}


async def test_what_is_rolled_back_was_never_captured(owner: Owner):
    with pytest.raises(ZeroDivisionError):
        async with owner.database.transaction() as tx:
            await tx.execute(text("INSERT INTO items VALUES (1, 'a')"))
            raise ZeroDivisionError
    assert await owner.changes() == []


async def test_a_key_that_changes_is_a_row_that_ends_and_one_that_begins(owner: Owner):
    await owner.hand("INSERT INTO items VALUES (1, 'a')", "UPDATE items SET id = 7")
    assert (await owner.changes())[1:] == [
        {"operation": "DELETE", "key": {"id": 1.0}, "before": {"id": 1.0, "name": "a"}},
        {"operation": "INSERT", "key": {"id": 7.0}, "after": {"id": 7.0, "name": "a"}},
    ]


async def test_a_key_of_several_columns(owner: Owner):
    await owner.hand('CREATE TABLE "odd name" ("b" TEXT, n INTEGER, "A\'""x" TEXT, PRIMARY KEY ("A\'""x", "b"))')
    await owner.start("items", "odd name")
    await owner.hand("""INSERT INTO "odd name" VALUES ('b', 1, 'a')""", """UPDATE "odd name" SET n = 2""")
    await owner.hand("""UPDATE "odd name" SET b = 'c'""")
    taken = await owner.taken()
    found = [MessageToDict(owner.kind.FromString(one.event.data)) for one in taken]
    assert [(one["operation"], one["key"]) for one in found] == [
        ("INSERT", {"A'\"x": "a", "b": "b"}),
        ("UPDATE", {"A'\"x": "a", "b": "b"}),
        ("DELETE", {"A'\"x": "a", "b": "b"}),
        ("INSERT", {"A'\"x": "a", "b": "c"}),
    ]
    assert [one.event.key for one in taken] == ['["a","b"]', '["a","b"]', '["a","b"]', '["a","c"]']
    assert {one.subject.rpartition(".")[0].rpartition(".")[0] for one in taken} == {"changes.shop.odd%20name"}


async def test_what_is_as_it_should_be_is_left_alone(owner: Owner):
    """A start takes no lock on the table: another transaction that has written to it does not end."""
    if owner.sqlite:
        assert await definitions(owner) == (await owner.start("items"), await definitions(owner))[1]
        return
    async with owner.database.transaction() as tx:
        await tx.execute(text("INSERT INTO items VALUES (1, 'a')"))
        again = Owner(owner.url, owner.kind)
        async with asyncio.timeout(5):
            await again.start("items")
        await again.database.stop()


async def definitions(owner: Owner) -> list[Any]:
    query = (
        "SELECT name FROM sqlite_master WHERE type = 'trigger' ORDER BY name"
        if owner.sqlite
        else "SELECT tgname FROM pg_trigger WHERE NOT tgisinternal AND tgname <> 'mesh_outbox_notify' "
        "UNION ALL SELECT proname FROM pg_proc "
        "WHERE pronamespace = current_schema()::regnamespace AND proname <> 'mesh_outbox_notify'"
    )
    async with owner.database.transaction() as tx:
        return list((await tx.execute(text(query))).scalars())


async def test_what_is_no_longer_declared_is_captured_no_longer(owner: Owner):
    assert await definitions(owner)
    await owner.start()
    assert await definitions(owner) == []
    await owner.hand("INSERT INTO items VALUES (1, 'a')")
    assert await owner.changes() == []


async def test_a_trigger_of_somebody_else_stays(owner: Owner):
    if owner.sqlite:
        await owner.hand("CREATE TRIGGER theirs AFTER INSERT ON items BEGIN SELECT 1; END")
    else:
        await owner.hand(
            "CREATE FUNCTION theirs() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'",
            "CREATE TRIGGER theirs AFTER INSERT ON items EXECUTE FUNCTION theirs()",
        )
    await owner.start()
    assert set(await definitions(owner)) == {"theirs"}


@pytest.mark.parametrize(
    ("statement", "table", "message"),
    [
        ("CREATE TABLE plain (a INTEGER)", "plain", "table plain has no primary key, so .* give it one"),
        ("SELECT 1", "none", "table none does not exist; on.change needs a table of this service's database"),
        ("CREATE VIEW seen AS SELECT * FROM items", "seen", "table seen is (a view|not a table)"),
    ],
)
async def test_a_table_that_cannot_be_captured_is_named(owner: Owner, statement: str, table: str, message: str):
    await owner.hand(statement)
    with pytest.raises(DatabaseError, match=message):
        await owner.start(table)


async def test_a_column_that_comes_later(owner: Owner):
    await owner.hand("INSERT INTO items VALUES (1, 'a')", "ALTER TABLE items ADD COLUMN size INTEGER DEFAULT 3")
    await owner.hand("UPDATE items SET size = 4")
    await owner.start("items")
    await owner.hand("UPDATE items SET size = 5")
    found = (await owner.changes())[1:]
    # SQLite's triggers learn of it when the service starts the next time.
    assert [one["after"].get("size") for one in found] == [None if owner.sqlite else 4.0, 5.0]


async def test_a_column_that_goes(owner: Owner):
    """On SQLite it cannot go while it is captured; a migration suspends the capture."""
    await owner.hand("ALTER TABLE items ADD COLUMN size INTEGER")
    await owner.start("items")
    if owner.sqlite:
        with pytest.raises(sqlite3.OperationalError, match="trigger mesh_change_"):
            await owner.hand("ALTER TABLE items DROP COLUMN size")
        await owner.hand("INSERT INTO items (id, name) VALUES (1, 'a')")

        def migrate(connection: Connection) -> None:
            connection.exec_driver_sql("ALTER TABLE items DROP COLUMN size")

        await owner.start("items", before=[capture.suspend, migrate])
    else:
        await owner.hand("INSERT INTO items VALUES (1, 'a')", "ALTER TABLE items DROP COLUMN size")
    await owner.hand("DELETE FROM items")
    assert [one["operation"] for one in await owner.changes()] == ["INSERT", "DELETE"]


async def test_commits_of_one_key_are_in_order(owner: Owner):
    """Many at once, some rolled back: each change starts where the one before it ended."""
    await owner.hand("INSERT INTO items VALUES (1, '0'), (2, '1')")

    async def bump(number: int) -> None:
        with contextlib.suppress(ZeroDivisionError):
            async with owner.database.transaction() as tx:
                await tx.execute(
                    text("UPDATE items SET name = CAST(CAST(name AS INTEGER) + 10 AS TEXT) WHERE id = :id"),
                    {"id": number % 2 + 1},
                )
                _ = 1 / (number % 5)

    await owner.changes()
    await asyncio.gather(*(bump(number) for number in range(40)))
    at = {1.0: "0", 2.0: "1"}
    found = await owner.changes()
    assert len(found) == 32
    for one in found:
        assert one["before"]["name"] == at[one["key"]["id"]]
        at[one["key"]["id"]] = one["after"]["name"]


async def test_ten_thousand_rows_at_once(owner: Owner):
    began = time.monotonic()
    async with owner.database.transaction() as tx:
        await tx.execute(
            text("INSERT INTO items VALUES (:id, :name)"), [{"id": n, "name": f"n{n}"} for n in range(10_000)]
        )
    taken = time.monotonic() - began
    assert len(await owner.rows()) == 10_000
    assert taken < 5


class TestSqlite:
    """Values and statements that only SQLite has."""

    @pytest.fixture
    async def shop(self, tmp_path: Any, contract: contracts.Contract) -> AsyncIterator[Owner]:
        made = Owner(f"sqlite:///{tmp_path}/shop.db", contract.message("meshapi.v1.Change"))
        await made.start()
        yield made
        await made.database.stop()

    async def test_values(self, shop: Owner):
        tiny = "1e-99999999999999999999"
        await shop.hand("CREATE TABLE v (k TEXT PRIMARY KEY, v, b BOOLEAN, j JSON) WITHOUT ROWID")
        await shop.start("v")
        await shop.hand(
            f"INSERT INTO v VALUES ('int', {2**53}, 1, '{{\"a\": [1, 2.50, null, true, \"x\"]}}')",
            f"INSERT INTO v VALUES ('big', {2**53 + 1}, 0, 'no json')",
            f"INSERT INTO v VALUES ('least', {-(2**63)}, 2, NULL)",
            "INSERT INTO v VALUES ('real', 0.1, NULL, '{\"d\": 0.12345678901234567890}')",
            "INSERT INTO v VALUES ('third', 1.0 / 3, 'true', 5)",
            "INSERT INTO v VALUES ('huge', 9e999, 1, '" + "[" * 40 + "1" + "]" * 40 + "')",
            "INSERT INTO v VALUES ('blob', x'00ff68', 1, x'01')",
            "INSERT INTO v VALUES ('text', 'é\U0001f600\"\\' || char(10) || char(0) || 'z', 1, '\"s\"')",
            "INSERT INTO v VALUES ('bad', CAST(x'ff41' AS TEXT), 1, '\"\\ud800\"')",
            f"INSERT INTO v VALUES ('tiny', 0, 1, '{{\"n\": {tiny}, \"\\ud800\": 1}}')",
        )
        found = {one["key"]["k"]: one["after"] for one in await shop.changes()}
        assert {key: [row.get(name) for name in "vbj"] for key, row in found.items()} == {
            "int": [2.0**53, True, {"a": [1.0, 2.5, None, True, "x"]}],
            "big": [str(2**53 + 1), False, "no json"],
            "least": [str(-(2**63)), 2.0, None],
            "real": [0.1, None, {"d": "0.12345678901234567890"}],
            "third": [1 / 3, "true", 5.0],
            "huge": ["Infinity", True, found["huge"]["j"]],
            "blob": ["AP9o", True, "AQ=="],
            "text": ['é\U0001f600"\\\n\0z', True, "s"],
            "bad": ["\ufffdA", True, "?"],
            "tiny": [0.0, True, {"n": tiny, "?": 1.0}],
        }
        assert isinstance(found["huge"]["j"], str)
        assert found["huge"]["j"].startswith("[[[")

    @pytest.mark.parametrize(
        "table",
        [
            "CREATE TABLE t (id INTEGER PRIMARY KEY, email TEXT); CREATE UNIQUE INDEX u ON t (email COLLATE NOCASE)",
            "CREATE TABLE t (id INTEGER PRIMARY KEY, email TEXT COLLATE NOCASE UNIQUE)",
            "CREATE TABLE t (id INTEGER, email TEXT, PRIMARY KEY (id), UNIQUE (email COLLATE NOCASE))",
        ],
    )
    async def test_rows_meet_by_the_collation_of_the_index(self, shop: Owner, table: str):
        await shop.hand(*table.split(";"))
        await shop.start("t")
        await shop.hand("INSERT INTO t VALUES (1, 'A@x')", "INSERT OR REPLACE INTO t VALUES (2, 'a@X')")
        told = [(one["operation"], one["key"]["id"]) for one in await shop.changes()]
        assert told == [("INSERT", 1), ("DELETE", 1), ("INSERT", 2)]

    @pytest.mark.parametrize("recursive", [False, True])
    async def test_what_is_replaced_is_captured(self, shop: Owner, *, recursive: bool):
        """Also where the connection lets the deletion fire triggers."""
        pragma = f"PRAGMA recursive_triggers = {recursive}"
        await shop.hand("CREATE TABLE t (a TEXT, b INTEGER, u TEXT UNIQUE, w, PRIMARY KEY (a, b))")
        await shop.start("t")
        await shop.hand(pragma, "INSERT INTO t VALUES ('x', 1, 'u1', 0), ('x', 2, 'u2', 0), ('x', 3, 'u3', 0)")
        before = await shop.changes()
        assert [one["operation"] for one in before] == ["INSERT"] * 3

        async def told(statement: str) -> list[tuple[Any, ...]]:
            await shop.hand(pragma, statement)
            return [
                (one["operation"], one["key"]["b"], one.get("before", {}).get("w"), one.get("after", {}).get("w"))
                for one in await shop.changes()
            ]

        assert await told("INSERT OR IGNORE INTO t VALUES ('x', 1, 'u9', 1)") == []
        assert await told("INSERT INTO t VALUES ('x', 1, '', 1) ON CONFLICT DO UPDATE SET w = 2") == [
            ("UPDATE", 1, 0, 2)
        ]
        again = [("DELETE", 1, 2, None), ("INSERT", 1, None, 3)] if recursive else [("UPDATE", 1, 2, 3)]
        assert await told("REPLACE INTO t VALUES ('x', 1, 'u1', 3)") == again
        assert await told("REPLACE INTO t VALUES ('x', 4, 'u1', 4)") == [("DELETE", 1, 3, None), ("INSERT", 4, None, 4)]
        assert await told("REPLACE INTO t VALUES ('x', 5, 'u6', 5)") == [("INSERT", 5, None, 5)]
        moved = await told("UPDATE OR REPLACE t SET u = 'u2', w = 6 WHERE b = 5")
        assert moved == [("DELETE", 2, 0, None), ("UPDATE", 5, 5, 6)]
        moved = await told("UPDATE OR REPLACE t SET b = 3, w = 7 WHERE b = 5")
        assert moved == [("DELETE", 3, 0, None), ("DELETE", 5, 6, None), ("INSERT", 3, None, 7)]
        with pytest.raises(sqlite3.IntegrityError):
            await told("INSERT INTO t VALUES ('x', 3, 'new', 8)")
        assert await told("DELETE FROM t") == [("DELETE", 4, 4, None), ("DELETE", 3, 7, None)]

    async def test_generated_columns_are_part_of_the_row(self, shop: Owner):
        await shop.hand(
            "CREATE TABLE t (k INTEGER PRIMARY KEY, n REAL, twice REAL AS (n * 2) STORED, "
            "doc JSON AS (json_array(n)) VIRTUAL, words TEXT AS (json_array(k)), "
            "yes BOOLEAN AS (n > 1), raw BLOB AS (CAST(n AS BLOB)))"
        )
        await shop.start("t")
        await shop.hand(
            "INSERT INTO t VALUES (1, 1)", "UPDATE t SET n = 2", "REPLACE INTO t VALUES (1, 3)", "DELETE FROM t"
        )
        rows = [
            {
                "k": 1,
                "n": n,
                "twice": 2 * n,
                "doc": [n],
                "words": "[1]",
                "yes": n > 1,
                "raw": base64.b64encode(str(n).encode()).decode(),
            }
            for n in (1.0, 2.0, 3.0)
        ]
        assert [(one["operation"], one.get("before"), one.get("after")) for one in await shop.changes()] == [
            ("INSERT", None, rows[0]), ("UPDATE", rows[0], rows[1]), ("UPDATE", rows[1], rows[2]),
            ("DELETE", rows[2], None),
        ]  # fmt: skip

    @pytest.mark.parametrize("kind", ["STORED", "VIRTUAL"])
    async def test_rows_meet_by_a_generated_column(self, shop: Owner, kind: str):
        """The UPDATE sets another column."""
        await shop.hand(f"CREATE TABLE t (k INTEGER PRIMARY KEY, a TEXT, low TEXT AS (lower(a)) {kind})")
        await shop.hand("CREATE UNIQUE INDEX one ON t (low)")
        await shop.start("t")
        await shop.hand("INSERT INTO t VALUES (1, 'A'), (2, 'B')", "REPLACE INTO t VALUES (3, 'a')")
        await shop.hand("UPDATE OR REPLACE t SET a = 'b' WHERE k = 3")
        found = [(one["operation"], one["key"]["k"]) for one in await shop.changes()]
        assert found[2:] == [("DELETE", 1), ("INSERT", 3), ("DELETE", 2), ("UPDATE", 3)]

    async def test_a_virtual_table_cannot_be_captured(self, shop: Owner):
        await shop.hand("CREATE VIRTUAL TABLE words USING fts5(word)")
        with pytest.raises(DatabaseError, match="table words is a virtual table"):
            await shop.start("words")

    async def test_a_table_of_a_thousand_columns(self, shop: Owner):
        names = [f"c{at}" for at in range(1000)]
        await shop.hand(f"CREATE TABLE wide (k INTEGER PRIMARY KEY, {', '.join(names)})")
        await shop.start("wide")
        await shop.hand("INSERT INTO wide (k, c999) VALUES (1, 'last')")
        (found,) = await shop.changes()
        assert len(found["after"]) == 1001
        assert found["after"]["c999"] == "last"


FORMS = {
    "bytea": ("'\\x00ff68'", "AP9o"),
    "timestamptz": ("'2026-11-22 01:02:03.5+01'", "2026-11-22T00:02:03.5+00:00"),
    "timestamp": ("'infinity'", "infinity"),
    "date": ("'2026-11-22'", "2026-11-22"),
    "time": ("'01:02:03'", "01:02:03"),
    "interval": ("'1 day 2 hours'", "P1DT2H"),
    "numeric": ("0.12345678901234567890", "0.12345678901234567890"),
    "bigint": (str(2**53 + 1), str(2**53 + 1)),
    "float8": ("'-Infinity'", "-Infinity"),
    "boolean": ("true", True),
    "text": ("'\\x00'", "\\x00"),
    "jsonb": ("'{\"n\": [1.10, null]}'", {"n": [1.1, None]}),
    "mood": ("'fine'", "fine"),
    "tstzrange": ("'[2026-11-22 01:02:03+01,)'", '["2026-11-22 00:02:03+00",)'),
    "money": ("12.5", "$12.50"),
}
"""A value of each type, and its documented form."""


class TestPostgres:
    """Values and statements that only PostgreSQL has."""

    @pytest.fixture
    async def shop(self, each_postgres: Callable[[], str], contract: contracts.Contract) -> AsyncIterator[Owner]:
        made = Owner(each_postgres(), contract.message("meshapi.v1.Change"))
        await made.start()
        yield made
        await made.database.stop()

    async def test_values_whatever_the_session_says(self, shop: Owner):
        columns = {
            "small": ("bigint", str(2**53), 2.0**53),
            "big": ("bigint", str(2**53 + 1), str(2**53 + 1)),
            "money": ("numeric", "12.50", 12.5),
            "exact": ("numeric", "0.12345678901234567890", "0.12345678901234567890"),
            "long": ("numeric", "1" * 5000, "1" * 5000),
            "nan": ("numeric", "'NaN'", "NaN"),
            "real": ("double precision", "0.1", 0.1),
            "huge": ("double precision", "'-Infinity'", "-Infinity"),
            "raw": ("bytea", "'\\x00ff68'", "AP9o"),
            "truth": ("boolean", "true", True),
            "nothing": ("text", "NULL", None),
            "words": ("text", "'é\U0001f600\"\\'", 'é\U0001f600"\\'),
            "stamp": ("timestamptz", "'2026-11-22 01:02:03.5+01'", "2026-11-22T00:02:03.5+00:00"),
            "plain": ("timestamp", "'2026-11-22 01:02:03'", "2026-11-22T01:02:03"),
            "day": ("date", "'2026-11-22'", "2026-11-22"),
            "span": ("interval", "'1 day 2 hours'", "P1DT2H"),
            "doc": ("json", '\'{"a": [1, null], "nul": "\\u0000"}\'', {"a": [1.0, None], "nul": "\0"}),
            "tiny": ("json", "'{\"n\": 1e-99999999999999999999}'", {"n": "1e-99999999999999999999"}),
            "half": ("json", "'{\"\\ud800\": 1}'", {"?": 1.0}),
            "docb": ("jsonb", "'{\"n\": 1.10}'", {"n": 1.1}),
            "list": ("integer[]", "'{1,2}'", [1.0, 2.0]),
            "uid": ("uuid", "'6ba7b810-9dad-11d1-80b4-00c04fd430c8'", "6ba7b810-9dad-11d1-80b4-00c04fd430c8"),
        }
        await shop.hand(f"CREATE TABLE v (k int PRIMARY KEY, {', '.join(f'{n} {c[0]}' for n, c in columns.items())})")
        await shop.start("v")
        await shop.hand(
            "SET TimeZone = 'Asia/Tokyo'", "SET DateStyle = 'German'", "SET bytea_output = 'escape'",
            "SET extra_float_digits = -10", "SET IntervalStyle = 'postgres_verbose'",
            f"INSERT INTO v VALUES (1, {', '.join(c[1] for c in columns.values())})",
        )  # fmt: skip
        (found,) = await shop.changes()
        assert found["after"].pop("k") == 1.0
        assert found["after"] == {name: column[2] for name, column in columns.items()}

    @pytest.mark.parametrize(
        ("column", "value", "found"),
        [
            ("{0}", "{1}", "{2}"),
            ("d_{0}", "{1}", "{2}"),
            ("{0}[]", "ARRAY[{1}, NULL]::{0}[]", ["{2}", None]),
            ("{0}[][]", "ARRAY[ARRAY[{1}], ARRAY[{1}]]::{0}[][]", [["{2}"], ["{2}"]]),
            ("d_{0}[]", "ARRAY[{1}]::d_{0}[]", ["{2}"]),
            ("l_{0}", "ARRAY[{1}]::{0}[]", ["{2}"]),
            ("c_{0}", "ROW({1}, ARRAY[{1}])", {"a b": "{2}", "more": ["{2}"]}),
            ("o_{0}", "ROW(ARRAY[ROW({1}, NULL)]::c_{0}[])", {"in": [{"a b": "{2}", "more": None}]}),
            ("dc_{0}[]", "ARRAY[ROW({1}, NULL)]::dc_{0}[]", [{"a b": "{2}", "more": None}]),
            ("{0} GENERATED ALWAYS AS ({1}) STORED", "DEFAULT", "{2}"),
        ],
        ids=[
            "plain", "domain", "array", "two dimensions", "array of a domain", "domain of an array", "composite",
            "array in a composite", "array of a domain of a composite", "generated",
        ],
    )  # fmt: skip
    async def test_forms_hold_at_every_depth(self, shop: Owner, column: str, value: str, found: Any):
        def filled(part: Any, form: Any) -> Any:
            if isinstance(part, dict):
                return {name: filled(one, form) for name, one in part.items()}
            if isinstance(part, list):
                return [filled(one, form) for one in part]
            return form if part == "{2}" else part

        await shop.hand("CREATE TYPE mood AS ENUM ('fine', 'bad')")
        columns, values, expected = [], [], {}
        for at, (kind, (written, form)) in enumerate(FORMS.items()):
            if "GENERATED" in column and kind in ("timestamptz", "tstzrange", "money"):
                continue  # their casts are not immutable
            written = written if kind == "boolean" else f"{written}::{kind}"  # noqa: PLW2901 - as SQL needs it
            await shop.hand(
                f"CREATE DOMAIN d_{kind} AS {kind}", f"CREATE DOMAIN l_{kind} AS {kind}[]",
                f'CREATE TYPE c_{kind} AS ("a b" d_{kind}, more {kind}[])',
                f'CREATE TYPE o_{kind} AS ("in" c_{kind}[])', f"CREATE DOMAIN dc_{kind} AS c_{kind}",
            )  # fmt: skip
            columns.append(f"c{at} {column.format(kind, written)}")
            values.append(value.format(kind, written))
            expected[f"c{at}"] = filled(found, form)
        await shop.hand(f"CREATE TABLE v (k int PRIMARY KEY, {', '.join(columns)})")
        await shop.start("v")
        await shop.hand(
            "SET TimeZone = 'Asia/Tokyo'", "SET DateStyle = 'German'", "SET IntervalStyle = 'postgres'",
            f"INSERT INTO v VALUES (1, {', '.join(values)})", "UPDATE v SET k = 2", "TRUNCATE v",
        )  # fmt: skip
        inserted, gone, come, truncated = await shop.changes()
        for image, key in ((inserted["after"], 1), (gone["before"], 1), (come["after"], 2), (truncated["before"], 2)):
            assert image == {"k": key, **expected}

    async def test_generated_columns_are_part_of_the_row(self, shop: Owner):
        """Those that are computed when they are read are PostgreSQL 18's default, and null in a trigger's rows."""
        virtual = int((await self.version(shop)).split(".")[0]) >= 18
        kind = "VIRTUAL" if virtual else "STORED"
        await shop.hand(
            f'CREATE TABLE t (k int PRIMARY KEY, price numeric, "a b" text, raw bytea, twice numeric GENERATED ALWAYS '
            f"AS (price * 2) {kind}, loud text GENERATED ALWAYS AS (upper(\"a b\") || '!') {kind}, "
            f"blob bytea GENERATED ALWAYS AS (raw || '\\xff') {kind})",
        )
        await shop.start("t")
        await shop.hand("INSERT INTO t VALUES (1, 1.25, 'x', '\\x01')", "UPDATE t SET price = 2, \"a b\" = 'y'")
        await shop.hand("UPDATE t SET k = 7", "DELETE FROM t", "INSERT INTO t VALUES (2)", "TRUNCATE t")
        first = {"k": 1, "price": 1.25, "a b": "x", "raw": "AQ==", "twice": 2.5, "loud": "X!", "blob": "Af8="}
        second = first | {"price": 2, "a b": "y", "twice": 4, "loud": "Y!"}
        bare = dict.fromkeys(first, None) | {"k": 2}
        found = [(one["operation"], one.get("before"), one.get("after")) for one in await shop.changes()]
        assert found == [
            ("INSERT", None, first), ("UPDATE", first, second), ("DELETE", second, None),
            ("INSERT", None, second | {"k": 7}), ("DELETE", second | {"k": 7}, None), ("INSERT", None, bare),
            ("DELETE", bare, None),
        ]  # fmt: skip

    async def version(self, shop: Owner) -> str:
        async with shop.database.transaction() as tx:
            return str((await tx.execute(text("SHOW server_version"))).scalar_one())

    async def test_a_virtual_column_that_cannot_be_computed_keeps_no_row_from_being_written(self, shop: Owner):
        if int((await self.version(shop)).split(".")[0]) < 18:
            pytest.skip("virtual columns came with PostgreSQL 18")
        await shop.hand(
            "CREATE TABLE t (k int PRIMARY KEY, n int, part int GENERATED ALWAYS AS (100 / n), "
            "less int GENERATED ALWAYS AS (n - 1), root float GENERATED ALWAYS AS (sqrt(n)))"
        )
        await shop.start("t")
        await shop.hand("INSERT INTO t VALUES (1, 0)", "UPDATE t SET n = 4", "ALTER TABLE t RENAME n TO m")
        await shop.hand("UPDATE t SET m = -1", "DELETE FROM t")
        zero = {"k": 1, "n": 0, "part": None, "less": -1, "root": 0}
        four = {"k": 1, "n": 4, "part": 25, "less": 3, "root": 2}
        renamed = {"k": 1, "m": 4, "part": 25, "less": 3, "root": 2}
        minus = {"k": 1, "m": -1, "part": -100, "less": -2, "root": None}
        assert [(one.get("before"), one.get("after")) for one in await shop.changes()] == [
            (None, zero), (zero, four), (renamed, minus), (minus, None),
        ]  # fmt: skip

    async def test_a_partitioned_table_with_generated_columns(self, shop: Owner):
        kind = "VIRTUAL" if int((await self.version(shop)).split(".")[0]) >= 18 else "STORED"
        twice = f"twice int GENERATED ALWAYS AS (n * 2) {kind}"
        await shop.hand(
            f"CREATE TABLE t (k int PRIMARY KEY, n int, {twice}) PARTITION BY RANGE (k)",
            f"CREATE TABLE t1 (n int, k int NOT NULL, {twice})",
            "ALTER TABLE t ATTACH PARTITION t1 FOR VALUES FROM (0) TO (10)",
            "CREATE TABLE t2 PARTITION OF t FOR VALUES FROM (10) TO (20)",
        )
        await shop.start("t")
        await shop.hand("INSERT INTO t VALUES (1, 3), (11, 4)", "UPDATE t SET k = 12 WHERE k = 1", "TRUNCATE t")
        found = [
            (one["operation"], one["key"]["k"], (one.get("after") or one["before"])["twice"])
            for one in await shop.changes()
        ]
        assert found[:4] == [("INSERT", 1, 6), ("INSERT", 11, 8), ("DELETE", 1, 6), ("INSERT", 12, 6)]
        assert sorted(found[4:]) == [("DELETE", 11, 8), ("DELETE", 12, 6)]

    @pytest.mark.parametrize("generated", ["STORED", ""])
    async def test_columns_called_as_anything(self, shop: Owner, generated: str):
        """Like what a statement or a function of the trigger calls something of its own."""
        names = [
            "t",
            "r",
            "key",
            "time",
            "before",
            "after",
            "now",
            "was",
            "part",
            "row",
            "moved",
            "ending",
            "old",
            "new",
            "held",
            "image",
            "failed",
            "number",
        ]
        if not generated and int((await self.version(shop)).split(".")[0]) < 18:
            pytest.skip("virtual columns came with PostgreSQL 18")
        columns = ", ".join(f'"{name}" int' for name in names)
        await shop.hand(
            f'CREATE TABLE t ({columns}, "tg_op" int GENERATED ALWAYS AS ("t" + "r") {generated}, '
            'PRIMARY KEY ("key", "old"))'
        )
        await shop.start("t")
        values = ", ".join(map(str, range(len(names))))
        await shop.hand(f"INSERT INTO t VALUES ({values})", 'UPDATE t SET "new" = 50', "TRUNCATE t")
        row = {name: at for at, name in enumerate(names)} | {"tg_op": 1}
        last = row | {"new": 50}
        assert [(one["key"], one.get("before"), one.get("after")) for one in await shop.changes()] == [
            ({"key": 2, "old": 12}, None, row), ({"key": 2, "old": 12}, row, last), ({"key": 2, "old": 12}, last, None),
        ]  # fmt: skip

    async def test_identities_serials_and_conflicts(self, shop: Owner):
        await shop.hand(
            "CREATE TABLE t (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, n serial, u text UNIQUE, "
            "v int DEFAULT 5)",
        )
        await shop.start("t")
        await shop.hand(
            "INSERT INTO t (u) VALUES ('a')", "INSERT INTO t (u) VALUES ('a') ON CONFLICT DO NOTHING",
            "INSERT INTO t (u) VALUES ('a') ON CONFLICT (u) DO UPDATE SET v = 6",
            "MERGE INTO t USING (VALUES ('a'), ('b')) s (u) ON t.u = s.u WHEN MATCHED THEN DELETE "
            "WHEN NOT MATCHED THEN INSERT (u) VALUES (s.u)",
        )  # fmt: skip
        found = [(one["operation"], (one.get("after") or one["before"])) for one in await shop.changes()]
        assert [(operation, image["u"], image["v"]) for operation, image in found[:2]] == [
            ("INSERT", "a", 5), ("UPDATE", "a", 6),
        ]  # fmt: skip
        assert sorted((operation, image["u"]) for operation, image in found[2:]) == [("DELETE", "a"), ("INSERT", "b")]
        assert found[0][1] == {"id": 1, "n": 1, "u": "a", "v": 5}

    async def test_a_key_that_gets_another_name(self, shop: Owner):
        """By hand, without a start: the changes go on with the new name, in the same order."""
        await shop.hand(
            "CREATE TABLE t (a text, n int, b int, gone int, PRIMARY KEY (b, a))", "INSERT INTO t VALUES ('x', 1, 2, 3)"
        )
        await shop.start("t")
        await shop.hand('ALTER TABLE t RENAME a TO "Other name"', "ALTER TABLE t DROP gone")
        await shop.hand(
            "UPDATE t SET n = 2", "UPDATE t SET \"Other name\" = 'y'", "INSERT INTO t VALUES ('z', 1, 2)", "TRUNCATE t"
        )
        taken = await shop.taken()
        assert [(one["operation"], one["key"]) for one in map(shop.read, taken)] == [
            ("UPDATE", {"b": 2, "Other name": "x"}), ("DELETE", {"b": 2, "Other name": "x"}),
            ("INSERT", {"b": 2, "Other name": "y"}), ("INSERT", {"b": 2, "Other name": "z"}),
            ("DELETE", {"b": 2, "Other name": "y"}), ("DELETE", {"b": 2, "Other name": "z"}),
        ]  # fmt: skip
        assert taken[0].event.key == '[2,"x"]'

    async def test_json_that_the_server_cannot_read_can_be_changed(self, shop: Owner):
        """A json value may hold what no operator takes: NUL, half of a surrogate pair."""
        await shop.hand("CREATE TABLE t (k text PRIMARY KEY, doc json)")
        await shop.start("t")
        await shop.hand(
            "INSERT INTO t VALUES ('\\u0000', '{\"nul\": \"\\u0000\", \"half\": \"\\udc00\"}')",
            "UPDATE t SET doc = '[\"\\\\ud800\"]'", "UPDATE t SET k = 'b'",
        )  # fmt: skip
        found = await shop.changes()
        assert [one["operation"] for one in found] == ["INSERT", "UPDATE", "DELETE", "INSERT"]
        assert found[1]["key"] == {"k": "\\u0000"}
        assert (found[1]["before"]["doc"], found[1]["after"]["doc"]) == ({"nul": "\0", "half": "?"}, ["\\ud800"])

    async def test_tables_that_inherit_are_tables_of_their_own(self, shop: Owner):
        await shop.hand("CREATE TABLE t (k int PRIMARY KEY)", "CREATE TABLE child (more int) INHERITS (t)")
        await shop.start("t")
        await shop.hand("INSERT INTO t VALUES (1)", "INSERT INTO child VALUES (2, 3)", "TRUNCATE ONLY t")
        assert [(one["operation"], one["key"]["k"]) for one in await shop.changes()] == [("INSERT", 1), ("DELETE", 1)]

    async def test_truncate_deletes_each_row(self, shop: Owner):
        await shop.hand("CREATE TABLE t (k text PRIMARY KEY)")
        await shop.start("t")
        await shop.hand("INSERT INTO t VALUES ('a'), ('b')", "TRUNCATE t")
        found = await shop.changes()
        assert [one["operation"] for one in found] == ["INSERT", "INSERT", "DELETE", "DELETE"]
        assert found[-1] == {"operation": "DELETE", "key": {"k": "b"}, "before": {"k": "b"}}

    async def test_a_partitioned_table(self, shop: Owner):
        await shop.hand(
            "CREATE TABLE t (k int PRIMARY KEY) PARTITION BY RANGE (k)",
            "CREATE TABLE t1 PARTITION OF t FOR VALUES FROM (0) TO (10)",
            "CREATE TABLE t2 PARTITION OF t FOR VALUES FROM (10) TO (20)",
        )
        await shop.start("t")
        await shop.start("t")
        await shop.hand("INSERT INTO t VALUES (1), (11)", "INSERT INTO t1 VALUES (2)", "TRUNCATE t")
        assert sorted((one["operation"], one["key"]["k"]) for one in await shop.changes()) == [
            ("DELETE", 1.0), ("DELETE", 2.0), ("DELETE", 11.0), ("INSERT", 1.0), ("INSERT", 2.0), ("INSERT", 11.0),
        ]  # fmt: skip

    async def test_a_role_that_may_not_write_the_outbox_is_captured(self, shop: Owner):
        await shop.hand("CREATE TABLE t (k int PRIMARY KEY)")
        await shop.start("t")
        role = f"clerk_{time.monotonic_ns()}"
        await shop.hand(
            f"CREATE ROLE {role}", f"GRANT USAGE ON SCHEMA public TO {role}", f"GRANT INSERT ON t TO {role}"
        )
        await shop.hand(f"SET ROLE {role}", "INSERT INTO t VALUES (1)")
        assert len(await shop.changes()) == 1
        await shop.hand(f"DROP OWNED BY {role}", f"DROP ROLE {role}")

    async def test_a_trigger_that_was_disabled_works_again_after_a_start(self, shop: Owner):
        await shop.hand("CREATE TABLE t (k int PRIMARY KEY)")
        await shop.start("t")
        await shop.hand("ALTER TABLE t DISABLE TRIGGER USER", "INSERT INTO t VALUES (1)")
        await shop.start("t")
        await shop.hand("INSERT INTO t VALUES (2)")
        assert [one["key"]["k"] for one in await shop.changes()] == [2.0]

    async def test_transactions_that_meet_are_captured_once(self, shop: Owner):
        await shop.hand("CREATE TABLE t (k int PRIMARY KEY, v int)", "INSERT INTO t VALUES (1, 0)")
        await shop.start("t")
        with pytest.raises(Aborted):
            async with shop.database.transaction() as tx:
                await tx.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"))
                await tx.execute(text("SELECT * FROM t"))
                await shop.hand("UPDATE t SET v = 1")
                await tx.execute(text("UPDATE t SET v = 2"))
        assert [one["after"]["v"] for one in await shop.changes()] == [1.0]


def test_the_tables_of_a_service_are_those_that_the_contract_names(contract: contracts.Contract):
    assert contract.captured_tables("nobody") == ()
