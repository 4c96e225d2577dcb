"""Retry layer: repeats failed calls of methods that declare retry safety, with backoff and a budget.

A call is retried if its status is UNAVAILABLE, its method has an ``idempotency_level``, the caller has received nothing
of the response, and the request can be sent again. The delay is exponential with jitter and ends before the deadline. A
budget stops retries to a target that fails most calls. Calls that no server has processed are not handled here: the
transport sends those again by itself.

Source: https://github.com/grpc/proposal/blob/master/A6-client-retries.md (backoff, throttling, pushback).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from google.rpc import error_details_pb2

from mesh.call import Call, Metadata
from mesh.errors import Code, StatusError

if TYPE_CHECKING:
    from mesh.call import Handler, Layer

__all__ = ["RetryBudget", "RetryPolicy", "decide", "pushback", "retry"]

PUSHBACK = b"grpc-retry-pushback-ms"
_PUSHBACK_DIGITS = 15
"""Longest pushback that is read."""
ATTEMPTS = b"grpc-previous-rpc-attempts"

BACKOFF_FACTOR = 2.0
"""Growth of the delay from one retry to the next."""
BUDGET_TOKENS = 1000.0
"""Tokens of a full budget, A6's largest. A killed server fails all its calls in progress at once, and that alone must
not use up the budget."""
TOKENS_PER_SUCCESS = 0.1
"""Tokens that a successful call gives back."""


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


class RetryBudget:
    """The retry budget of one service: a failure takes a token, a success gives back a part of one.

    Retries stop while half or less of the tokens are left, so that a target which fails most calls does not get twice
    as many of them (A6, Throttling Retry Attempts and Hedged RPCs).
    """

    __slots__ = ("tokens",)

    def __init__(self) -> None:
        self.tokens = BUDGET_TOKENS

    @property
    def spent(self) -> bool:
        """Whether no retry is allowed now."""
        return self.tokens <= BUDGET_TOKENS / 2

    def success(self) -> None:
        """Count an attempt that did not fail with UNAVAILABLE."""
        self.tokens = min(BUDGET_TOKENS, self.tokens + TOKENS_PER_SUCCESS)

    def failure(self) -> None:
        """Count an attempt that failed with UNAVAILABLE."""
        self.tokens = max(0.0, self.tokens - 1.0)


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


def pushback(error: StatusError, trailers: list[tuple[bytes, bytes]]) -> float | None:
    """Return the seconds that the server asks to wait, negative for "do not retry", None if it did not say.

    The server says it by ``grpc-retry-pushback-ms`` in the trailers or by a ``google.rpc.RetryInfo`` detail. A pushback
    that is not a number means "do not retry" (A6, Pushback).
    """
    for name, value in trailers:
        if name == PUSHBACK:
            digits = value.removeprefix(b"-")
            return int(value) / 1000 if digits.isdigit() and len(digits) <= _PUSHBACK_DIGITS else -1.0
    for detail in error.details:
        if isinstance(detail, error_details_pb2.RetryInfo):
            return float(detail.retry_delay.ToNanoseconds()) / 1e9
    return None


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


class _Attempt(Call):
    """One attempt of a call. Its response goes to the caller; its failure does so only if it is the last attempt.

    Attributes:
        responded: The caller has received a part of the response.
    """

    __slots__ = ("_request", "_taken", "compression", "responded", "wait_for_ready")

    def __init__(self, request: _ReplayableRequest, attempts: int) -> None:
        call = request.call
        super().__init__(call.method, call.metadata, call.deadline)
        self.identity = call.identity
        self.caller = call.caller
        self.wait_for_ready = call.wait_for_ready
        self.compression = call.compression
        self.deadline_enforced = call.deadline_enforced
        self._request = request
        self._taken = False
        self.responded = False
        if attempts:
            self.metadata = Metadata.from_wire([*call.metadata.pairs, (ATTEMPTS, b"%d" % attempts)])

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
        return with_retries(call, next) if call.method.idempotent else next(call)

    async def with_retries(call: Call, next: Handler) -> None:
        budget = budgets.get(call.method.service)
        if budget is None:
            budget = budgets[call.method.service] = RetryBudget()
        request = _ReplayableRequest(call)
        attempts = 0
        while True:
            attempt = _Attempt(request, attempts)
            attempts += 1
            try:
                try:
                    await next(attempt)
                finally:
                    call.peer = attempt.peer
            except StatusError as error:
                if error.code == Code.UNAVAILABLE:
                    budget.failure()
                else:
                    budget.success()
                delay = decide(
                    policy,
                    code=error.code,
                    attempts=attempts,
                    replayable=not attempt.responded and not request.streamed,
                    budget_spent=budget.spent,
                    pushback_delay=pushback(error, attempt.trailers),
                    remaining=call.remaining(),
                    chance=random.random(),  # noqa: S311 - jitter, no secret
                )
                if delay is None:
                    attempt.conclude()
                    raise
            else:
                budget.success()
                attempt.conclude()
                return
            await asyncio.sleep(delay)

    return layer
