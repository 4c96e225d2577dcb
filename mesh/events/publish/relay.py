"""Relay: publishes the rows of the outbox in their order, one relay at a time over all replicas.

A row is deleted when the broker has acknowledged it. After a crash or a lost connection in between, the row is
published again, and the broker drops it by its id. Two relays at the same time, when one has lost its lock and does not
know yet, do no harm: each publishes in order, and the broker takes the first copy of each row.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import re
from collections.abc import Callable, Coroutine, Sequence
from itertools import groupby
from time import monotonic
from typing import TYPE_CHECKING, Any

import msgspec
from opentelemetry import metrics

from mesh.errors import InvalidArgument, StatusError
from mesh.events.broker.broker import Broker, away
from mesh.events.broker.nats_connection import NatsConnection, Outgoing
from mesh.events.cloudevents import MESSAGE_ID
from mesh.events.publish import outbox
from mesh.events.publish.outbox import NAME, Row, Waiting
from mesh.events.subjects import CHANGES, EVENTS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from opentelemetry.metrics import CallbackOptions, Observation

    from mesh.database import Database, LeaderLock

__all__ = ["Encode", "MakeDeadLetters", "Relay", "as_stored"]

log = logging.getLogger("mesh.events")

POLL_INTERVAL = 1.0
"""Seconds between two reads of the outbox without a wake-up: a wake-up can be lost, and SQL by hand sends none."""
MIN_RETRY_DELAY, MAX_RETRY_DELAY = 0.05, 5.0
"""Seconds between two attempts."""
STOP_TIMEOUT = 10.0
"""Seconds that the shutdown may take."""

_LONGEST_SUBJECT = 3000
"""Characters; nats-server ends a connection that sends a line of more than 4,096 bytes."""
_SUBJECT = re.compile(rf"(?=.{{1,{_LONGEST_SUBJECT}}}\Z)(?:{EVENTS}|{CHANGES})(?:\.[^\x00-\x20.*>\x7f-\U0010ffff]+)+\Z")
_BROKER_PREFIX = "nats-"
_HEADERS = msgspec.json.Decoder(dict[str, str])

MakeDeadLetters = Callable[[Row, Outgoing | None, str], Sequence[Outgoing]]
"""Makes the dead letters of a row from the row, its message if one could be made, and the reason of the refusal."""

Encode = Callable[[Row], Outgoing]
"""Makes the message of a row.

Raises:
    ValueError: No message can be made of the row.
"""


def as_stored(row: Row) -> Outgoing:
    """Return the message of a row that ``tx.publish`` inserted.

    Raises:
        ValueError: Its headers are no JSON object of texts.
    """
    return Outgoing(row.subject, _HEADERS.decode(row.headers), row.data)


class Relay:
    """Relay of the outbox of one service.

    Args:
        database: The database of the service.
        broker: The broker.
        sqlite: The database is SQLite.
        make_dead_letters: Makes the dead letters of a row that no broker takes.
        encode: Makes the message of a row.

    Attributes:
        waiting: Counts of the outbox when they were last read; None in replicas that do not hold the lock.
    """

    def __init__(
        self,
        database: Database,
        broker: Broker,
        *,
        sqlite: bool,
        make_dead_letters: MakeDeadLetters,
        encode: Encode = as_stored,
    ) -> None:
        self.waiting: Waiting | None = None
        self._database = database
        self._broker = broker
        self._encode = encode
        self._make_dead_letters = make_dead_letters
        self._sqlite = sqlite
        self._leader_lock: LeaderLock = database.leader_lock(NAME)
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._logged = ""
        self._counted = -POLL_INTERVAL

    def start(self) -> None:
        """Start, on the running loop."""
        self._task = asyncio.get_running_loop().create_task(self._run())
        meter = metrics.get_meter("mesh.events")
        meter.create_observable_gauge("mesh.outbox.rows", [self._rows], "{event}", "Events that wait in the outbox.")
        meter.create_observable_gauge("mesh.outbox.age", [self._age], "s", "How long the oldest of them has waited.")
        meter.create_observable_gauge("mesh.outbox.refused", [self._refused], "{event}", "Events no broker will take.")

    def tell(self) -> None:
        """Wake the relay that holds the lock: there may be rows."""
        self._leader_lock.notify()

    async def stop(self) -> None:
        """Publish the remaining rows if the broker is reachable, and stop; other rows stay in the outbox."""
        self._stopping.set()
        self._leader_lock.wakeup.set()
        if self._task is not None:
            await asyncio.wait([self._task], timeout=STOP_TIMEOUT)
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                if await _first(self._leader_lock.acquire(), self._stopping.wait()) == 0:
                    await self._hold()
            except Exception:  # a relay that stopped silently would hold all events of the service
                log.exception("the relay failed and starts again")
                await _first(self._stopping.wait(), asyncio.sleep(MAX_RETRY_DELAY))
            finally:
                self.waiting, self._counted = None, -POLL_INTERVAL
                await self._leader_lock.release()

    async def _hold(self) -> None:
        """Empty the outbox repeatedly, until the lock is lost or the service stops."""
        leader_lock, failures = self._leader_lock, 0
        if self._broker.connection is None:  # at a start both connect, and the broker may be second
            await _first(
                self._stopping.wait(), leader_lock.lost.wait(), self._broker.ready(), asyncio.sleep(MAX_RETRY_DELAY)
            )
        while not leader_lock.lost.is_set():
            last = self._stopping.is_set()  # one last round, for rows of the last calls
            leader_lock.wakeup.clear()
            error = await self._round()
            self._log_state("" if error is None else str(error))
            if last:
                return
            if error is None:
                failures = 0
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(POLL_INTERVAL):
                        await leader_lock.wakeup.wait()  # a lost lock and the shutdown set it too
                continue
            delay = min(MIN_RETRY_DELAY * 2.0 ** min(failures, 16), MAX_RETRY_DELAY) * random.uniform(0.5, 1.0)  # noqa: S311
            failures += 1
            await _first(self._stopping.wait(), leader_lock.lost.wait(), asyncio.sleep(delay))
            if self._broker.connection is None:
                await _first(
                    self._stopping.wait(), leader_lock.lost.wait(), self._broker.ready(), asyncio.sleep(MAX_RETRY_DELAY)
                )

    async def _round(self) -> StatusError | None:
        """Publish the rows, and count the remaining ones at intervals; return the error that holds them."""
        try:
            try:
                await self._empty()
            finally:
                await self._count()
        except StatusError as error:
            return error
        return None

    async def _count(self) -> None:
        now = monotonic()
        if now - self._counted >= POLL_INTERVAL:
            async with self._database.housekeeping() as tx:
                self.waiting = await outbox.waiting(tx)
            self._counted = now

    async def _empty(self) -> None:
        """Publish and delete until no row is left.

        Raises:
            StatusError: The broker does not take the next row now, or the database cannot be used.
        """
        sent: list[Row] = []
        error: StatusError | None = None
        while not self._leader_lock.lost.is_set():
            async with self._database.housekeeping() as tx:
                if sent:
                    await outbox.delete(tx, sent, sqlite=self._sqlite)
                rows = [] if error else await outbox.read(tx)
            if error is not None:
                raise error
            if not rows:
                return
            connection = self._broker.connection
            if connection is None:
                raise away()
            sent, error = await self._send(connection, rows)

    async def _send(self, connection: NatsConnection, rows: list[Row]) -> tuple[list[Row], StatusError | None]:
        """Return the rows that the broker has stored, and the error of the next one."""
        made: list[tuple[Row, Outgoing]] = []
        unrefused: StatusError | None = None  # a row that cannot be set aside yet does not hold the others
        for row in rows:
            try:
                message = self._encode(row)
                _check(message)
                made.append((row, message))
            except Exception as error:  # no content of a row may hold the others
                if not isinstance(error, ValueError):
                    log.exception("a row of the outbox cannot be read")
                reason = str(error) or type(error).__name__
                unrefused = await self._refuse(connection, row, None, reason) or unrefused
        sent: list[Row] = []
        # By stream, since a batch has one. Events and changes have no order between them.
        for _, part in groupby(sorted(made, key=_stream), _stream):
            group = list(part)
            while group:
                stored = await connection.store([message for _, message in group])
                sent += [row for row, _ in group[: stored.number]]
                group = group[stored.number :]
                if isinstance(stored.error, InvalidArgument):
                    row, message = group.pop(0)
                    unrefused = await self._refuse(connection, row, message, stored.error.message) or unrefused
                elif stored.error is not None:
                    return sent, stored.error
        return sent, unrefused

    async def _refuse(
        self, connection: NatsConnection, row: Row, message: Outgoing | None, reason: str
    ) -> StatusError | None:
        """Set a row aside after its dead letters are stored; return the error that prevents that."""
        reason = "".join(character if character.isprintable() else "?" for character in reason)  # any column takes this
        for letter in self._make_dead_letters(row, message, reason):
            error = (await connection.store([letter])).error
            if error is not None and not isinstance(error, InvalidArgument):  # it, too, may make no message
                return error
        log.error("event %s for %s can never be published and stays in the outbox: %s", row.id, row.subject, reason)
        async with self._database.housekeeping() as tx:
            await outbox.refuse(tx, row, reason)
        return None

    def _log_state(self, reason: str) -> None:
        """Log the reason that holds the rows when it begins, and once when it ends."""
        if reason and not self._logged:
            log.warning("the outbox holds its events: %s", reason)
        elif self._logged and not reason:
            log.info("the outbox is empty again")
        self._logged = reason

    def _rows(self, _: CallbackOptions) -> Iterable[Observation]:
        return [metrics.Observation(self.waiting.rows)] if self.waiting is not None else []

    def _age(self, _: CallbackOptions) -> Iterable[Observation]:
        return [metrics.Observation(self.waiting.age)] if self.waiting is not None else []

    def _refused(self, _: CallbackOptions) -> Iterable[Observation]:
        return [metrics.Observation(self.waiting.refused)] if self.waiting is not None else []


async def _first(*awaited: Coroutine[Any, Any, object]) -> int:
    """Wait until one of them is done, and cancel the others; return its index."""
    tasks = [asyncio.ensure_future(one) for one in awaited]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        found = next(at for at, task in enumerate(tasks) if task.done())
        tasks[found].result()
        return found
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _check(message: Outgoing) -> None:
    """Check a message for faults that the broker would refuse with an error that looks temporary.

    Raises:
        ValueError: No stream has the subject, or a header is an instruction to the broker.
    """
    if not _SUBJECT.match(message.subject):
        raise ValueError(
            f"its subject {message.subject[:80]!r} is not of the form events.TYPE.PARTITION.KEY or "
            f"changes.SERVICE.TABLE.PARTITION.KEY, with at most {_LONGEST_SUBJECT} characters"
        )
    for name in message.headers:
        if name[:5].lower() == _BROKER_PREFIX and name != MESSAGE_ID:
            raise ValueError(f"the header {name!r} is the broker's own")


def _stream(pair: tuple[Row, Outgoing]) -> str:
    return pair[1].subject.partition(".")[0]
