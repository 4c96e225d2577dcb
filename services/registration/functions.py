"""Functions of registration.v1.Registration.

This module checks permissions. ``accounts`` keeps an account consistent with its credential in login.
"""

from __future__ import annotations

import asyncio
import base64
import random
from typing import TYPE_CHECKING, Any

from google.protobuf.empty_pb2 import Empty
from login.v1 import login_pb2
from login.v1.login_pb2_grpc import LoginStub
from registration.v1 import registration_pb2 as pb
from sqlalchemy import select

from mesh import (
    Aborted,
    AlreadyExists,
    Context,
    InvalidArgument,
    PermissionDenied,
    Secret,
    Service,
    StatusError,
    Unauthenticated,
    validate,
)
from services.registration import accounts, rules
from services.registration.accounts import ADMIN
from services.registration.tables import ACTIVE, users

PAGE, LARGEST_PAGE = 50, 500
CHECK_TIMEOUT = 2.0
"""Seconds that the start waits for login to compare the first admin's password."""
MAX_ATTEMPTS = 5
"""Attempts to make the first admin, when several replicas do it at once."""


def _text(setting: object) -> str:
    return setting.reveal() if isinstance(setting, Secret) else str(setting or "")


async def startup(service: Service) -> None:
    """Make the first admin, if the settings name one. Replicas may start at the same time.

    Raises:
        ValueError: The settings are not valid.
    """
    wanted = {field: _text(service.settings.get(f"admin_{field}")) for field in ("name", "email", "password")}
    if not wanted["password"]:
        service.log.info(
            "no first admin: set the secret that admin_password of [services.%s.settings] names, for example "
            "by `mesh secrets set admin_password`, to have one",
            service.name,
        )
        return
    try:
        validate(pb.RegisterRequest(**wanted))
        wanted = rules.checked(wanted)
    except InvalidArgument as error:
        raise ValueError(f"[services.{service.name}.settings] admin_{error.message}") from None
    problem = ""
    for _ in range(MAX_ATTEMPTS):
        async with service.transaction() as tx:
            row = (
                await tx.execute(
                    select(users).where(users.c.name_key == rules.fold(wanted["name"]), users.c.state == ACTIVE)
                )
            ).one_or_none()
        if row is not None:
            if ADMIN not in row.roles:
                service.log.warning("no first admin: the name %s belongs to an ordinary account", row.name)
            else:
                await _compare(service, row, wanted["password"])
            return
        try:
            await accounts.create(service, **wanted, roles=[ADMIN])
        except (AlreadyExists, Aborted) as error:  # perhaps another replica is making it
            problem = error.message
            await asyncio.sleep(random.uniform(0.05, 0.5))  # noqa: S311 - to separate the replicas
        else:
            service.log.info("the first admin is %s", wanted["name"])
            return
    service.log.warning("no first admin: %s", problem)


async def _compare(service: Service, row: Any, password: str) -> None:
    """Log a warning if the admin has another password than the configured one."""
    request = login_pb2.CheckPasswordRequest(user_id=row.id, password=password)
    try:
        answer = await service.stub(LoginStub).CheckPassword(request, timeout=CHECK_TIMEOUT)
    except StatusError:
        service.log.info("login could not compare the password of the admin %s with admin_password", row.name)
        return
    if not answer.matches:
        service.log.warning(
            "admin_password was not applied: the account %s exists and has another password. Log in with that one and "
            "change it by login.v1.Login/ChangePassword, or remove admin_password from the settings",
            row.name,
        )


async def register(request: pb.RegisterRequest, context: Context) -> pb.User:
    """Make an account."""
    wanted = rules.checked({"name": request.name, "email": request.email, "password": request.password})
    return _user(await accounts.create(context, **wanted))


async def get_user(request: pb.GetUserRequest, context: Context) -> pb.User:
    """Return an account."""
    user_id = _allowed(request.id, context)
    return _user(await accounts.find(context, user_id))


async def list_users(request: pb.ListUsersRequest, context: Context) -> pb.ListUsersResponse:
    """Return a page of accounts, in order of their folded names."""
    size = min(request.page_size or PAGE, LARGEST_PAGE)
    query = select(users).where(users.c.state == ACTIVE).order_by(users.c.name_key).limit(size + 1)
    if request.page_token:
        query = query.where(users.c.name_key > _after(request.page_token))
    async with context.transaction() as tx:
        rows = (await tx.execute(query)).all()
    page, more = rows[:size], rows[size:]
    token = base64.urlsafe_b64encode(page[-1].name_key.encode()).decode() if more else ""
    return pb.ListUsersResponse(users=[_user(row) for row in page], next_page_token=token)


async def update_user(request: pb.UpdateUserRequest, context: Context) -> pb.User:
    """Change name or e-mail address of an account."""
    user_id = _allowed(request.user.id, context)
    fields = list(request.update_mask.paths) or [field for field in ("name", "email") if getattr(request.user, field)]
    unknown = [field for field in fields if field not in ("name", "email")]
    if unknown:
        text = f"may hold name and email, not {', '.join(unknown)}"
        raise InvalidArgument(f"update_mask {text}", violations={"update_mask": text})
    if not fields:
        text = "must hold a new name or email"
        raise InvalidArgument(f"user {text}", violations={"user": text})
    changes = rules.checked({field: getattr(request.user, field) for field in fields}, "user.")
    await accounts.find(context, user_id)
    return _user(await accounts.change(context, user_id, changes))


async def grant_role(request: pb.GrantRoleRequest, context: Context) -> pb.User:
    """Grant a role to an account."""
    return await _change_role(request.id, request.role, context, held=True)


async def revoke_role(request: pb.RevokeRoleRequest, context: Context) -> pb.User:
    """Revoke a role of an account."""
    return await _change_role(request.id, request.role, context, held=False)


async def _change_role(user_id: str, role: str, context: Context, *, held: bool) -> pb.User:
    user_id = _allowed(user_id, context)
    admin = context.identity.subject if context.identity else None
    by = admin or context.caller or ""
    row = await accounts.change_role(context, user_id, role, held=held, admin=admin, by=by)
    context.log.info("roles of user %s are %s, changed by %s", user_id, row.roles, by)
    return _user(row)


async def delete_user(request: pb.DeleteUserRequest, context: Context) -> Empty:
    """Delete an account."""
    user_id = _allowed(request.id, context)
    await accounts.find(context, user_id)
    await accounts.remove(context, user_id)
    return Empty()


def _allowed(user_id: str, context: Context) -> str:
    """Return the id of the requested account, if the caller may access it.

    A service of the mesh that calls without a user may access any account. The contract requires it to declare the
    call.

    Raises:
        PermissionDenied: The account belongs to another user. The message does not reveal whether it exists.
    """
    identity = context.identity
    if not user_id:
        text = "must not be empty; `me` is one's own account"
        raise InvalidArgument(f"id {text}", violations={"id": text})
    if user_id == "me":
        if identity is None:
            raise Unauthenticated("`me` needs a user: send `authorization: Bearer TOKEN`")
        return identity.subject
    if identity is None or user_id == identity.subject or ADMIN in identity.roles:
        return user_id
    raise PermissionDenied("this is not your account; `me` is")


def _after(token: str) -> str:
    try:
        return base64.b64decode(token.encode(), altchars=b"-_", validate=True).decode()
    except ValueError:
        text = "must be a next_page_token as it was given"
        raise InvalidArgument(f"page_token {text}", violations={"page_token": text}) from None


def _user(row: Any) -> pb.User:
    user = pb.User(id=row.id, name=row.name, email=row.email, roles=row.roles)
    user.create_time.FromMicroseconds(row.created_at)
    user.update_time.FromMicroseconds(row.updated_at)
    return user


if TYPE_CHECKING:  # type checkers report functions that are missing or have other types than the contract
    from registration.v1.registration_pb2_grpc import RegistrationFunctions

    from services.registration import functions  # noqa: PLW0406 - this module, to be checked

    _: RegistrationFunctions = functions
