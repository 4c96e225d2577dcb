"""The retry layer: calls of methods that declare retry safety are tried again while that may help and is welcome.

Only UNAVAILABLE, only ``idempotency_level`` methods, only while nothing of the answer has been given to the caller and
the request can be sent again; with exponential backoff and jitter, within the deadline left and a budget that a failing
target soon uses up. Calls that no server ever processed are not its business: the target sends those again by itself.

Source: https://github.com/grpc/proposal/blob/master/A6-client-retries.md (backoff, throttling, pushback).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from google.rpc import error_details_pb2

from mesh.call import Call, Metadata
from mesh.errors import Code, StatusError

if TYPE_CHECKING:
    from mesh.call import Handler, Layer

__all__ = ["Budget", "Policy", "decide", "pushback", "retry"]

PUSHBACK = b"grpc-retry-pushback-ms"
_DIGITS = 15
"""Of a pushback; what is longer is no time."""
ATTEMPTS = b"grpc-previous-rpc-attempts"


@dataclass(frozen=True, slots=True)
class Policy:
    """How often and how soon.

    Attributes:
        attempts: Tries in all, the first included.
        base: Seconds of the first wait, before jitter.
        factor: How much longer each further wait is.
        cap: The longest wait.
    """

    attempts: int = 4
    base: float = 0.05
    factor: float = 2.0
    cap: float = 1.0


class Budget:
    """The retry budget of one service: failures spend a token, successes earn a part of one.

    Retries stop while half or less of the tokens are left, so that a target which fails most calls is not asked twice
    as often for it (A6, Throttling Retry Attempts and Hedged RPCs).

    One server that is killed fails at once all that it carried; the budget is A6's largest, so that this alone does not
    use it up.

    Args:
        tokens: The most that it holds, and what it begins with.
        earned: What a success adds.
    """

    __slots__ = ("earned", "left", "tokens")

    def __init__(self, tokens: float = 1000.0, earned: float = 0.1) -> None:
        self.tokens = tokens
        self.earned = earned
        self.left = tokens

    @property
    def spent(self) -> bool:
        """Whether no retry is welcome now."""
        return self.left <= self.tokens / 2

    def success(self) -> None:
        """Note a call that did not fail."""
        self.left = min(self.tokens, self.left + self.earned)

    def failure(self) -> None:
        """Note a try that failed in a way that would be retried."""
        self.left = max(0.0, self.left - 1.0)


def decide(
    policy: Policy,
    *,
    code: int,
    tries: int,
    replayable: bool,
    budget_spent: bool,
    told: float | None,
    remaining: float | None,
    chance: float,
) -> float | None:
    """Return the seconds to wait before the next try, or None if there is to be none. Pure.

    Args:
        policy: How often and how soon.
        code: How the last try ended.
        tries: Tries so far, at least 1.
        replayable: The request can be sent again, and nothing of the answer has been given to the caller.
        budget_spent: The target fails too much to be asked again.
        told: Seconds that the server said to wait, negative if it said not to try again, None if it said nothing.
        remaining: Seconds until the deadline, or None without one.
        chance: A random number of 0 … 1.
    """
    if code != Code.UNAVAILABLE or tries >= policy.attempts or not replayable or budget_spent:
        return None
    if told is not None:
        wait = told
        if wait < 0:
            return None
    else:
        wait = min(policy.base * policy.factor ** (tries - 1), policy.cap) * (0.8 + 0.4 * chance)
    if remaining is not None and wait >= remaining:
        return None
    return wait


def pushback(error: StatusError, trailers: list[tuple[bytes, bytes]]) -> float | None:
    """Return the seconds that the server asks to wait, negative for "do not try again", None if it said nothing.

    ``grpc-retry-pushback-ms`` in the trailers, or a ``google.rpc.RetryInfo`` detail. A pushback that is not a number
    means "do not" (A6, Pushback).
    """
    for name, value in trailers:
        if name == PUSHBACK:
            digits = value.removeprefix(b"-")
            return int(value) / 1000 if digits.isdigit() and len(digits) <= _DIGITS else -1.0
    for detail in error.details:
        if isinstance(detail, error_details_pb2.RetryInfo):
            return float(detail.retry_delay.ToNanoseconds()) / 1e9
    return None


class _Request:
    """The request of a call, kept for another try."""

    __slots__ = ("call", "message", "streamed")

    def __init__(self, call: Call) -> None:
        self.call = call
        self.message: bytes | None = None
        self.streamed = False


class _Try(Call):
    """One try of a call: what it answers reaches the caller, what it fails with may not."""

    __slots__ = ("_request", "_taken", "begun", "compression", "wait_for_ready")

    def __init__(self, request: _Request, tries: int) -> None:
        call = request.call
        super().__init__(call.method, call.metadata, call.deadline)
        self.identity = call.identity
        self.caller = call.caller
        self.wait_for_ready = call.wait_for_ready
        self.compression = call.compression
        self.deadline_enforced = call.deadline_enforced
        self._request = request
        self._taken = False
        self.begun = False
        if tries:
            self.metadata = Metadata.from_wire([*call.metadata.pairs, (ATTEMPTS, b"%d" % tries)])

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
        if not self.begun:
            self._begin()
        await self._request.call.send(message)

    async def send_headers(self) -> None:
        self._begin()
        await self._request.call.send_headers()

    def _begin(self) -> None:
        self.begun = True
        self.headers_sent = True
        self._request.call.headers += self.headers

    def conclude(self) -> None:
        """Give the caller what came beside the messages."""
        call = self._request.call
        if not self.begun and not call.headers_sent:
            call.headers += self.headers
        call.trailers += self.trailers


def retry(policy: Policy | None = None, chance: Callable[[], float] = random.random) -> Layer:
    """Return a retry layer. It keeps a budget for each service that it calls.

    Args:
        policy: How often and how soon.
        chance: Random numbers of 0 … 1, for the jitter.
    """
    policy = policy or Policy()
    budgets: dict[str, Budget] = {}

    def layer(call: Call, next: Handler) -> Awaitable[None]:
        return tried(call, next) if call.method.idempotent else next(call)

    async def tried(call: Call, next: Handler) -> None:
        budget = budgets.get(call.method.service)
        if budget is None:
            budget = budgets[call.method.service] = Budget()
        request = _Request(call)
        tries = 0
        while True:
            attempt = _Try(request, tries)
            tries += 1
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
                wait = decide(
                    policy,
                    code=error.code,
                    tries=tries,
                    replayable=not attempt.begun and not request.streamed,
                    budget_spent=budget.spent,
                    told=pushback(error, attempt.trailers),
                    remaining=call.remaining(),
                    chance=chance(),
                )
                if wait is None:
                    attempt.conclude()
                    raise
            else:
                budget.success()
                attempt.conclude()
                return
            await asyncio.sleep(wait)

    return layer
