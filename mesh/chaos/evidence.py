"""Evidence for the ledger of ``mesh chaos``: reads the databases and the broker.

A trigger on the outbox of a service counts its commits. It writes the id of each event into a table of this module, in
the service's own transaction. The inbox counts the effects of a method: it has a row for each event that had an effect.
Every table of the service with a column ``event_id`` is counted too. The methods of a service without a database cannot
be counted, nor the methods that ``--uncounted`` names because they do not always write.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, assert_never

from sqlalchemy import inspect
from sqlalchemy.pool import NullPool

from mesh.chaos.ledger import CallOutcome, EffectCount, Observations, ObservedDeadLetter
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
    "Query",
    "collect",
    "effects_of",
    "install_commit_log",
    "is_unfinished",
    "outbox_size",
    "rows_of",
    "run_query",
    "undelivered",
    "without_database",
]

COMMIT_LOG = "chaos_committed"
EVENT_ID = "event_id"
"""Name of a column with the id of the event for which a row was written."""
_DATABASE_TIMEOUT = 30.0
"""Seconds to wait for a lock or for a server."""
_SQLITE = (
    f"CREATE TABLE IF NOT EXISTS {COMMIT_LOG} (id TEXT NOT NULL)",
    f"""CREATE TRIGGER IF NOT EXISTS {COMMIT_LOG} AFTER INSERT ON {OUTBOX}
    BEGIN INSERT INTO {COMMIT_LOG} VALUES (NEW.id); END""",  # noqa: S608 - constants
)
_POSTGRESQL = (
    f"CREATE TABLE {COMMIT_LOG} (id TEXT NOT NULL)",
    # The triggers of captured tables write to the outbox with another search path.
    f"""CREATE FUNCTION {COMMIT_LOG}() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS
    $chaos$ BEGIN INSERT INTO {COMMIT_LOG} VALUES (NEW.id); RETURN NULL; END $chaos$""",  # noqa: S608 - constants
    f"CREATE TRIGGER {COMMIT_LOG} AFTER INSERT ON {OUTBOX} FOR EACH ROW EXECUTE FUNCTION {COMMIT_LOG}()",
)

_T = TypeVar("_T")
Query: TypeAlias = "Callable[[Connection], _T]"


async def run_query(url: str, query: Query[_T], *, autocommit: bool = False) -> _T:
    """Run a query on a new connection to a database, and commit.

    Args:
        url: URL of the database, as in mesh.toml.
        query: Function that gets the connection.
        autocommit: Run it outside a transaction.

    Raises:
        sqlalchemy.exc.SQLAlchemyError: The database cannot be used.
        OSError: The database cannot be reached.
    """
    engine = create(parse_url(url), _DATABASE_TIMEOUT, poolclass=NullPool)
    if autocommit:
        engine = engine.execution_options(isolation_level="AUTOCOMMIT")
    async with engine.begin() as connection:
        return await connection.run_sync(query)


def install_commit_log(connection: Connection) -> None:
    """Install the trigger that counts the commits to the outbox of a database; its service is running."""
    if inspect(connection).has_table(OUTBOX):
        for statement in _SQLITE if connection.dialect.name == "sqlite" else _POSTGRESQL:
            connection.exec_driver_sql(statement)


def outbox_size(connection: Connection) -> int:
    """Return the number of events that wait in the outbox of a database."""
    if not inspect(connection).has_table(OUTBOX):
        return 0
    return int(connection.exec_driver_sql(f"SELECT count(*) FROM {OUTBOX} WHERE refused IS NULL").scalar_one())  # noqa: S608 - a constant


async def undelivered(connection: NatsConnection, contract: Contract) -> int:
    """Return the number of events that wait for a delivery or are being delivered.

    Raises:
        nats.errors.Error: The broker cannot be reached.
    """
    total = 0
    for consumer in consumers_of(contract.services.values()):
        info = await connection.request(f"CONSUMER.INFO.{consumer.stream}.{consumer.name}")
        # A consumer that does not exist yet counts as 1.
        total += info.get("num_pending", 1) + info.get("num_ack_pending", 0)
    return total


async def collect(
    connection: NatsConnection,
    contract: Contract,
    hosts: Mapping[str, Collection[str]],
    databases: Mapping[str, str],
    calls: Mapping[str, CallOutcome],
    event: str,
    uncounted: Collection[str] = (),
    doomed: Callable[[str], bool] | None = None,
) -> Observations:
    """Return the observations of all databases and of the broker.

    Args:
        connection: The connection to the broker.
        contract: The contract.
        hosts: Service of mesh.toml → the gRPC services that it serves.
        databases: Service of mesh.toml → URL of its database.
        calls: Word of each call → its outcome.
        event: Full name of the event that a call publishes.
        uncounted: Methods (``package.Service/Method``) whose effects are not counted.
        doomed: Whether the event with a word must become a dead letter; None: unknown.
    """
    messages = [
        one for stream in (streams.EVENTS, streams.CHANGES) async for one in history.read(connection, stream, ">")
    ]
    own = f"{subjects.EVENTS}.{subjects.token_of(event)}."
    words = Counter(word for one in messages if one.subject.startswith(own) for word in words_in(one.data))
    ids = [(one.subject, one.headers.get("ce-id", "")) for one in messages]
    dead = []
    async for message in history.read(connection, streams.DEAD, ">"):
        dead_letter = read_dead_letter(message.headers)
        reason = f"{dead_letter.code} {dead_letter.error}".strip() or dead_letter.reason
        dead.append(ObservedDeadLetter(dead_letter.method.lstrip("/"), message.headers.get("ce-id", ""), reason))
    committed: dict[str, list[str]] = {}
    stored: dict[str, Counter[str]] = {}
    unfinished: dict[str, Counter[str]] = {}
    effects: list[EffectCount] = []
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
            if COMMIT_LOG in tables:
                committed[name] = [row[0] for row in connection.exec_driver_sql(f"SELECT id FROM {COMMIT_LOG}")]  # noqa: S608 - a constant
            if publishes:
                for table, rows, marked in rows_of(connection, tables, calls):
                    stored[f"{name}.{table}"], unfinished[f"{name}.{table}"] = rows, marked
            effects.extend(effects_of(connection, tables, name, methods, ids, uncounted))

        await run_query(databases[name], count)
    mortal = {one.headers.get("ce-id", "") for one in messages if doomed and any(map(doomed, words_in(one.data)))}
    return Observations(
        calls=calls, event=event, words=words, published=Counter(id_ for _, id_ in ids), committed=committed,
        stored=stored, unfinished=unfinished, effects=effects, dead=dead,
        doomed=_doomed(contract, ids, mortal) if doomed else {},
    )  # fmt: skip


def _doomed(contract: Contract, ids: list[tuple[str, str]], mortal: Collection[str]) -> dict[str, Counter[str]]:
    """Return the ids of the events that must become dead letters, for each method that has triggers."""
    triggered = [method for method in contract.methods.values() if method.triggers]
    return {
        method.path.lstrip("/"): Counter(id_ for id_ in _taken(method, ids) if id_ in mortal) for method in triggered
    }


def rows_of(
    connection: Connection, tables: list[str], calls: Mapping[str, CallOutcome]
) -> Iterator[tuple[str, Counter[str], Counter[str]]]:
    """Yield the tables that hold words of calls as values: name, rows of each word, unfinished rows of each word.

    Args:
        connection: The database.
        tables: Its tables.
        calls: Word of each call → its outcome.
    """
    for table in tables:
        if table.startswith(("mesh_", COMMIT_LOG)):
            continue
        rows: list[tuple[str, Sequence[Any]]] = []
        for row in connection.exec_driver_sql(f'SELECT * FROM "{table}"'):  # noqa: S608 - a name from the schema
            rows += [(word, row) for word in {one for one in row if isinstance(one, str) and one in calls}]
        if rows:
            accepted = [row for word, row in rows if calls[word] is CallOutcome.ACCEPTED]
            unfinished = Counter(
                word for word, row in rows if calls[word] is CallOutcome.UNKNOWN and is_unfinished(row, accepted)
            )
            yield table, Counter(word for word, _ in rows) - unfinished, unfinished


def is_unfinished(row: Sequence[Any], accepted: Sequence[Sequence[Any]]) -> bool:
    """Whether a row is marked as unfinished by its service.

    A service that works in several transactions marks rows of calls that it has not finished. The mark is unknown here,
    but no row of an accepted call has it: those rows agree on another value, or all have a value where this row has
    NULL.
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
) -> Iterator[EffectCount]:
    """Yield the effects of events in a database.

    Args:
        connection: The database.
        tables: Its tables.
        name: Its service.
        methods: The methods of that service.
        ids: Subject and id of each event on the broker.
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
            yield EffectCount(f"published → {method}", expected, found, frozenset({method}), why)
    everything: Counter[str] = sum(taken.values(), Counter())
    for table in tables:
        if EVENT_ID in {column["name"] for column in inspect(connection).get_columns(table)}:
            rows = Counter(row[0] for row in connection.exec_driver_sql(f'SELECT {EVENT_ID} FROM "{table}"'))  # noqa: S608 - as above
            yield EffectCount(f"recorded in {name}.{table}", everything, rows, frozenset(taken))


def without_database(name: str, methods: list[Method], ids: list[tuple[str, str]]) -> Iterator[EffectCount]:
    """Yield the event methods of a service without a database, marked as not countable."""
    for method in methods:
        expected, path = Counter(_taken(method, ids)), method.path.lstrip("/")
        if expected:
            why = f"{name} has no database that could show the effects"
            yield EffectCount(f"published → {path}", expected, Counter(), frozenset({path}), why)


def _taken(method: Method, ids: list[tuple[str, str]]) -> Iterator[str]:
    """Yield the ids of the events that call a method, each once: an event that is stored twice has one effect."""
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
