"""Recovery of an account: the same for every name, with a token that works once and is stored nowhere."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from login.v1 import events_pb2
from login.v1 import login_pb2 as pb
from meshapi.v1 import annotations_pb2 as meshapi
from registration.v1 import registration_pb2
from sample import Sample
from sqlalchemy import select

from mesh import Identity, InvalidArgument, ResourceExhausted, Unauthenticated
from mesh.events.cloudevents import Event
from mesh.events.publish import outbox
from services.login import functions
from services.login.tables import recoveries, sessions


async def request(sample: Sample, login: str, address: str = "") -> str:
    """Request a recovery and return the id that its event has."""
    await sample.login.call("RequestRecovery", pb.RequestRecoveryRequest(login=login), address=address)
    async with sample.login.transaction() as tx:
        rows = [row for row in await outbox.read(tx) if b"RecoveryRequested" in str(row).encode()]
    message = sample._encode(rows[-1])
    event = Event.from_message(message.headers, message.data)
    found = events_pb2.RecoveryRequested.FromString(event.data)
    async with sample.login.transaction() as tx:
        row = (await tx.execute(select(recoveries).where(recoveries.c.id == found.recovery_id))).one()
    assert found.expire_time.seconds == row.expires_at
    return found.recovery_id


async def issue(sample: Sample, recovery_id: str) -> pb.IssueRecoveryResponse:
    answer: pb.IssueRecoveryResponse = await sample.login.call(
        "IssueRecovery", pb.IssueRecoveryRequest(recovery_id=recovery_id), caller="mailer"
    )
    return answer


async def recover(sample: Sample, token: str, password: str = "battery staple") -> None:
    await sample.login.call("Recover", pb.RecoverRequest(token=token, new_password=password))


async def test_a_recovery_sets_the_password_and_ends_all_sessions(sample: Sample, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    ada, grace = await sample.register("ada"), await sample.register("grace")
    held = [await sample.log_in("ada"), await sample.log_in("ada"), await sample.log_in("grace")]
    issued = await issue(sample, await request(sample, " ADA@example.com "))
    assert issued.user_id == ada.id
    for _ in range(5):  # a user who is locked out recovers
        with pytest.raises(Unauthenticated):
            await sample.log_in("ada", "forgotten")
    await recover(sample, issued.token)
    await sample.log_in("ada", "battery staple")
    for one in held[:2]:
        with pytest.raises(Unauthenticated):
            await sample.refresh(one.refresh_token)
    await sample.refresh(held[2].refresh_token)
    async with sample.login.transaction() as tx:
        assert len((await tx.execute(select(sessions).where(sessions.c.user_id == grace.id))).all()) == 1
        stored = str((await tx.execute(select(recoveries))).all()) + str(await outbox.read(tx))
    assert f"user {ada.id} has recovered the account" in caplog.text
    assert not [text for text in (issued.token, "battery") if text in caplog.text + stored]


async def test_a_token_works_once_and_the_last_one_counts(sample: Sample):
    await sample.register("ada")
    first, other = await request(sample, "ada"), await request(sample, "ada")
    replaced, current, second = [await issue(sample, one) for one in (first, first, other)]
    for wrong in (replaced.token, first, "made up"):
        with pytest.raises(Unauthenticated, match="the recovery token is not valid"):
            await recover(sample, wrong)
    with pytest.raises(InvalidArgument):
        await recover(sample, current.token, "short")
    await recover(sample, current.token)
    for used in (current.token, second.token):  # those of other requests end too
        with pytest.raises(Unauthenticated):
            await recover(sample, used, "another password")
    await sample.log_in("ada", "battery staple")
    assert await issue(sample, other) == pb.IssueRecoveryResponse()


@pytest.mark.parametrize("how", ["recovered", "changed"])
async def test_a_new_password_ends_the_recoveries_that_wait_for_their_token_too(sample: Sample, how: str):
    ada = await sample.register("ada")
    ids = [await request(sample, name) for name in ("ada", "ADA@example.com", "ada", "another")]
    issued = await issue(sample, ids[0])
    if how == "recovered":
        await recover(sample, issued.token)
    else:
        change = pb.ChangePasswordRequest(current_password="correct horse", new_password="battery staple")
        await sample.login.call("ChangePassword", change, identity=Identity(ada.id))
        with pytest.raises(Unauthenticated, match="the recovery token is not valid"):
            await recover(sample, issued.token, "of a thief")
    assert [await issue(sample, one) for one in ids] == [pb.IssueRecoveryResponse()] * 4
    await sample.log_in("ada", "battery staple")
    async with sample.login.transaction() as tx:
        assert len((await tx.execute(select(recoveries))).all()) == 1  # of the name that nobody has


async def test_a_recovery_expires(sample: Sample, monkeypatch: pytest.MonkeyPatch):
    await sample.register("ada")
    recovery_id = await request(sample, "ada")
    issued = await issue(sample, recovery_id)
    now = functions._now()
    tick = meshapi.Tick(schedule="7 * * * *")
    for later, left in ((30 * 60 - 5, 1), (30 * 60 + 5, 0)):
        tick.time.FromSeconds(now + later)
        if not left:
            monkeypatch.setattr(functions, "_now", lambda: now + 30 * 60 + 5)
            with pytest.raises(Unauthenticated):
                await recover(sample, issued.token)
            assert await issue(sample, recovery_id) == pb.IssueRecoveryResponse()
        await sample.login.call("PurgeSessions", tick)
        async with sample.login.transaction() as tx:
            assert len((await tx.execute(select(recoveries))).all()) == left
    await sample.log_in("ada")


async def test_every_name_is_answered_by_the_same_statements(sample: Sample):
    """What a request does cannot tell whether there is an account: it never looks for one."""
    ada = await sample.register("ada")
    gone = await sample.register("gone")
    await sample.registration.call(
        "DeleteUser", registration_pb2.DeleteUserRequest(id="me"), identity=Identity(gone.id)
    )
    executed: dict[str, list[str]] = {}
    for name in ("ada", "nobody", "gone"):
        statements = executed[name] = []
        begin = sample.login.database.transaction

        def transaction(begin: Any = begin, statements: list[str] = statements) -> Any:
            return Recorded(begin(), statements)

        sample.login.transaction = transaction  # type: ignore[method-assign]
        await sample.login.call("RequestRecovery", pb.RequestRecoveryRequest(login=name))
        sample.login.transaction = begin  # type: ignore[method-assign]
    assert executed["ada"] == executed["nobody"] == executed["gone"]
    assert not [text for text in executed["ada"] if "handles" in text or "credentials" in text]
    assert (await issue(sample, await request(sample, "nobody"))) == pb.IssueRecoveryResponse()
    assert (await issue(sample, await request(sample, "gone"))) == pb.IssueRecoveryResponse()
    assert (await issue(sample, await request(sample, "ada"))).user_id == ada.id


class Recorded:
    """A transaction whose statements are noted."""

    def __init__(self, transaction: Any, statements: list[str]) -> None:
        self._transaction, self._statements = transaction, statements

    async def __aenter__(self) -> Any:
        self._tx = await self._transaction.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> Any:
        return await self._transaction.__aexit__(*error)

    async def execute(self, statement: Any, parameters: Any = None) -> Any:
        self._statements.append(str(statement))
        return await self._tx.execute(statement, parameters)

    async def publish(self, event: Any) -> None:
        self._statements.append(type(event).__name__)
        await self._tx.publish(event)


@pytest.mark.parametrize("login", ["ada", "nobody"])
async def test_requests_for_one_name_are_limited_known_or_not(sample: Sample, login: str):
    await sample.register("ada")
    for number in range(4):
        await request(sample, login, f"192.0.2.{number}")
    with pytest.raises(ResourceExhausted):
        await request(sample, login, "192.0.2.9")
    await request(sample, "another", "192.0.2.9")


async def test_requests_that_come_together_are_limited_like_those_in_a_row(
    sample: Sample, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(functions, "_now", lambda: 1_800_000_000)
    found = await asyncio.gather(
        *(sample.login.call("RequestRecovery", pb.RequestRecoveryRequest(login="ada")) for _ in range(20)),
        return_exceptions=True,
    )
    assert sum(isinstance(one, ResourceExhausted) for one in found) == 16, found
    async with sample.login.transaction() as tx:
        assert len((await tx.execute(select(recoveries))).all()) == 4
