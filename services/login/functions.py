"""Functions of login.v1.Login.

Login stores no accounts, only credentials: a user id, its login names, and a password hash. Registration owns the names
and calls login (services/registration/accounts.py describes how the two stay consistent). Login refuses a name that
another user has, and returns the id of that user.

A credential is active after the event ``UserRegistered``, which takes some milliseconds after the response of Register.
A Login call that comes earlier waits. Users can therefore log in right after Register, and registration does not wait.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
import unicodedata
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from google.protobuf.empty_pb2 import Empty
from login.v1 import login_pb2 as pb
from meshapi.v1 import annotations_pb2 as meshapi
from meshapi.v1 import revocations_pb2 as meshapi_revocations
from registration.v1 import events_pb2 as events
from sqlalchemy import delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from mesh import (
    Aborted,
    Context,
    FailedPrecondition,
    PermissionDenied,
    Service,
    Transaction,
    Unauthenticated,
    Unavailable,
)
from services.login import lockout, passwords, recovery, revocations, settings, signing
from services.login.session_functions import current_session, end_session, end_sessions, end_where, list_sessions
from services.login.tables import credentials, handles, refresh_tokens, sessions

__all__ = [  # what the contract names
    "change_password",
    "check_password",
    "delete_credentials",
    "end_session",
    "end_sessions",
    "get_keys",
    "issue_recovery",
    "list_sessions",
    "login",
    "logout",
    "on_user_deleted",
    "on_user_registered",
    "on_user_roles_changed",
    "on_user_updated",
    "purge_sessions",
    "recover",
    "refresh",
    "rename_credential",
    "request_recovery",
    "set_credential",
    "startup",
    "watch_revocations",
]  # fmt: skip

MAX_ATTEMPTS = 5
"""Attempts of a transaction that conflicts with another one at the same credential."""
ACTIVE_POLL_DELAYS = (0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.4, 0.5, 0.5, 1.0, 1.0, 1.0)
"""Seconds between reads of a credential that is not active yet: another replica may receive its event."""


async def startup(service: Service) -> None:
    """Check the settings and make the first signing key, before the first call."""
    await signing.current_key(service, settings.read(service.settings), _now())


# -- for users --


async def login(request: pb.LoginRequest, context: Context) -> pb.Tokens:
    """Begin a session."""
    refused = Unauthenticated("wrong name or password")
    name = _fold(request.login)
    locks = lockout.of_login(name, context.client_address)
    async with context.transaction() as tx:
        await lockout.check(tx, locks, _now())
        found = (
            await tx.execute(
                select(credentials)
                .join(handles, handles.c.user_id == credentials.c.user_id)
                .where(handles.c.key == name)
            )
        ).one_or_none()
    stored = None if found is None or found.ended else found.password_hash
    if not await passwords.verify(stored, request.password, context.remaining()) or found is None:
        await lockout.fail(context, locks, _now(), f"user {found.user_id}" if found else "an unknown name")
        raise refused
    if not found.active:
        await _registered(context, found.user_id)
    fresh = (
        await passwords.hashed(request.password, context.remaining())
        if passwords.outdated(found.password_hash)
        else None
    )
    now, rules = _now(), settings.read(context.settings)
    key = await signing.current_key(context, rules, now)
    async with context.transaction() as tx:
        # Read the credential again: it may have been deleted during the comparison of the password.
        row = (
            await tx.execute(select(credentials).where(credentials.c.user_id == found.user_id).with_for_update())
        ).one()
        if row.password_hash != found.password_hash:
            raise refused
        await lockout.check(tx, locks, now)  # other calls may have failed meanwhile
        await lockout.clear(tx, locks)
        if fresh is not None:
            await tx.execute(
                update(credentials).where(credentials.c.user_id == row.user_id).values(password_hash=fresh)
            )
        await tx.execute(delete(sessions).where(sessions.c.user_id == row.user_id, sessions.c.expires_at <= now))
        session_id = secrets.token_hex(16)
        await tx.execute(
            insert(sessions).values(id=session_id, user_id=row.user_id, created_at=now, expires_at=now + rules.refresh)
        )
        refresh_token = await _new_refresh_token(tx, session_id)
    return pb.Tokens(
        access_token=signing.access_token(key, rules, now, row, session_id=session_id),
        token_type="Bearer",  # noqa: S106 - the type, not a token
        expires_in=rules.access,
        refresh_token=refresh_token,
    )


async def _registered(context: Context, user_id: str) -> None:
    """Wait until the credential is active.

    Raises:
        Unavailable: It is not active in time.
        Unauthenticated: It has ended.
    """
    for delay in ACTIVE_POLL_DELAYS:
        await asyncio.sleep(delay)
        async with context.transaction() as tx:
            row = (await tx.execute(select(credentials).where(credentials.c.user_id == user_id))).one()
        if row.ended:
            raise Unauthenticated("wrong name or password")
        if row.active:
            return
    raise Unavailable("the registration is not complete yet; try again", retry_after=1.0)


async def refresh(request: pb.RefreshRequest, context: Context) -> pb.Tokens:
    """Exchange a refresh token for new tokens; a second use of the token ends its session."""
    now, rules = _now(), settings.read(context.settings)
    key = await signing.current_key(context, rules, now)
    digest = _digest(request.refresh_token)
    refused = Unauthenticated("the refresh token is not valid; log in again")
    async with revocations.announced(context) as tx:
        # Lock the credential, then its session, then the token. Other functions lock in this order too; two different
        # orders would deadlock. A change of roles comes either before, and its roles are read, or after, and revokes
        # the new access token.
        of = select(refresh_tokens.c.session_id).where(refresh_tokens.c.hash == digest).scalar_subquery()
        owner = select(sessions.c.user_id).where(sessions.c.id == of).scalar_subquery()
        user = (
            await tx.execute(select(credentials).where(credentials.c.user_id == owner).with_for_update())
        ).one_or_none()
        await tx.execute(select(sessions.c.id).where(sessions.c.id == of).with_for_update())
        # One statement uses the token, so one of several concurrent calls wins.
        used = (
            await tx.execute(
                update(refresh_tokens)
                .where(refresh_tokens.c.hash == digest, refresh_tokens.c.used_at.is_(None))
                .values(used_at=now)
                .returning(refresh_tokens.c.session_id)
            )
        ).scalar_one_or_none()
        refresh_token: str | None = None
        if used is None:
            stolen = select(refresh_tokens.c.session_id).where(refresh_tokens.c.hash == digest)
            ended = (
                await tx.execute(
                    delete(sessions).where(sessions.c.id.in_(stolen)).returning(sessions.c.id, sessions.c.user_id)
                )
            ).one_or_none()
            if ended is not None:
                await revocations.revoke_sessions(tx, context, [ended.id])
                context.log.warning("a refresh token of user %s was used again: its session has ended", ended.user_id)
        else:
            session = (
                await tx.execute(
                    update(sessions)
                    .where(sessions.c.id == used, sessions.c.expires_at > now)
                    .values(expires_at=now + rules.refresh)
                    .returning(sessions.c.user_id)
                )
            ).scalar_one_or_none()
            if session is not None:
                refresh_token = await _new_refresh_token(tx, used)
                # A session may last for years. Tokens that were used long ago are deleted: a second use is unknown.
                await tx.execute(
                    delete(refresh_tokens).where(
                        refresh_tokens.c.session_id == used, refresh_tokens.c.used_at < now - rules.refresh
                    )
                )
    if used is None or refresh_token is None:  # raised after the commit, which ends the session
        raise refused
    return pb.Tokens(
        access_token=signing.access_token(key, rules, now, user, session_id=used),
        token_type="Bearer",  # noqa: S106 - the type, not a token
        expires_in=rules.access,
        refresh_token=refresh_token,
    )


async def logout(request: pb.LogoutRequest, context: Context) -> Empty:  # noqa: ARG001 - a function's shape
    """End the session of the access token."""
    session_id = current_session(context)
    if session_id is None:
        raise Unauthenticated("log out with the access token of the session")
    await end_where(context, sessions.c.id == session_id)
    return Empty()


async def change_password(request: pb.ChangePasswordRequest, context: Context) -> Empty:
    """Change the caller's password and end the caller's other sessions and recoveries."""
    if context.identity is None:
        raise Unauthenticated("this needs a user: send `authorization: Bearer TOKEN`")
    user_id = context.identity.subject
    passwords.check(request.new_password, "new_password")
    locks = lockout.of_password(user_id)
    async with context.transaction() as tx:
        await lockout.check(tx, locks, _now())
        found = (await tx.execute(select(credentials).where(credentials.c.user_id == user_id))).one_or_none()
    if found is None or found.ended:
        raise FailedPrecondition("this user has no password here")
    if not await passwords.verify(found.password_hash, request.current_password, context.remaining()):
        await lockout.fail(context, locks, _now(), f"user {user_id} (change of password)")
        raise PermissionDenied("the current password is wrong")
    fresh = await passwords.hashed(request.new_password, context.remaining())
    async with revocations.announced(context) as tx:
        row = await _locked(tx, user_id)
        if row is None or row.password_hash != found.password_hash:
            raise Aborted("another call changed the same credential; try again")
        await recovery.forget(tx, user_id)
        await lockout.check(tx, locks, _now())
        await lockout.clear(tx, locks)
        await tx.execute(update(credentials).where(credentials.c.user_id == user_id).values(password_hash=fresh))
        others = sessions.c.id != (current_session(context) or "")
        ended = await tx.execute(delete(sessions).where(sessions.c.user_id == user_id, others).returning(sessions.c.id))
        await revocations.revoke_sessions(tx, context, ended.scalars().all())
    context.log.info("user %s has changed the password", user_id)
    return Empty()


async def request_recovery(request: pb.RequestRecoveryRequest, context: Context) -> Empty:
    """Begin the recovery of an account; the same for a name that nobody has."""
    return await recovery.request(context, _fold(request.login), _now())


async def recover(request: pb.RecoverRequest, context: Context) -> Empty:
    """Set a new password with a recovery token and end all sessions."""
    return await recovery.recover(context, request, _now)


async def get_keys(request: pb.GetKeysRequest, context: Context) -> pb.KeySet:  # noqa: ARG001 - a function's shape
    """Return the public keys."""
    return await signing.published(context, settings.read(context.settings), _now())


# -- for components and services of the mesh --


async def watch_revocations(request: Empty, context: Context) -> AsyncIterator[meshapi_revocations.RevocationUpdate]:  # noqa: ARG001 - a function's shape
    """Stream the revocations that are in force, and then each new one."""
    async for update_ in revocations.watch(context):
        yield update_


async def issue_recovery(request: pb.IssueRecoveryRequest, context: Context) -> pb.IssueRecoveryResponse:
    """Make the token of a recovery, for the service that sends it to the user."""
    return await recovery.issue(context, request.recovery_id, _now())


class _Held(Exception):
    """Other users have the names: rolls the transaction back, with the ids of these users."""


async def set_credential(request: pb.SetCredentialRequest, context: Context) -> pb.CredentialResponse:
    """Set a user's password, login names and roles, and end the credentials that it replaces."""
    passwords.check(request.password)
    fresh = await passwords.hashed(request.password, context.remaining())
    values = {"password_hash": fresh, "roles": list(request.roles), "version": request.version}
    for _ in range(MAX_ATTEMPTS):
        try:
            async with revocations.announced(context) as tx:
                fresh_one = False
                ended: list[str] = []
                for user_id in sorted(
                    {*request.replaces, request.user_id}
                ):  # sorted, so that concurrent calls do not deadlock
                    if user_id in request.replaces:
                        ended += await _end(tx, user_id)
                    else:
                        fresh_one = await _put(tx, user_id, values)
                if fresh_one:
                    await _name(tx, request.user_id, request.names)
                row = await _locked(tx, request.user_id)
                await revocations.revoke_users(tx, context, ended)
        except (IntegrityError, Aborted):
            continue  # another call made or changed the same row; the next attempt reads it
        except _Held as held:
            return pb.CredentialResponse(held_by=held.args)
        return pb.CredentialResponse(ended=row is None or row.ended)
    raise Aborted("other calls change the same credential; try again")


async def check_password(request: pb.CheckPasswordRequest, context: Context) -> pb.CheckPasswordResponse:
    """Return whether a user has a password."""
    async with context.transaction() as tx:
        row = (await tx.execute(select(credentials).where(credentials.c.user_id == request.user_id))).one_or_none()
    stored = None if row is None or row.ended else row.password_hash
    return pb.CheckPasswordResponse(matches=await passwords.verify(stored, request.password, context.remaining()))


async def rename_credential(request: pb.RenameCredentialRequest, context: Context) -> pb.CredentialResponse:
    """Change the login names of a user."""
    return await _rename(context, request.user_id, request.names, request.version)


async def _rename(context: Context, user_id: str, names: Sequence[str], version: int) -> pb.CredentialResponse:
    for _ in range(MAX_ATTEMPTS):
        try:
            async with context.transaction() as tx:
                row = await _locked(tx, user_id)
                if row is None or row.ended:
                    return pb.CredentialResponse(ended=True)
                if row.version <= version:
                    await tx.execute(
                        update(credentials).where(credentials.c.user_id == user_id).values(version=version)
                    )
                    await _name(tx, user_id, names)
        except (IntegrityError, Aborted):
            continue
        except _Held as held:
            return pb.CredentialResponse(held_by=held.args)
        return pb.CredentialResponse()
    raise Aborted("other calls change the same credential; try again")


async def delete_credentials(request: pb.DeleteCredentialsRequest, context: Context) -> Empty:
    """End credentials and delete their sessions."""
    return await _delete(context, request.user_ids)


async def _delete(context: Context, user_ids: Sequence[str]) -> Empty:
    for _ in range(MAX_ATTEMPTS):
        try:
            async with revocations.announced(context) as tx:
                ended: list[str] = []
                for user_id in sorted(set(user_ids)):  # the order of set_credential
                    ended += await _end(tx, user_id)
                await revocations.revoke_users(tx, context, ended)
        except (IntegrityError, Aborted):
            continue
        return Empty()
    raise Aborted("other calls change the same credential; try again")


# -- for events and schedules --


async def on_user_registered(event: events.UserRegistered, context: Context) -> Empty:
    """Activate the user's credential."""
    async with context.transaction() as tx:
        row = await _locked(tx, event.user_id)
        if row is None:
            raise FailedPrecondition(f"user {event.user_id} has registered without a credential")
        if not row.ended:  # its user was not deleted meanwhile
            await tx.execute(update(credentials).where(credentials.c.user_id == event.user_id).values(active=True))
    return Empty()


async def on_user_updated(event: events.UserUpdated, context: Context) -> Empty:
    """Change the login names of the user, if RenameCredential has not done so."""
    response = await _rename(context, event.user_id, [event.name, event.email], event.version)
    if response.held_by:  # the other user has given the name up, and the event of that change is on its way
        raise Unavailable(f"a name of user {event.user_id} still belongs to {', '.join(response.held_by)}")
    return Empty()


async def on_user_roles_changed(event: events.UserRolesChanged, context: Context) -> Empty:
    """Change the roles of the user's next access tokens, unless a later event has; revoke those with a lost role."""
    async with revocations.announced(context) as tx:
        row = await _locked(tx, event.user_id)
        if row is None:
            raise FailedPrecondition(f"user {event.user_id} has a role without a credential")
        if not row.ended and row.roles_version < event.version:
            await tx.execute(
                update(credentials)
                .where(credentials.c.user_id == event.user_id)
                .values(roles=list(event.roles), roles_version=event.version)
            )
            if not {*row.roles} <= {*event.roles}:
                await revocations.revoke_rights(tx, context, event.user_id)
    return Empty()


async def on_user_deleted(event: events.UserDeleted, context: Context) -> Empty:
    """End the user's credential and delete its sessions."""
    return await _delete(context, [event.user_id])


async def purge_sessions(tick: meshapi.Tick, context: Context) -> Empty:
    """Delete the sessions that had expired at the scheduled time."""
    async with context.transaction() as tx:
        gone = await tx.execute(delete(sessions).where(sessions.c.expires_at <= tick.time.seconds))
        await lockout.purge(tx, tick.time.seconds)
        await revocations.purge(tx, tick.time.seconds)
        await recovery.purge(tx, tick.time.seconds)
    context.log.info("%d sessions had expired", gone.rowcount)
    return Empty()


async def _locked(tx: Transaction, user_id: str) -> Any:
    return (
        await tx.execute(select(credentials).where(credentials.c.user_id == user_id).with_for_update())
    ).one_or_none()


async def _put(tx: Transaction, user_id: str, values: Mapping[str, Any]) -> bool:
    """Make or change a credential that is not active yet.

    Returns:
        False if it is active or has ended, so that the call is late.
    """
    row = await _locked(tx, user_id)
    if row is None:
        await tx.execute(insert(credentials).values(user_id=user_id, active=False, ended=False, **values))
    elif not row.ended and not row.active:
        await tx.execute(update(credentials).where(credentials.c.user_id == user_id).values(**values))
    return row is None or not (row.ended or row.active)


async def _end(tx: Transaction, user_id: str) -> list[str]:
    """Turn a credential into a tombstone, also one that does not exist yet.

    Returns:
        The user whose tokens are to be revoked, if the credential had not ended before.
    """
    tombstone: dict[str, Any] = {"password_hash": "", "roles": [], "active": False, "ended": True}
    row = await _locked(tx, user_id)
    if row is None:
        await tx.execute(insert(credentials).values(user_id=user_id, version=0, **tombstone))
        return []
    await tx.execute(update(credentials).where(credentials.c.user_id == user_id).values(**tombstone))
    await tx.execute(delete(handles).where(handles.c.user_id == user_id))
    await tx.execute(delete(sessions).where(sessions.c.user_id == user_id))
    return [] if row.ended else [user_id]


async def _name(tx: Transaction, user_id: str, names: Sequence[str]) -> None:
    """Set the login names of the user.

    Raises:
        _Held: Other users have some of them.
    """
    keys = sorted({_fold(name) for name in names})
    holders = (
        await tx.execute(
            select(handles.c.user_id).where(handles.c.key.in_(keys), handles.c.user_id != user_id).distinct()
        )
    ).scalars()
    held_by = sorted(holders)
    if held_by:
        raise _Held(*held_by)
    await tx.execute(delete(handles).where(handles.c.user_id == user_id))
    await tx.execute(insert(handles), [{"key": key, "user_id": user_id} for key in keys])


async def _new_refresh_token(tx: Transaction, session_id: str) -> str:
    token = secrets.token_urlsafe(32)
    await tx.execute(insert(refresh_tokens).values(hash=_digest(token), session_id=session_id))
    return token


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _fold(name: str) -> str:
    """Return the form in which names are compared: without regard to case and to Unicode spelling."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name.strip()).casefold())


def _now() -> int:
    return int(time.time())


if TYPE_CHECKING:  # type checkers report functions that are missing or have other types than the contract
    from login.v1.login_pb2_grpc import LoginFunctions

    from services.login import functions  # noqa: PLW0406 - this module, to be checked

    _: LoginFunctions = functions
