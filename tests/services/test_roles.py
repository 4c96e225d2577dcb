"""Roles: who grants and revokes them, what follows, and that an event that comes again or late changes nothing."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from audit.v1 import audit_pb2
from login.v1 import login_pb2
from registration.v1 import events_pb2 as events
from registration.v1 import registration_pb2 as pb
from sample import Sample
from sqlalchemy import update

from mesh import FailedPrecondition, Identity, InvalidArgument, NotFound, PermissionDenied, StatusError, Unauthenticated
from services.registration.tables import users


async def admin(sample: Sample, name: str) -> Identity:
    """Register an admin."""
    user = await sample.register(name)
    async with sample.registration.transaction() as tx:
        await tx.execute(update(users).where(users.c.id == user.id).values(roles=["admin"]))
    return Identity(user.id, frozenset({"admin"}))


async def grant(sample: Sample, by: Identity, user_id: str, role: str = "admin") -> Any:
    return await sample.registration.call("GrantRole", pb.GrantRoleRequest(id=user_id, role=role), identity=by)


async def revoke(sample: Sample, by: Identity, user_id: str, role: str = "admin") -> Any:
    return await sample.registration.call("RevokeRole", pb.RevokeRoleRequest(id=user_id, role=role), identity=by)


async def test_roles_reach_the_next_tokens_and_the_audit_log(sample: Sample):
    root, ada = await admin(sample, "root"), await sample.register("ada")
    tokens = await sample.log_in("ada")
    assert list((await grant(sample, root, ada.id, "editor")).roles) == ["editor"]
    assert list((await grant(sample, root, ada.id)).roles) == ["admin", "editor"]
    assert list((await grant(sample, root, ada.id)).roles) == ["admin", "editor"]  # no second event
    await sample.settle()
    tokens = await sample.refresh(tokens.refresh_token)
    assert (await sample.verify(tokens.access_token)).roles == {"admin", "editor"}
    assert list((await revoke(sample, root, ada.id)).roles) == ["editor"]
    await sample.settle()
    tokens = await sample.refresh(tokens.refresh_token)
    assert (await sample.verify(tokens.access_token)).roles == {"editor"}
    assert sample.audit is not None
    request = audit_pb2.ListRecordsRequest(user_id=ada.id, type="registration.v1.UserRolesChanged")
    records = (await sample.audit.call("ListRecords", request)).records
    found = [(list(record.event["roles"]), record.event["version"], record.event["changedBy"]) for record in records]
    assert found == [
        (["editor"], "4", root.subject),
        (["admin", "editor"], "3", root.subject),
        (["editor"], "2", root.subject),
    ]


async def test_the_last_admin_stays(sample: Sample):
    root, ada = await admin(sample, "root"), await sample.register("ada")
    with pytest.raises(FailedPrecondition, match="the last admin"):
        await revoke(sample, root, "me")
    with pytest.raises(FailedPrecondition, match="the last admin"):
        await sample.registration.call("DeleteUser", pb.DeleteUserRequest(id="me"), identity=root)
    await grant(sample, root, ada.id)
    await revoke(sample, root, "me")
    with pytest.raises(PermissionDenied, match="not an admin's"):  # the access token still says so
        await grant(sample, root, root.subject)
    with pytest.raises(FailedPrecondition, match="the last admin"):
        await revoke(sample, Identity(ada.id, frozenset({"admin"})), ada.id)


async def test_two_admins_cannot_depose_each_other(sample: Sample):
    one, two = await admin(sample, "one"), await admin(sample, "two")
    results = await asyncio.gather(
        revoke(sample, one, two.subject), revoke(sample, two, one.subject), return_exceptions=True
    )
    assert sum(isinstance(result, pb.User) for result in results) == 1
    assert sum(isinstance(result, StatusError) for result in results) == 1


async def test_what_cannot_be_is_named(sample: Sample):
    root = await admin(sample, "root")
    for role in ("", "Admin", "a b", "a" * 33, "x\0"):
        with pytest.raises(InvalidArgument, match=r"role: (value is required|must be at most 32|does not match regex)"):
            await grant(sample, root, "me", role)
    with pytest.raises(NotFound):
        await grant(sample, root, "nobody")
    with pytest.raises(PermissionDenied):
        await grant(sample, Identity("nobody", frozenset({"admin"})), root.subject)


async def test_older_events_change_nothing(sample: Sample):
    root, ada = await admin(sample, "root"), await sample.register("ada")
    await grant(sample, root, ada.id)
    await revoke(sample, root, ada.id)
    renamed = pb.UpdateUserRequest(user=pb.User(id="me", name="lovelace"))
    await sample.registration.call("UpdateUser", renamed, identity=Identity(ada.id))
    await sample.settle()
    for old in (
        events.UserRolesChanged(user_id=ada.id, roles=["admin"], version=2),  # a replay of the grant
        events.UserRolesChanged(user_id=ada.id, roles=["admin"], version=3),
        events.UserUpdated(user_id=ada.id, name="ada", email="ada@example.com", version=3),
        events.UserRegistered(user_id=ada.id, name="ada", roles=["admin"], version=1),
    ):
        name = f"On{old.DESCRIPTOR.name}"
        await sample.login.call(name, old)
    again = login_pb2.SetCredentialRequest(  # of the registration, late
        user_id=ada.id, names=["ada"], password="battery staple", roles=["admin"], version=1
    )
    assert not (await sample.login.call("SetCredential", again)).ended
    identity = await sample.identity("lovelace")
    assert not identity.roles
    for login, password in (("ada", "correct horse"), ("lovelace", "battery staple")):
        with pytest.raises(Unauthenticated):
            await sample.log_in(login, password)


async def test_a_version_of_names_does_not_pass_over_roles(sample: Sample):
    """Events of two types come in any order."""
    root, ada = await admin(sample, "root"), await sample.register("ada")
    await grant(sample, root, ada.id)  # version 2; its event waits
    renamed = pb.UpdateUserRequest(user=pb.User(id="me", name="lovelace"))
    await sample.registration.call("UpdateUser", renamed, identity=Identity(ada.id))  # version 3, by a call
    await sample.settle()
    assert (await sample.identity("lovelace")).roles == {"admin"}


async def test_every_event_has_a_version_above_the_one_before(sample: Sample):
    root, ada = await admin(sample, "root"), await sample.register("ada")
    await grant(sample, root, ada.id)
    renamed = pb.UpdateUserRequest(user=pb.User(id="me", name="lovelace"))
    await sample.registration.call("UpdateUser", renamed, identity=Identity(ada.id))
    await sample.registration.call("DeleteUser", pb.DeleteUserRequest(id="me"), identity=Identity(ada.id))
    await sample.settle()
    assert sample.audit is not None
    records = (await sample.audit.call("ListRecords", audit_pb2.ListRecordsRequest(user_id=ada.id))).records
    versions = [(r.type.rpartition(".")[2], r.event["version"]) for r in records if r.HasField("event")][::-1]
    assert versions == [("UserRegistered", "1"), ("UserRolesChanged", "2"), ("UserUpdated", "3"), ("UserDeleted", "4")]
