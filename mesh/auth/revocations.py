"""Revocations of user tokens: the sessions, subjects and single tokens of one issuer that are refused.

A verified token costs one comparison of numbers: a revocation increases ``generation``, and a token that was verified
in an earlier generation is checked again. Open streams of a revoked user are cancelled at once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mesh.errors import StatusError, Unauthenticated
from mesh.layers.deadline import cancel_with
from mesh.layers.timer_wheel import TaskTimeout

if TYPE_CHECKING:
    from mesh.call import Call, Handler, Layer

__all__ = ["REVOKED", "Revocation", "Revocations", "end_when_revoked"]

REVOKED = "the session of this token has ended, or its rights have changed; refresh it or log in again"
"""Message of the refusal."""


@dataclass(frozen=True, slots=True)
class Revocation:
    """Tokens that are refused (``meshapi.v1.Revocation``).

    Attributes:
        claim: ``sid``, ``jti``, or the claim with the user's subject.
        value: Its value in the tokens.
        not_before: Tokens issued before this time are refused, seconds since the epoch; infinity: every token.
        forget_at: Time at which the last of them has expired, seconds since the epoch; infinity: never.
    """

    claim: str
    value: str
    not_before: float
    forget_at: float


class Revocations:
    """The revocations of one issuer that are in force, and the open streams of its users.

    Args:
        leeway: Largest tolerated difference between clocks, seconds: tokens are valid so much longer.
        clock: The time, seconds since the epoch.

    Attributes:
        generation: Increases with each change that can make a valid token invalid.
        unavailable: Whether no token is accepted, because new revocations do not arrive.
        first: Not set while tokens wait for the first revocations (``mesh.auth.revocation_watch``).
    """

    __slots__ = ("_clock", "_found", "_leeway", "_streams", "first", "generation", "unavailable")

    def __init__(self, leeway: float = 30.0, clock: Callable[[], float] = time.time) -> None:
        self._leeway = leeway
        self._clock = clock
        self._found: dict[str, dict[str, Revocation]] = {}
        self._streams: dict[TaskTimeout, Mapping[str, Any]] = {}
        self.generation = 0
        self.unavailable = False
        self.first = asyncio.Event()
        self.first.set()

    def add(self, revocation: Revocation) -> None:
        """Refuse tokens from now on, and cancel the streams that were opened with them."""
        values = self._found.setdefault(revocation.claim, {})
        known = values.get(revocation.value)
        if known is not None:  # a later one never accepts what an earlier one refuses
            not_before = max(known.not_before, revocation.not_before)
            forget_at = max(known.forget_at, revocation.forget_at)
            revocation = Revocation(revocation.claim, revocation.value, not_before, forget_at)
            if revocation == known:
                return
        values[revocation.value] = revocation
        self.generation += 1
        for stream, claims in list(self._streams.items()):
            if _refuses(revocation, claims):
                del self._streams[stream]
                stream.expire()

    def forget(self) -> None:
        """Forget the revocations whose tokens have expired."""
        now = self._clock() - self._leeway
        for values in self._found.values():
            for revocation in [one for one in values.values() if one.forget_at <= now]:
                del values[revocation.value]

    def suspend(self, *, unavailable: bool) -> None:
        """Accept no token, or accept tokens again."""
        self.unavailable = unavailable
        self.generation += 1

    def refuse(self, claims: Mapping[str, Any]) -> bool:
        """Whether a token with these claims is revoked."""
        for claim, values in self._found.items():
            value = claims.get(claim)
            revocation = values.get(value) if isinstance(value, str) else None
            if revocation is not None and _refuses(revocation, claims):
                return True
        return False

    async def run_stream(self, call: Call, next: Handler) -> None:
        """Run the rest of the chain, and cancel it when the token of its user is revoked.

        Raises:
            Unauthenticated: It was revoked.
        """
        assert call.identity is not None  # noqa: S101 - as for the layer
        task = call.task or asyncio.current_task()
        assert task is not None  # noqa: S101 - a coroutine always runs in a task here
        claims = call.identity.claims
        if self.refuse(claims):  # since the token was verified
            raise Unauthenticated(REVOKED)
        stream = TaskTimeout(task)
        self._streams[stream] = claims
        try:
            await cancel_with(stream, call, next, _revoked)
        finally:
            self._streams.pop(stream, None)


def end_when_revoked(issuers: Mapping[str, Revocations]) -> Layer:
    """Return the layer, inside ``authenticate``, that cancels a stream when the token of its user is revoked.

    The status is UNAUTHENTICATED.

    Args:
        issuers: The revocations of each issuer that has any.
    """

    def layer(call: Call, next: Handler) -> Awaitable[None]:
        issuer = None if call.identity is None else call.identity.claims.get("iss")
        revocations = issuers.get(issuer) if isinstance(issuer, str) else None
        return next(call) if revocations is None else revocations.run_stream(call, next)

    return layer


def _refuses(revocation: Revocation, claims: Mapping[str, Any]) -> bool:
    if claims.get(revocation.claim) != revocation.value:
        return False
    try:
        issued = float(claims["iat"])
    except (KeyError, TypeError, ValueError, OverflowError):
        return True
    return issued < revocation.not_before


def _revoked() -> StatusError:
    return Unauthenticated(REVOKED)
