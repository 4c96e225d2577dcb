"""``mesh events``: what was published, what died, and calling functions for it again."""

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

import msgspec

from mesh.config.manifest import Manifest
from mesh.config.values import Duration
from mesh.contract.model import Contract
from mesh.control import project, run_state
from mesh.control.commands import invoke
from mesh.control.component import service_events
from mesh.control.text_table import table
from mesh.errors import StatusError
from mesh.events import subjects
from mesh.events.broker import history, streams
from mesh.events.broker.broker import Broker
from mesh.events.cloudevents import Event, made_at, new_id
from mesh.events.consume import redrive_replay
from mesh.events.consume.consumers import Consumer, consumers_of
from mesh.events.consume.dead_letters import read_dead_letter
from mesh.events.publish.publisher import key_of
from mesh.faults import Fault, Faults
from mesh.message_methods import parser, serialize
from mesh.protojson.codec import Codecs
from mesh.protojson.wellknown import JsonEncodeError
from mesh.text import json_for

if TYPE_CHECKING:
    from mesh.events.broker.history import StreamMessage
    from mesh.events.broker.nats_connection import NatsConnection

__all__ = ["dead", "discard", "list_", "publish", "redrive", "replay", "show", "tail"]

_CODECS = Codecs()
CONNECT = 5.0
"""Seconds to wait for the broker."""
EVERY, MANY = 500, 20_000
"""Events between two lines of progress: of what is done with each, and of what is only looked at."""
SLACK = timedelta(seconds=2)
"""By how much the clock of who made an event may be ahead of the broker's, to find it at once."""
ALL = f"{subjects.EVENTS}.*.*.*"


@dataclass(frozen=True, slots=True)
class _Session:
    """A mesh and its broker."""

    contract: Contract
    broker: Broker
    connection: NatsConnection
    consumers: dict[str, Consumer]


def list_(file: Path, *, type: str, key: str, since: str, limit: int) -> int:  # noqa: A002 - CloudEvents' word
    """Print the events of a time, the latest ``limit`` of them."""

    async def run(session: _Session) -> int:
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

    return _with(file, run)


def tail(file: Path, *, type: str, key: str) -> int:  # noqa: A002 - as above
    """Print events as they are published, until Ctrl-C."""

    async def run(session: _Session) -> int:
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
            # A message is heard of before it is stored; and a batch when none of it is there yet.
            woken.clear()
            try:
                await asyncio.wait_for(woken.wait(), 1.0)
                await asyncio.sleep(0.05)
            except TimeoutError:
                continue
        raise Faults([Fault("broker", "the connection ended")])

    return _with(file, run)


def show(file: Path, which: str, *, type: str, key: str) -> int:  # noqa: A002 - as above
    """Print one event whole: its attributes and its message as JSON."""

    async def run(session: _Session) -> int:
        event = await _one(session, which, _filter(session, type, key))
        if event is None:
            raise Faults([Fault(which, "there is no such event; `mesh events list` shows what there is")])
        print(f"place    {event.sequence}\nsubject  {event.subject}\nstored   {event.time.isoformat()}")
        for name, value in sorted(event.headers.items()):
            print(f"{name}: {value}")
        print(_json(session.contract, event, indent=2))
        return 0

    return _with(file, run)


def publish(file: Path, type: str, data: str) -> int:  # noqa: A002 - as above
    """Publish an event by hand."""

    async def run(session: _Session) -> int:
        name = _type(session, type)
        declared = session.contract.events[name]
        try:
            message = _CODECS.of(declared.message).parse(invoke.given(data).encode() or b"{}")
        except ValueError as error:
            raise Faults([Fault("--data", str(error))]) from None
        event = Event(
            id=new_id(), type=name, source="mesh-events", key=key_of(message, declared.key), time=datetime.now(UTC),
            data=serialize(message),
        )  # fmt: skip
        await session.broker.publish(event)
        print(event.id)
        return 0

    return _with(file, run)


def dead(file: Path, *, method: str) -> int:
    """Print the dead letters."""

    async def run(session: _Session) -> int:
        rows = []
        async for letter in _letters(session, method):
            told = read_dead_letter(letter.headers)
            died = _clock(told.time)
            why = f"{told.code}: {told.error}" if told.code else told.reason
            rows.append((str(letter.sequence), died, told.method.lstrip("/"), str(told.attempts), told.trace[:8], why))
        print(table(("letter", "died", "method", "tries", "trace", "why"), rows) if rows else "no dead letters")
        return 0

    return _with(file, run)


def redrive(file: Path, numbers: list[int], *, method: str, every: bool) -> int:
    """Deliver dead letters to their methods again, and remove them."""

    async def run(session: _Session) -> int:
        done, left = 0, 0
        async for letter in _chosen(session, numbers, method, every=every):
            whole = await redrive_replay.with_event(session.connection, letter)
            message = None if whole is None else redrive_replay.redriven(whole, session.consumers)
            if message is None:
                left += 1
                why = "the contract has its trigger no more" if whole else redrive_replay.missing_reason(letter)
                print(f"letter {letter.sequence}: {why}", file=sys.stderr)
                continue
            await session.broker.store(message)
            await history.delete(session.connection, streams.DEAD, letter.sequence)
            done += 1
            _progress("redriven", done, letter.left)
        print(f"redriven {done}, left {left}")
        return 1 if left else 0

    return _with(file, run)


def discard(file: Path, numbers: list[int], *, method: str, every: bool) -> int:
    """Remove dead letters for good."""

    async def run(session: _Session) -> int:
        done = 0
        async for letter in _chosen(session, numbers, method, every=every):
            await history.delete(session.connection, streams.DEAD, letter.sequence)
            done += 1
            _progress("discarded", done, letter.left)
        print(f"discarded {done}")
        return 0

    return _with(file, run)


def replay(file: Path, method: str, *, since: str) -> int:
    """Call a method again for the events and changes of a time."""

    async def run(session: _Session) -> int:
        published = [one for one in session.consumers.values() if one.ordered]
        mine = [one for one in published if _is(one.group, method)]
        if not mine:
            known = sorted({one.group for one in published})
            text = f"no event or change calls it; known are {', '.join(known) or 'none'}"
            raise Faults([Fault(method, text)])
        run_, done, began = uuid4().hex[:8], 0, _since(since)
        wholes = {(one.stream, re.sub(r"\.\d+\.\*$", ".*.*", one.filters[0])) for one in mine}
        for stream, filter_ in sorted(wholes):
            async for event in history.read(session.connection, stream, filter_, since=began):
                consumer = redrive_replay.consumer_for(mine, event.subject)
                if consumer is not None:
                    await session.broker.store(redrive_replay.replayed(event, consumer, run_))
                    done += 1
                    _progress("replayed", done, event.left)
        print(f"replayed {done} as {run_}")
        return 0

    return _with(file, run)


# -- parts --


def _with(file: Path, run: Callable[[_Session], Awaitable[int]]) -> int:
    manifest, contract = project.load(file)

    async def inside() -> int:
        async with _session(manifest, contract) as session:
            try:
                return await run(session)
            except StatusError as error:
                raise Faults([Fault("broker", error.message)]) from None

    return asyncio.run(inside())


@asynccontextmanager
async def _session(manifest: Manifest, contract: Contract) -> AsyncIterator[_Session]:
    """Connect to the broker of mesh.toml, or to that of the running mesh.

    Raises:
        Faults: There is none, or it does not answer.
    """
    mesh = run_state.running(manifest.state)
    url = manifest.broker or (mesh.broker if mesh is not None else "")
    if not url:
        raise Faults([Fault(str(manifest.file), "the mesh does not run, and no broker is named; start it: mesh up")])
    broker = Broker(
        service_events.broker_settings(msgspec.structs.replace(manifest, broker=url), "mesh events"), "mesh-events"
    )
    broker.start()
    try:
        try:
            connection = await asyncio.wait_for(broker.ready(), CONNECT)
        except TimeoutError:
            raise Faults([Fault("broker", f"it does not answer within {CONNECT:g} s")]) from None
        consumers = {one.name: one for one in consumers_of(contract.services.values())}
        yield _Session(contract, broker, connection, consumers)
    finally:
        await broker.stop()


def _type(session: _Session, text: str) -> str:
    """Return the full name of an event that is named in full or by its last part.

    Raises:
        Faults: There is none, or several.
    """
    known = sorted(session.contract.events)
    found = [name for name in known if text in (name, name.rpartition(".")[2])]
    if len(found) != 1:
        raise Faults([Fault(text, f"name one event of the contract: {', '.join(found or known) or 'it has none'}")])
    return found[0]


def _filter(session: _Session, type: str, key: str) -> str:  # noqa: A002 - as above
    name = _type(session, type) if type else ""
    if key:
        return subjects.key_filter(name, key)
    return subjects.event_filter(name) if name else ALL


async def _last(session: _Session) -> int:
    return await history.last_sequence(session.connection, streams.EVENTS)


async def _one(session: _Session, which: str, filter_: str) -> StreamMessage | None:
    """Return an event by its place or its id, or None."""
    connection = session.connection
    if which.isdecimal():
        place = int(which)
        async for event in history.read(
            connection, streams.EVENTS, filter_, after=place - 1, before=place + 1, batch=1
        ):
            return event
        return None
    looked = 0
    made = made_at(which)
    if made is not None:  # it was stored then or, if it waited in an outbox, later
        async for event in history.read(connection, streams.EVENTS, filter_, since=made - SLACK):
            if event.headers.get("ce-id") == which:
                return event
            looked += 1
            _progress("looked at", looked, event.left, MANY)
    looked = 0
    last = await _last(session)
    async for part in history.backwards(connection, streams.EVENTS, filter_, last=last):
        for event in part:
            if event.headers.get("ce-id") == which:
                return event
        before, looked = looked, looked + len(part)
        if looked // MANY > before // MANY:
            print(f"looked at {looked:,}, the newest first", file=sys.stderr, flush=True)
    return None


def _since(text: str) -> datetime | None:
    """Return when something begins: a duration ago, or a time.

    Raises:
        Faults: It is neither.
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


async def _letters(session: _Session, method: str) -> AsyncIterator[StreamMessage]:
    filter_ = f"{subjects.DEAD}.*.{method.rpartition('/')[2] or '*'}"
    async for letter in history.read(session.connection, streams.DEAD, filter_):
        if not method or _is(read_dead_letter(letter.headers).method.lstrip("/"), method):
            yield letter


async def _chosen(session: _Session, numbers: list[int], method: str, *, every: bool) -> AsyncIterator[StreamMessage]:
    """Yield the letters that were asked for.

    Raises:
        Faults: Nothing was, or a number or the method is none; nothing is done then.
    """
    if not (numbers or method or every):
        raise Faults([Fault("mesh events dead", "say which: their numbers, --method METHOD, or --all")])
    # All at first: what is redriven may die again, at the end of the same stream; and with a wrong number, none.
    letters = [one async for one in _letters(session, method)]
    missing = set(numbers) - {one.sequence for one in letters}
    if missing:
        text = f"there is no such dead letter{f' of {method}' if method else ''}; `mesh events dead` lists them"
        raise Faults([Fault(str(number), text) for number in sorted(missing)])
    if method and not letters and not any(_is(one.group, method) for one in session.consumers.values()):
        known = sorted({one.group for one in session.consumers.values()})
        raise Faults([Fault(method, f"no event, change or schedule calls it; known are {', '.join(known) or 'none'}")])
    for letter in letters:
        if not numbers or letter.sequence in numbers:
            yield letter


def _is(method: str, text: str) -> bool:
    """Return whether a text names a method: in full, or without what stands before a dot or the slash."""
    text = text.lstrip("/")
    return method == text or method.endswith((f".{text}", f"/{text}"))


def _row(event: StreamMessage) -> tuple[str, ...]:
    told = event.headers
    return (
        str(event.sequence), _clock(event.time), told.get("ce-type", ""), told.get("ce-subject", ""),
        told.get("ce-source", ""), told.get("ce-id", ""),
    )  # fmt: skip


def _clock(time: datetime) -> str:
    return time.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _json(contract: Contract, event: StreamMessage, indent: int | None = None) -> str:
    declared = contract.events.get(event.headers.get("ce-type", ""))
    if declared is None:
        return f"({len(event.data)} bytes of a type that the contract does not have)"
    try:
        message: Any = parser(declared.message)(event.data)
    except Exception:  # noqa: BLE001 - another publisher's bytes
        return f"({len(event.data)} bytes that are no {declared.name})"
    try:
        return json_for(sys.stdout, _CODECS.of(declared.message).dump(message), indent=indent)
    except JsonEncodeError as error:
        return f"({len(event.data)} bytes: {error})"


def _progress(what: str, done: int, left: int, every: int = EVERY) -> None:
    if done % every == 0:
        print(f"{what} {done:,}, about {left:,} to go", file=sys.stderr, flush=True)
