"""Retry layer: repeats failed calls of methods that declare retry safety, with backoff and a budget.

A call is retried if its status is UNAVAILABLE, its method has an ``idempotency_level``, the caller has received nothing
of the response, and the request can be sent again. It goes to another endpoint if there is one. The delay is
exponential with jitter and ends before the deadline. A budget stops retries to a target that fails most calls. Calls
that no server has processed are not handled here: the transport sends those again by itself. Methods with ``hedge`` are
hedged in place of retries (``mesh.rpc.client.hedging``).

Only one level of a chain of calls retries, so that attempts do not multiply:

- A level that has retried in vain asks its callers not to (``mesh.headers.NO_RETRY``). ``mesh.layers.recover`` passes
  this on.
- Calls that a retry leads to are not retried here, and say so further down (``mesh.headers.RETRY``). This limits the
  attempts even where functions replace the failures of their calls by their own.

Sources: https://github.com/grpc/proposal/blob/master/A6-client-retries.md (backoff, throttling, pushback); B. Beyer et
al., "Site Reliability Engineering", 2016, chapter 21 (retries at one level).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mesh.call import Call, current
from mesh.errors import Code, StatusError, is_own
from mesh.headers import NO_RETRY, RETRY
from mesh.rpc.client import client_metrics
from mesh.rpc.client.attempt import Attempt, RetryBudget, is_retry, pushback
from mesh.rpc.client.hedging import hedged

if TYPE_CHECKING:
    from mesh.call import Handler, Layer

__all__ = ["RetryPolicy", "decide", "retry"]

BACKOFF_FACTOR = 2.0
"""Growth of the delay from one retry to the next."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Number of attempts and the delays between them.

    Attributes:
        max_attempts: Attempts in all, the first included.
        base_delay: Seconds before the first retry, before jitter.
        max_delay: Longest delay in seconds, before jitter.
    """

    max_attempts: int = 4
    base_delay: float = 0.05
    max_delay: float = 1.0


def decide(
    policy: RetryPolicy,
    *,
    code: int,
    attempts: int,
    replayable: bool,
    budget_spent: bool,
    pushback_delay: float | None,
    remaining: float | None,
    chance: float,
) -> float | None:
    """Return the seconds to wait before the next attempt, or None if there is to be none. Pure.

    Args:
        policy: Number of attempts and delays.
        code: Status code of the last attempt.
        attempts: Attempts so far, at least 1.
        replayable: The request can be sent again, and the caller has received nothing of the response.
        budget_spent: The retry budget allows no retry now.
        pushback_delay: Seconds that the server asks to wait, negative for no retry, None if it did not say.
        remaining: Seconds until the deadline, or None without one.
        chance: A random number of 0 … 1.
    """
    if code != Code.UNAVAILABLE or attempts >= policy.max_attempts or not replayable or budget_spent:
        return None
    if pushback_delay is not None:
        delay = pushback_delay
        if delay < 0:
            return None
    else:
        backoff = min(policy.base_delay * BACKOFF_FACTOR ** (attempts - 1), policy.max_delay)
        delay = backoff * (0.8 + 0.4 * chance)
    if remaining is not None and delay >= remaining:
        return None
    return delay


class _ReplayableRequest:
    """The request of a call, kept for another attempt.

    Attributes:
        call: The call.
        message: The request message of a method that does not stream requests, once it was read.
        streamed: A request stream has been read, so there can be no other attempt.
    """

    __slots__ = ("call", "message", "streamed")

    def __init__(self, call: Call) -> None:
        self.call = call
        self.message: bytes | None = None
        self.streamed = False


class _Attempt(Attempt):
    """One attempt of a call. Its response goes to the caller; its failure does so only if it is the last attempt.

    Attributes:
        responded: The caller has received a part of the response.
    """

    __slots__ = ("_request", "_taken", "responded")

    def __init__(self, request: _ReplayableRequest, number: int, tried: set[Any]) -> None:
        Attempt.__init__(self, request.call, number, tried)  # super() would cost every call 80 ns
        self._request = request
        self._taken = False
        self.responded = False

    async def receive_one(self) -> bytes:
        request = self._request
        if request.message is None:
            request.message = await request.call.receive_one()
        return request.message

    async def receive(self) -> bytes | None:
        if self.method.client_streaming:
            self._request.streamed = True
            return await self._request.call.receive()
        if self._taken:
            return None
        self._taken = True
        return await self.receive_one()

    async def send(self, message: bytes) -> None:
        if not self.responded:
            self._begin_response()
        await self._request.call.send(message)

    async def send_headers(self) -> None:
        self._begin_response()
        await self._request.call.send_headers()

    def _begin_response(self) -> None:
        self.responded = True
        self.headers_sent = True
        self._request.call.headers += self.headers

    def ask_for_no_retry(self) -> None:
        """Add the trailer that asks the callers further up for no retry of their own, unless the server did so."""
        if NO_RETRY not in self.trailers:
            self.trailers.append(NO_RETRY)

    def conclude(self) -> None:
        """Give the caller the response metadata of the last attempt."""
        call = self._request.call
        if not self.responded and not call.headers_sent:
            call.headers += self.headers
        call.trailers += self.trailers


def retry(policy: RetryPolicy | None = None) -> Layer:
    """Return a retry layer. It keeps a budget for each service that it calls.

    Args:
        policy: Number of attempts and delays.
    """
    policy = policy or RetryPolicy()
    budgets: dict[str, RetryBudget] = {}

    def layer(call: Call, next: Handler) -> Awaitable[None]:
        inbound = current.get()
        if inbound is not None and is_retry(inbound):
            call.metadata.append(RETRY, b"1")
            return next(call)
        method = call.method
        if not method.idempotent:
            return next(call)
        budget = budgets.get(method.service)
        if budget is None:
            budget = budgets[method.service] = RetryBudget()
        if method.hedge is not None and not is_retry(call):
            return hedged(call, next, method.hedge, budget)
        return _with_retries(call, next, policy, budget)

    return layer


async def _with_retries(call: Call, next: Handler, policy: RetryPolicy, budget: RetryBudget) -> None:
    request = _ReplayableRequest(call)
    tried: set[Any] = set()
    attempts = 0
    while True:
        attempt = _Attempt(request, attempts, tried)
        attempts += 1
        try:
            try:
                await next(attempt)
            finally:
                call.peer = attempt.peer
        except StatusError as error:
            if not is_own(error):  # of another call, which made the requests of this one
                raise
            if error.code == Code.UNAVAILABLE:
                budget.failure()
            else:
                budget.success()
            replayable = not attempt.responded and not request.streamed and not is_retry(call)
            delay = decide(
                policy,
                code=error.code,
                attempts=attempts,
                replayable=replayable,
                budget_spent=budget.spent,
                pushback_delay=pushback(error, attempt.trailers),
                remaining=call.remaining(),
                chance=random.random(),  # noqa: S311 - jitter, no secret
            )
            if delay is None:
                if error.code == Code.UNAVAILABLE and (attempts > 1 or (budget.spent and replayable)):
                    attempt.ask_for_no_retry()
                attempt.conclude()
                raise
        else:
            budget.success()
            attempt.conclude()
            return
        await asyncio.sleep(delay)
        client_metrics.RETRIES.add(1, {"rpc.method": call.method.path.lstrip("/")})
