"""Connection pool: the connections to one target. It resolves, connects, reconnects and picks.

It knows nothing of calls but their deadlines. A call waits here, up to its deadline, while every connection carries as
many streams as its server allows. A call that comes just after the last connection was lost waits as well, for
``RECONNECT_TIMEOUT``: it was never sent, and a server that restarts is back within seconds, perhaps at another address.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections import deque
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from mesh.errors import DeadlineExceeded, Unavailable
from mesh.rpc.client import balancer, resolver
from mesh.rpc.client.circuit_breaker import CircuitBreaker
from mesh.rpc.client.endpoint_health import EndpointHealth
from mesh.rpc.client.health_probe import probe_headers
from mesh.rpc.client.http2_connection import Connection, connect
from mesh.rpc.client.outlier_ejection import OutlierEjection
from mesh.rpc.client.resolver import Endpoint

if TYPE_CHECKING:
    from mesh.call import Call
    from mesh.rpc.client.service_tls import ServiceTls

__all__ = ["ConnectionPool"]

CONNECT_TIMEOUT = 20.0
"""Seconds for TCP, TLS and the server's SETTINGS together. A restarting server accepts connections long before it
sends its SETTINGS."""
BACKOFF_BASE_DELAY = 0.1
BACKOFF_MAX_DELAY = 5.0
"""Seconds between two attempts to connect to an endpoint: after the first failure, and at most."""
RECONNECT_TIMEOUT = 10.0
"""Seconds that calls wait, if their deadlines allow, for a target whose last connection was lost, before they fail with
UNAVAILABLE. A container that restarts is away for two to five seconds."""
RECONNECT_MAX_DELAY = 0.5
"""Longest delay in seconds between two attempts to connect during that time."""
RESOLVE_INTERVAL = 30.0
"""Seconds between two resolutions of a name."""
RESOLVE_MIN_INTERVAL = 1.0
"""Shortest interval in seconds between two resolutions, when connections fail."""
MAX_UNUSED = 3
"""Connections in a row that may be lost without a response on them before the next one waits for the backoff."""
CLOSE_TIMEOUT = 1.0
"""Seconds that closing waits for the last bytes to be sent."""


class _EndpointState:
    """State of one endpoint: connected, connecting, or waiting for the next attempt to connect.

    Attributes:
        endpoint: The endpoint.
        connection: Its connection, or None.
        health: Outcomes of its calls, and whether it is ejected.
        task: The attempt to connect that is in progress, or None.
        timer: The delay before the next attempt, or None.
        failures: Failed attempts in a row.
        unused: Connections in a row that were lost without a response on them.
        reason: The last failure, for error messages.
    """

    __slots__ = ("connection", "endpoint", "failures", "health", "reason", "task", "timer", "unused")

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.connection: Connection | None = None
        self.health = EndpointHealth()
        self.task: asyncio.Task[None] | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.failures = 0
        self.unused = 0
        self.reason = ""

    def stop(self) -> None:
        if self.task is not None:
            self.task.cancel()
        if self.timer is not None:
            self.timer.cancel()


class ConnectionPool:
    """The connections to a set of addresses. The first call starts resolving and connecting.

    Args:
        addresses: ``host:port``, each an IP address or a name that may resolve to several.
        tls: TLS to the service, or None for plain text.
        name: The service, for logs and metrics.
        breaker: The target's circuit breaker.

    Attributes:
        addresses: As given.
        ready: Connections that are picked from: those of the endpoints in service, or of all if none is.
        ejection: Ejects endpoints that do not work.

    Raises:
        ValueError: An address is not ``host:port``.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        tls: ServiceTls | None = None,
        *,
        name: str = "",
        breaker: CircuitBreaker | None = None,
    ) -> None:
        self.addresses = tuple(addresses)
        for address in self.addresses:
            resolver.split(address)
        self.ready: list[Connection] = []
        self._all_static = all(map(resolver.is_static, self.addresses))
        self._tls = tls
        self._endpoints: dict[Endpoint, _EndpointState] = {}
        self._connections: dict[Connection, _EndpointState] = {}
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._resolving: asyncio.Task[None] | None = None
        self._resolved_at = float("-inf")
        self._resolve_error = ""
        self._resolve_timer: asyncio.TimerHandle | None = None
        self._reconnect_timer: asyncio.TimerHandle | None = None
        self._all_closed: asyncio.Future[None] | None = None
        self._closed = False
        self.ejection = OutlierEjection(
            name,
            self._endpoints.values,
            self._update_ready,
            breaker or CircuitBreaker(name),
            probe_headers(self.addresses[0], secure=tls is not None) if self.addresses else [],
        )
        if tls is not None:
            tls.subscribe(self._renew)
        self._renewals = 0

    def __str__(self) -> str:
        return ", ".join(self.addresses)

    def pick(self, tried: Collection[EndpointHealth] | None = None) -> Connection | None:
        """Return a connection that takes a stream now, or None; calls that wait already come first.

        Args:
            tried: Endpoints that are picked only if there is no other, because earlier attempts went there.
        """
        if self._waiters:
            return None
        if tried:
            others = [connection for connection in self.ready if connection.health not in tried]
            found = balancer.pick(others, random.randrange)
            if found is not None:
                return found
        return balancer.pick(self.ready, random.randrange)

    async def acquire(self, call: Call) -> Connection:
        """Return a connection that takes a stream, waiting for one up to the call's deadline.

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
            raise DeadlineExceeded(text).at(self._failure_text()) from None

    async def _acquire(self, *, wait_for_ready: bool) -> Connection:
        first = True
        while True:
            if self._closed:
                raise Unavailable("the channel to the service is closed").at(str(self))
            if not (first and self._waiters):
                connection = balancer.pick(self.ready, random.randrange)
                if connection is not None:
                    self._wake()  # another stream may be free for the next one
                    return connection
            self._connect_idle()
            if not wait_for_ready and self._unreachable():
                raise Unavailable("the service cannot be reached now; try again later").at(self._failure_text())
            waiter = asyncio.get_running_loop().create_future()
            if first:
                self._waiters.append(waiter)
            else:
                self._waiters.appendleft(waiter)
            first = False
            try:
                await waiter
            except asyncio.CancelledError:
                if waiter.done() and not waiter.cancelled():
                    self._wake()
                elif waiter in self._waiters:  # _wake may have removed it in the same turn of the loop
                    self._waiters.remove(waiter)
                raise

    def check(self, health: EndpointHealth) -> None:
        """Check the health of an endpoint that sends nothing to the calls that it has."""
        for state in self._endpoints.values():
            if state.health is health:
                self.ejection.silent(state)

    def endpoint_of(self, connection: Connection) -> Endpoint:
        """Return the endpoint of a connection that ``pick`` or ``acquire`` returned."""
        return self._connections[connection].endpoint

    async def close(self) -> None:
        """Close every connection; calls in progress fail with UNAVAILABLE."""
        self._closed = True
        self.ejection.close()
        if self._resolve_timer is not None:
            self._resolve_timer.cancel()
        self._stop_reconnect_timer()
        if self._resolving is not None:
            self._resolving.cancel()
        for state in self._endpoints.values():
            state.stop()
        self._endpoints.clear()
        self._wake_all()
        connections = list(self._connections)
        for connection in connections:
            connection.close("the channel was closed")
        if self._connections:
            self._all_closed = asyncio.get_running_loop().create_future()
            try:
                async with asyncio.timeout(CLOSE_TIMEOUT):
                    await self._all_closed
            except TimeoutError:
                for connection in list(self._connections):
                    connection.abort("the channel was closed")

    # -- mesh.rpc.client.http2_connection.ConnectionOwner --

    def on_stream_available(self) -> None:
        """Wake a call that waits for a stream."""
        if self._waiters:
            self._wake()

    def on_draining(self, connection: Connection) -> None:
        """Give the connection no more calls, and replace it."""
        state = self._connections.get(connection)
        if state is not None and state.connection is connection:
            self._replace(state, connection, connection.close_reason)

    def on_lost(self, connection: Connection, reason: str) -> None:
        """Forget the connection, and replace it unless that is in progress."""
        state = self._connections.pop(connection, None)
        if state is not None:
            self._replace(state, connection, reason)
        if self._all_closed is not None and not self._connections and not self._all_closed.done():
            self._all_closed.set_result(None)

    def on_silent(self, connection: Connection) -> None:
        """Check the health of its server."""
        self.check(connection.health)

    # -- connecting --

    def _update_ready(self) -> None:
        """Set the connections to pick from."""
        connected = [
            (state.connection, state.health) for state in self._endpoints.values() if state.connection is not None
        ]
        serving = [(connection, health) for connection, health in connected if not health.ejected] or connected
        self.ready = [connection for connection, _ in serving]
        for connection, health in connected:
            on_trial = health.trial_began and not health.ejected and len(serving) > 1
            connection.limit_streams(1 if on_trial else None)
        self._wake()

    def _connect_idle(self) -> None:
        """Resolve if that was never done, and connect the endpoints that are idle."""
        if self._resolved_at == float("-inf") and self._resolving is None:
            self._resolve()
        for state in self._endpoints.values():
            if state.connection is None and state.task is None and state.timer is None:
                self._connect(state)

    def _connect(self, state: _EndpointState) -> None:
        if state.timer is not None:
            state.timer.cancel()
            state.timer = None
        if state.task is not None:  # of a renewal
            return
        loop = asyncio.get_running_loop()
        state.task = loop.create_task(self._connect_endpoint(state), name=f"connect {state.endpoint}")

    async def _connect_endpoint(self, state: _EndpointState) -> None:
        renewals = self._renewals
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                connection = await connect(state.endpoint, self, self._tls)
        except Exception as error:  # noqa: BLE001 - any failure must reach the calls that wait
            state.task = None
            self._reconnect_later(state, _reason(error))
            return
        state.task = None
        if connection.draining:  # it was opened and lost in one turn of the loop
            self._reconnect(state, connection, connection.close_reason)
            return
        previous, state.connection = state.connection, connection
        connection.health = state.health
        self._connections[connection] = state
        self._stop_reconnect_timer()
        self._update_ready()
        self.ejection.connected(state)
        if previous is not None:
            previous.drain()
        if renewals != self._renewals:  # meanwhile: this connection has the old certificates
            self._connect(state)

    def _renew(self) -> None:
        """Replace each connection by one with new certificates. The old one serves until the new one is ready."""
        if self._closed:
            return
        self._renewals += 1
        for state in self._endpoints.values():
            if state.task is None and state.timer is None:
                self._connect(state)

    def _reconnect_later(self, state: _EndpointState, reason: str) -> None:
        """Connect again after the backoff; fail the calls that wait if no endpoint is left."""
        state.failures += 1
        state.reason = f"{state.endpoint}: {reason}"
        if self._endpoints.get(state.endpoint) is not state:
            return
        jitter = random.random()  # noqa: S311 - it spreads load, no secret
        cap = BACKOFF_MAX_DELAY if self._reconnect_timer is None else RECONNECT_MAX_DELAY
        delay = balancer.backoff(state.failures, jitter, base=BACKOFF_BASE_DELAY, cap=cap)
        state.timer = asyncio.get_running_loop().call_later(delay, self._connect, state)
        if not self._all_static:
            self._resolve_again()
        if self._unreachable():
            self._wake_all()

    def _replace(self, state: _EndpointState, connection: Connection, reason: str) -> None:
        if state.connection is not connection:
            return
        state.connection = None
        self._update_ready()
        if self._endpoints.get(state.endpoint) is not state:
            return
        self._reconnect(state, connection, reason)

    def _reconnect(self, state: _EndpointState, connection: Connection, reason: str) -> None:
        """Connect again after a connection was lost. A server that drops every connection gets a backoff.

        Some may be lost unused: a server that changes its certificates closes those that it has.
        """
        state.unused = 0 if connection.has_responded else state.unused + 1
        if state.unused > MAX_UNUSED:
            self._reconnect_later(state, reason)
            return
        state.failures = 0
        if not self.ready and self._reconnect_timer is None and not self._closed:
            loop = asyncio.get_running_loop()
            self._reconnect_timer = loop.call_later(RECONNECT_TIMEOUT, self._reconnect_timed_out)
        self._connect(state)
        if not self._all_static:  # it may return at another address, and connecting to the old one can take long
            self._resolve_again()

    def _stop_reconnect_timer(self) -> None:
        if self._reconnect_timer is not None:
            self._reconnect_timer.cancel()
            self._reconnect_timer = None

    def _reconnect_timed_out(self) -> None:
        self._reconnect_timer = None
        if self._unreachable():
            self._wake_all()

    def _unreachable(self) -> bool:
        """Whether every endpoint has failed, no attempt is in progress, and the reconnect timeout does not run."""
        if self._resolving is not None or self._reconnect_timer is not None:
            return False
        return all(state.connection is None and state.task is None for state in self._endpoints.values())

    def _failure_text(self) -> str:
        """Return the reasons why there is no connection, for an error message."""
        if self.ready:
            return f"{self}: every connection carries as many calls as the server allows"
        reasons = [self._resolve_error, *(state.reason for state in self._endpoints.values())]
        text = "; ".join(sorted({reason for reason in reasons if reason}))
        return text or f"{self}: it has not responded yet"

    # -- resolving --

    def _resolve(self) -> None:
        if self._resolving is None and not self._closed:
            if self._resolve_timer is not None:
                self._resolve_timer.cancel()
                self._resolve_timer = None
            self._resolving = asyncio.get_running_loop().create_task(self._resolve_all(), name=f"resolve {self}")

    def _resolve_again(self) -> None:
        if asyncio.get_running_loop().time() - self._resolved_at >= RESOLVE_MIN_INTERVAL:
            self._resolve()

    async def _resolve_all(self) -> None:
        resolved, self._resolve_error = await resolver.resolve(self.addresses)
        loop = asyncio.get_running_loop()
        self._resolving = None
        self._resolved_at = loop.time()
        if not self._resolve_error:
            for removed in self._endpoints.keys() - resolved:
                state = self._endpoints.pop(removed)
                state.stop()
                self.ejection.removed(state)
                if state.connection is not None:
                    state.connection.drain()
        for endpoint in sorted(resolved - self._endpoints.keys()):
            state = self._endpoints[endpoint] = _EndpointState(endpoint)
            self._connect(state)
        if not self._all_static:
            interval = RESOLVE_INTERVAL if resolved else BACKOFF_MAX_DELAY
            if self._reconnect_timer is not None:
                interval = RESOLVE_MIN_INTERVAL
            self._resolve_timer = loop.call_later(interval, self._resolve)
        if self._unreachable():
            self._wake_all()

    # -- waiting calls --

    def _wake(self) -> None:
        """Wake as many calls that wait, oldest first, as streams are available."""
        available = sum(max(0, connection.available_streams) for connection in self.ready)  # negative: limit lowered
        while available > 0 and self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                available -= 1

    def _wake_all(self) -> None:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)


def _reason(error: Exception) -> str:
    if not isinstance(error, OSError):
        return str(error)
    if isinstance(error, TimeoutError) and not error.errno:
        return f"no response within {CONNECT_TIMEOUT:g} s"
    if error.errno and error.errno > 0:
        return os.strerror(error.errno).lower()  # asyncio's text names the function that failed, not the reason
    return str(error)
