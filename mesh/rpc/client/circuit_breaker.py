"""Circuit breaker of a target: refuses calls while the target answers nothing, and lets single calls probe it.

It opens when the target has answered no call for ``OPEN_DELAY``, although many were sent, and the failures are not
those of one method:

- ``MIN_FAILURES`` calls were lost with their connections, or
- ``MIN_FAILURES`` calls of at least two methods ended with UNAVAILABLE or without a response within their deadlines, or
- no address responds to health checks (``mesh.rpc.client.outlier_ejection``).

Each response closes it, also an error of a function. One slow method therefore never opens it. Calls that wait for a
connection do not count: a server that restarts is waited for (``mesh.rpc.client.connection_pool``).

Source: M. Nygard, "Release It!", 2007, Circuit Breaker.
"""

from __future__ import annotations

import asyncio
import logging
import time
from math import ceil, inf
from time import monotonic
from typing import TYPE_CHECKING

from mesh.errors import Code, StatusError, Unavailable
from mesh.headers import NO_RETRY
from mesh.rpc.client import client_metrics

if TYPE_CHECKING:
    from mesh.call import Call

__all__ = ["CircuitBreaker"]

log = logging.getLogger("mesh.rpc.client")

MIN_FAILURES = 10
"""Failures without a response between them that open the breaker."""
OPEN_DELAY = 3.0
"""Seconds from the first to the last of them, at least. A crash fails all calls in progress at one instant."""
UNRESPONSIVE_TIMEOUT = 5.0
"""Seconds without a response to a health check after which the breaker opens."""
MAX_FAILURE_INTERVAL = 10.0
"""Seconds between two failures after which the counts start again."""
PROBE_BASE_DELAY = 1.0
PROBE_MAX_DELAY = 10.0
"""Seconds between two probes: the first, doubled by each, at most."""


class _Streak:
    """Failures without a response between them.

    Attributes:
        count: Number of failures.
        first: Time of the first one.
        last: Time of the last one.
        methods: Paths of the methods.
    """

    __slots__ = ("count", "first", "last", "methods")

    def __init__(self) -> None:
        self.count = 0
        self.first = self.last = 0.0
        self.methods: set[str] = set()

    def add(self, path: str, now: float) -> None:
        if now - self.last > MAX_FAILURE_INTERVAL:
            self.__init__()  # type: ignore[misc]
        if not self.count:
            self.first = now
        self.count += 1
        self.last = now
        self.methods.add(path)

    @property
    def is_long(self) -> bool:
        return self.count >= MIN_FAILURES and self.last - self.first >= OPEN_DELAY


class CircuitBreaker:
    """Circuit breaker of one target.

    Args:
        name: The service, for messages, logs and metrics.

    Attributes:
        is_open: Whether calls are refused.
        has_failures: Whether a call has failed since the last response.
    """

    def __init__(self, name: str = "") -> None:
        self.is_open = False
        self.has_failures = False
        self._name = name
        self._lost = _Streak()
        self._unanswered = _Streak()
        self._failing_since = 0.0
        self._last_error = ""
        self._probe_at = 0.0
        self._probe_delay = PROBE_BASE_DELAY
        self._changed: asyncio.Event | None = None
        client_metrics.observe_breaker(self, name)

    def answered(self) -> None:
        """Count a response: close the breaker, and forget the failures. To be called while ``has_failures``."""
        self.has_failures = False
        self._lost, self._unanswered = _Streak(), _Streak()
        self._failing_since = 0.0
        if self.is_open:
            self.is_open = False
            log.info("%s answers again; its circuit breaker is closed", self._name or "a service")
            self._wake()

    def failed(self, call: Call, error: StatusError) -> None:
        """Count a call that was sent and got no response, or UNAVAILABLE.

        Args:
            call: The call.
            error: Its failure.
        """
        now = monotonic()
        path = call.method.path
        lost = bool(error.where) and error.code is Code.UNAVAILABLE  # with its connection: the service said nothing
        self.has_failures = True
        self._last_error = f"{error.code.name}: {error.message}" if error.message else error.code.name
        (self._lost if lost else self._unanswered).add(path, now)
        self._failing_since = self._failing_since or now
        if not self.is_open and (
            self._lost.is_long or (self._unanswered.is_long and len(self._unanswered.methods) > 1)
        ):
            self._open(now)

    def unresponsive(self, since: float) -> None:
        """Handle that no address responds to health checks.

        Args:
            since: Time of the first health check without a response.
        """
        now = monotonic()
        if not self.is_open and now - since >= UNRESPONSIVE_TIMEOUT:
            self.has_failures = True
            self._failing_since = min(self._failing_since or since, since)
            self._last_error = self._last_error or "no response to health checks"
            self._open(now)

    def retry_now(self) -> None:
        """Let the next call through: a server has connected, or responds to health checks again."""
        if self.is_open:
            self._probe_at = 0.0
            self._probe_delay = PROBE_BASE_DELAY
            self._wake()

    async def admit(self, call: Call) -> None:
        """Return when the call may be sent. To be called while ``is_open``.

        Raises:
            Unavailable: The breaker is open, and the call does not want to wait for ready.
            DeadlineExceeded: The deadline passed first.
        """
        while self.is_open:
            now = monotonic()
            if now >= self._probe_at:
                self._probe_at = now + self._probe_delay
                self._probe_delay = min(2 * self._probe_delay, PROBE_MAX_DELAY)
                return
            if not call.wait_for_ready:
                client_metrics.REFUSALS.add(1, {client_metrics.TARGET: self._name})
                call.trailers.append(NO_RETRY)
                raise self._refusal(now)
            if self._changed is None:
                self._changed = asyncio.Event()
            try:
                async with asyncio.timeout_at(min(self._probe_at, inf if call.deadline is None else call.deadline)):
                    await self._changed.wait()
            except TimeoutError:
                call.check_deadline()

    # -- internal --

    def _open(self, now: float) -> None:
        self.is_open = True
        self._probe_delay = PROBE_BASE_DELAY
        self._probe_at = now + self._probe_delay
        log.warning(
            "%s has answered no call for %.1f s; its circuit breaker is open, and calls are refused. Last error: %s",
            self._name or "a service", now - self._failing_since, self._last_error,
        )  # fmt: skip

    def _refusal(self, now: float) -> StatusError:
        seconds = now - self._failing_since
        since = time.strftime("%H:%M:%S UTC", time.gmtime(time.time() - seconds))
        wait = max(1, ceil(self._probe_at - now))
        return Unavailable(
            f"{self._name or 'the service'} has answered no call since {since} ({seconds:.0f} s); the last one failed "
            f"with {self._last_error}; try again in {wait} s",
            retry_after=wait,
        ).at("circuit breaker")

    def _wake(self) -> None:
        if self._changed is not None:
            self._changed.set()
            self._changed = None
