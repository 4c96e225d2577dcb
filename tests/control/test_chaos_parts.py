"""The pure parts of ``mesh chaos``, and its count against real SQLite files."""

from __future__ import annotations

import sqlite3
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
from google.protobuf.empty_pb2 import Empty

from mesh.contract import Method, Trigger, TriggerKind
from mesh.control.chaos import count as chaos_count
from mesh.control.chaos.calls import word, words_in
from mesh.control.chaos.ledger import Dead, Effect, Facts, Fate, compare, fate, ledger, show
from mesh.control.chaos.plan import pick, strikes, targets
from mesh.control.chaos.strike import victims

EVENT = "shop.v1.Sold"
METHOD = "stock.v1.Stock/OnSold"


def facts(*, published=("a1", "b1"), recorded=("a1", "b1"), dead=(), words=("a", "b")) -> Facts:
    return Facts(
        calls={"a": Fate.ACCEPTED, "b": Fate.ACCEPTED, "u": Fate.UNKNOWN, "r": Fate.REFUSED},
        event=EVENT,
        words=Counter(words),
        published=Counter(published),
        committed={"shop": ["a1", "b1"]},
        stored={"shop.sales": Counter(["a", "b"])},
        effects=[Effect("recorded", Counter(set(published)), Counter(recorded), frozenset({METHOD}))],
        dead=dead,
    )


def totals(found) -> tuple[int, int]:
    return found.lost, found.doubled


def test_all_is_well() -> None:
    assert totals(ledger(facts())) == (0, 0)
    assert show(ledger(facts())).endswith("lost 0, doubled 0")


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ({"words": ("a",), "published": ("a1",), "recorded": ("a1",)}, (2, 0)),  # of the call, and of the commit
        ({"recorded": ("a1",)}, (1, 0)),
        ({"recorded": ("a1", "b1", "b1")}, (0, 1)),
        ({"recorded": ("a1", "b1", "c1")}, (0, 1)),  # the effect of an event that the broker does not have
        ({"words": ("a", "b", "b")}, (0, 1)),
        ({"published": ("a1", "b1", "b1")}, (0, 1)),
        ({"words": ("a", "b", "r")}, (1, 1)),  # a refused call that happened all the same, and is not stored
        ({"recorded": ("a1",), "dead": [Dead(METHOD, "b1", "INTERNAL")]}, (0, 0)),
        ({"recorded": ("a1",), "dead": [Dead("other.v1.Other/OnSold", "b1", "INTERNAL")]}, (1, 0)),
    ],
)
def test_what_is_lost_and_doubled_is_noticed(what, expected) -> None:
    assert totals(ledger(facts(**what))) == expected


def test_a_call_without_an_answer_may_have_happened_or_not() -> None:
    happened = Facts(
        calls={"u": Fate.UNKNOWN, "v": Fate.UNKNOWN}, event=EVENT, words=Counter("u"), published=Counter(["u1"]),
        committed={"shop": ["u1"]},
    )  # fmt: skip
    assert totals(ledger(happened)) == (0, 0)


def test_dead_letters_are_explained() -> None:
    assert "1 dead letters of stock.v1.Stock/OnSold: INTERNAL" in show(
        ledger(facts(recorded=("a1",), dead=[Dead(METHOD, "b1", "INTERNAL")]))
    )


def test_each_event_may_be_expected_more_than_once() -> None:
    line = compare("", Counter({"a": 2}), Counter({"a": 1}))
    assert (line.lost, line.doubled, line.examples) == (1, 0, ("lost a",))


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (200, Fate.ACCEPTED), (201, Fate.ACCEPTED), (400, Fate.REFUSED), (409, Fate.UNKNOWN), (429, Fate.UNKNOWN),
        (503, Fate.UNKNOWN), (504, Fate.UNKNOWN), (None, Fate.UNKNOWN),
    ],
)  # fmt: skip
def test_what_a_status_says(status, expected) -> None:
    assert fate(status) is expected


def test_words_are_found_whole() -> None:
    first, other = word(7, 1), word(7, 11)
    assert words_in(f"\n\x0c{first}\x12{other}@example.com".encode()) == {first, other}
    assert words_in(b"nobody") == set()


def test_strikes_follow_from_the_seed_and_reach_everything() -> None:
    names = ["edge", "broker", "shop", "shop database"]
    plan = list(islice(strikes(3, 2.0, names), 100))
    assert plan == list(islice(strikes(3, 2.0, names), 100))
    assert plan != list(islice(strikes(4, 2.0, names), 100))
    assert Counter(strike.order[0] for strike in plan) == dict.fromkeys(names, 25)
    assert all(sorted(strike.order) == sorted(names) for strike in plan)
    assert 40 < sum(strike.after for strike in plan) < 60


def test_what_is_young_or_gone_is_spared() -> None:
    strike = next(strikes(1, 1.0, ["edge", "broker"]))
    first, second = strike.order
    assert pick(strike, {first: 10.0, second: 10.0}) == first
    assert pick(strike, {first: 0.1, second: 10.0}) == second
    assert pick(strike, {second: 0.1}) is None


def test_a_database_is_no_substitute() -> None:
    for strike in islice(strikes(1, 1.0, ["edge", "shop database"]), 4):
        expected = "shop database" if strike.order[0] == "shop database" else None
        assert pick(strike, {"shop database": 10.0}) == expected


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
    assert victims(10, listing) == {"broker": [11], "login": [12], "edge": [13], "login workers": [14, 15]}


def test_commits_are_witnessed_and_a_row_that_is_taken_away_is_missed(tmp_path: Path) -> None:
    file = tmp_path / "shop.db"
    connection = sqlite3.connect(file)
    connection.execute("CREATE TABLE mesh_outbox (id TEXT, refused TEXT)")
    chaos_count.witness(file)
    with connection:
        connection.execute("INSERT INTO mesh_outbox VALUES ('a1', NULL), ('b1', NULL)")
    connection.execute("INSERT INTO mesh_outbox VALUES ('never', NULL)")
    connection.rollback()
    assert chaos_count.waiting(file) == 2
    with connection:
        connection.execute("DELETE FROM mesh_outbox")  # the relay that deletes what it has not sent
    committed = [row[0] for row in connection.execute("SELECT id FROM chaos_committed")]
    connection.close()
    found = ledger(
        Facts(calls={}, event=EVENT, words=Counter(), published=Counter(["a1"]), committed={"shop": committed})
    )
    assert (committed, totals(found), chaos_count.waiting(file)) == (["a1", "b1"], (1, 0), 0)


def test_a_record_that_is_missing_or_there_twice_is_noticed(tmp_path: Path) -> None:
    """Rows of an audit are changed by hand, as a bug would have left them."""
    trigger = Trigger(TriggerKind.EVENT, event=EVENT)
    method = Method("OnSold", "stock.v1.Stock", f"/{METHOD}", Empty, Empty, triggers=(trigger,))
    ids = [("events.shop-v1-Sold.1.a", "a1"), ("events.shop-v1-Sold.2.b", "b1"), ("events.shop-v1-Gone.2.b", "c1")]
    connection = sqlite3.connect(tmp_path / "stock.db")
    connection.execute("CREATE TABLE mesh_inbox (consumer TEXT, event TEXT)")
    connection.execute("CREATE TABLE records (event_id TEXT)")

    def counted() -> list[tuple[str, int, int]]:
        tables = ["mesh_inbox", "records"]
        lines = [
            compare(one.where, one.expected, one.found)
            for one in chaos_count._effects(connection, tables, "stock", [method], ids)
        ]
        return [(line.what, line.lost, line.doubled) for line in lines]

    with connection:
        connection.executemany("INSERT INTO mesh_inbox VALUES (?, ?)", [(METHOD, "a1"), (METHOD, "b1")])
        connection.executemany("INSERT INTO records VALUES (?)", [("a1",), ("b1",)])
    assert counted() == [(f"published → {METHOD}", 0, 0), ("recorded in stock.records", 0, 0)]
    connection.execute("DELETE FROM records WHERE event_id = 'a1'")
    connection.execute("INSERT INTO records VALUES ('b1')")
    connection.execute("DELETE FROM mesh_inbox WHERE event = 'b1'")
    assert counted() == [(f"published → {METHOD}", 1, 0), ("recorded in stock.records", 1, 1)]
    connection.close()
