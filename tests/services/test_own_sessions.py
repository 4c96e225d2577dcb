"""What users and admins do with sessions and passwords."""

from __future__ import annotations

import pytest
from login.v1 import login_pb2 as pb
from sample import Sample

from mesh import FailedPrecondition, Identity, InvalidArgument, PermissionDenied, Unauthenticated

ADMIN = Identity("root", frozenset({"admin"}))


async def listed(sample: Sample, identity: Identity, user_id: str = "") -> list[pb.Session]:
    answer = await sample.login.call("ListSessions", pb.ListSessionsRequest(user_id=user_id), identity=identity)
    return list(answer.sessions)


async def test_sessions_are_listed_and_ended_by_their_user(sample: Sample):
    await sample.register("ada")
    here, there = await sample.log_in("ada"), await sample.log_in("ada")
    identity, other = await sample.verify(here.access_token), await sample.verify(there.access_token)
    found = await listed(sample, identity)
    assert {session.id: session.current for session in found} == {
        identity.claims["sid"]: True,
        other.claims["sid"]: False,
    }
    assert all(s.expire_time.seconds - s.create_time.seconds == 30 * 86_400 for s in found)
    for _ in range(2):
        request = pb.EndSessionRequest(id=other.claims["sid"])
        await sample.login.call("EndSession", request, identity=identity)
    with pytest.raises(Unauthenticated):
        await sample.refresh(there.refresh_token)
    assert [session.current for session in await listed(sample, identity)] == [True]
    await sample.login.call("EndSessions", pb.EndSessionsRequest(), identity=identity)
    with pytest.raises(Unauthenticated):
        await sample.refresh(here.refresh_token)
    assert await listed(sample, identity) == []


async def test_another_users_sessions_are_an_admins_only(sample: Sample):
    ada, _ = await sample.register("ada"), await sample.register("grace")
    tokens = [await sample.log_in("ada") for _ in range(3)]
    grace = await sample.identity("grace")
    first = (await sample.verify(tokens[0].access_token)).claims["sid"]
    for name, request in (
        ("ListSessions", pb.ListSessionsRequest(user_id=ada.id)),
        ("EndSessions", pb.EndSessionsRequest(user_id=ada.id)),
    ):
        with pytest.raises(PermissionDenied, match="not your sessions"):
            await sample.login.call(name, request, identity=grace)
    await sample.login.call("EndSession", pb.EndSessionRequest(id=first), identity=grace)  # says nothing, does nothing
    assert len(await listed(sample, ADMIN, ada.id)) == 3
    await sample.login.call("EndSession", pb.EndSessionRequest(id=first), identity=ADMIN)
    with pytest.raises(Unauthenticated):
        await sample.refresh(tokens[0].refresh_token)
    await sample.login.call("EndSessions", pb.EndSessionsRequest(user_id=ada.id), identity=ADMIN)
    with pytest.raises(Unauthenticated):
        await sample.refresh(tokens[1].refresh_token)
    assert await listed(sample, ADMIN, ada.id) == []
    assert len(await listed(sample, grace)) == 1


async def test_a_changed_password_ends_the_other_sessions(sample: Sample):
    await sample.register("ada")
    here, there = await sample.log_in("ada"), await sample.log_in("ada")
    identity = await sample.verify(here.access_token)

    async def change(current: str, new: str, identity: Identity = identity) -> None:
        request = pb.ChangePasswordRequest(current_password=current, new_password=new)
        await sample.login.call("ChangePassword", request, identity=identity)

    with pytest.raises(PermissionDenied, match="current password is wrong"):
        await change("wrong horse", "battery staple")
    with pytest.raises(InvalidArgument, match="at least 8 characters") as caught:
        await change("correct horse", "short")
    assert caught.value.details[0].field_violations[0].field == "new_password"
    await sample.refresh(there.refresh_token)
    there = await sample.log_in("ada")
    await change("correct horse", "battery staple")
    with pytest.raises(Unauthenticated):
        await sample.refresh(there.refresh_token)
    await sample.refresh(here.refresh_token)
    with pytest.raises(Unauthenticated):
        await sample.log_in("ada", "correct horse")
    await sample.log_in("ada", "battery staple")
    with pytest.raises(FailedPrecondition, match="no password here"):
        await change("correct horse", "battery staple", Identity("another issuer's"))
