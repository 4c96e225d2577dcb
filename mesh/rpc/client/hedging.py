"""Hedging: sends a call again before the first attempt has ended, and takes the first response.

A method asks for it in its contract (``hedge``), and must declare retry safety. Each attempt after the first goes to
another endpoint if there is one. After an attempt that fails with UNAVAILABLE the next one is sent at once. Every other
status is the response. The attempts that lose are cancelled. Hedging takes the place of retries.

Sources: https://github.com/grpc/proposal/blob/master/A6-client-retries.md (Hedging Policy); J. Dean, L. A. Barroso,
"The Tail at Scale", 2013.
"""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import TYPE_CHECKING, Any

from mesh.boundary import cancel_task
from mesh.errors import Code, StatusError
from mesh.headers import NO_RETRY
from mesh.rpc.client import client_metrics
from mesh.rpc.client.attempt import Attempt, RetryBudget, pushback

if TYPE_CHECKING:
    from mesh.call import Call, Handler
    from mesh.contract.model import Hedge

__all__ = ["hedged"]


async def hedged(call: Call, next: Handler, hedge: Hedge, budget: RetryBudget) -> None:
    """Answer the call by the first of several attempts that is answered.

    Args:
        call: A unary call.
        next: The rest of the chain.
        hedge: The method's policy.
        budget: The service's budget, which limits the attempts after the first.

    Raises:
        StatusError: The status of the first attempt that ended otherwise than with UNAVAILABLE, or of the last attempt.
    """
    attempts = _HedgedAttempts(call, next, hedge, budget, await call.receive_one())
    try:
        attempt, error = await attempts.run()
    finally:
        attempts.cancel()
    call.peer = attempt.peer
    if not call.headers_sent:
        call.headers += attempt.headers
    call.trailers += attempt.trailers
    if error is not None:
        raise error
    await call.send(attempt.response)


class _HedgedAttempt(Attempt):
    """One attempt: keeps its response.

    Attributes:
        message: The request.
        response: The response message.
    """

    __slots__ = ("message", "response")

    def __init__(self, call: Call, number: int, tried: set[Any], message: bytes) -> None:
        super().__init__(call, number, tried)
        self.message: bytes | None = message
        self.response = b""

    async def receive(self) -> bytes | None:
        message, self.message = self.message, None
        return message

    async def send(self, message: bytes) -> None:
        self.headers_sent = True
        self.response = message

    async def send_headers(self) -> None:
        self.headers_sent = True


class _HedgedAttempts:
    """The attempts of one call."""

    def __init__(self, call: Call, next: Handler, hedge: Hedge, budget: RetryBudget, message: bytes) -> None:
        self._call = call
        self._next = next
        self._hedge = hedge
        self._budget = budget
        self._message = message
        self._tried: set[Any] = set()
        self._sent = 0
        self._next_at: float | None = 0.0
        self._pending: dict[asyncio.Task[None], _HedgedAttempt] = {}

    async def run(self) -> tuple[_HedgedAttempt, StatusError | None]:
        """Return the attempt whose outcome is that of the call, and its failure."""
        self._send()
        while True:
            next_at = self._next_at if self._sent < self._hedge.max_attempts and not self._budget.spent else None
            delay = None if next_at is None else max(0.0, next_at - monotonic())
            ended, _ = await asyncio.wait(self._pending, timeout=delay, return_when=asyncio.FIRST_COMPLETED)
            if not ended:
                self._budget.failure()
                client_metrics.HEDGES.add(1, {"rpc.method": self._call.method.path.lstrip("/")})
                self._send()
            for task in ended:
                attempt = self._pending.pop(task)
                error = self._failure(task)
                if error is None or error.code is not Code.UNAVAILABLE:
                    self._budget.success()
                    return attempt, error
                self._budget.failure()
                self._read_pushback(error, attempt)
                if not self._pending and not await self._sent_another(attempt):
                    return attempt, error

    def cancel(self) -> None:
        """Cancel the attempts that have not ended."""
        for task in self._pending:
            task.add_done_callback(_retrieve_exception)
            cancel_task(task)

    def _send(self) -> None:
        attempt = _HedgedAttempt(self._call, self._sent, self._tried, self._message)
        self._sent += 1
        self._next_at = monotonic() + self._hedge.delay
        name = f"attempt {self._sent} of {self._call.method.path}"
        self._pending[asyncio.get_running_loop().create_task(self._run(attempt), name=name)] = attempt

    async def _run(self, attempt: _HedgedAttempt) -> None:
        await self._next(attempt)

    def _failure(self, task: asyncio.Task[None]) -> StatusError | None:
        """Return the status of an attempt that has ended, None for OK; raises what is no status."""
        try:
            task.result()
        except StatusError as error:
            return error
        return None

    def _read_pushback(self, error: StatusError, attempt: _HedgedAttempt) -> None:
        delay = pushback(error, attempt.trailers)
        if delay is None:
            self._next_at = monotonic()
        elif delay < 0:
            self._next_at = None
        else:
            self._next_at = monotonic() + delay

    async def _sent_another(self, attempt: _HedgedAttempt) -> bool:
        """Send another attempt after the last one has failed, if one is allowed; return whether it was sent."""
        next_at = self._next_at
        if self._sent >= self._hedge.max_attempts or self._budget.spent:
            if NO_RETRY not in attempt.trailers:
                attempt.trailers.append(NO_RETRY)
            return False
        deadline = self._call.deadline
        if next_at is None or (deadline is not None and next_at >= deadline):
            return False
        await asyncio.sleep(next_at - monotonic())
        client_metrics.HEDGES.add(1, {"rpc.method": self._call.method.path.lstrip("/")})
        self._send()
        return True


def _retrieve_exception(task: asyncio.Task[None]) -> None:
    if not task.cancelled():
        task.exception()
