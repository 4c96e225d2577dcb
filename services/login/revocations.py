"""Revocations of access tokens, and their stream to the components that verify tokens.

A function that ends a session records the revocation in the same transaction. Each call of ``watch`` reads new rows
when a call of this process has written one, and every second for those of other replicas. A component has an open
watch, so a revocation takes effect everywhere within about a second.

A change of a user's rights revokes the tokens issued before it, but not the sessions. Tokens have whole seconds, and
the clocks of replicas differ. So the time is ``CLOCK_MARGIN_SECONDS`` in the future, and the tokens that the user gets
meanwhile carry that time as their ``iat``.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from meshapi.v1 import revocations_pb2 as pb
from sqlalchemy import delete, insert, select, update

from mesh import Context, Transaction
from services.login import settings
from services.login.tables import credentials, revocation_counter, revocations

__all__ = ["CLOCK_MARGIN_SECONDS", "announced", "purge", "revoke_rights", "revoke_sessions", "revoke_users", "watch"]

CLOCK_MARGIN_SECONDS = 2
"""Largest difference between the clocks of replicas, and the rounding of token times."""
LEEWAY_SECONDS = 60
"""Time for which a revocation is still sent after its tokens have expired. Components accept a token for ``leeway`` of
``[auth]`` longer, 30 seconds by default, and one that starts meanwhile has to know its revocation."""
POLL_INTERVAL = 1.0
"""Seconds between reads of revocations that other replicas have written. The contract promises a message every two."""
PAGE = 1000
"""Revocations read at once."""

_watchers: set[asyncio.Future[None]] = set()
"""Calls of this process that wait for the next revocation."""


@asynccontextmanager
async def announced(context: Context) -> AsyncGenerator[Transaction]:
    """Begin a transaction that may revoke tokens; the watchers read it once it is committed."""
    async with context.transaction() as tx:
        yield tx
    for watcher in _watchers:
        if not watcher.done():
            watcher.set_result(None)


async def revoke_sessions(tx: Transaction, context: Context, session_ids: Sequence[str]) -> None:
    """Revoke every token of these sessions, which have ended."""
    await _add(tx, context, [("session", session_id, None) for session_id in session_ids])


async def revoke_users(tx: Transaction, context: Context, user_ids: Sequence[str]) -> None:
    """Revoke every token of users who were deleted."""
    await _add(tx, context, [("subject", user_id, None) for user_id in user_ids])


async def revoke_rights(tx: Transaction, context: Context, user_id: str) -> None:
    """Revoke the tokens that a user has now. The user's row is locked, and the sessions go on."""
    not_before = int(time.time()) + CLOCK_MARGIN_SECONDS
    await tx.execute(update(credentials).where(credentials.c.user_id == user_id).values(tokens_not_before=not_before))
    await _add(tx, context, [("subject", user_id, not_before)])


async def _add(tx: Transaction, context: Context, rows: Sequence[tuple[str, str, int | None]]) -> None:
    """Record revocations. These are the last statements of the transaction: the counter is locked after all others."""
    if not rows:
        return
    last = (
        await tx.execute(
            update(revocation_counter)
            .values(last=revocation_counter.c.last + len(rows))
            .returning(revocation_counter.c.last)
        )
    ).scalar_one()
    forget_at = int(time.time()) + CLOCK_MARGIN_SECONDS + settings.read(context.settings).access
    values = [
        {"sequence": sequence, "kind": kind, "value": value, "not_before": not_before, "forget_at": forget_at}
        for sequence, (kind, value, not_before) in enumerate(rows, last - len(rows) + 1)
    ]
    await tx.execute(insert(revocations), values)


async def watch(context: Context) -> AsyncIterator[pb.RevocationUpdate]:
    """Yield the revocations that are in force, the end of the snapshot, and then each new one."""
    loop = asyncio.get_running_loop()
    after, complete = 0, False
    while True:
        committed = loop.create_future()
        _watchers.add(committed)  # before the read, so that none is missed
        try:
            async with context.transaction() as tx:
                query = select(revocations).where(
                    revocations.c.sequence > after, revocations.c.forget_at > int(time.time()) - LEEWAY_SECONDS
                )
                rows = (await tx.execute(query.order_by(revocations.c.sequence).limit(PAGE))).all()
            for row in rows:
                yield pb.RevocationUpdate(revocation=_message(row))
                after = row.sequence
            if len(rows) == PAGE:
                continue
            if not complete:
                complete = True
                yield pb.RevocationUpdate(snapshot_end=pb.SnapshotEnd())
            elif not rows:
                yield pb.RevocationUpdate(heartbeat=pb.Heartbeat())
            await asyncio.wait([committed], timeout=POLL_INTERVAL)
        finally:
            _watchers.discard(committed)


def _message(row: Any) -> pb.Revocation:
    message = pb.Revocation(**{row.kind: row.value})
    if row.not_before is not None:
        message.not_before.FromSeconds(row.not_before)
    message.forget_at.FromSeconds(row.forget_at)
    return message


async def purge(tx: Transaction, now: int) -> None:
    """Delete the revocations whose tokens no component accepts any more."""
    await tx.execute(delete(revocations).where(revocations.c.forget_at <= now - LEEWAY_SECONDS))
