"""The relay: moves rows of the outbox to the broker, in their order, one relay at a time over all replicas.

A row goes when the broker has acknowledged it. What happens in between, a crash or a lost connection, sends it again,
and the broker drops it by its id. Two relays at once, when one has lost its lock and does not know yet, do no harm:
each sends in order, and the broker takes the first copy of each row.
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
from mesh.events.broker.connection import Link, Outgoing
from mesh.events.cloudevents import MESSAGE_ID
from mesh.events.publish import outbox
from mesh.events.publish.outbox import NAME, Row, Waiting
from mesh.events.subjects import CHANGES, EVENTS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from opentelemetry.metrics import CallbackOptions, Observation

    from mesh.database import Database, LeaderLock

__all__ = ["Encode", "Letters", "Relay", "as_stored"]

log = logging.getLogger("mesh.events")

LOOK = 1.0
"""Seconds after which the relay looks without having been told: news can be lost, and hand-made SQL tells nobody."""
FIRST, LONGEST = 0.05, 5.0
"""Seconds between two tries: at first, and at most."""
LAST = 10.0
"""Seconds that the stop may take."""

_LONGEST_SUBJECT = 3000
"""Characters; nats-server ends a connection that sends a line of more than 4,096 bytes."""
_SUBJECT = re.compile(rf"(?=.{{1,{_LONGEST_SUBJECT}}}\Z)(?:{EVENTS}|{CHANGES})(?:\.[^\x00-\x20.*>\x7f-\U0010ffff]+)+\Z")
_BROKERS = "nats-"
_HEADERS = msgspec.json.Decoder(dict[str, str])

Letters = Callable[[Row, Outgoing | None, str], Sequence[Outgoing]]
"""Makes the dead letters of a row: the row, its message if one could be made, and why no broker takes it."""

Encode = Callable[[Row], Outgoing]
"""Makes the message of a row.

Raises:
    ValueError: The row can never be one.
"""


def as_stored(row: Row) -> Outgoing:
    """Return the message of a row that ``tx.publish`` wrote.

    Raises:
        ValueError: Its headers are no JSON object of texts.
    """
    return Outgoing(row.subject, _HEADERS.decode(row.headers), row.data)


class Relay:
    """Empties the outbox of one service.

    Args:
        database: Where it is.
        broker: Where its rows go.
        sqlite: The database is SQLite.
        letters: Makes the dead letters of a row that no broker takes.
        encode: Makes the message of a row.

    Attributes:
        waiting: What the outbox held when it was last counted; None in the replicas that do not empty it.
    """

    def __init__(
        self,
        database: Database,
        broker: Broker,
        *,
        sqlite: bool,
        letters: Letters,
        encode: Encode = as_stored,
    ) -> None:
        self.waiting: Waiting | None = None
        self._database = database
        self._broker = broker
        self._encode = encode
        self._letters = letters
        self._sqlite = sqlite
        self._leader_lock: LeaderLock = database.leader_lock(NAME)
        self._ending = asyncio.Event()
        self._running: asyncio.Task[None] | None = None
        self._said = ""
        self._counted = -LOOK

    def start(self) -> None:
        """Begin, on the running loop."""
        self._running = asyncio.get_running_loop().create_task(self._run())
        meter = metrics.get_meter("mesh.events")
        meter.create_observable_gauge("mesh.outbox.rows", [self._rows], "{event}", "Events that wait in the outbox.")
        meter.create_observable_gauge("mesh.outbox.age", [self._age], "s", "How long the oldest of them has waited.")
        meter.create_observable_gauge("mesh.outbox.refused", [self._refused], "{event}", "Events no broker will take.")

    def tell(self) -> None:
        """Say that there may be rows."""
        self._leader_lock.notify()

    async def stop(self) -> None:
        """Send what is there if the broker is, and stop; the rest stays in the outbox."""
        self._ending.set()
        self._leader_lock.wakeup.set()
        if self._running is not None:
            await asyncio.wait([self._running], timeout=LAST)
            self._running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._running

    async def _run(self) -> None:
        while not self._ending.is_set():
            try:
                if await _first(self._leader_lock.acquire(), self._ending.wait()) == 0:
                    await self._hold()
            except Exception:  # a relay that stood still would hold all events of the service, and nobody would know
                log.exception("the relay failed and begins again")
                await _first(self._ending.wait(), asyncio.sleep(LONGEST))
            finally:
                self.waiting, self._counted = None, -LOOK
                await self._leader_lock.release()

    async def _hold(self) -> None:
        """Empty the outbox again and again, until the right to do so is lost or the service stops."""
        leader_lock, failures = self._leader_lock, 0
        if self._broker.link is None:  # at a start both connect: that the broker is not first is no news
            await _first(self._ending.wait(), leader_lock.lost.wait(), self._broker.ready(), asyncio.sleep(LONGEST))
        while not leader_lock.lost.is_set():
            last = self._ending.is_set()  # then this is one more time, for what the last calls wrote
            leader_lock.wakeup.clear()
            kept = await self._round()
            self._say("" if kept is None else str(kept))
            if last:
                return
            if kept is None:
                failures = 0
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK):
                        await leader_lock.wakeup.wait()  # a lost right is news, and so is the end
                continue
            pause = min(FIRST * 2.0 ** min(failures, 16), LONGEST) * random.uniform(0.5, 1.0)  # noqa: S311
            failures += 1
            await _first(self._ending.wait(), leader_lock.lost.wait(), asyncio.sleep(pause))
            if self._broker.link is None:
                await _first(self._ending.wait(), leader_lock.lost.wait(), self._broker.ready(), asyncio.sleep(LONGEST))

    async def _round(self) -> StatusError | None:
        """Send what is there, and count now and then what is left; return what keeps it back."""
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
        if now - self._counted >= LOOK:
            async with self._database.housekeeping() as tx:
                self.waiting = await outbox.waiting(tx)
            self._counted = now

    async def _empty(self) -> None:
        """Send and delete until nothing is left.

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
            link = self._broker.link
            if link is None:
                raise away()
            sent, error = await self._send(link, rows)

    async def _send(self, link: Link, rows: list[Row]) -> tuple[list[Row], StatusError | None]:
        """Return the rows that the broker has, and why it does not take the next one."""
        made: list[tuple[Row, Outgoing]] = []
        kept: StatusError | None = None  # a row that cannot be set aside yet holds no other
        for row in rows:
            try:
                message = self._encode(row)
                _check(message)
                made.append((row, message))
            except Exception as error:  # one row must not hold the others, whatever is in it
                if not isinstance(error, ValueError):
                    log.exception("a row of the outbox cannot be read")
                kept = await self._refuse(link, row, None, str(error) or type(error).__name__) or kept
        sent: list[Row] = []
        # By stream, for a batch has one; nothing is said of the order between events and changes.
        for _, part in groupby(sorted(made, key=_stream), _stream):
            group = list(part)
            while group:
                stored = await link.store([message for _, message in group])
                sent += [row for row, _ in group[: stored.number]]
                group = group[stored.number :]
                if isinstance(stored.error, InvalidArgument):
                    kept = await self._refuse(link, *group.pop(0), stored.error.message) or kept
                elif stored.error is not None:
                    return sent, stored.error
        return sent, kept

    async def _refuse(self, link: Link, row: Row, message: Outgoing | None, reason: str) -> StatusError | None:
        """Set a row aside when its dead letters are kept; return why they are not."""
        reason = "".join(character if character.isprintable() else "?" for character in reason)  # what any column takes
        for letter in self._letters(row, message, reason):
            error = (await link.store([letter])).error
            if error is not None and not isinstance(error, InvalidArgument):  # a letter, too, may be no message
                return error
        log.error("event %s for %s can never be sent and stays in the outbox: %s", row.id, row.subject, reason)
        async with self._database.housekeeping() as tx:
            await outbox.refuse(tx, row, reason)
        return None

    def _say(self, reason: str) -> None:
        """Log what keeps the rows back, once; and once that nothing does any more."""
        if reason and not self._said:
            log.warning("the outbox holds its events: %s", reason)
        elif self._said and not reason:
            log.info("the outbox is empty again")
        self._said = reason

    def _rows(self, _: CallbackOptions) -> Iterable[Observation]:
        return [metrics.Observation(self.waiting.rows)] if self.waiting is not None else []

    def _age(self, _: CallbackOptions) -> Iterable[Observation]:
        return [metrics.Observation(self.waiting.age)] if self.waiting is not None else []

    def _refused(self, _: CallbackOptions) -> Iterable[Observation]:
        return [metrics.Observation(self.waiting.refused)] if self.waiting is not None else []


async def _first(*awaited: Coroutine[Any, Any, object]) -> int:
    """Wait until one of them is done, and drop the others; return which it was."""
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
    """Refuse what the broker would refuse for ever with an error that may also be about now.

    Raises:
        ValueError: No stream holds the subject, or a header is an order to the broker.
    """
    if not _SUBJECT.match(message.subject):
        raise ValueError(
            f"its subject {message.subject[:80]!r} is not of the form events.TYPE.PARTITION.KEY or "
            f"changes.SERVICE.TABLE.PARTITION.KEY, with at most {_LONGEST_SUBJECT} characters"
        )
    for name in message.headers:
        if name[:5].lower() == _BROKERS and name != MESSAGE_ID:
            raise ValueError(f"the header {name!r} is the broker's own")


def _stream(pair: tuple[Row, Outgoing]) -> str:
    return pair[1].subject.partition(".")[0]
