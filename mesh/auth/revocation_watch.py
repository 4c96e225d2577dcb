"""Watch of an issuer's revocations: keeps one call of its login service open, and calls again when that ends.

The contract is protos/meshapi/v1/revocations.proto. Revocations are only ever added. What was received before a
connection broke stays in force, and the next snapshot brings what was missed.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable
from time import monotonic
from typing import Any, Final

from mesh.auth.revocations import Revocation, Revocations
from mesh.errors import RemoteError

__all__ = ["RevocationWatch"]

log = logging.getLogger("mesh.auth")

SILENCE_TIMEOUT = 5.0
"""Seconds without a message after which a call is taken for lost."""
STALE_DELAY = 10.0
"""Seconds after the last message from which on the revocations count as out of date."""
FIRST_TIMEOUT = 2.0
"""Seconds after the start for which tokens wait for the first revocations."""
MIN_RETRY_DELAY, MAX_RETRY_DELAY = 0.05, 1.0
"""Seconds between two calls. The delay doubles from the one to the other."""
FORGET_INTERVAL = 60.0
"""Seconds between two removals of revocations whose tokens have expired."""


class RevocationWatch:
    """Receives the revocations of one issuer.

    Args:
        issuer: Its name, for log and metric.
        revocations: Where they are added.
        subject: The claim with the user's subject.
        call: Calls the method of the login service; returns the messages of the stream.
        closed: Whether no token is accepted while the revocations are out of date.
        stale_delay: Seconds after the last message from which on they are.

    Attributes:
        MESSAGE: Full name of the messages.
        issuer: The issuer's name.
    """

    MESSAGE: Final = "meshapi.v1.RevocationUpdate"

    def __init__(
        self,
        issuer: str,
        revocations: Revocations,
        *,
        subject: str,
        call: Callable[[], AsyncIterator[Any]],
        closed: bool,
        stale_delay: float = STALE_DELAY,
    ) -> None:
        self.issuer = issuer
        self._revocations = revocations
        self._claims = {"session": "sid", "subject": subject, "token_id": "jti"}
        self._call = call
        self._closed = closed
        self._stale_delay = stale_delay
        self._current_at = monotonic()
        self._forgot_at = monotonic()
        self._stale = False
        self._error: BaseException | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._retry_delay = MIN_RETRY_DELAY
        revocations.first.clear()
        if closed:
            revocations.suspend(unavailable=True)

    @property
    def age(self) -> float:
        """Seconds since the revocations were last known to be complete; since the start if they never were."""
        return monotonic() - self._current_at

    async def run(self) -> None:
        """Watch until the task is cancelled."""
        loop = asyncio.get_running_loop()
        first = loop.call_later(min(FIRST_TIMEOUT, self._stale_delay), self._revocations.first.set)
        self._rearm()
        try:
            while True:
                try:
                    await self._receive()
                except Exception as error:  # noqa: BLE001 - whatever it is, the next call may succeed
                    self._error = error
                    log.debug("the revocations of %s are watched again: %s", self.issuer, error)
                await asyncio.sleep(self._retry_delay * random.uniform(0.5, 1.0))  # noqa: S311 - not for secrets
                self._retry_delay = min(2 * self._retry_delay, MAX_RETRY_DELAY)
        finally:
            first.cancel()
            if self._timer is not None:
                self._timer.cancel()

    async def _receive(self) -> None:
        """Make one call and add what it sends, until it ends or fails."""
        complete = False
        messages = aiter(self._call())
        while True:
            async with asyncio.timeout(SILENCE_TIMEOUT):
                try:
                    message = await anext(messages)
                except StopAsyncIteration:
                    return
            if message.HasField("revocation"):
                self._add(message.revocation)
            complete = complete or message.HasField("snapshot_end")
            if complete:
                self._is_current()

    def _add(self, message: Any) -> None:
        kind = message.WhichOneof("tokens")
        if kind is None:  # a kind that is newer than this code
            log.warning("a revocation of %s names nothing that is known here", self.issuer)
            return
        not_before = message.not_before.ToNanoseconds() / 1e9 if message.HasField("not_before") else float("inf")
        forget_at = message.forget_at.ToNanoseconds() / 1e9 if message.HasField("forget_at") else float("inf")
        self._revocations.add(Revocation(self._claims[kind], getattr(message, kind), not_before, forget_at))

    def _is_current(self) -> None:
        self._current_at = now = monotonic()
        self._error = None
        self._retry_delay = MIN_RETRY_DELAY
        self._rearm()
        if self._stale:
            self._stale = False
            log.info("the revocations of %s arrive again", self.issuer)
        if self._revocations.unavailable:
            self._revocations.suspend(unavailable=False)
        self._revocations.first.set()
        if now - self._forgot_at >= FORGET_INTERVAL:
            self._forgot_at = now
            self._revocations.forget()

    def _rearm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(self._stale_delay, self._become_stale)

    def _become_stale(self) -> None:
        self._stale = True
        effect = "no token of this issuer is accepted" if self._closed else "tokens are accepted that may be revoked"
        text = "no revocations of %s have arrived for %.0f s: %s%s"
        log.warning(text, self.issuer, self.age, effect, _cause(self._error))
        if self._closed:
            self._revocations.suspend(unavailable=True)


def _cause(error: BaseException | None) -> str:
    """Return the failure of the last call, for the log; empty if it did not fail."""
    if error is None:
        return ""
    if isinstance(error, TimeoutError):
        return f"; the last call sent nothing for {SILENCE_TIMEOUT:.0f} s"
    return f"; the last call failed: {str(error.status) if isinstance(error, RemoteError) else repr(error)}"
