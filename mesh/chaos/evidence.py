"""Counts, for the ledger of ``mesh chaos``, what is in the databases and on the broker.

What a service commits is seen by a trigger on its outbox, which writes the event's id into a table of this module's, in
the service's own transaction. What a method has done is seen in its inbox, which has a row for each event that had an
effect, and in every table of the service that has a column ``event_id``. What cannot be counted so are the methods of a
service without a database, and those that whoever runs it names because they do not always write.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, assert_never

from sqlalchemy import inspect
from sqlalchemy.pool import NullPool

from mesh.chaos.ledger import Dead, Effect, Facts, Fate
from mesh.chaos.requests import words_in
from mesh.contract.model import ChangeTrigger, Contract, EventTrigger, ScheduleTrigger
from mesh.database.engine import create, parse_url
from mesh.events import subjects
from mesh.events.broker import history, streams
from mesh.events.consume.consumers import consumers_of
from mesh.events.consume.dead_letters import read_dead_letter
from mesh.events.consume.inbox import TABLE as INBOX
from mesh.events.publish.outbox import NAME as OUTBOX

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from mesh.contract.model import Method
    from mesh.events.broker.nats_connection import NatsConnection

__all__ = [
    "Question",
    "collect",
    "effects_of",
    "lag",
    "look",
    "not_as_accepted",
    "rows_of",
    "waiting",
    "without_database",
    "witness",
]

WITNESS = "chaos_committed"
EVENT_ID = "event_id"
"""The column by which a table says which event each of its rows is of."""
_WAIT = 30.0
"""Seconds that a lock, or a server, is waited for."""
_SQLITE = (
    f"CREATE TABLE IF NOT EXISTS {WITNESS} (id TEXT NOT NULL)",
    f"CREATE TRIGGER IF NOT EXISTS {WITNESS} AFTER INSERT ON {OUTBOX} BEGIN INSERT INTO {WITNESS} VALUES (NEW.id); END",  # noqa: S608 - constants
)
_POSTGRESQL = (
    f"CREATE TABLE {WITNESS} (id TEXT NOT NULL)",
    # The triggers of captured tables write to the outbox too, and with a search path of their own.
    f"""CREATE FUNCTION {WITNESS}() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS
    $chaos$ BEGIN INSERT INTO {WITNESS} VALUES (NEW.id); RETURN NULL; END $chaos$""",  # noqa: S608 - constants
    f"CREATE TRIGGER {WITNESS} AFTER INSERT ON {OUTBOX} FOR EACH ROW EXECUTE FUNCTION {WITNESS}()",
)

_T = TypeVar("_T")
Question: TypeAlias = "Callable[[Connection], _T]"


async def look(url: str, question: Question[_T], *, alone: bool = False) -> _T:
    """Ask a database something, on a connection of its own; what it changes is committed.

    Args:
        url: Of the database, as in mesh.toml.
        question: What is asked.
        alone: In no transaction.

    Raises:
        sqlalchemy.exc.SQLAlchemyError: It cannot be used.
        OSError: It cannot be reached.
    """
    engine = create(parse_url(url), _WAIT, poolclass=NullPool)
    if alone:
        engine = engine.execution_options(isolation_level="AUTOCOMMIT")
    async with engine.begin() as connection:
        return await connection.run_sync(question)


def witness(connection: Connection) -> None:
    """Begin to note what is committed to the outbox of a database; its service runs."""
    if inspect(connection).has_table(OUTBOX):
        for statement in _SQLITE if connection.dialect.name == "sqlite" else _POSTGRESQL:
            connection.exec_driver_sql(statement)


def waiting(connection: Connection) -> int:
    """Return how many events wait in the outbox of a database."""
    if not inspect(connection).has_table(OUTBOX):
        return 0
    return int(connection.exec_driver_sql(f"SELECT count(*) FROM {OUTBOX} WHERE refused IS NULL").scalar_one())  # noqa: S608 - a constant


async def lag(connection: NatsConnection, contract: Contract) -> int:
    """Return how many events wait for methods, or are being delivered.

    Raises:
        nats.errors.Error: The broker is away.
    """
    total = 0
    for consumer in consumers_of(contract.services.values()):
        info = await connection.request(f"CONSUMER.INFO.{consumer.stream}.{consumer.name}")
        total += info.get("num_pending", 1) + info.get("num_ack_pending", 0)  # one that is not made yet has work to do
    return total


async def collect(
    connection: NatsConnection,
    contract: Contract,
    hosts: Mapping[str, Collection[str]],
    databases: Mapping[str, str],
    calls: Mapping[str, Fate],
    event: str,
    uncounted: Collection[str] = (),
    doomed: Callable[[str], bool] | None = None,
) -> Facts:
    """Count everything.

    Args:
        connection: The broker.
        contract: The contract.
        hosts: Service of mesh.toml → the services of the contract that it serves.
        databases: Service of mesh.toml → URL of its database.
        calls: What was called.
        event: What a call publishes.
        uncounted: Methods (``package.Service/Method``) whose effects are not counted.
        doomed: Whether the event with a word has to be a dead letter; None: no such thing is known.
    """
    messages = [
        one for stream in (streams.EVENTS, streams.CHANGES) async for one in history.read(connection, stream, ">")
    ]
    own = f"{subjects.EVENTS}.{subjects.token_of(event)}."
    words = Counter(word for one in messages if one.subject.startswith(own) for word in words_in(one.data))
    ids = [(one.subject, one.headers.get("ce-id", "")) for one in messages]
    dead = []
    async for letter in history.read(connection, streams.DEAD, ">"):
        told = read_dead_letter(letter.headers)
        why = f"{told.code} {told.error}".strip() or told.reason
        dead.append(Dead(told.method.lstrip("/"), letter.headers.get("ce-id", ""), why))
    committed: dict[str, list[str]] = {}
    stored: dict[str, Counter[str]] = {}
    begun: dict[str, Counter[str]] = {}
    effects: list[Effect] = []
    for name, served in hosts.items():
        methods = [method for service in served for method in contract.services[service].methods.values()]
        if name not in databases:
            effects.extend(without_database(name, methods, ids))
            continue
        publishes = any(event in contract.services[service].publishes for service in served)

        def count(
            connection: Connection,
            name: str = name,
            methods: list[Method] = methods,
            publishes: bool = publishes,  # noqa: FBT001 - bound, not passed
        ) -> None:
            tables = sorted(inspect(connection).get_table_names())
            if WITNESS in tables:
                committed[name] = [row[0] for row in connection.exec_driver_sql(f"SELECT id FROM {WITNESS}")]  # noqa: S608 - a constant
            if publishes:
                for table, rows, unfinished in rows_of(connection, tables, calls):
                    stored[f"{name}.{table}"], begun[f"{name}.{table}"] = rows, unfinished
            effects.extend(effects_of(connection, tables, name, methods, ids, uncounted))

        await look(databases[name], count)
    mortal = {one.headers.get("ce-id", "") for one in messages if doomed and any(map(doomed, words_in(one.data)))}
    return Facts(
        calls=calls, event=event, words=words, published=Counter(id_ for _, id_ in ids), committed=committed,
        stored=stored, begun=begun, effects=effects, dead=dead,
        doomed=_doomed(contract, ids, mortal) if doomed else {},
    )  # fmt: skip


def _doomed(contract: Contract, ids: list[tuple[str, str]], mortal: Collection[str]) -> dict[str, Counter[str]]:
    """Return method → which of these events call it."""
    triggered = [method for method in contract.methods.values() if method.triggers]
    return {
        method.path.lstrip("/"): Counter(id_ for id_ in _taken(method, ids) if id_ in mortal) for method in triggered
    }


def rows_of(
    connection: Connection, tables: list[str], calls: Mapping[str, Fate]
) -> Iterator[tuple[str, Counter[str], Counter[str]]]:
    """Yield the service's tables that hold words of calls as whole values: how many rows hold each, and begun ones.

    Args:
        connection: The database.
        tables: Its tables.
        calls: Word of each call → what became of it.
    """
    for table in tables:
        if table.startswith(("mesh_", WITNESS)):
            continue
        rows: list[tuple[str, Sequence[Any]]] = []
        for row in connection.exec_driver_sql(f'SELECT * FROM "{table}"'):  # noqa: S608 - a name from the schema
            rows += [(word, row) for word in {one for one in row if isinstance(one, str) and one in calls}]
        if rows:
            accepted = [row for word, row in rows if calls[word] is Fate.ACCEPTED]
            begun = Counter(
                word for word, row in rows if calls[word] is Fate.UNKNOWN and not_as_accepted(row, accepted)
            )
            yield table, Counter(word for word, _ in rows) - begun, begun


def not_as_accepted(row: Sequence[Any], accepted: Sequence[Sequence[Any]]) -> bool:
    """Return whether a row says of itself that its call was not carried through.

    A service that works in several transactions marks what it has only begun. All that is known here of such a mark is
    that no row of an accepted call has it: these agree on another value, or all have one where the row has NULL.
    """
    return any(
        (len(accepted) > 1 and all(one == column[0] for one in column) and value != column[0])
        or (value is None and None not in column)
        for value, column in zip(row, zip(*accepted, strict=True), strict=False)
    )


def effects_of(
    connection: Connection,
    tables: list[str],
    name: str,
    methods: list[Method],
    ids: list[tuple[str, str]],
    uncounted: Collection[str] = (),
) -> Iterator[Effect]:
    """Yield what was done for events in a database.

    Args:
        connection: The database.
        tables: Its tables.
        name: Its service.
        methods: The methods of that service.
        ids: Subject and id of each event that the broker has.
        uncounted: Methods whose inbox is not counted.
    """
    taken = {method.path.lstrip("/"): Counter(_taken(method, ids)) for method in methods if method.triggers}
    done: dict[str, Counter[str]] = {}
    if INBOX in tables:
        for consumer, event in connection.exec_driver_sql(f"SELECT consumer, event FROM {INBOX}"):  # noqa: S608 - a constant
            done.setdefault(consumer, Counter())[event] += 1
    for method, expected in taken.items():
        if expected:
            found = Counter({id_: times for id_, times in done.get(method, Counter()).items() if id_ in expected})
            why = "--uncounted names it" if method in uncounted else ""
            yield Effect(f"published → {method}", expected, found, frozenset({method}), why)
    everything: Counter[str] = sum(taken.values(), Counter())
    for table in tables:
        if EVENT_ID in {column["name"] for column in inspect(connection).get_columns(table)}:
            rows = Counter(row[0] for row in connection.exec_driver_sql(f'SELECT {EVENT_ID} FROM "{table}"'))  # noqa: S608 - as above
            yield Effect(f"recorded in {name}.{table}", everything, rows, frozenset(taken))


def without_database(name: str, methods: list[Method], ids: list[tuple[str, str]]) -> Iterator[Effect]:
    """Yield the methods of a service without a database that are called for events, as what cannot be counted."""
    for method in methods:
        expected, path = Counter(_taken(method, ids)), method.path.lstrip("/")
        if expected:
            why = f"{name} has no database, so nothing that lasts says what was done"
            yield Effect(f"published → {path}", expected, Counter(), frozenset({path}), why)


def _taken(method: Method, ids: list[tuple[str, str]]) -> Iterator[str]:
    """Yield the ids of the events that call a method, each once: what the broker has twice has its effect once."""
    firsts: list[str] = []
    for trigger in method.triggers:
        match trigger:
            case EventTrigger(event):
                firsts.append(f"{subjects.EVENTS}.{subjects.token_of(event)}.")
            case ChangeTrigger(service, table):
                firsts.append(f"{subjects.CHANGES}.{subjects.escape(service)}.{subjects.escape(table)}.")
            case ScheduleTrigger():
                pass
            case _:
                assert_never(trigger)
    yield from {id_: None for subject, id_ in ids if subject.startswith(tuple(firsts))} if firsts else ()
