"""Accounts in two services: rows here, credentials in login, kept consistent without a common transaction.

An account is made in three steps, and a process may die between any two of them:

1. *Reserve*: inserts a row in state ``pending`` with a new id. The row reserves the name and the address.
2. *Credential*: login stores the password under that id. Nobody can log in with it yet.
3. *Activate*: the row becomes ``active``, if it still exists and is pending, and ``UserRegistered`` is published in the
   same transaction. Login activates the credential when it receives the event.

A pending row blocks nobody. A later registration of the same name or address takes the reservation over. It deletes the
old row and inserts a new one, with a new id and the ids that it supersedes. With the new credential, login turns the
superseded ids into tombstones. A slow earlier attempt can then neither set the password of the new account nor be
activated.

A change of name or address is committed here first, with ``UserUpdated``. Then login is called with a version that
increases with each change, so a late call changes nothing. Login refuses a name that another user has. The rows here
decide who owns a name, so the credential of the other user is updated and login is called once more. A deletion is
committed here with ``UserDeleted``, and then login is called. In both cases the call takes effect at once, and the
event makes the effect certain: it is delivered also when this process dies before the call.

A change of roles is committed here with ``UserRolesChanged``, and login follows the event. Each change of an account
increases its version, and each event has the version. Login keeps the version of the last change of the names, and that
of the roles, and ignores older ones.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

from login.v1 import login_pb2
from login.v1.login_pb2_grpc import LoginStub
from registration.v1 import events_pb2 as events
from sqlalchemy import String, cast, delete, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from mesh import (
    Aborted,
    AlreadyExists,
    Context,
    FailedPrecondition,
    NotFound,
    PermissionDenied,
    Service,
    StatusError,
    Transaction,
)
from services.registration.rules import fold
from services.registration.tables import ACTIVE, PENDING, users

__all__ = ["ADMIN", "change", "change_role", "create", "find", "remove"]

ADMIN = "admin"

Mesh = Context | Service


async def create(mesh: Mesh, *, name: str, email: str, password: str, roles: Sequence[str] = ()) -> Any:
    """Make an account and return its row.

    Raises:
        AlreadyExists: The name or the address belongs to another account; the message names the field.
        Aborted: A concurrent attempt for the same account has won.
    """
    row = await _reserve(mesh, name, email, list(roles))

    async def set_credential() -> Any:
        return await mesh.stub(LoginStub).SetCredential(
            login_pb2.SetCredentialRequest(
                user_id=row.id,
                names=[row.name, row.email],
                password=password,
                roles=row.roles,
                replaces=row.superseded,
                version=row.version,
            )
        )

    active = await _activate(mesh, row.id) if await _update_login(mesh, set_credential) else None
    if active is None:
        raise await _taken(mesh, row.id, name, email)
    return active


async def find(mesh: Mesh, user_id: str) -> Any:
    """Return the row of an account.

    Raises:
        NotFound: There is no such account.
    """
    async with mesh.transaction() as tx:
        row = (await tx.execute(select(users).where(users.c.id == user_id, users.c.state == ACTIVE))).one_or_none()
    if row is None:
        raise NotFound(f"there is no account with the id {user_id!r}")
    return row


async def change(mesh: Mesh, user_id: str, fields: dict[str, str]) -> Any:
    """Change name, email or both of an account and return its row; the same change again completes a broken one.

    Raises:
        AlreadyExists: The name or the address is another's; the message says which.
        NotFound: There is no such account.
    """
    values: dict[str, Any] = dict(fields)
    values.update({f"{field}_key": fold(value) for field, value in fields.items()})
    try:
        async with mesh.transaction() as tx:
            row = (await tx.execute(select(users).where(users.c.id == user_id).with_for_update())).one_or_none()
            if row is None:
                raise NotFound(f"there is no account with the id {user_id!r}")
            others = await _rivals(tx, user_id, values.get("name", row.name), values.get("email", row.email))
            dropped = await _drop_pending(tx, others, values.get("name_key"))
            if any(getattr(row, field) != value for field, value in fields.items()):
                values.update(version=row.version + 1, updated_at=_now())
                row = (
                    await tx.execute(update(users).where(users.c.id == user_id).values(**values).returning(users))
                ).one()
                updated = events.UserUpdated(user_id=row.id, name=row.name, email=row.email, version=row.version)
                updated.time.FromMicroseconds(row.updated_at)
                await tx.publish(updated)
    except IntegrityError:
        raise await _taken(mesh, user_id, fields.get("name", ""), fields.get("email", "")) from None
    login = mesh.stub(LoginStub)
    if dropped:
        await login.DeleteCredentials(login_pb2.DeleteCredentialsRequest(user_ids=dropped))

    async def rename() -> Any:
        return await login.RenameCredential(_renaming(row))

    if not await _update_login(mesh, rename):
        raise Aborted("the account is being deleted")
    return row


async def change_role(mesh: Mesh, user_id: str, role: str, *, held: bool, admin: str | None, by: str) -> Any:
    """Grant or revoke a role and return the account's row.

    Args:
        mesh: Context of the call.
        user_id: The account.
        role: The role.
        held: Whether the account has the role afterwards.
        admin: Id of the admin who calls, or None for a service. A token says who was an admin when it was made; here
            the row decides, so that an admin who was deposed cannot come back.
        by: Name of the caller in the event.

    Raises:
        FailedPrecondition: The last admin would lose the role.
        NotFound: There is no such account.
        PermissionDenied: ``admin`` is no admin any more.
    """
    async with mesh.transaction() as tx:
        admins = await _admins(tx)
        if admin is not None and admin not in admins:
            raise PermissionDenied("your account is not an admin's")
        row = (
            await tx.execute(select(users).where(users.c.id == user_id, users.c.state == ACTIVE).with_for_update())
        ).one_or_none()
        if row is None:
            raise NotFound(f"there is no account with the id {user_id!r}")
        if held == (role in row.roles):
            return row
        if role == ADMIN and not held:
            _check_not_last(user_id, admins)
        roles = sorted({*row.roles, role} if held else {*row.roles} - {role})
        values = {"roles": roles, "version": row.version + 1, "updated_at": _now()}
        row = (await tx.execute(update(users).where(users.c.id == user_id).values(**values).returning(users))).one()
        changed = events.UserRolesChanged(user_id=user_id, roles=roles, version=row.version, changed_by=by)
        changed.time.FromMicroseconds(row.updated_at)
        await tx.publish(changed)
        return row


async def remove(mesh: Mesh, user_id: str) -> None:
    """Delete an account, with what lets its user in.

    Raises:
        FailedPrecondition: It is the last admin's.
    """
    async with mesh.transaction() as tx:
        _check_not_last(user_id, await _admins(tx))
        gone = (await tx.execute(delete(users).where(users.c.id == user_id).returning(users.c.version))).one_or_none()
        if gone is not None:
            deleted = events.UserDeleted(user_id=user_id, version=gone.version + 1)
            deleted.time.FromMicroseconds(_now())
            await tx.publish(deleted)
    try:
        await mesh.stub(LoginStub).DeleteCredentials(login_pb2.DeleteCredentialsRequest(user_ids=[user_id]))
    except StatusError:
        mesh.log.warning("login could not be told that user %s is deleted; the event will", user_id, exc_info=True)


async def _admins(tx: Transaction) -> set[str]:
    """Return the ids of the admins, their rows locked: two of them cannot depose each other at the same time."""
    rows = await tx.execute(
        select(users.c.id, users.c.roles)
        .where(users.c.state == ACTIVE, cast(users.c.roles, String).contains(f'"{ADMIN}"'))
        .order_by(users.c.id)
        .with_for_update()
    )
    return {row.id for row in rows.all() if ADMIN in row.roles}


def _check_not_last(user_id: str, admins: set[str]) -> None:
    if admins == {user_id}:
        raise FailedPrecondition("this is the last admin: grant the role admin to another account first")


async def _reserve(mesh: Mesh, name: str, email: str, roles: list[str]) -> Any:
    user_id, now = uuid.uuid4().hex, _now()
    try:
        async with mesh.transaction() as tx:
            others = await _rivals(tx, user_id, name, email)
            superseded = await _drop_pending(tx, others, fold(name))
            return (
                await tx.execute(
                    insert(users)
                    .values(
                        id=user_id, state=PENDING, name=name, name_key=fold(name), email=email, email_key=fold(email),
                        roles=roles, version=1, superseded=superseded, created_at=now, updated_at=now,
                    )
                    .returning(users)
                )
            ).one()  # fmt: skip
    except IntegrityError:  # another call reserved it between our two statements
        raise await _taken(mesh, user_id, name, email) from None


async def _activate(mesh: Mesh, user_id: str) -> Any:
    """Return the active row, or None when another attempt has taken it over."""
    async with mesh.transaction() as tx:
        row = (
            await tx.execute(
                update(users)
                .where(users.c.id == user_id, users.c.state == PENDING)
                .values(state=ACTIVE, superseded=[], updated_at=_now())
                .returning(users)
            )
        ).one_or_none()
        if row is not None:
            registered = events.UserRegistered(user_id=row.id, name=row.name, email=row.email, roles=row.roles)
            registered.version = row.version
            registered.time.FromMicroseconds(row.updated_at)
            await tx.publish(registered)
        return row


async def _rivals(tx: Transaction, user_id: str, name: str, email: str) -> Sequence[Any]:
    """Return the rows of other accounts with the name or the address, locked."""
    found: Sequence[Any] = (
        await tx.execute(
            select(users)
            .where(or_(users.c.name_key == fold(name), users.c.email_key == fold(email)), users.c.id != user_id)
            .order_by(users.c.id)
            .with_for_update()
        )
    ).all()
    return found


async def _drop_pending(tx: Transaction, rows: Iterable[Any], name_key: str | None) -> list[str]:
    """Delete pending rows; return their ids and the ids that they superseded.

    Raises:
        AlreadyExists: One of the rows is active.
    """
    dropped: list[str] = []
    for row in rows:
        if row.state == ACTIVE:
            raise _exists(row, name_key)
        dropped += [row.id, *row.superseded]
    if dropped:
        await tx.execute(delete(users).where(users.c.id.in_(dropped), users.c.state == PENDING))
    return dropped


async def _taken(mesh: Mesh, user_id: str, name: str, email: str) -> StatusError:
    """Return the error for a name or an address that could not be reserved."""
    async with mesh.transaction() as tx:
        rows = await _rivals(tx, user_id, name, email)
    if not rows:
        return Aborted("another call changed the same account; try again")
    return _exists(rows[0], fold(name))


def _exists(row: Any, name_key: str | None) -> AlreadyExists:
    field, words = ("name", "name") if row.name_key == name_key else ("email", "e-mail address")
    return AlreadyExists(f"{field}: this {words} belongs to another account")


async def _update_login(mesh: Mesh, update_credential: Callable[[], Awaitable[Any]]) -> bool:
    """Call login; if other users have a name there that they no longer have here, update them and call it again.

    Returns:
        Whether login accepted the change; False: the credential has ended.

    Raises:
        Aborted: Other users have a name again, because of a concurrent call.
    """
    response = await update_credential()
    if response.held_by:
        login = mesh.stub(LoginStub)
        for holder in response.held_by:
            async with mesh.transaction() as tx:
                row = (await tx.execute(select(users).where(users.c.id == holder))).one_or_none()
            if row is None:
                await login.DeleteCredentials(login_pb2.DeleteCredentialsRequest(user_ids=[holder]))
            else:
                await login.RenameCredential(_renaming(row))
        response = await update_credential()
        if response.held_by:
            raise Aborted("another call changed the same account; try again")
    return not response.ended


def _renaming(row: Any) -> login_pb2.RenameCredentialRequest:
    return login_pb2.RenameCredentialRequest(user_id=row.id, names=[row.name, row.email], version=row.version)


def _now() -> int:
    return time.time_ns() // 1000
