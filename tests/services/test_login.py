"""Sessions: one cost for every refusal, rotation, reuse, keys."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Any

import argon2
import pytest
from google.protobuf import json_format
from login.v1 import login_pb2 as pb
from meshapi.v1 import annotations_pb2 as meshapi
from registration.v1 import events_pb2 as events
from sample import Sample
from sqlalchemy import delete, select, text, update

from mesh import FailedPrecondition, Identity, InvalidArgument, StatusError, Unauthenticated, Unavailable
from services.login import functions, passwords, settings, signing
from services.login.tables import credentials, refresh_tokens, sessions, signing_keys


async def count(sample: Sample, table: Any) -> int:
    async with sample.login.transaction() as tx:
        return len((await tx.execute(select(table))).all())


async def test_tokens_are_as_oauth_says_and_verify_with_the_published_keys(sample: Sample):
    user = await sample.register("ada")
    tokens = await sample.log_in("ada")
    assert (tokens.token_type, tokens.expires_in) == ("Bearer", 900)
    identity = await sample.verify(tokens.access_token)
    assert identity.subject == user.id
    assert identity.claims["exp"] - identity.claims["iat"] == 900
    assert json_format.MessageToDict(tokens)["expiresIn"] == 900
    answer = json_format.MessageToDict(await sample.login.call("GetKeys", pb.GetKeysRequest()))
    assert [set(key) for key in answer["keys"]] == [{"kty", "crv", "x", "kid", "alg", "use"}]
    assert (answer["keys"][0]["kty"], answer["keys"][0]["crv"]) == ("OKP", "Ed25519")


async def test_unknown_user_and_wrong_password_are_the_same_at_the_same_cost(
    sample: Sample, monkeypatch: pytest.MonkeyPatch
):
    await sample.register("ada")
    compared: list[str] = []
    real = passwords._hasher

    class Counting:  # the cost is one comparison with these parameters; a clock would measure the machine
        def verify(self, stored: str, password: str) -> bool:
            compared.append(stored.rsplit("$", 2)[0])
            return bool(real.verify(stored, password))

        def __getattr__(self, name: str) -> object:
            return getattr(real, name)

    monkeypatch.setattr(passwords, "_hasher", Counting())
    for login in ("ada", "nobody", "ada@example.com"):
        with pytest.raises(Unauthenticated, match=r"^UNAUTHENTICATED: wrong name or password$"):
            await sample.log_in(login, "wrong password")
        assert compared == ["$argon2id$v=19$m=19456,t=2,p=1"]
        compared.clear()


@pytest.mark.parametrize("login", ["", "ada"])
async def test_empty_fields_are_named(sample: Sample, login: str):
    with pytest.raises(InvalidArgument, match="password: value is required"):
        await sample.log_in(login, "")
    with pytest.raises(InvalidArgument, match="refresh_token: value is required"):
        await sample.refresh("")


async def test_odd_texts_are_refused_not_failures(sample: Sample):
    await sample.register("ada")
    for login, password in (
        ("ada\0", "x"),
        ("a" * 10_000, "x"),
        ("ada", "x" * 100_000),
        ("ada", "\0"),
        ("ADA\u0301", "x"),
    ):
        with pytest.raises((Unauthenticated, InvalidArgument)):
            await sample.log_in(login, password)
    with pytest.raises(Unauthenticated):
        await sample.refresh("\0")


async def test_a_huge_password_costs_no_more_than_a_wrong_one(sample: Sample):
    """Bringing U+FDFA into one form makes 18 characters of it: 4 MiB took the event loop 2.6 s."""
    await sample.register("ada")
    began = time.monotonic()
    with pytest.raises(Unauthenticated, match=r"^UNAUTHENTICATED: wrong name or password$"):
        await sample.log_in("ada", "\ufdfa" * 1_300_000)
    with pytest.raises(InvalidArgument, match="login: must be at most 320 characters"):
        await sample.log_in("\ufdfa" * 1_300_000, "wrong password")
    with pytest.raises(InvalidArgument, match="password must have 8 to 128 characters"):
        passwords.check("\ufdfa" * 1_300_000)
    assert time.monotonic() - began < 1.5


async def test_a_password_is_the_same_in_every_unicode_spelling(sample: Sample):
    await sample.register("ada", password="pa\u0308sswo\u0308rter")
    await sample.log_in("ada", "p\u00e4ssw\u00f6rter")


async def test_a_hash_of_older_parameters_is_made_anew_at_login(sample: Sample):
    await sample.register("ada")
    old = argon2.PasswordHasher(time_cost=1, memory_cost=8192, parallelism=1).hash("correct horse")
    async with sample.login.transaction() as tx:
        await tx.execute(update(credentials).values(password_hash=old))
    await sample.log_in("ada")
    async with sample.login.transaction() as tx:
        stored = (await tx.execute(select(credentials.c.password_hash))).scalar_one()
    assert stored.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    await sample.log_in("ada")


async def test_a_refresh_token_works_once_and_rotates(sample: Sample):
    user = await sample.register("ada")
    first = await sample.log_in("ada")
    second = await sample.refresh(first.refresh_token)
    third = await sample.refresh(second.refresh_token)
    assert len({first.refresh_token, second.refresh_token, third.refresh_token}) == 3
    assert (await sample.verify(third.access_token)).subject == user.id
    async with sample.login.transaction() as tx:
        stored = str((await tx.execute(select(refresh_tokens))).all())
    assert not any(token in stored for token in (first.refresh_token, second.refresh_token, third.refresh_token))


async def test_a_refresh_token_used_again_ends_its_session_alone(sample: Sample, caplog: pytest.LogCaptureFixture):
    user = await sample.register("ada")
    other = await sample.log_in("ada")
    first = await sample.log_in("ada")
    second = await sample.refresh(first.refresh_token)
    for token in (first.refresh_token, second.refresh_token, first.refresh_token, "made up"):
        with pytest.raises(Unauthenticated, match="log in again"):
            await sample.refresh(token)
    assert f"a refresh token of user {user.id} was used again" in caplog.text
    assert await count(sample, sessions) == 1
    await sample.refresh(other.refresh_token)


async def test_of_concurrent_uses_at_most_one_works_and_the_session_ends(sample: Sample):
    await sample.register("ada")
    first = await sample.log_in("ada")
    results = await asyncio.gather(*(sample.refresh(first.refresh_token) for _ in range(6)), return_exceptions=True)
    worked = [result for result in results if isinstance(result, pb.Tokens)]
    assert len(worked) == 1
    assert all(isinstance(result, (pb.Tokens, Unauthenticated)) for result in results), results
    with pytest.raises(Unauthenticated):
        await sample.refresh(worked[0].refresh_token)
    assert await count(sample, sessions) == 0
    assert await count(sample, refresh_tokens) == 0


async def test_a_refresh_and_the_end_of_its_session_do_not_wait_for_each_other(new_postgres: Callable[[], str]):
    """A DELETE of the session locks its row, and then, by its cascade, its tokens: a refresh has to lock in that order.

    The other one is a deadlock, which PostgreSQL ends with the failure of either after a second.
    """
    sample = Sample(new_postgres(), new_postgres())
    await sample.start()
    try:
        await sample.register("ada")
        tokens = await sample.log_in("ada")
        async with sample.login.transaction() as tx:
            await tx.execute(select(sessions.c.id).with_for_update())  # as far as the DELETE has come
            refreshing = asyncio.create_task(sample.refresh(tokens.refresh_token))
            waiting = text("SELECT count(*) FROM pg_locks WHERE NOT granted")
            async with asyncio.timeout(10):
                while not (await tx.execute(waiting)).scalar_one():  # noqa: ASYNC110 - what is waited for is in the server
                    await asyncio.sleep(0.01)
            await tx.execute(delete(sessions))
        with pytest.raises(Unauthenticated):
            await refreshing
        assert await count(sample, sessions) == await count(sample, refresh_tokens) == 0
    finally:
        await sample.stop()


async def test_logout_ends_the_session_of_the_token(sample: Sample):
    await sample.register("ada")
    staying, leaving = await sample.log_in("ada"), await sample.log_in("ada")
    identity = await sample.verify(leaving.access_token)
    for _ in range(2):
        await sample.login.call("Logout", pb.LogoutRequest(), identity=identity)
    with pytest.raises(Unauthenticated):
        await sample.refresh(leaving.refresh_token)
    await sample.refresh(staying.refresh_token)
    with pytest.raises(Unauthenticated, match="with the access token of the session"):
        await sample.login.call("Logout", pb.LogoutRequest(), identity=Identity("another issuer's"))


async def test_a_session_that_is_not_used_expires(sample: Sample, monkeypatch: pytest.MonkeyPatch):
    await sample.register("ada")
    first = await sample.log_in("ada")
    begun = functions._now()
    monkeypatch.setattr(functions, "_now", lambda: begun + 30 * 86_400 - 5)
    second = await sample.refresh(first.refresh_token)  # used in time: it lives on
    monkeypatch.setattr(functions, "_now", lambda: begun + 45 * 86_400)
    third = await sample.refresh(second.refresh_token)
    monkeypatch.setattr(functions, "_now", lambda: begun + 80 * 86_400)
    with pytest.raises(Unauthenticated):
        await sample.refresh(third.refresh_token)
    await sample.log_in("ada")
    assert await count(sample, sessions) == 1  # the dead one is cleared away


async def test_a_credential_that_is_deleted_while_its_password_is_compared_lets_nobody_in(
    sample: Sample, monkeypatch: pytest.MonkeyPatch
):
    user = await sample.register("ada")
    verify = passwords.verify

    async def slow(stored: str | None, password: str, time_left: float | None) -> bool:
        answer = await verify(stored, password, time_left)
        await sample.login.call("DeleteCredentials", pb.DeleteCredentialsRequest(user_ids=[user.id]))
        return answer

    monkeypatch.setattr(passwords, "verify", slow)
    with pytest.raises(Unauthenticated):
        await sample.log_in("ada")
    assert await count(sample, sessions) == 0


async def test_keys_rotate_and_the_last_one_stays_published_until_its_tokens_expire(sample: Sample):
    rules = settings.read({"key_days": "1"})
    day = 86_400
    begun = functions._now()
    first = await signing.current_key(sample.login, rules, begun)
    assert (await signing.current_key(sample.login, rules, begun + day - 100)).kid == first.kid
    second = await signing.current_key(sample.login, rules, begun + day + 1)

    async def published(now: int) -> list[str]:
        answer = await signing.published(sample.login, rules, now)
        return [key.kid for key in answer.keys]

    assert await published(begun + day + 60) == [second.kid, first.kid]
    assert await published(begun + day + 900 + 302) == [second.kid]
    third = await signing.current_key(sample.login, rules, begun + 2 * day + 2)
    assert await published(begun + 2 * day + 60) == [third.kid, second.kid]
    assert await count(sample, signing_keys) == 2  # what can sign nothing any more is gone


async def test_replicas_make_one_key(new_database: Callable[[], str]):
    url, unused = new_database(), new_database()
    replicas = [Sample(unused, url) for _ in range(3)]
    await asyncio.gather(*(replica.login.database.start() for replica in replicas))
    try:
        await asyncio.gather(*(replica.login.functions.startup(replica.login) for replica in replicas))
        assert await count(replicas[0], signing_keys) == 1
    finally:
        for replica in replicas:
            await replica.stop()


@pytest.mark.parametrize("value", ["soon", "0", -1, 1.5])
async def test_settings_that_cannot_be_right_are_named(sample: Sample, value: object):
    sample.login.settings["access_minutes"] = value
    with pytest.raises(
        ValueError, match=r"^\[services.login.settings\] access_minutes: expected a whole number above 0"
    ):
        await functions.startup(sample.login)


async def test_late_news_changes_nothing(sample: Sample):
    async def rename(version: int, *names: str) -> Any:
        request = pb.RenameCredentialRequest(user_id="u1", names=names, version=version)
        return await sample.login.call("RenameCredential", request)

    async def set_(user_id: str, *names: str) -> Any:
        request = pb.SetCredentialRequest(user_id=user_id, names=names, password="correct horse", version=1)
        return await sample.login.call("SetCredential", request)

    assert (await rename(1, "ada")).ended
    await set_("u1", "ada")
    await sample.login.call("OnUserRegistered", events.UserRegistered(user_id="u1"))
    await rename(3, "third")
    await rename(2, "second")
    assert (await sample.identity("third")).subject == "u1"
    await set_("u2", "second")
    assert list((await rename(4, "fourth", "SECOND")).held_by) == ["u2"]
    assert (await sample.identity("third")).subject == "u1"
    await sample.login.call("DeleteCredentials", pb.DeleteCredentialsRequest(user_ids=["u1", "never"]))
    assert (await rename(5, "fifth")).ended
    assert (await set_("u1", "fifth")).ended
    assert (await set_("never", "fifth")).ended


async def test_concurrent_claims_of_a_name_have_one_holder(sample: Sample):
    async def claim(user_id: str) -> Any:
        request = pb.SetCredentialRequest(user_id=user_id, names=["ada"], password="correct horse", version=1)
        return await sample.login.call("SetCredential", request)

    answers = await asyncio.gather(*(claim(f"u{n}") for n in range(5)), return_exceptions=True)
    assert all(isinstance(answer, (pb.CredentialResponse, StatusError)) for answer in answers), answers
    for number in range(5):
        with contextlib.suppress(FailedPrecondition):  # those that lost have no credential
            await sample.login.call("OnUserRegistered", events.UserRegistered(user_id=f"u{number}"))
    holder = (await sample.identity("ada")).subject
    won = [
        f"u{n}" for n, answer in enumerate(answers) if isinstance(answer, pb.CredentialResponse) and not answer.held_by
    ]
    assert won == [holder]


async def test_credentials_that_replace_each_other_are_both_answered(sample: Sample, monkeypatch: pytest.MonkeyPatch):
    async def at_once(*_: object) -> str:  # hashing would part the calls
        return "hash"

    monkeypatch.setattr(passwords, "hashed", at_once)

    async def set_(user_id: str, *replaces: str) -> Any:
        request = pb.SetCredentialRequest(user_id=user_id, names=[user_id], password="correct horse", version=1)
        request.replaces.extend(replaces)
        return await sample.login.call("SetCredential", request)

    pairs = [(f"a{n}", f"b{n}") for n in range(10)]
    answers = await asyncio.gather(*(set_(*ids) for pair in pairs for ids in (pair, pair[::-1])))
    for first, second in zip(answers[::2], answers[1::2], strict=True):
        assert first.ended or second.ended  # who comes second finds a tombstone


@pytest.mark.parametrize(
    "request_",
    [
        pb.SetCredentialRequest(user_id="u", names=["ada"], password="short"),
        pb.SetCredentialRequest(names=["ada"], password="correct horse"),
        pb.SetCredentialRequest(user_id="u", password="correct horse"),
    ],
)
async def test_a_credential_needs_user_names_and_password(sample: Sample, request_: pb.SetCredentialRequest):
    with pytest.raises(InvalidArgument):
        await sample.login.call("SetCredential", request_)


async def test_a_session_that_lasts_keeps_no_token_for_ever(sample: Sample, monkeypatch: pytest.MonkeyPatch):
    await sample.register("ada")
    token, now = (await sample.log_in("ada")).refresh_token, int(time.time())
    for day in range(0, 60, 10):
        monkeypatch.setattr(functions, "_now", lambda day=day: now + day * 86_400)
        token = (await sample.refresh(token)).refresh_token
    assert await count(sample, refresh_tokens) == 5  # those of the last 30 days, and the one to use next


async def test_nobody_logs_in_before_registration_is_complete(sample: Sample, monkeypatch: pytest.MonkeyPatch):
    request = pb.SetCredentialRequest(user_id="u1", names=["ada"], password="correct horse", version=1)
    await sample.login.call("SetCredential", request)
    with pytest.raises(Unauthenticated, match="wrong name or password"):
        await sample.log_in("ada", "wrong horse")
    waiting = asyncio.create_task(sample.log_in("ada"))  # just registered: it waits for the event
    await asyncio.sleep(0)
    await sample.login.call("OnUserRegistered", events.UserRegistered(user_id="u1"))
    assert (await sample.verify((await waiting).access_token)).subject == "u1"
    await sample.login.call("SetCredential", request)  # again, by a call that came late: it stays active
    await sample.log_in("ada")
    await sample.login.call("SetCredential", pb.SetCredentialRequest(user_id="u2", **GRACE))
    monkeypatch.setattr(functions, "ACTIVE_POLL_DELAYS", (0.01, 0.01))
    with pytest.raises(Unavailable, match="not complete yet"):
        await sample.log_in("grace")


GRACE: dict[str, Any] = {"names": ["grace"], "password": "correct horse", "version": 1}


async def test_events_come_again_and_late(sample: Sample):
    user = await sample.register("ada")
    registered, deleted = events.UserRegistered(user_id=user.id), events.UserDeleted(user_id=user.id)
    await sample.login.call("OnUserRegistered", registered)
    tokens = await sample.log_in("ada")
    for _ in range(2):
        await sample.login.call("OnUserDeleted", deleted)
    await sample.login.call("OnUserRegistered", registered)
    for attempt in (sample.log_in("ada"), sample.refresh(tokens.refresh_token)):
        with pytest.raises(Unauthenticated):
            await attempt
    await sample.login.call("OnUserUpdated", events.UserUpdated(user_id=user.id, name="b", email="b", version=9))
    with pytest.raises(FailedPrecondition, match="without a credential"):
        await sample.login.call("OnUserRegistered", events.UserRegistered(user_id="nobody"))


async def test_a_name_that_is_still_anothers_is_tried_again(sample: Sample):
    ada, grace = await sample.register("ada"), await sample.register("grace")
    mine = events.UserUpdated(user_id=ada.id, name="grace", email="ada@example.com", version=2)
    with pytest.raises(Unavailable, match=f"still belongs to {grace.id}"):
        await sample.login.call("OnUserUpdated", mine)
    theirs = events.UserUpdated(user_id=grace.id, name="hopper", email="grace@example.com", version=2)
    await sample.login.call("OnUserUpdated", theirs)
    await sample.login.call("OnUserUpdated", mine)
    assert [(await sample.identity(name)).subject for name in ("grace", "hopper")] == [ada.id, grace.id]


async def test_expired_sessions_are_purged(sample: Sample):
    await sample.register("ada")
    await sample.log_in("ada")
    await sample.log_in("ada")
    expires = int(time.time()) + 30 * 86_400
    async with sample.login.transaction() as tx:
        first = (await tx.execute(select(sessions.c.id).limit(1))).scalar_one()
        await tx.execute(update(sessions).where(sessions.c.id == first).values(expires_at=expires - 7200))
    for ahead, left in ((-7260, 2), (-3600, 1), (60, 0)):
        tick = meshapi.Tick(schedule="7 * * * *")
        tick.time.FromSeconds(expires + ahead)
        await sample.login.call("PurgeSessions", tick)
        assert (await count(sample, sessions), await count(sample, refresh_tokens)) == (left, left)
