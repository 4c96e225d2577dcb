"""Attempt: one of several executions of an outbound call, as the rest of the chain sees it.

Retries and hedging share it, and with it the budget and the pushback of the server.

Source: https://github.com/grpc/proposal/blob/master/A6-client-retries.md (throttling, pushback).
"""

from __future__ import annotations

from typing import Any

from google.rpc import error_details_pb2

from mesh.call import Call, Metadata
from mesh.errors import StatusError
from mesh.headers import ATTEMPTS, PUSHBACK, RETRY

__all__ = ["Attempt", "RetryBudget", "is_retry", "pushback"]

BUDGET_TOKENS = 1000.0
"""Tokens of a full budget, A6's largest. A killed server fails all its calls in progress at once, and that alone must
not use up the budget."""
TOKENS_PER_SUCCESS = 0.1
"""Tokens that a successful call gives back."""
_PUSHBACK_DIGITS = 15
"""Longest pushback that is read."""


class RetryBudget:
    """The retry budget of one service: a failure or a hedge takes a token, a success gives back a part of one.

    Further attempts stop while half or less of the tokens are left, so that a target which fails most calls does not
    get twice as many of them (A6, Throttling Retry Attempts and Hedged RPCs). A6 takes no token for a hedge. Here it
    takes one, so that a service which is only slow does not get all its calls twice either.
    """

    __slots__ = ("tokens",)

    def __init__(self) -> None:
        self.tokens = BUDGET_TOKENS

    @property
    def spent(self) -> bool:
        """Whether no further attempt is allowed now."""
        return self.tokens <= BUDGET_TOKENS / 2

    def success(self) -> None:
        """Count an attempt that did not fail with UNAVAILABLE."""
        self.tokens = min(BUDGET_TOKENS, self.tokens + TOKENS_PER_SUCCESS)

    def failure(self) -> None:
        """Count an attempt that failed with UNAVAILABLE, or a hedge that was sent."""
        self.tokens = max(0.0, self.tokens - 1.0)


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


def is_retry(call: Call) -> bool:
    """Whether a call is a retry, or was made on behalf of one. Stock clients say so by gRPC's own header."""
    fields = call.metadata.fields
    return RETRY in fields or ATTEMPTS in fields


class Attempt(Call):
    """One attempt of a call.

    Args:
        call: The call.
        number: Attempts before this one.
        tried: What those were sent to; the attempts of a call share the set.
    """

    __slots__ = ("compression", "tried", "wait_for_ready")

    def __init__(self, call: Call, number: int, tried: set[Any]) -> None:
        Call.__init__(self, call.method, call.metadata, call.deadline)  # super() would cost every call 80 ns
        self.identity = call.identity
        self.caller = call.caller
        self.wait_for_ready = call.wait_for_ready
        self.compression = call.compression
        self.deadline_enforced = call.deadline_enforced
        self.tried = tried
        if number:
            self.metadata = Metadata.from_wire([*call.metadata.pairs, (ATTEMPTS, b"%d" % number), (RETRY, b"1")])
