"""Counts, for the ledger of ``mesh chaos``, what is in the databases and on the broker.

What a service commits is seen by a trigger on its outbox, which writes the event's id into a table of this module's, in
the service's own transaction. What a method has done is seen in its inbox, which has a row for each event that had an
effect, and in every table of the service that has a column ``event_id``.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mesh.contract import Contract, TriggerKind
from mesh.control.chaos_calls import words_in
from mesh.control.chaos_ledger import Dead, Effect, Facts, Fate
from mesh.events import history, streams, subjects
from mesh.events.consumers import consumers_of, request
from mesh.events.dead import read_letter
from mesh.events.inbox import TABLE as INBOX
from mesh.events.outbox import NAME as OUTBOX

if TYPE_CHECKING:
    from mesh.contract import Method
    from mesh.events.link import Link

__all__ = ["collect", "lag", "waiting", "witness"]

WITNESS = "chaos_committed"
EVENT_ID = "event_id"
"""The column by which a table says which event each of its rows is of."""


def _open(file: Path) -> closing[sqlite3.Connection]:
    return closing(sqlite3.connect(file, timeout=30))


def witness(file: Path) -> None:
    """Begin to note what is committed to the outbox of a SQLite file; its service runs."""
    with _open(file) as connection, connection:
        if OUTBOX not in _tables(connection):
            return
        connection.execute(f"CREATE TABLE IF NOT EXISTS {WITNESS} (id TEXT NOT NULL)")
        connection.execute(
            f"CREATE TRIGGER IF NOT EXISTS {WITNESS} AFTER INSERT ON {OUTBOX} "  # noqa: S608 - constants
            f"BEGIN INSERT INTO {WITNESS} VALUES (NEW.id); END"
        )


def waiting(file: Path) -> int:
    """Return how many events wait in the outbox of a SQLite file."""
    with _open(file) as connection:
        if OUTBOX not in _tables(connection):
            return 0
        return int(connection.execute(f"SELECT count(*) FROM {OUTBOX} WHERE refused IS NULL").fetchone()[0])  # noqa: S608 - a constant


async def lag(link: Link, contract: Contract) -> int:
    """Return how many events wait for methods, or are being delivered.

    Raises:
        nats.errors.Error: The broker is away.
    """
    total = 0
    for consumer in consumers_of(contract.services.values()):
        info = await request(link.client, f"CONSUMER.INFO.{consumer.stream}.{consumer.name}")
        total += info.get("num_pending", 1) + info.get("num_ack_pending", 0)  # one that is not made yet has work to do
    return total


async def collect(
    link: Link,
    contract: Contract,
    hosts: Mapping[str, Collection[str]],
    files: Mapping[str, Path],
    calls: Mapping[str, Fate],
    event: str,
) -> Facts:
    """Count everything.

    Args:
        link: The broker.
        contract: The contract.
        hosts: Service of mesh.toml → the services of the contract that it serves.
        files: Service of mesh.toml → its SQLite file.
        calls: What was called.
        event: What a call publishes.
    """
    messages = [
        one for stream in (streams.EVENTS, streams.CHANGES) async for one in history.read(link.client, stream, ">")
    ]
    own = f"{subjects.EVENTS}.{subjects.token_of(event)}."
    words = Counter(word for one in messages if one.subject.startswith(own) for word in words_in(one.data))
    ids = [(one.subject, one.headers.get("ce-id", "")) for one in messages]
    dead = []
    async for letter in history.read(link.client, streams.DEAD, ">"):
        told = read_letter(letter.headers)
        why = f"{told.code} {told.error}".strip() or told.reason
        dead.append(Dead(told.method.lstrip("/"), letter.headers.get("ce-id", ""), why))
    committed: dict[str, list[str]] = {}
    stored: dict[str, Counter[str]] = {}
    effects: list[Effect] = []
    for name, file in files.items():
        methods = [method for service in hosts[name] for method in contract.services[service].methods.values()]
        with _open(file) as connection:
            tables = _tables(connection)
            if WITNESS in tables:
                committed[name] = [row[0] for row in connection.execute(f"SELECT id FROM {WITNESS}")]  # noqa: S608 - a constant
            if any(event in contract.services[service].publishes for service in hosts[name]):
                stored |= {f"{name}.{table}": rows for table, rows in _stored(connection, tables, set(words))}
            effects += _effects(connection, tables, name, methods, ids)
    return Facts(
        calls=calls, event=event, words=words, published=Counter(id_ for _, id_ in ids), committed=committed,
        stored=stored, effects=effects, dead=dead,
    )  # fmt: skip


def _tables(connection: sqlite3.Connection) -> list[str]:
    rows = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")
    return [row[0] for row in rows]


def _stored(connection: sqlite3.Connection, tables: list[str], words: set[str]) -> Iterator[tuple[str, Counter[str]]]:
    """Yield the service's tables that hold words as whole values, with how many rows hold each."""
    for table in tables:
        if table.startswith(("mesh_", WITNESS, "sqlite_")):
            continue
        rows: Counter[str] = Counter()
        for row in connection.execute(f'SELECT * FROM "{table}"'):  # noqa: S608 - a name from the schema
            rows.update({value for value in row if isinstance(value, str) and value in words})
        if rows:
            yield table, rows


def _effects(
    connection: sqlite3.Connection, tables: list[str], name: str, methods: list[Method], ids: list[tuple[str, str]]
) -> Iterator[Effect]:
    taken = {method.path.lstrip("/"): Counter(_taken(method, ids)) for method in methods if method.triggers}
    if INBOX in tables:
        for method, expected in taken.items():
            done = connection.execute(f"SELECT event FROM {INBOX} WHERE consumer = ?", (method,))  # noqa: S608 - a constant
            found = Counter(row[0] for row in done if row[0] in expected)
            if found:  # a method that writes nothing leaves nothing to count
                yield Effect(f"published → {method}", expected, found, frozenset({method}))
    everything: Counter[str] = sum(taken.values(), Counter())
    for table in tables:
        columns = [row[1] for row in connection.execute(f'PRAGMA table_info("{table}")')]
        if EVENT_ID in columns:
            rows = Counter(row[0] for row in connection.execute(f'SELECT {EVENT_ID} FROM "{table}"'))  # noqa: S608 - as above
            yield Effect(f"recorded in {name}.{table}", everything, rows, frozenset(taken))


def _taken(method: Method, ids: list[tuple[str, str]]) -> Iterator[str]:
    """Yield the ids of the events that call a method, each once: what the broker has twice has its effect once."""
    firsts: list[str] = []
    for trigger in method.triggers:
        if trigger.kind is TriggerKind.EVENT:
            firsts.append(f"{subjects.EVENTS}.{subjects.token_of(trigger.event)}.")
        elif trigger.kind is TriggerKind.CHANGE:
            parts: tuple[Any, ...] = (subjects.escape(trigger.service), subjects.escape(trigger.table))
            firsts.append(f"{subjects.CHANGES}.{parts[0]}.{parts[1]}.")
    yield from {id_: None for subject, id_ in ids if subject.startswith(tuple(firsts))} if firsts else ()
