"""What the functions of login revoke, and the stream that says so, on each database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from login.v1 import login_pb2 as pb
from meshapi.v1 import annotations_pb2 as meshapi
from meshapi.v1 import revocations_pb2
from registration.v1 import registration_pb2
from sample import Sample
from sqlalchemy import select

from mesh import Identity, Unauthenticated
from mesh.call import Metadata
from services.login import functions, revocations
from services.login.tables import revocations as table

ADMIN = Identity("root", frozenset({"admin"}))


class Watch:
    """One call of WatchRevocations."""

    def __init__(self, updates: AsyncIterator[revocations_pb2.RevocationUpdate]) -> None:
        self._updates = updates

    async def next(self) -> revocations_pb2.RevocationUpdate:
        return await asyncio.wait_for(anext(self._updates), 10)

    async def snapshot(self) -> list[revocations_pb2.Revocation]:
        found = []
        while not (update := await self.next()).HasField("snapshot_end"):
            found.append(update.revocation)
        return found

    async def revocation(self) -> revocations_pb2.Revocation:
        while not (update := await self.next()).HasField("revocation"):
            assert update.HasField("heartbeat")
        return update.revocation


@asynccontextmanager
async def watching(sample: Sample) -> AsyncIterator[Watch]:
    updates = functions.watch_revocations(None, sample.login.context("WatchRevocations", Metadata()))
    try:
        yield Watch(updates)
    finally:
        await updates.aclose()


async def in_force(sample: Sample) -> list[tuple[str, str]]:
    async with watching(sample) as watch:
        found = await watch.snapshot()
    return [(kind, getattr(one, kind)) for one in found if (kind := one.WhichOneof("tokens"))]


async def test_each_end_of_a_session_revokes_its_tokens(sample: Sample) -> None:
    ada = await sample.register("ada")
    tokens = [await sample.log_in("ada") for _ in range(6)]
    users = [await sample.verify(one.access_token) for one in tokens]
    sessions = [user.claims["sid"] for user in users]
    expected = []

    async def check(*ended: Any) -> None:
        expected.extend(ended)
        assert await in_force(sample) == expected

    await check()
    await sample.login.call("Logout", pb.LogoutRequest(), identity=users[0])
    await check(("session", sessions[0]))
    await sample.login.call("Logout", pb.LogoutRequest(), identity=users[0])  # it has ended
    await sample.login.call("EndSession", pb.EndSessionRequest(id="made up"), identity=ADMIN)
    await check()
    await sample.login.call("EndSession", pb.EndSessionRequest(id=sessions[1]), identity=users[2])
    await check(("session", sessions[1]))
    await sample.refresh(tokens[2].refresh_token)
    with pytest.raises(Unauthenticated):
        await sample.refresh(tokens[2].refresh_token)
    await check(("session", sessions[2]))
    change = pb.ChangePasswordRequest(current_password="correct horse", new_password="battery staple")
    await sample.login.call("ChangePassword", change, identity=users[5])
    assert sorted((await in_force(sample))[3:]) == sorted(("session", one) for one in sessions[3:5])
    await sample.login.call("EndSessions", pb.EndSessionsRequest(user_id=ada.id), identity=ADMIN)
    assert (await in_force(sample))[5:] == [("session", sessions[5])]
    me = Identity(ada.id)
    await sample.registration.call("DeleteUser", registration_pb2.DeleteUserRequest(id="me"), identity=me)
    await sample.settle()  # the event comes besides the call, and revokes nothing twice
    assert (await in_force(sample))[6:] == [("subject", ada.id)]


async def test_a_lost_role_revokes_the_tokens_that_have_it(sample: Sample) -> None:
    ada, grace = await sample.register("ada"), await sample.register("grace")

    async def role(method: str, user_id: str) -> None:
        kind = getattr(registration_pb2, f"{method}Request")
        await sample.registration.call(method, kind(id=user_id, role="admin"), caller="a service")
        await sample.settle()

    await role("GrantRole", grace.id)
    await role("GrantRole", ada.id)
    old = await sample.log_in("ada")
    before = await sample.verify(old.access_token)
    assert await in_force(sample) == []  # a new role takes nothing away
    async with watching(sample) as watch:
        await watch.snapshot()
        await role("RevokeRole", ada.id)
        revoked = await watch.revocation()
    assert revoked.subject == ada.id
    assert before.claims["iat"] < revoked.not_before.seconds
    assert before.claims["exp"] <= revoked.forget_at.seconds
    for tokens in (await sample.refresh(old.refresh_token), await sample.log_in("ada")):
        after = await sample.verify(tokens.access_token)
        assert after.claims["iat"] >= revoked.not_before.seconds  # so they are accepted at once
        assert not after.roles


async def test_a_watch_hears_of_its_own_replica_at_once_and_of_others_soon(
    sample: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    await sample.register("ada")
    user = await sample.identity("ada")
    context = sample.login.context("WatchRevocations", Metadata())
    async with watching(sample) as watch:
        assert await watch.snapshot() == []
        monkeypatch.setattr(revocations, "POLL_INTERVAL", 60.0)
        waiting = asyncio.ensure_future(watch.revocation())
        await asyncio.sleep(0)
        await sample.login.call("Logout", pb.LogoutRequest(), identity=user)
        assert (await waiting).session == user.claims["sid"]
    monkeypatch.setattr(revocations, "POLL_INTERVAL", 0.01)
    async with watching(sample) as watch:
        assert len(await watch.snapshot()) == 1
        async with sample.login.transaction() as tx:  # as another replica does: this process is told nothing
            await revocations.revoke_sessions(tx, context, ["other"])
        assert (await watch.revocation()).session == "other"
        assert (await watch.next()).HasField("heartbeat")


async def test_a_long_snapshot_is_read_in_pages(sample: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(revocations, "PAGE", 2)
    context = sample.login.context("WatchRevocations", Metadata())
    async with sample.login.transaction() as tx:
        await revocations.revoke_sessions(tx, context, [f"s{number}" for number in range(5)])
    assert await in_force(sample) == [("session", f"s{number}") for number in range(5)]


async def test_revocations_are_sent_while_a_component_accepts_their_tokens_and_then_deleted(
    sample: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = sample.login.context("WatchRevocations", Metadata())
    async with sample.login.transaction() as tx:
        await revocations.revoke_sessions(tx, context, ["s1"])
        forget_at = (await tx.execute(select(table.c.forget_at))).scalar_one()
    tick = meshapi.Tick(schedule="7 * * * *")
    for later, left in ((revocations.LEEWAY_SECONDS - 1, 1), (revocations.LEEWAY_SECONDS, 0)):
        monkeypatch.setattr(revocations, "time", SimpleNamespace(time=lambda at=forget_at + later: float(at)))
        assert len(await in_force(sample)) == left
        tick.time.FromSeconds(forget_at + later)
        await sample.login.call("PurgeSessions", tick)
        async with sample.login.transaction() as tx:
            assert len((await tx.execute(select(table))).all()) == left
