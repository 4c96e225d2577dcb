"""Recovery of an account whose user has forgotten the password.

RequestRecovery stores the login name and publishes an event, and does nothing else. It never looks for the account, so
neither its response nor its duration tells whether there is one. The event has only an id. A service that sends
messages to users (the mailer) subscribes to it and calls IssueRecovery, which finds the account and makes the token.
The token is therefore in no event, outbox or broker, and the database has only its SHA-256. Recover takes it once.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable
from typing import Any

from google.protobuf.empty_pb2 import Empty
from login.v1 import events_pb2 as own_events
from login.v1 import login_pb2 as pb
from sqlalchemy import delete, insert, or_, select, update

from mesh import Context, Transaction, Unauthenticated
from services.login import lockout, passwords, revocations, settings
from services.login.tables import credentials, handles, recoveries, sessions

__all__ = ["forget", "issue", "purge", "recover", "request"]

_REFUSED = "the recovery token is not valid; ask for another one"


async def request(context: Context, name: str, now: int) -> Empty:
    """Store a request and publish its event, whether or not there is such an account.

    Args:
        context: The call.
        name: The login name, folded.
        now: Seconds since the epoch.

    Raises:
        ResourceExhausted: There were too many requests for this name, or from this address.
    """
    locks = lockout.of_recovery(name, context.client_address)
    await lockout.count(context, locks, now, refuse_locked=True)
    recovery_id, expires_at = secrets.token_hex(16), now + settings.read(context.settings).recovery
    event = own_events.RecoveryRequested(recovery_id=recovery_id)
    event.expire_time.FromSeconds(expires_at)
    async with context.transaction() as tx:
        await tx.execute(insert(recoveries).values(id=recovery_id, name=name, expires_at=expires_at))
        await tx.publish(event)
    context.log.info("a recovery was requested from %s", context.client_address or "-")
    return Empty()


async def issue(context: Context, recovery_id: str, now: int) -> pb.IssueRecoveryResponse:
    """Make the token of a recovery, instead of one that was made before; return nothing without an account."""
    token = secrets.token_urlsafe(32)
    async with context.transaction() as tx:
        valid = (recoveries.c.id == recovery_id, recoveries.c.expires_at > now)
        row = (await tx.execute(select(recoveries).where(*valid).with_for_update())).one_or_none()
        user_id = None if row is None else await _account(tx, row.name)
        if row is None or user_id is None:
            return pb.IssueRecoveryResponse()
        await tx.execute(
            update(recoveries).where(recoveries.c.id == recovery_id).values(user_id=user_id, token_hash=_digest(token))
        )
    response = pb.IssueRecoveryResponse(user_id=user_id, token=token)
    response.expire_time.FromSeconds(row.expires_at)
    return response


async def _account(tx: Transaction, name: str) -> str | None:
    query = select(credentials.c.user_id).join(handles, handles.c.user_id == credentials.c.user_id)
    query = query.where(handles.c.key == name, credentials.c.active, ~credentials.c.ended)
    found: str | None = (await tx.execute(query)).scalar_one_or_none()
    return found


async def recover(context: Context, call: pb.RecoverRequest, clock: Callable[[], int]) -> Empty:
    """Set a new password and end all sessions of the user.

    Raises:
        InvalidArgument: The password is too short or too long.
        Unauthenticated: The token is unknown, was used, or has expired.
    """
    passwords.check(call.new_password, "new_password")
    this = recoveries.c.token_hash == _digest(call.token)
    async with context.transaction() as tx:
        found = await _valid(tx, this, clock())
    fresh = await passwords.hashed(call.new_password, context.remaining())
    async with revocations.announced(context) as tx:
        user_id = found.user_id
        user = (
            await tx.execute(select(credentials).where(credentials.c.user_id == user_id).with_for_update())
        ).one_or_none()
        await _valid(tx, this, clock())  # again, with the credential locked: another call may have used it
        if user is None or user.ended:
            raise Unauthenticated(_REFUSED)
        await forget(tx, user_id)
        await tx.execute(update(credentials).where(credentials.c.user_id == user_id).values(password_hash=fresh))
        for name in sorted(
            (await tx.execute(select(handles.c.key).where(handles.c.user_id == user_id))).scalars().all()
        ):
            await lockout.clear(tx, lockout.of_login(name, context.client_address))
        ended = (
            await tx.execute(delete(sessions).where(sessions.c.user_id == user_id).returning(sessions.c.id))
        ).scalars()
        await revocations.revoke_sessions(tx, context, list(ended))
    context.log.info("user %s has recovered the account", user_id)
    return Empty()


async def _valid(tx: Transaction, this: Any, now: int) -> Any:
    row = (await tx.execute(select(recoveries).where(this, recoveries.c.expires_at > now))).one_or_none()
    if row is None:
        raise Unauthenticated(_REFUSED)
    return row


async def forget(tx: Transaction, user_id: str) -> None:
    """Delete the recoveries of a user whose password has changed, also those whose token is still to be made.

    The user's credential is locked. A token that is being made meanwhile is deleted too: the row has the login name.
    """
    names = select(handles.c.key).where(handles.c.user_id == user_id)
    await tx.execute(delete(recoveries).where(or_(recoveries.c.user_id == user_id, recoveries.c.name.in_(names))))


async def purge(tx: Transaction, now: int) -> None:
    """Delete the recoveries that have expired."""
    await tx.execute(delete(recoveries).where(recoveries.c.expires_at <= now))


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
