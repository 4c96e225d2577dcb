"""``mesh events``: lists, publishes and replays events; lists, redrives and discards dead letters."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from mesh.config.manifest import Manifest
from mesh.config.values import Duration
from mesh.contract.model import Contract
from mesh.control import identity_keys, project
from mesh.control.commands import invoke, operator_broker
from mesh.control.component import event_keys
from mesh.control.text_table import table
from mesh.errors import StatusError
from mesh.events import subjects
from mesh.events.broker import history, streams
from mesh.events.broker.broker import Broker
from mesh.events.broker.nats_connection import BROKER_ERRORS
from mesh.events.broker.streams import StreamError
from mesh.events.cloudevents import Event, MalformedEventError, made_at, new_id
from mesh.events.consume import redrive_replay
from mesh.events.consume.consumers import Consumer, consumers_of
from mesh.events.consume.dead_letters import read_dead_letter
from mesh.events.consume.verification import EventVerifier, RefusedError
from mesh.events.publish.publisher import key_of
from mesh.events.signatures import SIGNATURE
from mesh.faults import Fault, Faults
from mesh.message_methods import parser, serialize
from mesh.protojson.codec import Codecs
from mesh.protojson.wellknown import JsonEncodeError
from mesh.redaction import redact
from mesh.text import json_for

if TYPE_CHECKING:
    from mesh.events.broker.history import StreamMessage
    from mesh.events.broker.nats_connection import NatsConnection

__all__ = ["dead", "discard", "list_", "make_streams", "publish", "redrive", "replay", "show", "tail"]

_CODECS = Codecs()
DONE_PER_LINE, SCANNED_PER_LINE = 500, 20_000
"""Events between two lines of progress: of events that are processed, and of events that are only read."""
CLOCK_DIFFERENCE = timedelta(seconds=2)
"""Difference by which a publisher's clock may be ahead of the broker's, for a quick search by the time in the id."""
ALL_EVENTS = f"{subjects.EVENTS}.*.*.*"


@dataclass(frozen=True, slots=True)
class _BrokerSession:
    """A contract, and the connection to the broker of its mesh."""

    contract: Contract
    broker: Broker
    connection: NatsConnection
    consumers: dict[str, Consumer]
    verifier: EventVerifier
    signs: bool

    def check_signs(self) -> None:
        """Check that the operator's key is here.

        Raises:
            Faults: It is not.
        """
        if not self.signs:
            raise Faults([Fault("operator.key", "the operator's key is missing here, and unsigned events are refused")])


def list_(file: Path, *, type: str, key: str, since: str, limit: int) -> int:  # noqa: A002 - CloudEvents' word
    """Print the latest ``limit`` events since a time."""

    async def run(session: _BrokerSession) -> int:
        found = await history.latest(
            session.connection, streams.EVENTS, _filter(session, type, key), limit,
            last=await _last(session), since=_since(since),
        )  # fmt: skip
        print(
            table(("place", "time", "type", "key", "source", "id"), [_row(one) for one in found])
            if found
            else "no events"
        )
        return 0

    return _run_with_broker(file, run)


def tail(file: Path, *, type: str, key: str) -> int:  # noqa: A002 - as above
    """Print events as they are published, until Ctrl-C."""

    async def run(session: _BrokerSession) -> int:
        woken = asyncio.Event()

        async def wake(_: object) -> None:
            woken.set()

        connection, filter_ = session.connection, _filter(session, type, key)
        await connection.subscribe(filter_, wake)
        after = await _last(session)
        while not connection.closed.is_set():
            async for event in history.read(connection, streams.EVENTS, filter_, after=after):
                after = event.sequence
                print("  ".join(_row(event)), _json(session.contract, event), flush=True)
            # The subscription gets a message before it is stored, and the first one of a batch before any is stored.
            woken.clear()
            try:
                await asyncio.wait_for(woken.wait(), 1.0)
                await asyncio.sleep(0.05)
            except TimeoutError:
                continue
        raise Faults([Fault("broker", "the connection ended")])

    return _run_with_broker(file, run)


def show(file: Path, which: str, *, type: str, key: str) -> int:  # noqa: A002 - as above
    """Print one event with its attributes and its message as JSON."""

    async def run(session: _BrokerSession) -> int:
        event = await _find(session, which, _filter(session, type, key))
        if event is None:
            raise Faults([Fault(which, "there is no such event; `mesh events list` lists the events")])
        print(f"place    {event.sequence}\nsubject  {event.subject}\nstored   {event.time.isoformat()}")
        for name, value in sorted(event.headers.items()):
            print(f"{name}: {value}")
        print(_json(session.contract, event, indent=2))
        return 0

    return _run_with_broker(file, run)


def publish(file: Path, type: str, data: str) -> int:  # noqa: A002 - as above
    """Publish an event by hand."""

    async def run(session: _BrokerSession) -> int:
        session.check_signs()
        name = _type(session, type)
        declared = session.contract.events[name]
        try:
            message = _CODECS.of(declared.message).parse(invoke.given(data).encode() or b"{}")
        except ValueError as error:
            raise Faults([Fault("--data", str(error))]) from None
        event = Event(
            id=new_id(), type=name, source=identity_keys.OPERATOR, key=key_of(message, declared.key),
            time=datetime.now(UTC), data=serialize(message),
        )  # fmt: skip
        await session.broker.publish(event)
        print(event.id)
        return 0

    return _run_with_broker(file, run)


def dead(file: Path, *, method: str) -> int:
    """Print the dead letters."""

    async def run(session: _BrokerSession) -> int:
        rows = []
        async for dead_letter in _dead_letters(session, method):
            one = read_dead_letter(dead_letter.headers)
            reason = f"{one.code or one.reason}: {one.error}" if one.code or one.error else one.reason
            number, died = str(dead_letter.sequence), _local_time(one.time)
            rows.append((number, died, one.method.lstrip("/"), str(one.attempts), one.trace[:8], reason))
        print(table(("number", "died", "method", "attempts", "trace", "reason"), rows) if rows else "no dead letters")
        return 0

    return _run_with_broker(file, run)


def redrive(file: Path, numbers: list[int], *, method: str, every: bool, unsigned: bool) -> int:
    """Redeliver dead letters to their methods, and remove them; ``unsigned``: also those without a signature."""

    async def run(session: _BrokerSession) -> int:
        session.check_signs()
        done, left = 0, 0
        async for dead_letter in _selected(session, numbers, method, every=every):
            complete = await redrive_replay.with_event(session.connection, dead_letter)
            message = None if complete is None else redrive_replay.redriven(complete, session.consumers)
            if complete is None:
                reason = redrive_replay.missing_reason(dead_letter)
            elif message is None:
                reason = "its trigger is no longer in the contract"
            else:
                reason = _refusal(session, complete, unsigned=unsigned)
            if message is None or reason:
                left += 1
                print(f"dead letter {dead_letter.sequence}: {reason}", file=sys.stderr)
                continue
            await session.broker.store(message)
            await history.delete(session.connection, streams.DEAD, dead_letter.sequence)
            done += 1
            _progress("redriven", done, dead_letter.left)
        print(f"redriven {done}, left {left}")
        return 1 if left else 0

    return _run_with_broker(file, run)


def discard(file: Path, numbers: list[int], *, method: str, every: bool) -> int:
    """Remove dead letters."""

    async def run(session: _BrokerSession) -> int:
        done = 0
        async for dead_letter in _selected(session, numbers, method, every=every):
            await history.delete(session.connection, streams.DEAD, dead_letter.sequence)
            done += 1
            _progress("discarded", done, dead_letter.left)
        print(f"discarded {done}")
        return 0

    return _run_with_broker(file, run)


def _refusal(session: _BrokerSession, dead_letter: StreamMessage, *, unsigned: bool) -> str:
    """Return the reason why the event of a dead letter may not be delivered, or ""."""
    if unsigned and SIGNATURE not in dead_letter.headers:
        return ""
    consumer = session.consumers[read_dead_letter(dead_letter.headers).consumer]
    try:
        redrive_replay.check_dead_letter(dead_letter, consumer, session.verifier)
    except (RefusedError, MalformedEventError) as error:
        hint = "" if SIGNATURE in dead_letter.headers else "; --unsigned redrives it"
        return f"{error}{hint}"
    return ""


def replay(file: Path, method: str, *, since: str, unsigned: bool) -> int:
    """Deliver the events and changes since a time to a method again; ``unsigned``: also those without a signature."""

    async def run(session: _BrokerSession) -> int:
        session.check_signs()
        refused = 0
        published = [one for one in session.consumers.values() if one.ordered]
        mine = [one for one in published if _names(one.group, method)]
        if not mine:
            known = sorted({one.group for one in published})
            text = f"no event or change calls it; known are {', '.join(known) or 'none'}"
            raise Faults([Fault(method, text)])
        run_, done, began = uuid4().hex[:8], 0, _since(since)
        all_partitions = {(one.stream, re.sub(r"\.\d+\.\*$", ".*.*", one.filters[0])) for one in mine}
        for stream, filter_ in sorted(all_partitions):
            async for event in history.read(session.connection, stream, filter_, since=began):
                consumer = redrive_replay.consumer_for(mine, event.subject)
                if consumer is None:
                    continue
                try:
                    if not (unsigned and SIGNATURE not in event.headers):
                        redrive_replay.check_event(event, consumer, session.verifier)
                except (RefusedError, MalformedEventError) as error:
                    refused += 1
                    print(f"event {event.sequence}: {error}", file=sys.stderr)
                else:
                    await session.broker.store(redrive_replay.replayed(event, consumer, run_))
                    done += 1
                    _progress("replayed", done, event.left)
        print(f"replayed {done} as {run_}" + (f", refused {refused}" if refused else ""))
        return 1 if refused else 0

    return _run_with_broker(file, run)


def make_streams(file: Path) -> int:
    """Make the streams of the broker, or change them to the settings of mesh.toml."""
    manifest, _ = project.load(file)
    settings = operator_broker.settings(manifest)
    try:
        asyncio.run(Broker(settings, "mesh-events").make_streams())
    except (StreamError, *BROKER_ERRORS) as error:
        raise Faults([Fault("broker", str(error) or type(error).__name__)]) from None
    print(f"the broker has the streams {', '.join(one.name or '' for one in streams.configs(settings.retention))}")
    return 0


# -- parts --


def _run_with_broker(file: Path, run: Callable[[_BrokerSession], Awaitable[int]]) -> int:
    manifest, contract = project.load(file, lambda owner: not owner)

    async def inside() -> int:
        async with _session(manifest, contract) as session:
            try:
                return await run(session)
            except StatusError as error:
                raise Faults([Fault("broker", error.message)]) from None

    return asyncio.run(inside())


@asynccontextmanager
async def _session(manifest: Manifest, contract: Contract) -> AsyncIterator[_BrokerSession]:
    """Connect to the broker of mesh.toml, or to that of the running mesh.

    Raises:
        Faults: There is no broker, or it cannot be reached.
    """
    folder = identity_keys.folder_of(manifest)
    signs = (folder / f"{identity_keys.OPERATOR}.key").is_file()
    signer = event_keys.signer(folder, identity_keys.OPERATOR) if signs else None
    async with operator_broker.connected(manifest, "mesh-events", signer) as (broker, connection):
        consumers = {one.name: one for one in consumers_of(contract.services.values())}
        verifier = event_keys.verifier(manifest, contract, folder)
        yield _BrokerSession(contract, broker, connection, consumers, verifier, signs)


def _type(session: _BrokerSession, text: str) -> str:
    """Return the full name of an event, given in full or by its last part.

    Raises:
        Faults: No event matches, or several do.
    """
    known = sorted(session.contract.events)
    found = [name for name in known if text in (name, name.rpartition(".")[2])]
    if len(found) != 1:
        raise Faults([Fault(text, f"name one event of the contract: {', '.join(found or known) or 'it has none'}")])
    return found[0]


def _filter(session: _BrokerSession, type: str, key: str) -> str:  # noqa: A002 - as above
    name = _type(session, type) if type else ""
    if key:
        return subjects.key_filter(name, key)
    return subjects.event_filter(name) if name else ALL_EVENTS


async def _last(session: _BrokerSession) -> int:
    return await history.last_sequence(session.connection, streams.EVENTS)


async def _find(session: _BrokerSession, which: str, filter_: str) -> StreamMessage | None:
    """Return an event by its place or its id, or None."""
    connection = session.connection
    if which.isdecimal():
        place = int(which)
        async for event in history.read(
            connection, streams.EVENTS, filter_, after=place - 1, before=place + 1, batch=1
        ):
            return event
        return None
    scanned = 0
    made = made_at(which)
    if made is not None:  # it was stored at that time, or later if it waited in an outbox
        async for event in history.read(connection, streams.EVENTS, filter_, since=made - CLOCK_DIFFERENCE):
            if event.headers.get("ce-id") == which:
                return event
            scanned += 1
            _progress("scanned", scanned, event.left, SCANNED_PER_LINE)
    scanned = 0
    last = await _last(session)
    async for part in history.backwards(connection, streams.EVENTS, filter_, last=last):
        for event in part:
            if event.headers.get("ce-id") == which:
                return event
        before, scanned = scanned, scanned + len(part)
        if scanned // SCANNED_PER_LINE > before // SCANNED_PER_LINE:
            print(f"scanned {scanned:,}, the newest first", file=sys.stderr, flush=True)
    return None


def _since(text: str) -> datetime | None:
    """Return the time of ``--since``, which is a duration before now or a time.

    Raises:
        Faults: The text is neither.
    """
    if not text:
        return None
    try:
        if text[-1].isalpha() and text[-1] != "Z":
            return datetime.now(UTC) - timedelta(seconds=float(Duration.parse(text)))
        time = datetime.fromisoformat(text)
    except ValueError:
        raise Faults([Fault("--since", f"expected a duration such as 2h, or a time, not {text!r}")]) from None
    return time if time.tzinfo is not None else time.astimezone()


async def _dead_letters(session: _BrokerSession, method: str) -> AsyncIterator[StreamMessage]:
    filter_ = f"{subjects.DEAD}.*.{method.rpartition('/')[2] or '*'}"
    async for dead_letter in history.read(session.connection, streams.DEAD, filter_):
        if not method or _names(read_dead_letter(dead_letter.headers).method.lstrip("/"), method):
            yield dead_letter


async def _selected(
    session: _BrokerSession, numbers: list[int], method: str, *, every: bool
) -> AsyncIterator[StreamMessage]:
    """Yield the selected dead letters.

    Raises:
        Faults: No selection was given, or a number or the method does not exist. Nothing is done then.
    """
    if not (numbers or method or every):
        raise Faults([Fault("mesh events dead", "select dead letters: their numbers, --method METHOD, or --all")])
    # Read all of them first: a redriven event may become a dead letter again, at the end of the same stream. And with a
    # wrong number, nothing must be done.
    dead_letters = [one async for one in _dead_letters(session, method)]
    missing = set(numbers) - {one.sequence for one in dead_letters}
    if missing:
        text = f"there is no such dead letter{f' of {method}' if method else ''}; `mesh events dead` lists them"
        raise Faults([Fault(str(number), text) for number in sorted(missing)])
    if method and not dead_letters and not any(_names(one.group, method) for one in session.consumers.values()):
        known = sorted({one.group for one in session.consumers.values()})
        raise Faults([Fault(method, f"no event, change or schedule calls it; known are {', '.join(known) or 'none'}")])
    for dead_letter in dead_letters:
        if not numbers or dead_letter.sequence in numbers:
            yield dead_letter


def _names(method: str, text: str) -> bool:
    """Whether a text names a method, in full or by its part after a dot or the slash."""
    text = text.lstrip("/")
    return method == text or method.endswith((f".{text}", f"/{text}"))


def _row(event: StreamMessage) -> tuple[str, ...]:
    attributes = (event.headers.get(f"ce-{name}", "") for name in ("type", "subject", "source", "id"))
    return (str(event.sequence), _local_time(event.time), *attributes)


def _local_time(time: datetime) -> str:
    return time.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _json(contract: Contract, event: StreamMessage, indent: int | None = None) -> str:
    declared = contract.events.get(event.headers.get("ce-type", ""))
    if declared is None:
        return f"({len(event.data)} bytes of a type that the contract does not have)"
    try:
        message: Any = parser(declared.message)(event.data)
        redact(message)
    except Exception:  # noqa: BLE001 - bytes of another publisher
        return f"({len(event.data)} bytes that are no {declared.name})"
    try:
        return json_for(sys.stdout, _CODECS.of(declared.message).dump(message), indent=indent)
    except JsonEncodeError as error:
        return f"({len(event.data)} bytes: {error})"


def _progress(label: str, done: int, left: int, per_line: int = DONE_PER_LINE) -> None:
    if done % per_line == 0:
        print(f"{label} {done:,}, about {left:,} to go", file=sys.stderr, flush=True)
