"""Accounts: rules, uniqueness, who may what, and what a crash leaves."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.rpc import error_details_pb2
from registration.v1 import registration_pb2 as pb
from sample import Sample
from sqlalchemy import select

from mesh import (
    Aborted,
    AlreadyExists,
    Identity,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    StatusError,
    Unauthenticated,
    Unavailable,
)
from mesh.events.cloudevents import Event
from mesh.events.publish import outbox
from services.login import functions as login_functions
from services.login import lockout
from services.registration.tables import users

ADMIN = Identity("root", frozenset({"admin"}))


def violations(error: StatusError) -> dict[str, str]:
    detail = error.details[0]
    assert isinstance(detail, error_details_pb2.BadRequest)
    return {violation.field: violation.description for violation in detail.field_violations}


async def states(sample: Sample) -> list[tuple[str, str]]:
    async with sample.registration.transaction() as tx:
        return [tuple(row) for row in (await tx.execute(select(users.c.name, users.c.state))).all()]


async def test_a_user_registers_logs_in_and_reads_the_account(sample: Sample):
    user = await sample.register("Ada", "Ada@Example.com")
    assert (user.name, user.email, list(user.roles)) == ("Ada", "Ada@example.com", [])
    assert user.create_time.seconds > 0
    for login in ("Ada", "ada", "ADA@example.COM", " ada "):
        identity = await sample.identity(login)
        assert identity.subject == user.id
    me = await sample.registration.call("GetUser", pb.GetUserRequest(id="me"), identity=identity)
    assert me.id == user.id
    assert me == await sample.registration.call("GetUser", pb.GetUserRequest(id=user.id), identity=identity)


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({"name": "", "email": "", "password": ""}, {"name", "email", "password"}),
        ({"name": "ab"}, {"name"}),
        ({"name": "a" * 33}, {"name"}),
        ({"name": "1ab"}, {"name"}),
        ({"name": "a b"}, {"name"}),
        ({"name": "ada\n"}, {"name"}),
        ({"name": "äda"}, {"name"}),
        ({"name": "ada\0"}, {"name"}),
        ({"email": "ada"}, {"email"}),
        ({"email": "ada@"}, {"email"}),
        ({"email": "ada@localhost"}, {"email"}),
        ({"password": "short"}, {"password"}),
        ({"password": "x" * 129}, {"password"}),
    ],
)
async def test_what_cannot_be_is_said_for_each_field(sample: Sample, fields: dict[str, str], wrong: set[str]):
    given = {"name": "ada", "email": "ada@example.com", "password": "correct horse", **fields}
    with pytest.raises(InvalidArgument) as caught:
        await sample.registration.call("Register", pb.RegisterRequest(**given))
    assert set(violations(caught.value)) == wrong
    assert not await states(sample)


async def test_huge_texts_are_refused_before_they_are_looked_at(sample: Sample):
    """To find the faults of such an address took the event loop 3.5 s."""
    began = time.monotonic()
    with pytest.raises(InvalidArgument) as caught:
        await sample.register("ada", email="a" * 2_000_000 + "@example.com", password="\ufdfa" * 700_000)
    assert caught.value.message == "email: must be at most 320 characters (string.max_len)"
    assert time.monotonic() - began < 1.0


@pytest.mark.parametrize("name", ["abc", "A.b_c-9", "a" * 32])
@pytest.mark.parametrize("password", ["x" * 8, "x" * 128, "pässwörter", "        "])
async def test_what_may_be_works(sample: Sample, name: str, password: str):
    await sample.register(name, password=password)
    await sample.log_in(name, password)


@pytest.mark.parametrize(
    ("name", "email", "field"),
    [("ADA", "other@example.com", "name"), ("other", "ADA@EXAMPLE.COM", "email"), ("ada", "ada@example.com", "name")],
)
async def test_what_is_taken_is_named_without_regard_to_case(sample: Sample, name: str, email: str, field: str):
    await sample.register("Ada", "ada@example.com")
    with pytest.raises(AlreadyExists, match=f"^ALREADY_EXISTS: {field}: "):
        await sample.register(name, email)
    assert await states(sample) == [("Ada", "active")]
    await sample.log_in("ada")


async def test_of_many_at_once_exactly_one_wins_and_its_password_is_the_one(sample: Sample):
    async def attempt(number: int) -> Any:
        return await sample.register("ada", f"ada{number}@example.com", f"password {number}")

    results = await asyncio.gather(*(attempt(number) for number in range(8)), return_exceptions=True)
    winners = [number for number, result in enumerate(results) if not isinstance(result, BaseException)]
    assert len(winners) == 1
    assert all(isinstance(r, (AlreadyExists, Aborted, pb.User)) for r in results), results
    assert any("name: " in str(result) for result in results)
    assert await states(sample) == [("ada", "active")]
    for number in range(8):
        if number in winners:
            assert (await sample.identity("ada", f"password {number}")).subject == results[number].id  # type: ignore[union-attr]
        else:
            for login in ("ada", f"ada{number}@example.com"):
                with pytest.raises(Unauthenticated):
                    await sample.log_in(login, f"password {number}")
                async with sample.login.transaction() as tx:  # so many failures lock the name
                    await lockout.clear(tx, lockout.of_login(login, None))


async def test_a_crash_before_the_credential_blocks_nobody(sample: Sample):
    set_credential = sample.login.functions.set_credential

    async def fail(request: Any, context: Any) -> Any:
        raise OSError("killed")

    sample.login.functions.set_credential = fail
    try:
        with pytest.raises(OSError, match="killed"):
            await sample.register("ada")
    finally:
        sample.login.functions.set_credential = set_credential
    assert await states(sample) == [("ada", "pending")]
    await sample.register("ada", password="another password")
    assert await states(sample) == [("ada", "active")]
    await sample.log_in("ada", "another password")


async def test_a_slow_attempt_neither_wins_nor_sets_the_password(sample: Sample):
    """The first attempt sleeps before its credential; the second does everything; then the first wakes."""
    asleep, wake = asyncio.Event(), asyncio.Event()
    set_credential = sample.login.functions.set_credential
    calls = 0

    async def slow(request: Any, context: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 1:
            asleep.set()
            await wake.wait()
        return await set_credential(request, context)

    sample.login.functions.set_credential = slow
    try:
        first = asyncio.create_task(sample.register("ada", "first@example.com", "first password"))
        await asleep.wait()
        second = await sample.register("ada", "second@example.com", "second password")
        wake.set()
        with pytest.raises(AlreadyExists, match="name: "):
            await first
    finally:
        sample.login.functions.set_credential = set_credential
    assert (await sample.identity("ada", "second password")).subject == second.id
    for login in ("ada", "first@example.com"):
        with pytest.raises(Unauthenticated):
            await sample.log_in(login, "first password")
    await sample.register("first", "first@example.com")


async def test_an_attempt_that_was_taken_over_is_ended(sample: Sample, monkeypatch: pytest.MonkeyPatch):
    """The first attempt has set its credential and sleeps before activation; the second takes over."""
    asleep, wake = asyncio.Event(), asyncio.Event()

    async def sleep() -> None:
        del sample.registration.after["SetCredential"]
        asleep.set()
        await wake.wait()

    sample.registration.after["SetCredential"] = sleep
    first = asyncio.create_task(sample.register("ada", "ada@example.com", "first password"))
    await asleep.wait()
    monkeypatch.setattr(login_functions, "ACTIVE_POLL_DELAYS", ())
    with pytest.raises(Unavailable):  # the credential is there, but nobody has registered
        await sample.log_in("ada", "first password")
    await sample.register("other", "ADA@example.com", "second password")
    wake.set()
    with pytest.raises(AlreadyExists, match="email: "):
        await first
    for attempt in (
        sample.log_in("ada", "first password"),
        sample.log_in("ada@example.com", "first password"),
    ):
        with pytest.raises(Unauthenticated):
            await attempt
    await sample.log_in("other", "second password")


CRASH = """
import asyncio, os, signal, sys
sys.path[:0] = sys.argv[1:4]
from sample import Sample

async def die():
    os.kill(os.getpid(), signal.SIGKILL)

async def main():
    sample = Sample(sys.argv[4], sys.argv[5])
    sample.registration.after[sys.argv[6]] = die
    await sample.start()
    if sys.argv[6] == "SetCredential":
        await sample.register("ada", "ada@example.com", "first password")
    else:
        from registration.v1 import registration_pb2 as pb
        identity = await sample.identity("ada")
        request = pb.UpdateUserRequest(user=pb.User(id="me", name="lovelace"))
        if sys.argv[6] == "before":
            sample.login.functions.rename_credential = lambda *_: die()
        await sample.registration.call("UpdateUser", request, identity=identity)

asyncio.run(main())
"""


async def crash(registration_url: str, login_url: str, where: str) -> None:
    """Run a process that is killed at that place."""
    here = Path(__file__).parent
    root = here.parent.parent
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", CRASH, str(here), str(root / "gen"), str(root), registration_url, login_url, where,
        stderr=subprocess.PIPE,
    )  # fmt: skip
    _, stderr = await process.communicate()
    assert process.returncode == -signal.SIGKILL, stderr.decode()


@pytest.mark.parametrize("retry", ["register again", "log in", "another's name", "another's address"])
async def test_a_process_killed_between_the_writes_blocks_no_retry(
    new_database: Callable[[], str], retry: str, monkeypatch: pytest.MonkeyPatch
):
    urls = new_database(), new_database()
    await crash(*urls, "SetCredential")
    sample = Sample(*urls)
    await sample.start()
    try:
        assert await states(sample) == [("ada", "pending")]
        if retry == "log in":  # Register has not answered: there is no account yet
            monkeypatch.setattr(login_functions, "ACTIVE_POLL_DELAYS", ())
            with pytest.raises(Unavailable, match="not complete yet"):
                await sample.log_in("ada", "first password")
            return
        name = "grace" if retry == "another's address" else "ada"
        email = "grace@example.com" if retry == "another's name" else "ada@example.com"
        user = await sample.register(name, email, "second password")
        assert await states(sample) == [(name, "active")]
        assert (await sample.identity(email, "second password")).subject == user.id
        for login in ("ada", "ada@example.com"):
            with pytest.raises(Unauthenticated):
                await sample.log_in(login, "first password")
    finally:
        await sample.stop()


@pytest.mark.parametrize("retry", ["the same change", "another's registration", "nobody does anything"])
async def test_a_process_killed_between_the_writes_of_a_change(new_database: Callable[[], str], retry: str):
    urls = new_database(), new_database()
    sample = Sample(*urls)
    await sample.start()
    try:
        ada = await sample.register("ada")
        await crash(*urls, "before")
        identity = await sample.identity("ada")  # login has not heard of it
        if retry == "the same change":
            request = pb.UpdateUserRequest(user=pb.User(id="me", name="lovelace"))
            assert (await sample.registration.call("UpdateUser", request, identity=identity)).name == "lovelace"
            with pytest.raises(Unauthenticated):
                await sample.log_in("ada")
        elif retry == "nobody does anything":  # the event completes it
            await sample.settle()
        else:  # the name is free here, and login learns it
            await sample.register("ada", "new@example.com", "second password")
            await sample.log_in("ada", "second password")
        assert (await sample.identity("lovelace")).subject == ada.id
    finally:
        await sample.stop()


async def test_a_name_that_login_still_keeps_for_a_deleted_row_is_freed(sample: Sample):
    ada = await sample.register("ada")
    async with sample.registration.transaction() as tx:
        await tx.execute(users.delete())
    again = await sample.register("ada", password="second password")
    assert again.id != ada.id
    assert (await sample.identity("ada", "second password")).subject == again.id


async def test_only_ones_own_account_unless_admin(sample: Sample):
    ada, grace = await sample.register("ada"), await sample.register("grace")
    own = Identity(ada.id)
    requests = [
        ("GetUser", pb.GetUserRequest(id=grace.id)),
        ("GetUser", pb.GetUserRequest(id="unknown")),
        ("UpdateUser", pb.UpdateUserRequest(user=pb.User(id=grace.id, name="hopper"))),
        ("DeleteUser", pb.DeleteUserRequest(id=grace.id)),
    ]
    for name, request in requests:
        with pytest.raises(PermissionDenied, match="this is not your account"):
            await sample.registration.call(name, request, identity=own)
    with pytest.raises(NotFound, match="no account with the id 'unknown'"):
        await sample.registration.call("GetUser", pb.GetUserRequest(id="unknown"), identity=ADMIN)
    assert (await sample.registration.call("GetUser", pb.GetUserRequest(id=ada.id), identity=ADMIN)).name == "ada"
    assert (await sample.registration.call("GetUser", pb.GetUserRequest(id=ada.id), caller="audit")).name == "ada"
    with pytest.raises(Unauthenticated, match="`me` needs a user"):
        await sample.registration.call("GetUser", pb.GetUserRequest(id="me"), caller="audit")
    with pytest.raises(InvalidArgument):
        await sample.registration.call("GetUser", pb.GetUserRequest(), identity=own)


async def test_pages_hold_everyone_once_in_order_of_names(sample: Sample):
    for name in ("dora", "Bob", "carol", "Alice", "eve"):
        await sample.register(name)
    names, token = [], ""
    while True:
        page = await sample.registration.call("ListUsers", pb.ListUsersRequest(page_size=2, page_token=token))
        names += [user.name for user in page.users]
        token = page.next_page_token
        if not token:
            break
    assert names == ["Alice", "Bob", "carol", "dora", "eve"]
    everyone = await sample.registration.call("ListUsers", pb.ListUsersRequest())
    assert (len(everyone.users), everyone.next_page_token) == (5, "")
    for wrong in ({"page_size": -1}, {"page_token": "?"}, {"page_token": "äö"}, {"page_token": "gICA"}):
        with pytest.raises(InvalidArgument) as caught:
            await sample.registration.call("ListUsers", pb.ListUsersRequest(**wrong))  # type: ignore[arg-type]
        assert set(violations(caught.value)) == set(wrong)


async def test_an_account_is_changed_by_mask(sample: Sample):
    ada = await sample.register("ada")
    await sample.register("grace")
    own = Identity(ada.id)

    async def change(mask: list[str] | None = None, **fields: str) -> Any:
        request = pb.UpdateUserRequest(
            user=pb.User(**{"id": "me", **fields}),  # type: ignore[arg-type]
            update_mask=None if mask is None else FieldMask(paths=mask),
        )
        return await sample.registration.call("UpdateUser", request, identity=own)

    changed = await change(name="Lovelace")
    assert (changed.name, changed.email) == ("Lovelace", "ada@example.com")
    assert changed.update_time.ToMicroseconds() > ada.update_time.ToMicroseconds()
    await sample.log_in("lovelace")
    with pytest.raises(Unauthenticated):
        await sample.log_in("ada")
    changed = await change(["email"], name="ignored", email="a.l@example.com")
    assert (changed.name, changed.email) == ("Lovelace", "a.l@example.com")
    assert await change(["email"], email="a.l@example.com") == changed  # again: nothing new
    with pytest.raises(AlreadyExists, match="name: "):
        await change(name="GRACE")
    with pytest.raises(AlreadyExists, match="email: "):
        await change(email="grace@example.com")
    for arguments, field in (
        ({"mask": ["roles"]}, "update_mask"),
        ({"mask": ["name"]}, "user.name"),
        ({"name": "x"}, "user.name"),
        ({}, "user"),
    ):
        with pytest.raises(InvalidArgument) as caught:
            await change(**arguments)  # type: ignore[arg-type]
        assert set(violations(caught.value)) == {field}
    assert (await change(name="LOVELACE")).name == "LOVELACE"  # one's own name in another case


async def test_a_pending_name_does_not_block_a_change(new_database: Callable[[], str]):
    urls = new_database(), new_database()
    sample = Sample(*urls)
    await sample.start()
    try:
        grace = await sample.register("grace")
        await crash(*urls, "SetCredential")
        request = pb.UpdateUserRequest(user=pb.User(id="me", name="ada"))
        await sample.registration.call("UpdateUser", request, identity=Identity(grace.id))
        assert (await sample.identity("ada")).subject == grace.id
        with pytest.raises(Unauthenticated):
            await sample.log_in("ada@example.com", "first password")
    finally:
        await sample.stop()


async def test_a_deleted_account_is_gone_and_its_name_free(sample: Sample):
    ada = await sample.register("ada")
    tokens = await sample.log_in("ada")
    own = await sample.verify(tokens.access_token)
    await sample.registration.call("DeleteUser", pb.DeleteUserRequest(id="me"), identity=own)
    for attempt in (sample.log_in("ada"), sample.refresh(tokens.refresh_token)):
        with pytest.raises(Unauthenticated):
            await attempt
    for name, request in (
        ("GetUser", pb.GetUserRequest(id="me")), ("DeleteUser", pb.DeleteUserRequest(id="me")),
        ("UpdateUser", pb.UpdateUserRequest(user=pb.User(id="me", name="lovelace"))),
    ):  # fmt: skip
        with pytest.raises(NotFound):
            await sample.registration.call(name, request, identity=own)
    again = await sample.register("ada", password="second password")
    assert again.id != ada.id
    await sample.log_in("ada", "second password")


async def test_login_going_away_is_the_callers_to_retry(sample: Sample):
    await sample.login.database.stop()
    with pytest.raises(Unavailable):
        await sample.register("ada")
    await sample.login.database.start()
    await sample.register("ada")


async def test_the_first_admin_comes_from_the_settings(
    new_database: Callable[[], str], caplog: pytest.LogCaptureFixture
):
    urls = new_database(), new_database()
    settings = {"admin_name": "root", "admin_email": "root@example.com"}
    caplog.set_level(logging.INFO)
    for password in ("", "correct horse", "changed meanwhile"):
        sample = Sample(*urls, **settings, admin_password=password)
        await sample.start()
        try:
            assert len(await states(sample)) == (1 if password else 0)
            if password:
                assert "admin" in (await sample.identity("root", "correct horse")).roles
        finally:
            await sample.stop()
    assert caplog.text.count("admin_password was not applied: the account root exists") == 1
    assert "changed meanwhile" not in caplog.text
    assert "set the secret that admin_password of [services.registration.settings] names" in caplog.text
    wrong = Sample(*urls, **{**settings, "admin_name": "?"}, admin_password="correct horse")
    with pytest.raises(ValueError, match=r"^\[services.registration.settings\] admin_name: must be at least 3"):
        await wrong.start()
    await wrong.stop()


async def test_an_ordinary_account_is_never_made_admin(sample: Sample, caplog: pytest.LogCaptureFixture):
    await sample.register("root")
    sample.registration.settings.update(admin_name="Root", admin_email="r@example.com", admin_password="correct horse")
    await sample.registration.functions.startup(sample.registration)
    assert "the name root belongs to an ordinary account" in caplog.text
    assert not (await sample.identity("root")).roles


async def test_replicas_make_one_admin(new_database: Callable[[], str]):
    urls = new_database(), new_database()
    settings = {"admin_name": "root", "admin_email": "root@example.com", "admin_password": "correct horse"}
    replicas = [Sample(*urls, **settings) for _ in range(3)]
    await asyncio.gather(*(replica.login.database.start() for replica in replicas))
    await asyncio.gather(*(replica.registration.database.start() for replica in replicas))
    try:
        await asyncio.gather(*(replica.registration.functions.startup(replica.registration) for replica in replicas))
        assert await states(replicas[0]) == [("root", "active")]
        await replicas[0].settle()
        assert (await replicas[0].identity("root")).roles == {"admin"}
    finally:
        for replica in replicas:
            await replica.stop()


async def test_what_happens_is_published_in_its_transaction(sample: Sample):
    async def published() -> list[tuple[str, str]]:
        async with sample.registration.transaction() as tx:
            found = [
                Event.from_message(json.loads(row.headers), row.data) for row in await outbox.read(tx) if row.headers
            ]
        await sample.settle()
        return [(event.type.removeprefix("registration.v1."), event.key) for event in found]

    request = pb.RegisterRequest(name="ada", email="ada@example.com", password="correct horse")
    ada = await sample.registration.call("Register", request)
    own = Identity(ada.id)
    assert await published() == [("UserRegistered", ada.id)]
    with pytest.raises(AlreadyExists):
        await sample.registration.call("Register", request)
    assert await published() == []
    change = pb.UpdateUserRequest(user=pb.User(id="me", name="lovelace"))
    for _ in range(2):  # the second changes nothing
        await sample.registration.call("UpdateUser", change, identity=own)
    assert await published() == [("UserUpdated", ada.id)]
    await sample.registration.call("DeleteUser", pb.DeleteUserRequest(id="me"), identity=own)
    assert await published() == [("UserDeleted", ada.id)]


async def test_a_deletion_that_login_could_not_be_told_reaches_it_by_the_event(
    sample: Sample, caplog: pytest.LogCaptureFixture
):
    ada = await sample.register("ada")
    await sample.login.database.stop()
    await sample.registration.call("DeleteUser", pb.DeleteUserRequest(id="me"), identity=Identity(ada.id))
    assert "login could not be told" in caplog.text
    await sample.login.database.start()
    await sample.log_in("ada")
    await sample.settle()
    with pytest.raises(Unauthenticated):
        await sample.log_in("ada")
