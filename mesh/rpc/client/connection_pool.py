"""The connections to one target: resolves its addresses, connects, connects again, and hands out the next connection.

It does not look into calls; a call that finds no room waits here, up to its deadline. So does, for a while, a call that
comes when the last connection has just been lost: it was never sent, and a server that restarts is back within seconds,
perhaps at another address.
"""

from __future__ import annotations

import asyncio
import os
import random
import ssl
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mesh.errors import DeadlineExceeded, Unavailable
from mesh.rpc.client import balancer, resolver
from mesh.rpc.client.connection import Connection, connect
from mesh.rpc.client.resolver import Endpoint

if TYPE_CHECKING:
    from mesh.call import Call

__all__ = ["Pool"]

CONNECT_TIMEOUT = 20.0
"""Seconds for TCP, TLS and the server's SETTINGS together; a restarting server accepts long before it answers."""
BACKOFF_BASE = 0.1
BACKOFF_CAP = 5.0
PATIENCE = 10.0
"""Seconds that calls wait, if their deadlines allow, for a target whose last connection was lost, before they fail with
UNAVAILABLE: a container that restarts is away for two to five."""
BACKOFF_PATIENT = 0.5
"""The longest wait between two attempts to connect meanwhile."""
RESOLVE_EVERY = 30.0
RESOLVE_AGAIN = 1.0
"""Seconds between two resolutions, at least, when connections fail."""
CLOSE_TIMEOUT = 1.0
"""Seconds that closing waits for the last bytes to go out."""


class _Slot:
    """One endpoint: its connection, or the way to one."""

    __slots__ = ("connection", "endpoint", "failures", "reason", "task", "timer")

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.connection: Connection | None = None
        self.task: asyncio.Task[None] | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.failures = 0
        self.reason = ""

    def stop(self) -> None:
        if self.task is not None:
            self.task.cancel()
        if self.timer is not None:
            self.timer.cancel()


class Pool:
    """The connections to a set of addresses; nothing is resolved or connected before the first call.

    Args:
        addresses: ``host:port``, each an IP address or a name that may stand for several.
        tls: TLS context, or None for plain text.

    Raises:
        ValueError: An address is not ``host:port``.
    """

    def __init__(self, addresses: Sequence[str], tls: ssl.SSLContext | None = None) -> None:
        self.addresses = tuple(addresses)
        for address in self.addresses:
            resolver.split(address)
        self.ready: list[Connection] = []
        self._static = all(map(resolver.is_static, self.addresses))
        self._tls = tls
        self._slots: dict[Endpoint, _Slot] = {}
        self._connections: dict[Connection, _Slot] = {}
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._resolving: asyncio.Task[None] | None = None
        self._resolved = float("-inf")
        self._trouble = ""
        self._timer: asyncio.TimerHandle | None = None
        self._patience: asyncio.TimerHandle | None = None
        self._gone: asyncio.Future[None] | None = None
        self._closed = False

    def __str__(self) -> str:
        return ", ".join(self.addresses)

    def pick(self) -> Connection | None:
        """Return a connection with room, at once, or None; calls that wait already come first."""
        return None if self._waiting else balancer.pick(self.ready, random.randrange)

    async def acquire(self, call: Call) -> Connection:
        """Return a connection with room, waiting for one up to the call's deadline.

        Raises:
            Unavailable: Every endpoint has failed and the call does not want to wait for ready.
            DeadlineExceeded: The deadline passed first.
        """
        try:
            async with asyncio.timeout_at(call.deadline) as limit:
                return await self._acquire(wait_for_ready=call.wait_for_ready)
        except TimeoutError:
            if not limit.expired():
                raise
            text = "the deadline passed while the call waited for a connection to the service"
            raise DeadlineExceeded(text).at(self._state()) from None

    async def _acquire(self, *, wait_for_ready: bool) -> Connection:
        first = True
        while True:
            if self._closed:
                raise Unavailable("the channel to the service is closed").at(str(self))
            if not (first and self._waiting):
                found = balancer.pick(self.ready, random.randrange)
                if found is not None:
                    self._wake()  # there may be room for the next one as well
                    return found
            self._start()
            if not wait_for_ready and self._hopeless():
                raise Unavailable("the service cannot be reached now; try again later").at(self._state())
            place = asyncio.get_running_loop().create_future()
            if first:
                self._waiting.append(place)
            else:
                self._waiting.appendleft(place)
            first = False
            try:
                await place
            except asyncio.CancelledError:
                if place.done() and not place.cancelled():
                    self._wake()
                elif place in self._waiting:  # whoever wakes callers may have taken it out in the same turn of the loop
                    self._waiting.remove(place)
                raise

    def endpoint_of(self, connection: Connection) -> Endpoint:
        """Return where a connection that ``pick`` or ``acquire`` gave leads."""
        return self._connections[connection].endpoint

    async def close(self) -> None:
        """Close every connection; what runs on them fails with UNAVAILABLE."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        self._calm()
        if self._resolving is not None:
            self._resolving.cancel()
        for slot in self._slots.values():
            slot.stop()
        self._slots.clear()
        self._wake_all()
        connections = list(self._connections)
        for connection in connections:
            connection.close("the channel was closed")
        if self._connections:
            self._gone = asyncio.get_running_loop().create_future()
            try:
                async with asyncio.timeout(CLOSE_TIMEOUT):
                    await self._gone
            except TimeoutError:
                for connection in list(self._connections):
                    connection.abort("the channel was closed")

    # -- mesh.rpc.client.connection.Owner --

    def freed(self) -> None:
        """There may be room for a call that waits."""
        if self._waiting:
            self._wake()

    def draining(self, connection: Connection) -> None:
        """Give the connection no more calls, and connect anew."""
        if connection in self.ready:
            self.ready.remove(connection)
            self._replace(self._connections[connection], connection, "the server closed the connection")

    def lost(self, connection: Connection, reason: str) -> None:
        """Forget the connection, and connect anew unless that is under way."""
        if connection in self.ready:
            self.ready.remove(connection)
        slot = self._connections.pop(connection, None)
        if slot is not None:
            self._replace(slot, connection, reason)
        if self._gone is not None and not self._connections and not self._gone.done():
            self._gone.set_result(None)

    # -- connecting --

    def _start(self) -> None:
        """Resolve if that was never done, and connect what is idle."""
        if self._resolved == float("-inf") and self._resolving is None:
            self._resolve()
        for slot in self._slots.values():
            if slot.connection is None and slot.task is None and slot.timer is None:
                self._connect(slot)

    def _connect(self, slot: _Slot) -> None:
        slot.timer = None
        slot.task = asyncio.get_running_loop().create_task(self._connecting(slot), name=f"connect {slot.endpoint}")

    async def _connecting(self, slot: _Slot) -> None:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                connection = await connect(slot.endpoint, self, self._tls)
        except Exception as error:  # noqa: BLE001 - whatever it is, those who wait must hear of it
            slot.task = None
            self._failed(slot, _reason(error))
            return
        slot.task = None
        if connection.draining:  # it came and went in one turn of the loop
            self._failed(slot, "the server closed the connection")
            return
        slot.connection = connection
        self._connections[connection] = slot
        self.ready.append(connection)
        self._calm()
        self._wake()

    def _failed(self, slot: _Slot, reason: str) -> None:
        """Connect again after a while; tell those that wait when no endpoint is left to hope for."""
        slot.failures += 1
        slot.reason = f"{slot.endpoint}: {reason}"
        if self._slots.get(slot.endpoint) is not slot:
            return
        jitter = random.random()  # noqa: S311 - it spreads load and guards nothing
        cap = BACKOFF_CAP if self._patience is None else BACKOFF_PATIENT
        delay = balancer.backoff(slot.failures, jitter, base=BACKOFF_BASE, cap=cap)
        slot.timer = asyncio.get_running_loop().call_later(delay, self._connect, slot)
        if not self._static:
            self._resolve_again()
        if self._hopeless():
            self._wake_all()

    def _replace(self, slot: _Slot, connection: Connection, reason: str) -> None:
        if slot.connection is not connection:
            return
        slot.connection = None
        if self._slots.get(slot.endpoint) is not slot:
            return
        if not connection.answered:  # a server that takes connections and drops them is not to be stormed
            self._failed(slot, reason)
            return
        slot.failures = 0
        if not self.ready and self._patience is None and not self._closed:
            self._patience = asyncio.get_running_loop().call_later(PATIENCE, self._give_up)
        self._connect(slot)
        if not self._static:  # it may come back at another address, and connecting to the old one can take its time
            self._resolve_again()

    def _calm(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _give_up(self) -> None:
        self._patience = None
        if self._hopeless():
            self._wake_all()

    def _hopeless(self) -> bool:
        """Whether every endpoint has failed, none is being tried now, and calls are not asked for patience."""
        if self._resolving is not None or self._patience is not None:
            return False
        return all(slot.connection is None and slot.task is None for slot in self._slots.values())

    def _state(self) -> str:
        """What is wrong, for a message."""
        if self.ready:
            return f"{self}: every connection carries as many calls as the server allows"
        reasons = [self._trouble, *(slot.reason for slot in self._slots.values())]
        said = "; ".join(sorted({reason for reason in reasons if reason}))
        return said or f"{self}: it has not answered yet"

    # -- resolving --

    def _resolve(self) -> None:
        if self._resolving is None and not self._closed:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            self._resolving = asyncio.get_running_loop().create_task(self._resolve_all(), name=f"resolve {self}")

    def _resolve_again(self) -> None:
        if asyncio.get_running_loop().time() - self._resolved >= RESOLVE_AGAIN:
            self._resolve()

    async def _resolve_all(self) -> None:
        found, self._trouble = await resolver.resolve(self.addresses)
        loop = asyncio.get_running_loop()
        self._resolving = None
        self._resolved = loop.time()
        if not self._trouble:
            for gone in self._slots.keys() - found:
                slot = self._slots.pop(gone)
                slot.stop()
                if slot.connection is not None:
                    slot.connection.drain()
        for endpoint in sorted(found - self._slots.keys()):
            slot = self._slots[endpoint] = _Slot(endpoint)
            self._connect(slot)
        if not self._static:
            again = RESOLVE_EVERY if found else BACKOFF_CAP
            self._timer = loop.call_later(again if self._patience is None else RESOLVE_AGAIN, self._resolve)
        if self._hopeless():
            self._wake_all()

    # -- waiting --

    def _wake(self) -> None:
        """Let the first that wait look again, as many as there is room for."""
        room = sum(max(0, connection.room) for connection in self.ready)  # a lowered limit makes debts
        while room > 0 and self._waiting:
            place = self._waiting.popleft()
            if not place.done():
                place.set_result(None)
                room -= 1

    def _wake_all(self) -> None:
        while self._waiting:
            place = self._waiting.popleft()
            if not place.done():
                place.set_result(None)


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLError) or not isinstance(error, OSError):
        return str(error)
    if isinstance(error, TimeoutError) and not error.errno:
        return f"no answer within {CONNECT_TIMEOUT:g} s"
    if error.errno and error.errno > 0:
        return os.strerror(error.errno).lower()  # the text of asyncio names the call, not the trouble
    return str(error)
