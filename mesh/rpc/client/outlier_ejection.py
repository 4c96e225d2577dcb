"""Outlier ejection: takes endpoints that do not work out of the balancing, and brings them back.

- A connection with calls in progress that receives nothing for ``http2_connection.SILENCE_DELAY`` is silent. Its server
  gets a health check. Without a response it is *unresponsive*: frozen, blocked, or unreachable.
- A server that responds, but does not do its work, is an outlier by the outcomes of its calls
  (``mesh.rpc.client.endpoint_health``).

An ejected endpoint is checked again and again. Once it responds it is on trial: it gets one call at a time, and the
first outcome decides. Ejection is advice to the pool, which uses ejected endpoints if there are no others.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from time import monotonic
from typing import TYPE_CHECKING, Protocol

from mesh.rpc.client import client_metrics
from mesh.rpc.client.endpoint_health import ejection_allowed, ejection_delay, failing_method, outlier
from mesh.rpc.client.health_probe import PROBE_TIMEOUT, is_responsive

if TYPE_CHECKING:
    from mesh.headers import Headers
    from mesh.rpc.client.circuit_breaker import CircuitBreaker
    from mesh.rpc.client.endpoint_health import EndpointHealth
    from mesh.rpc.client.http2_connection import Connection
    from mesh.rpc.client.resolver import Endpoint

__all__ = ["Member", "OutlierEjection"]

log = logging.getLogger("mesh.rpc.client")

COMPARISON_INTERVAL = 5.0
"""Seconds between two comparisons of the endpoints."""
PROBE_MIN_INTERVAL = 0.5
"""Shortest interval in seconds between two health checks of an endpoint that is in service."""
PROBE_BASE_DELAY = 0.5
PROBE_MAX_DELAY = 5.0
"""Seconds between two health checks of an ejected endpoint: first, and at most."""
PROBE_DELAY_FACTOR = 1.6


class Member(Protocol):
    """An endpoint of the pool."""

    endpoint: Endpoint
    health: EndpointHealth
    connection: Connection | None


class _Ejection:
    """One ejection in progress: its beginning and reason, and the task that ends it."""

    __slots__ = ("began", "connected", "reason", "task")

    def __init__(self, began: float, reason: str) -> None:
        self.began = began
        self.reason = reason
        self.connected = asyncio.Event()
        self.task: asyncio.Task[None] | None = None


class OutlierEjection:
    """Ejections of the endpoints of one pool.

    Args:
        name: The service, for logs and metrics.
        members: Returns the endpoints of the pool.
        changed: Called after each ejection and each return.
        breaker: Learns that no endpoint responds, and that one does again.
        headers: Request headers of a health check.

    Attributes:
        comparing: There are several endpoints, so outcomes of calls are to be counted.
    """

    def __init__(
        self,
        name: str,
        members: Callable[[], Iterable[Member]],
        changed: Callable[[], None],
        breaker: CircuitBreaker,
        headers: Headers,
    ) -> None:
        self.comparing = False
        self._name = name
        self._members = members
        self._changed = changed
        self._breaker = breaker
        self._headers = headers
        self._ejections: dict[Member, _Ejection] = {}
        self._checks: dict[Member, asyncio.Task[None]] = {}
        self._checked_at: dict[Member, float] = {}
        self._closed = False
        self._timer: asyncio.TimerHandle | None = None
        client_metrics.observe_ejections(self, name)

    @property
    def ejected(self) -> int:
        """Number of ejected endpoints."""
        return len(self._ejections)

    # -- what happens to calls --

    def failed(self, health: EndpointHealth, path: str, seconds: float) -> None:
        """Count a call that failed (see ``endpoint_health``), and eject its endpoint if it is an outlier.

        Args:
            health: The endpoint.
            path: Path of the method.
            seconds: Duration of the call.
        """
        if not self.comparing:
            return
        now = monotonic()
        health.failed(path, seconds, now)
        if health.ejected:
            return
        if health.trial_began:
            if now - seconds >= health.trial_began:
                self._eject_member(health, "its trial call failed")
        elif failing_method(health, path, [each.health for each in self._serving(health)]):
            self._eject_member(health, f"it fails all calls of {path}, which other addresses answer")

    def trial_passed(self, health: EndpointHealth) -> None:
        """Return an endpoint to full service: a call on trial was answered."""
        health.trial_began = 0.0
        health.returned_at = monotonic()
        self._changed()

    # -- what happens to connections --

    def connected(self, member: Member) -> None:
        """Handle a new connection."""
        ejection = self._ejections.get(member)
        if ejection is not None:
            ejection.connected.set()
        elif not self._ejections:
            self._breaker.retry_now()
        self.comparing = len(list(self._members())) > 1
        if self._timer is None and self.comparing:
            self._timer = asyncio.get_running_loop().call_later(COMPARISON_INTERVAL, self._compare)

    def silent(self, member: Member) -> None:
        """Check the health of an endpoint that has calls in progress and sends nothing."""
        connection = member.connection
        if member.health.ejected or connection is None or connection.is_full or member in self._checks:
            return
        if monotonic() - self._checked_at.get(member, float("-inf")) < PROBE_MIN_INTERVAL:
            return
        loop = asyncio.get_running_loop()
        task = self._checks[member] = loop.create_task(self._check(member, connection), name=f"check {member.endpoint}")
        task.add_done_callback(lambda _: self._checks.pop(member, None))

    def removed(self, member: Member) -> None:
        """Forget an endpoint that is no longer one of the target's."""
        ejection = self._ejections.pop(member, None)
        if ejection is not None and ejection.task is not None:
            ejection.task.cancel()
        self._checked_at.pop(member, None)

    def close(self) -> None:
        """End all checks."""
        if self._timer is not None:
            self._timer.cancel()
        self._closed = True
        for task in list(self._checks.values()):
            task.cancel()
        for member in list(self._ejections):
            self.removed(member)

    # -- internal --

    def _serving(self, besides: EndpointHealth | None = None) -> list[Member]:
        """Return the endpoints that take calls, besides one."""
        return [
            each
            for each in self._members()
            if each.connection is not None
            and not each.connection.draining
            and not each.health.ejected
            and each.health is not besides
        ]

    async def _check(self, member: Member, connection: Connection) -> None:
        responsive = await is_responsive(connection, self._headers)
        self._checked_at[member] = monotonic()
        if not responsive and member.connection is connection and not member.health.ejected:
            self._eject(member, f"it did not respond to a health check within {PROBE_TIMEOUT:g} s", unresponsive=True)

    def _eject_member(self, health: EndpointHealth, reason: str) -> None:
        for member in self._members():
            if member.health is health:
                self._eject(member, reason, unresponsive=False)
                return

    def _eject(self, member: Member, reason: str, *, unresponsive: bool) -> None:
        if self._closed:
            return
        health = member.health
        others = self._serving(health)
        count = len(list(self._members()))
        if not unresponsive and not (others and ejection_allowed(count, len(self._ejections))):
            health.trial_began = 0.0
            self._changed()
            return
        ejection = self._ejections[member] = _Ejection(monotonic(), reason)
        health.ejected = True
        health.unresponsive = unresponsive
        health.trial_began = 0.0
        delay = PROBE_BASE_DELAY if unresponsive else ejection_delay(health.ejections)
        health.ejections += 1
        kind = "unresponsive" if unresponsive else "outlier"
        client_metrics.EJECTIONS.add(1, {client_metrics.TARGET: self._name, "mesh.reason": kind})
        log.warning(
            "%s at %s %s: %s", self._name or "a service", member.endpoint,
            f"gets no calls ({len(self._ejections)} of {count} addresses)" if others else "does not respond", reason,
        )  # fmt: skip
        if unresponsive and others and member.connection is not None:
            member.connection.fail_over()
        loop = asyncio.get_running_loop()
        ejection.task = loop.create_task(self._readmit(member, ejection, delay), name=f"readmit {member.endpoint}")
        self._changed()

    async def _readmit(self, member: Member, ejection: _Ejection, delay: float) -> None:
        """Wait until the endpoint responds, then put it on trial."""
        if not member.health.unresponsive:
            await asyncio.sleep(delay)
            delay = PROBE_BASE_DELAY
        while True:
            connection = member.connection
            if connection is not None and await is_responsive(connection, self._headers):
                break
            if member.health.unresponsive and not self._serving():
                self._breaker.unresponsive(ejection.began)
            try:
                async with asyncio.timeout(delay):
                    await ejection.connected.wait()
            except TimeoutError:
                delay = min(delay * PROBE_DELAY_FACTOR, PROBE_MAX_DELAY)
            ejection.connected.clear()
        log.info(
            "%s at %s gets calls again after %.1f s",
            self._name or "a service", member.endpoint, monotonic() - ejection.began,
        )  # fmt: skip
        del self._ejections[member]
        now = monotonic()
        member.health.ejected = member.health.unresponsive = False
        member.health.trial_began = member.health.returned_at = now
        self._breaker.retry_now()
        self._changed()

    def _compare(self) -> None:
        """Eject the outliers of the interval that ends, and start the next one."""
        serving = self._serving()
        found = [
            (each, outlier(each.health, [other.health for other in serving if other is not each])) for each in serving
        ]
        for member, reason in found:
            if reason:
                self._eject(member, reason, unresponsive=False)
        members = list(self._members())
        for member in members:
            if not member.health.ejected and member.health.ejections:
                member.health.ejections -= 1
            member.health.start_interval()
        self._timer = None
        self.comparing = len(members) > 1
        if self.comparing:
            self._timer = asyncio.get_running_loop().call_later(COMPARISON_INTERVAL, self._compare)
